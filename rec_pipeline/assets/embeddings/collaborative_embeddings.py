"""Item vectors of the GMF branch."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.embeddings.item_embeddings import collaborative_embeddings as embed
from rec_pipeline.resources.artifacts import Artifacts, SealedArtifact


@dg.asset(kinds={"numpy"})
def collaborative_embeddings(
    context: dg.AssetExecutionContext,
    ncf_model: SealedArtifact,
    interaction_split: InteractionSplit,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Item vectors of NCF's GMF branch, one row an item, in inner-product form.

    The inner product with a user's vector (`h * p_u`) is the branch's score: an index over them retrieves candidates.
    """
    from rec_pipeline.engine.models.ncf import NCFModel

    embeddings = embed(interaction_split.items, ncf_model.open(NCFModel).item_vectors())
    sizes = {"dagster/row_count": len(embeddings.item_ids), "embedding_dim": embeddings.embedding_dim}
    return artifacts.keep(context, embeddings, sizes)
