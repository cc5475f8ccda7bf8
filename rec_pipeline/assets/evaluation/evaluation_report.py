"""Every recommender and baseline on the test part."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.index.vector_index import VectorIndex
from rec_pipeline.engine.models.item_knn import ItemKNNModel
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.resources.artifacts import Artifacts, SealedArtifact
from rec_pipeline.resources.evaluation_log import log_report
from rec_pipeline.resources.mlflow_tracker import MLflowTracker


class HybridConfig(dg.Config, HybridParams):
    """How the hybrid merges its sources."""


class MeasurementConfig(dg.Config, EvaluationParams):
    """What is measured."""


class EvaluationConfig(dg.Config):
    """What is evaluated, and how."""

    hybrid: HybridConfig = HybridConfig()
    evaluation: MeasurementConfig = MeasurementConfig()


@dg.asset(kinds={"numpy", "mlflow"})
def evaluation_report(
    context: dg.AssetExecutionContext,
    config: EvaluationConfig,
    interaction_split: InteractionSplit,
    popularity_model: PopularityModel,
    item_knn_model: ItemKNNModel,
    ncf_model: SealedArtifact,
    content_embeddings: ItemEmbeddings,
    content_index: VectorIndex,
    collaborative_index: VectorIndex,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
) -> dg.MaterializeResult[Any]:
    """
    Report on popularity, item-kNN, content, NCF and the hybrid side by side on the test part, by full ranking.

    Accuracy, diversity, novelty, coverage and popularity bias at several cutoffs with bootstrap intervals, by user
    activity and item popularity, and paired tests between every two. Its gate decides whether anything is published.
    """
    from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
    from rec_pipeline.engine.models.ncf import NCFModel
    from rec_pipeline.engine.recommenders.line_up import line_up

    content = content_embeddings.aligned_to(interaction_split.items)
    recommenders = line_up(
        popularity=popularity_model,
        item_knn=item_knn_model,
        ncf=ncf_model.open(NCFModel),
        collaborative_index=collaborative_index,
        content_embeddings=content,
        content_index=content_index.aligned_to(interaction_split.items),
        params=config.hybrid,
    )
    with tracker.child(context, "evaluation") as run:
        report = evaluate_recommenders(
            recommenders, interaction_split, item_vectors=content.vectors, params=config.evaluation
        )
        metadata = log_report(context, run, report, artifacts.version("interaction_split"))
        return artifacts.keep(context, report, metadata)
