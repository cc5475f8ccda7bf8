"""What the online side loads and the lists are made with."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.evaluation.report import EvaluationReport
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.tuning import FusionWeights
from rec_pipeline.resources.artifacts import Artifacts, SealedArtifact
from rec_pipeline.resources.champion import EVALUATED_BUNDLE
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.provenance import code_version, data_range
from rec_pipeline.resources.training_log import TrainingLog


class BundleTrainingOptions(dg.Config, TrainingOptions):
    """How NCF is trained."""


class BundleConfig(dg.Config):
    """How the bundle is fitted."""

    training: BundleTrainingOptions = BundleTrainingOptions()


@dg.asset(kinds={"pytorch", "faiss", "mlflow"})
def serving_bundle(
    context: dg.AssetExecutionContext,
    config: BundleConfig,
    interactions: ValidatedTable,
    items: ValidatedTable,
    trending_model: TrendingModel,
    ncf_model: SealedArtifact,
    content_embeddings: ItemEmbeddings,
    fusion_weights: FusionWeights,
    evaluation_report: EvaluationReport,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
) -> dg.MaterializeResult[Any]:
    """
    Models refitted on all interactions, their vectors and indexes, id maps, popularity, weights and titles, as one.

    Made only if the report passed its gate. One manifest of digests binds the parts: no reader can mix two runs.
    Consumed by `recommendations`; registered in MLflow as the challenger.
    """
    from rec_pipeline.engine.evaluation.gate import require_gate
    from rec_pipeline.engine.models.ncf import NCFModel
    from rec_pipeline.engine.recommenders.fitting import fit_bundle

    verdict = require_gate(evaluation_report)
    made_from = ("interactions", "items", "ncf_model", "fusion_weights", "evaluation_report")
    versions = {key: artifacts.version(key) for key in made_from}
    versions[EVALUATED_BUNDLE] = evaluation_report.data[EVALUATED_BUNDLE]
    with tracker.child(context, "bundle") as run:
        log = TrainingLog(context, run)
        bundle = fit_bundle(
            interactions.table,
            items.table,
            content_embeddings,
            ncf_params=ncf_model.open(NCFModel).params,
            hybrid_params=fusion_weights.params,
            half_life_days=trending_model.half_life_days,
            training=config.training,
            metadata={
                "dagster_run_id": context.run.run_id,
                "mlflow_run_id": run.run_id,
                "versions": versions,
                "data": data_range(interactions.table),
                "code": code_version(),
                "weights": config.hybrid.weights,
                "gate": verdict.message,
            },
            on_epoch=log.on_epoch,
        )
        sizes = {"n_users": len(bundle.users), "n_items": len(bundle.items)}
        result = artifacts.keep(context, bundle, sizes | {"gate": verdict.message, "mlflow_run": run.link})
        tracker.register_ncf(
            run,
            artifacts.store.path("serving_bundle"),
            example_users=bundle.users.ids[:2].tolist(),
            description=verdict.message,
            tags={"gate": "passed", "bundle": artifacts.version("serving_bundle")},
        )
    return result
