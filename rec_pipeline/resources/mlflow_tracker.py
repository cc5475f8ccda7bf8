"""
Experiment tracking: what a Dagster run trains and measures, as MLflow runs that can be browsed beside it.

A Dagster run is one parent run and every tracked asset a child of it; ids are linked both ways. Nothing here uses
MLflow's global state (active run, tracking URI), so steps of one process may track at the same time. MLflow is imported
when first used, which keeps it out of the time it takes to load the definitions.
"""

import fcntl
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg
from pydantic import Field, PrivateAttr

from rec_pipeline.engine.errors import ConfigurationError, TrackingUnavailableError
from rec_pipeline.resources.mlflow_spool import END, REFUSED_SUFFIX, Patience, PatientClient, Spool, SpooledRun
from rec_pipeline.resources.model_registry import ModelRegistry
from rec_pipeline.resources.provenance import git_commit
from rec_pipeline.resources.tracked_run import TrackedRun, given_up_on_failure, tell

if TYPE_CHECKING:
    from mlflow.entities import Run

RUN_ID_TAG = "mlflow/run_id"
SPOOL_TAG = "spool.key"
PATIENCE_SECONDS = 10.0
UPLOAD_BYTES_PER_SECOND = 5e6  # what an upload may take besides
PARENT_STAGE = "pipeline"
STEP_TAG = "dagster.step"
PARENT_TAG = "mlflow.parentRunId"
REGISTER = "register"
LOCAL_UI = "http://127.0.0.1:5000"
EXPERIMENT_TAGS = {
    "mlflow.note.content": (
        "One parent run per Dagster run; its children are the models and the evaluation of that run. "
        "The tag `dagster.run_url` leads back to the lineage that made a run."
    ),
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "ndcg_10",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}
# A silent server costs two attempts of five seconds, not MLflow's eight of two minutes. What the user has set wins.
CLIENT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
logger = logging.getLogger(__name__)
SERVER_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


Step: TypeAlias = dg.AssetExecutionContext | dg.OpExecutionContext


class MLflowTracker(dg.ConfigurableResource[None]):
    """Opens MLflow runs for assets and registers the model they publish."""

    folder: str = Field(description="Local folder of the SQLite store, its artefacts and the lock of this host.")
    tracking_uri: str | None = Field(default=None, description="MLflow tracking URI; SQLite in the folder when unset.")
    artifact_root: str | None = Field(
        default=None,
        description="URI of the artefacts of a new experiment; when unset, the folder for SQLite, else the server's.",
    )
    experiment_name: str = Field(default="rec_pipeline", description="Experiment that holds every run.")
    ui_url: str | None = Field(
        default=None,
        description=f"Where links to MLflow runs point; the server itself, for SQLite {LOCAL_UI}, when unset.",
    )
    dagster_url: str = Field(default="http://127.0.0.1:3000", description="Where links to Dagster runs point.")

    _patience: Patience = PrivateAttr(default_factory=lambda: Patience(PATIENCE_SECONDS))
    _patience_of: str = PrivateAttr(default="")

    def model_post_init(self, context: Any, /) -> None:
        """Wait without end for a store on this machine's disk."""
        super().model_post_init(context)
        if self.is_local:
            self._patience.seconds_left = float("inf")

    @property
    def uri(self) -> str:
        """The tracking URI in use, absolute."""
        return self.tracking_uri or f"sqlite:///{Path(self.folder).absolute() / 'mlflow.db'}"

    @property
    def is_local(self) -> bool:
        """Whether runs are kept in SQLite rather than by a server."""
        return self.uri.startswith("sqlite:")

    @property
    def client(self) -> PatientClient:
        """
        MLflow's client on an initialised store; a server is asked with the patience of one Dagster run.

        Raises
        ------
        TrackingUnavailableError
            If the store cannot be opened or the server does not answer, in at most about ten seconds.
        """
        return self._opened[0]

    @property
    def registry(self) -> ModelRegistry:
        """The registered model and its aliases."""
        return ModelRegistry(self.client)

    @property
    def spool(self) -> Spool:
        """What MLflow is still to be told."""
        return Spool(Path(self.folder).absolute() / "spool")

    @property
    def shown_uri(self) -> str:
        """The tracking URI without what a password could be in."""
        return re.sub(r"//[^/@]*@", "//***@", self.uri)

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """Return the page of a run in the MLflow UI."""
        base = self.ui_url or (LOCAL_UI if self.is_local else self.uri)
        return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"

    @contextmanager
    def child(self, context: Step, name: str) -> Iterator[TrackedRun]:
        """
        Track the running asset, or a part of the running op, as a child of the MLflow run of this Dagster run.

        The child ends as FINISHED, or as FAILED whatever is raised. The parent is never open: it is FAILED while the
        latest child of some asset is, else FINISHED.

        Parameters
        ----------
        context
            The step that materialises the asset, or an op outside the lineage.
        name
            Kind of run, e.g. ``ncf``, different for each run of an op; the run's name adds date and Dagster run.
        """
        self._begin(context.run.run_id)
        run = self._spooled_run(name, context)
        with given_up_on_failure(self._patience):
            _ = self.client  # opened before the lock, which opening takes too
            self._tell_spooled()
            with self._lock():
                self._close_abandoned(context.instance)
                parent = self._parent(context.run.run_id, context.job_name)
                run = self._create_run(name, context.run.run_id, self._child_tags(context, parent, name))
            context.instance.add_run_tags(context.run.run_id, {RUN_ID_TAG: parent})
        if run.client is None:
            context.log.warning(f"MLflow is not answering: this run is kept in {self.spool.folder} and told the next")
        try:
            yield run
        except BaseException:
            self._end(run, "FAILED")
            raise
        self._end(run, "FINISHED")

    def register_ncf(
        self,
        run: TrackedRun,
        bundle: Path,
        example_users: Sequence[str],
        description: str,
        tags: Mapping[str, Any] | None = None,
    ) -> str | None:
        """
        Register a saved serving bundle as the next version of the model and make it the challenger.

        Where MLflow does not answer that is done by the next run, if the bundle is still there.

        ``mlflow.pyfunc.load_model("models:/rec-ncf@champion")`` gives the model back wherever this package is
        installed. Its input is a frame with ``user_id``, its parameter ``top_k``. Cost: two copies of the bundle, of
        which one stays.

        Parameters
        ----------
        run
            The run that made the bundle.
        bundle
            Sealed directory of a ``ServingBundle``; what loads the model checks it against its manifest first.
        example_users
            Ids shown as the input example.
        description, tags
            Shown with the version, e.g. ``{"gate": "passed", "ndcg_10": 0.21}``.

        Returns
        -------
        str
            The version, a number from 1; None where MLflow is told later.
        """
        facts: dict[str, Any] = {
            "bundle": str(bundle),
            "example_users": list(example_users),
            "description": description,
            "tags": {key: str(value) for key, value in (tags or {}).items()},
        }
        if run.client is not None:
            size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
            self._patience.seconds_left += size / UPLOAD_BYTES_PER_SECOND
            with given_up_on_failure(self._patience, refusals_too=False):
                return self.registry.register(run.experiment_id, run.run_id, **facts)
        run.spool.append(run.header, {"tell": REGISTER, **facts})
        return None

    def runs_of(self, dagster_run: str) -> dict[str, str]:
        """Return the page of the latest MLflow run of each asset that a Dagster run tracked, by asset key."""
        runs = self._search(f"tags.`dagster.run_id` = '{dagster_run}'")
        return {
            run.data.tags["dagster.asset_key"]: self.run_url(run.info.experiment_id, run.info.run_id)
            for run in runs
            if "dagster.asset_key" in run.data.tags
        }

    def ui_command(self, port: int = 5000) -> tuple[list[str], dict[str, str]]:
        """
        Return the command that serves the MLflow UI of the local store on 127.0.0.1, and the variables to add for it.

        Raises
        ------
        ConfigurationError
            If runs are kept by a server, which has a UI already.
        """
        if not self.is_local:
            raise ConfigurationError(f"MLflow runs are kept by {self.uri}: open its own UI")
        # Initialised here, the store is not migrated by the server and by a run at the same time.
        _ = self.client
        argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        stores = ["--backend-store-uri", self.uri, "--artifacts-destination", str(self._artifact_location)]
        return argv + stores, dict(SERVER_ENVIRONMENT)

    @property
    def _artifact_location(self) -> str | None:
        if self.artifact_root is None and self.is_local:
            return (Path(self.folder).absolute() / "artifacts").as_uri()
        return self.artifact_root

    @cached_property
    def _opened(self) -> tuple[PatientClient, str]:
        for name, value in CLIENT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            # Two processes that create or migrate one SQLite store at the same time break it.
            with self._lock():
                client = PatientClient(MlflowClient(self.uri), self._patience)
                return client, self._ensure_experiment(client)
        except (MlflowException, TrackingUnavailableError) as error:
            reason = str(error).replace(self.uri, self.shown_uri)
            raise TrackingUnavailableError(f"cannot use the MLflow tracking store {self.shown_uri}: {reason}") from None

    def _ensure_experiment(self, client: PatientClient) -> str:
        experiment = client.get_experiment_by_name(self.experiment_name)
        if experiment is None:
            # Left to itself MLflow would put artefacts under the folder the process happens to run in.
            return str(client.create_experiment(self.experiment_name, self._artifact_location, EXPERIMENT_TAGS))
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "tracker.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _search(self, condition: str) -> list["Run"]:
        return list(self.client.search_runs([self._opened[1]], condition, order_by=["attributes.start_time ASC"]))

    def _parent(self, dagster_run_id: str, job_name: str) -> str:
        found = self._search(f"tags.`dagster.run_id` = '{dagster_run_id}' AND tags.stage = '{PARENT_STAGE}'")
        if found:
            return str(found[0].info.run_id)
        job = "refresh" if job_name.startswith("__") else job_name
        run_id = self._create_run(job, dagster_run_id, {"stage": PARENT_STAGE}).run_id
        self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def _create_run(self, name: str, dagster_run_id: str, tags: Mapping[str, str]) -> TrackedRun:
        header = self._header(name, dagster_run_id, tags)
        created = self.client.create_run(self._opened[1], run_name=header["name"], tags=header["tags"])
        experiment_id, run_id = created.info.experiment_id, created.info.run_id
        url = self.run_url(experiment_id, run_id)
        return TrackedRun(self.client, experiment_id, run_id, url, self.spool, {**header, "run_id": run_id})

    def _spooled_run(self, name: str, context: Step) -> TrackedRun:
        header = self._header(name, context.run.run_id, self._child_tags(context, None, name))
        header["job"] = context.job_name
        url = self.ui_url or (LOCAL_UI if self.is_local else self.shown_uri)
        return TrackedRun(None, "", f"spooled-{header['key']}", url, self.spool, header)

    def _header(self, name: str, dagster_run_id: str, tags: Mapping[str, str]) -> dict[str, Any]:
        now = datetime.now(UTC)
        key = f"{time.time_ns()}-{name}"
        return {
            "key": key,
            "run_id": None,
            "name": f"{name}-{now:%Y-%m-%d}-{dagster_run_id[:8]}",
            "start_time": int(now.timestamp() * 1000),
            "dagster_run_id": dagster_run_id,
            "tags": {
                SPOOL_TAG: key,
                "dagster.run_id": dagster_run_id,
                "dagster.run_url": f"{self.dagster_url}/runs/{dagster_run_id}",
                "process.host": socket.gethostname(),
                "process.pid": str(os.getpid()),
                **({"git.commit": commit} if (commit := git_commit()) else {}),
                **tags,
            },
        }

    @staticmethod
    def _child_tags(context: Step, parent: str | None, name: str) -> dict[str, str]:
        of_parent = {} if parent is None else {PARENT_TAG: parent}
        if isinstance(context, dg.OpExecutionContext):
            return {**of_parent, "stage": context.job_name, STEP_TAG: f"{context.op.name}/{name}"}
        key = context.asset_key
        tags = {
            **of_parent,
            STEP_TAG: key.to_user_string(),
            "dagster.asset_key": key.to_user_string(),
            "stage": context.assets_def.group_names_by_key[key],
        }
        if context.has_partition_key:
            tags["dagster.partition"] = context.partition_key
        versions = []
        for upstream in sorted(context.assets_def.asset_deps[key]):
            event = context.instance.get_latest_materialization_event(upstream)
            if event is not None and event.asset_materialization is not None:
                data_version = (event.asset_materialization.tags or {}).get("dagster/data_version")
                versions.append(f"{upstream.to_user_string()}={data_version}")
        if versions:
            tags["data.version"] = " ".join(versions)
        return tags

    def _end(self, run: TrackedRun, status: str) -> None:
        now = int(datetime.now(UTC).timestamp() * 1000)
        is_spooled = (self.spool.folder / f"{run.header['key']}.jsonl").exists()
        if not is_spooled and run.client is not None:
            with given_up_on_failure(self._patience), self._lock():
                self._terminate(run.run_id, status, now)
                return
        self.spool.append(run.header, {"tell": END, "status": status, "end_time": now})

    def _terminate(self, run_id: str, status: str, end_time: int) -> None:
        self.client.set_terminated(run_id, status, end_time)
        parent = self.client.get_run(run_id).data.tags[PARENT_TAG]
        latest = {run.data.tags[STEP_TAG]: run.info.status for run in self._search(f"tags.`{PARENT_TAG}` = '{parent}'")}
        failed = any(child in ("FAILED", "KILLED") for child in latest.values())
        self.client.set_terminated(parent, "FAILED" if failed else "FINISHED")

    def _tell_spooled(self) -> None:
        """Tell what earlier runs could not; what MLflow answers and refuses is set aside."""
        from mlflow.exceptions import MlflowException

        with self.spool.emptying() as is_ours:
            for waiting in self.spool.waiting() if is_ours else []:
                try:
                    self._tell_run(waiting)
                except MlflowException as error:
                    waiting.path.rename(waiting.path.with_suffix(REFUSED_SUFFIX))
                    logger.warning("MLflow refuses what is spooled in %s: %s", waiting.path.name, error)
                else:
                    waiting.path.unlink()

    def _tell_run(self, spooled: SpooledRun) -> None:
        header, run_id = spooled.header, spooled.header["run_id"]
        if run_id is None:
            found = self._search(f"tags.`{SPOOL_TAG}` = '{header['key']}'")
            if found:
                run_id = str(found[0].info.run_id)
            else:
                tags = {**header["tags"], PARENT_TAG: self._parent(header["dagster_run_id"], header["job"])}
                experiment, start = self._opened[1], header["start_time"]
                run_id = str(self.client.create_run(experiment, start, tags, run_name=header["name"]).info.run_id)
        over: Mapping[str, Any] = {"status": "KILLED", "end_time": None}
        for entry in spooled.entries:
            facts = {key: value for key, value in entry.items() if key != "tell"}
            if entry["tell"] == END:
                over = facts
            elif entry["tell"] == REGISTER:
                self._register_again(run_id, facts)
            else:
                tell(self.client, run_id, entry)
        self._terminate(run_id, over["status"], over["end_time"])

    def _register_again(self, run_id: str, facts: Mapping[str, Any]) -> None:
        digest = facts["tags"].get("bundle", "")
        if self.registry.versions_of(digest):
            return
        if not Path(facts["bundle"]).is_dir():
            logger.warning("the bundle %s is gone, so it is not registered in MLflow any more", facts["bundle"])
            return
        self.registry.register(self._opened[1], run_id, **facts)

    def _begin(self, dagster_run_id: str) -> None:
        """Give each Dagster run of this process its own patience."""
        if self._patience_of != dagster_run_id:
            self._patience_of = dagster_run_id
            self._patience.is_lost = False
            self._patience.seconds_left = float("inf") if self.is_local else PATIENCE_SECONDS

    def _close_abandoned(self, instance: dg.DagsterInstance) -> None:
        """Close as KILLED what killed processes left open: the Dagster run is over or the process here is gone."""
        for run in self._search("attributes.status = 'RUNNING'"):
            tags = run.data.tags
            dagster_run = instance.get_run_by_id(tags.get("dagster.run_id", ""))
            # On a shared server, runs of other Dagster instances are left alone: another machine may bear this name.
            is_ours = dagster_run is not None or self.is_local
            is_over = dagster_run is not None and dagster_run.is_finished
            is_here = tags.get("process.host") == socket.gethostname()
            if is_over or (is_ours and is_here and not _is_alive(int(tags["process.pid"]))):
                self.client.set_terminated(run.info.run_id, "KILLED")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
