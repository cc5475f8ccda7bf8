"""The search for hyper-parameters, beside the lineage and not part of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from rec_pipeline.assets.training.ncf_model import NCFHyperParameters, NCFTrainingOptions
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.ncf_params import NCFParams
from rec_pipeline.engine.models.search import SearchParams
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.tracked_run import TrackedRun
from rec_pipeline.settings import settings

if TYPE_CHECKING:
    from rec_pipeline.engine.models.training import EpochMetrics


class SearchConfig(dg.Config, SearchParams):
    """How long to search."""


class TuneConfig(dg.Config):
    """What is searched, from where, and where the result goes."""

    search: SearchConfig = SearchConfig()
    start: NCFHyperParameters = NCFHyperParameters()
    training: NCFTrainingOptions = NCFTrainingOptions()
    output: str = Field(
        default=str(settings().tuned_config),
        description="Run config to write (YAML), for `rec-pipeline run --config` and the Launchpad.",
    )


class TrackedTrial:
    """Tells MLflow and the log of the step how a trial goes."""

    def __init__(self, context: dg.OpExecutionContext, run: TrackedRun, number: int) -> None:
        self._context = context
        self._run = run
        self._number = number

    def on_epoch(self, metrics: "EpochMetrics") -> None:
        """Log the epoch to the run of the trial."""
        values = {"train_loss": metrics.train_loss, "validation_ndcg": metrics.validation_ndcg or 0.0}
        self._run.log_metrics(values, step=metrics.epoch)

    def finish(self, state: str, value: float | None) -> None:
        """Log how it ended."""
        self._run.log_params({"state": state})
        if value is not None:
            self._run.log_metrics({"best_validation_ndcg_10": value})
        reached = "" if value is None else f", validation ndcg@10 {value:.4f}"
        self._context.log.info(f"trial {self._number} {state}{reached}")


@dg.op
def search_hyper_parameters(
    context: dg.OpExecutionContext,
    config: TuneConfig,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
) -> None:
    """
    Search hyper-parameters of NCF on the validation part of `interaction_split`, one MLflow run a trial.

    A search that was killed goes on where it was: trials are kept under `data/tuning` by data and starting point. The
    best ones are written as run config; nothing that is served changes.
    """
    import hashlib

    from rec_pipeline.engine.models.search import search_ncf
    from rec_pipeline.resources.run_config import ncf_run_config, write_run_config

    @contextmanager
    def observe(number: int, candidate: NCFParams) -> Iterator[TrackedTrial]:
        with tracker.child(context, f"trial-{number}") as run:
            run.log_params(candidate.model_dump(mode="json"))
            yield TrackedTrial(context, run, number)

    start = NCFParams(**config.start.model_dump())
    data_version = artifacts.version("interaction_split")
    fixed = hashlib.sha256(f"{start.model_dump_json()} {config.training.model_dump_json()}".encode()).hexdigest()[:8]
    found = search_ncf(
        artifacts.load("interaction_split", InteractionSplit),
        start,
        config.search,
        training=config.training,
        folder=settings().tuning_dir,
        name=f"ncf-{data_version}-{fixed}",
        observe=observe,
    )
    write_run_config(Path(config.output), ncf_run_config(found.params))
    begun = "" if found.first_value is None else f", {found.first_value:.4f} where it began"
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items())
    context.log.info(f"best validation ndcg@10 {found.value:.4f}{begun} ({counts}); written to {config.output}")


@dg.job(description="Searches hyper-parameters of NCF on validation data and writes them as run config.")
def tune() -> None:
    """Search."""
    search_hyper_parameters()
