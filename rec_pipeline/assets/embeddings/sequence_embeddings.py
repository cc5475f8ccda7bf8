"""Output item vectors of the sequence model."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.embeddings.item_embeddings import sequence_embeddings as embed
from rec_pipeline.resources.artifacts import Artifacts, SealedArtifact


@dg.asset(kinds={"numpy"})
def sequence_embeddings(
    context: dg.AssetExecutionContext,
    sequence_model: SealedArtifact,
    interaction_split: InteractionSplit,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Output item vectors of the sequence model, one row an item, in inner-product form.

    The inner product with what the model expects after a user's last event is its score: an index over them finds what
    comes next. Items that were not in the training data have none.
    """
    from rec_pipeline.engine.models.sequence import SequenceModel

    model = sequence_model.open(SequenceModel)
    embeddings = embed(interaction_split.items, model.item_vectors(), model.is_fitted_item)
    sizes = {"dagster/row_count": len(embeddings.item_ids), "embedding_dim": embeddings.embedding_dim}
    return artifacts.keep(context, embeddings, sizes | {"n_with_vector": int(model.is_fitted_item.sum())})
