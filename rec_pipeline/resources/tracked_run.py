"""One MLflow run: what is told of it, at once or, where MLflow does not answer, by the next Dagster run."""

import base64
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd

from rec_pipeline.engine.errors import TrackingUnavailableError
from rec_pipeline.resources.mlflow_spool import Patience, PatientClient, Spool

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """
    An open MLflow run, or what will become one when MLflow answers again.

    Attributes
    ----------
    client
        None for a run to come.
    experiment_id, run_id
        MLflow's ids; of a run to come none, and ``spooled-`` before what will be its tag ``spool.key``.
    url
        Page of the run in the MLflow UI, for ``MetadataValue.url``; of the UI itself while there is no run.
    spool, header
        Where it is written down what MLflow cannot be told, and of which run.
    """

    client: PatientClient | None
    experiment_id: str
    run_id: str
    url: str
    spool: Spool
    header: Mapping[str, Any]

    @property
    def link(self) -> dg.UrlMetadataValue:
        """The run as metadata of the asset."""
        return dg.MetadataValue.url(self.url)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings, one value a key."""
        self._tell("params", params={key: str(value) for key, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers at ``step`` (an epoch; 0 when unset). ``ndcg@10`` becomes ``ndcg_10``: MLflow knows no ``@``."""
        now = int(datetime.now(UTC).timestamp() * 1000)
        numbers = {key.replace("@", "_"): float(value) for key, value in metrics.items()}
        self._tell("metrics", metrics=numbers, timestamp=now, step=step or 0)

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a frame as the artefact ``name`` (``*.json``), a table in the UI that can be compared between runs."""
        self._tell("table", name=name, table=table.to_json(orient="split", index=False))

    def log_text(self, name: str, content: str) -> None:
        """Log text as the artefact ``name``, e.g. ``report.html``."""
        self.log_bytes(name, content.encode())

    def log_bytes(self, name: str, content: bytes) -> None:
        """Log bytes as the artefact ``name``, e.g. ``plots/loss.png``."""
        self._tell("bytes", name=name, content=base64.b64encode(content).decode())

    def log_dataset(self, name: str, digest: str, context: str, n_rows: int | None = None) -> None:
        """Say that data ``name`` with content digest ``digest`` was used for ``context`` (``training``, ``test``)."""
        self._tell("dataset", name=name, digest=digest, context=context, n_rows=n_rows)

    def _tell(self, what: str, **facts: Any) -> None:
        entry = {"tell": what, **facts}
        if self.client is not None:
            with given_up_on_failure(self.client.patience):
                tell(self.client, self.run_id, entry)
                return
        self.spool.append(self.header, entry)


def tell(client: Any, run_id: str, entry: Mapping[str, Any]) -> None:
    """Tell MLflow one entry of a run; telling it twice changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    match entry["tell"]:
        case "params":
            client.log_batch(run_id, params=[Param(key, value) for key, value in entry["params"].items()])
        case "metrics":
            at = (entry["timestamp"], entry["step"])
            client.log_batch(run_id, metrics=[Metric(key, value, *at) for key, value in entry["metrics"].items()])
        case "table":
            if entry["name"] not in {file.path for file in client.list_artifacts(run_id)}:  # it would be added to
                # As objects: mlflow 3.17 asks pandas 3 for object columns in a way that warns where there are str ones.
                table = pd.read_json(io.StringIO(entry["table"]), orient="split", dtype=False)
                client.log_table(run_id, table.astype(object), entry["name"])
        case "bytes":
            client.log_stream(run_id, io.BytesIO(base64.b64decode(entry["content"])), entry["name"])
        case "dataset":
            dataset = Dataset(
                name=entry["name"],
                digest=entry["digest"],
                source_type="dagster_asset",
                source=json.dumps({"asset_key": entry["name"], "data_version": entry["digest"]}),
                profile=None if entry["n_rows"] is None else json.dumps({"num_rows": entry["n_rows"]}),
            )
            tag = InputTag(MLFLOW_DATASET_CONTEXT, entry["context"])
            client.log_inputs(run_id, [DatasetInput(dataset, [tag])])


@contextmanager
def given_up_on_failure(patience: Patience, *, refusals_too: bool = True) -> Iterator[None]:
    """Swallow what shows that MLflow cannot be told now, and ask it nothing more in this run."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (TrackingUnavailableError, MlflowException) as error:
        if isinstance(error, MlflowException) and not refusals_too:
            raise
        patience.is_lost = True
        logger.warning("MLflow cannot be told now, it will be at the next run: %s", type(error).__name__)
