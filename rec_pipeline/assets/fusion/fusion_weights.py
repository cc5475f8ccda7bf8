"""How the hybrid merges its sources."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.vector_index import VectorIndex
from rec_pipeline.engine.recommenders.params import COLLABORATIVE, CONTENT, SEQUENCE, TRENDING, HybridParams
from rec_pipeline.resources.artifacts import Artifacts, SealedArtifact
from rec_pipeline.resources.metadata import fusion_metadata


class FusionConfig(dg.Config, HybridParams):
    """Where the search for weights starts; pool size and segments are kept."""


@dg.asset(kinds={"numpy"})
def fusion_weights(
    context: dg.AssetExecutionContext,
    config: FusionConfig,
    interaction_split: InteractionSplit,
    items: ValidatedTable,
    ncf_model: SealedArtifact,
    sequence_model: SealedArtifact,
    trending_model: SealedArtifact,
    content_embeddings: ItemEmbeddings,
    content_index: VectorIndex,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Weights of the hybrid's sources by user activity, method of merging and strength of context, tuned on validation.

    The lists tuned on come from models fitted on the train part only, or on what an earlier window knew where the
    validation part has few users; they are kept beside each trained model. One row of
    `trials` a segment or method: ndcg@10 before and after. Consumed by the evaluation and the serving bundle.
    """
    from rec_pipeline.engine.recommenders.content import ContentRanker
    from rec_pipeline.engine.recommenders.fitting import facts_of
    from rec_pipeline.engine.recommenders.tuning import tune_fusion
    from rec_pipeline.engine.recommenders.validation import ValidationRanking

    catalogue = interaction_split.items
    content = ContentRanker(content_embeddings.aligned_to(catalogue), content_index.aligned_to(catalogue))
    sources = {
        COLLABORATIVE: ncf_model.open(ValidationRanking),
        CONTENT: ValidationRanking.of(lambda _: content, interaction_split),
        SEQUENCE: sequence_model.open(ValidationRanking),
        TRENDING: trending_model.open(ValidationRanking),
    }
    tuned = tune_fusion(
        sources, interaction_split, config, in_category=facts_of(interaction_split, items.table).in_category
    )
    return artifacts.keep(context, tuned, fusion_metadata(tuned))
