"""What the online side loads and the lists are made with."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.evaluation.report import EvaluationReport
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.champion import EVALUATED_BUNDLE
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.provenance import code_version, data_range
from rec_pipeline.resources.training_log import TrainingLog


class BundleTrainingOptions(dg.Config, TrainingOptions):
    """How NCF and the sequence model are trained."""


class BundleConfig(dg.Config):
    """How the bundle is fitted."""

    training: BundleTrainingOptions = BundleTrainingOptions()


@dg.asset(
    kinds={"pytorch", "faiss", "mlflow"},
    # What these made is taken from the bundle that was evaluated, so that nothing newer slips past the gate.
    deps=["trending_model", "ncf_model", "sequence_model", "fusion_weights"],
)
def serving_bundle(
    context: dg.AssetExecutionContext,
    config: BundleConfig,
    interactions: ValidatedTable,
    items: ValidatedTable,
    content_embeddings: ItemEmbeddings,
    evaluation_report: EvaluationReport,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
    compute: dg.ResourceParam[Compute],
) -> dg.MaterializeResult[Any]:
    """
    The evaluated models on all interactions, with their vectors, indexes, id maps, popularity and weights, as one.

    Made only if the report passed its gate. One manifest of digests binds the parts: no reader can mix two runs.
    Consumed by `recommendations`; registered in MLflow as the challenger.
    """
    from rec_pipeline.engine.evaluation.gate import require_gate
    from rec_pipeline.engine.recommenders.fitting import fit_bundle

    verdict = require_gate(evaluation_report)
    made_from = ("interactions", "items", "ncf_model", "sequence_model", "fusion_weights", "evaluation_report")
    versions = {key: artifacts.version(key) for key in made_from}
    versions[EVALUATED_BUNDLE] = evaluation_report.data[EVALUATED_BUNDLE]
    evaluated: ServingBundle = artifacts.load(EVALUATED_BUNDLE, ServingBundle, versions[EVALUATED_BUNDLE])
    with tracker.child(context, "bundle") as run, artifacts.scratch("serving_bundle") as scratch:
        log = TrainingLog(context, run)
        bundle = fit_bundle(
            evaluated,
            interactions.kept,
            items.table,
            content_embeddings,
            training=config.training,
            compute=compute,
            metadata={
                "dagster_run_id": context.run.run_id,
                "mlflow_run_id": run.run_id,
                "versions": versions,
                "data": data_range(interactions) | {"digest": versions["interactions"]},
                "code": code_version(),
                "weights": evaluated.params.weights,
                "gate": verdict.message,
            },
            on_epoch=log.on_epoch,
            scratch=scratch,
        )
        sizes = {"n_users": len(bundle.users), "n_items": len(bundle.items)}
        result = artifacts.keep(context, bundle, sizes | {"gate": verdict.message, "mlflow_run": run.link})
        tracker.register_ncf(
            run,
            artifacts.store.path("serving_bundle"),
            example_users=bundle.users.to_ids(range(min(2, len(bundle.users)))).tolist(),
            description=verdict.message,
            tags={"gate": "passed", "bundle": artifacts.version("serving_bundle")},
        )
    return result
