"""Every recommender and baseline on the test part."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.evaluation.champion import CHAMPION
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.index.vector_index import VectorIndex
from rec_pipeline.engine.models.item_knn import ItemKNNModel
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.tuning import FusionWeights
from rec_pipeline.resources.artifacts import Artifacts, SealedArtifact
from rec_pipeline.resources.champion import EVALUATED_BUNDLE, find_champion, keep_evaluated
from rec_pipeline.resources.evaluation_log import log_report
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.redis_store import RedisStore


class MeasurementConfig(dg.Config, EvaluationParams):
    """What is measured."""


class EvaluationConfig(dg.Config):
    """What is evaluated, and how."""

    evaluation: MeasurementConfig = MeasurementConfig()


@dg.asset(kinds={"numpy", "mlflow"})
def evaluation_report(
    context: dg.AssetExecutionContext,
    config: EvaluationConfig,
    interaction_split: InteractionSplit,
    items: ValidatedTable,
    popularity_model: PopularityModel,
    item_knn_model: ItemKNNModel,
    trending_model: TrendingModel,
    ncf_model: SealedArtifact,
    sequence_model: SealedArtifact,
    content_embeddings: ItemEmbeddings,
    content_index: VectorIndex,
    collaborative_index: VectorIndex,
    sequence_index: VectorIndex,
    fusion_weights: FusionWeights,
    artifacts: dg.ResourceParam[Artifacts],
    redis_store: RedisStore,
    tracker: MLflowTracker,
    compute: dg.ResourceParam[Compute],
) -> dg.MaterializeResult[Any]:
    """
    Report on the baselines, every source and the hybrid side by side on the test part, by full ranking.

    Accuracy, diversity, novelty, coverage and popularity bias at several cutoffs with bootstrap intervals, by user
    activity and item popularity, and paired tests between every two; the model behind what is live (the champion) takes
    part as it was evaluated. What retrieval loses is reported apart. Its gate decides whether anything is published.
    """
    from rec_pipeline.engine.evaluation.champion import provenance
    from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
    from rec_pipeline.engine.evaluation.reranked import context_gain, variety_curve
    from rec_pipeline.engine.evaluation.retrieval import retrieval_quality
    from rec_pipeline.engine.models.ncf import NCFModel
    from rec_pipeline.engine.models.sequence import SequenceModel
    from rec_pipeline.engine.recommenders.fitting import evaluated_bundle
    from rec_pipeline.engine.recommenders.line_up import ITEM_KNN, line_up

    split = interaction_split
    champion = find_champion(redis_store, artifacts, split)
    context.log.info(champion.note)
    bundle = evaluated_bundle(
        split,
        items.table,
        ncf=ncf_model.open(NCFModel),
        sequence=sequence_model.open(SequenceModel),
        popularity=popularity_model,
        trending=trending_model,
        content_embeddings=content_embeddings,
        content_index=content_index,
        collaborative_index=collaborative_index,
        sequence_index=sequence_index,
        params=fusion_weights.params,
        metadata=provenance(split, artifacts.version("interaction_split")),
    )
    recommenders = line_up(bundle, {ITEM_KNN: item_knn_model})
    with tracker.child(context, "evaluation") as run:
        report = evaluate_recommenders(
            recommenders if champion.ranker is None else [*recommenders, champion.ranker],
            split,
            item_vectors=bundle.content_embeddings.vectors,
            retrieval=retrieval_quality(bundle, split, config.evaluation),
            variety=variety_curve(bundle, split, config.evaluation),
            context=context_gain(bundle, split, config.evaluation),
            params=config.evaluation,
            compute=compute,
            notes={CHAMPION: champion.note, EVALUATED_BUNDLE: keep_evaluated(redis_store, artifacts, bundle)},
        )
        metadata = log_report(context, run, report, artifacts.version("interaction_split"))
        return artifacts.keep(context, report, metadata)
