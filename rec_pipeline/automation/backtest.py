"""The backtest: recommenders fitted and evaluated at several points in time, beside the lineage and not part of it."""

import dagster as dg

from rec_pipeline.assets.evaluation.evaluation_report import MeasurementConfig
from rec_pipeline.assets.fusion.fusion_weights import FusionConfig
from rec_pipeline.assets.training.item_knn_model import ItemKNNConfig
from rec_pipeline.assets.training.ncf_model import NCFHyperParameters, NCFTrainingOptions
from rec_pipeline.assets.training.sequence_model import SequenceHyperParameters
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.evaluation.backtest import BacktestParams
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.evaluation_log import log_backtest
from rec_pipeline.resources.mlflow_tracker import MLflowTracker

BACKTEST_REPORT = "backtest_report"


class PeriodsConfig(dg.Config, BacktestParams):
    """Periods of the backtest."""


class BacktestConfig(dg.Config):
    """Which periods are tested, and with which settings of the recommenders."""

    periods: PeriodsConfig = PeriodsConfig()
    evaluation: MeasurementConfig = MeasurementConfig()
    ncf: NCFHyperParameters = NCFHyperParameters()
    sequence: SequenceHyperParameters = SequenceHyperParameters()
    item_knn: ItemKNNConfig = ItemKNNConfig()
    hybrid: FusionConfig = FusionConfig()
    training: NCFTrainingOptions = NCFTrainingOptions()


@dg.op
def backtest_periods(
    context: dg.OpExecutionContext,
    config: BacktestConfig,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
) -> None:
    """
    Walk forward through the last periods of `interactions`: fit on what came before each, test on it, go on.

    Reads the interactions, items and text vectors that the lineage made last. The report (a line over time for each
    metric, with intervals) is stored as the artefact `backtest_report` and in MLflow.
    """
    from rec_pipeline.engine.data.space import Space
    from rec_pipeline.engine.data.split import SplitParams, walk_forward
    from rec_pipeline.engine.evaluation.backtest import backtest
    from rec_pipeline.engine.recommenders.line_up import fit_line_up

    periods, items = config.periods, artifacts.load("items", ValidatedTable).table
    content = artifacts.load("content_embeddings", ItemEmbeddings)
    with tracker.child(context, "backtest") as run, artifacts.scratch(BACKTEST_REPORT) as scratch:
        splits = walk_forward(
            artifacts.load("interactions", ValidatedTable).kept,
            items,
            SplitParams(test_share=periods.period_share, validation_share=periods.validation_share),
            periods.n_periods,
            scratch,
        )
        report = backtest(
            splits,
            lambda split: fit_line_up(
                split,
                items,
                content,
                ncf_params=config.ncf,
                sequence_params=config.sequence,
                knn_params=config.item_knn,
                hybrid_params=config.hybrid,
                training=config.training,
                space=Space.for_rows(len(split.fitting), scratch),
            ),
            config.evaluation,
            on_period=lambda number, split: context.log.info(
                f"period {number} of {periods.n_periods}, from {split.boundaries['test_from']}: "
                f"{len(split.fitting):,} interactions known, {len(split.test):,} tested"
            ),
        )
        run.log_params(periods.model_dump() | {"interactions": artifacts.version("interactions")})
        log_backtest(context, run, report)
        manifest = artifacts.store.write(BACKTEST_REPORT, report.save, kind="BacktestReport")
        context.log.info(f"stored as {BACKTEST_REPORT} {manifest.version}")


@dg.job(description="Fits and evaluates every recommender at several points in time; changes nothing that is served.")
def backtest() -> None:
    """Walk forward."""
    backtest_periods()
