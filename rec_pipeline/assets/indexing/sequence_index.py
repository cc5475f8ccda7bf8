"""FAISS index over the vectors of the sequence model."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.metadata import index_metadata


class SequenceIndexConfig(dg.Config, IndexParams):
    """How the sequence index is built."""


@dg.asset(kinds={"faiss"})
def sequence_index(
    context: dg.AssetExecutionContext,
    config: SequenceIndexConfig,
    sequence_embeddings: ItemEmbeddings,
    artifacts: dg.ResourceParam[Artifacts],
    compute: dg.ResourceParam[Compute],
) -> dg.MaterializeResult[Any]:
    """
    FAISS index of inner products over `sequence_embeddings`, one entry an item that has a vector.

    The factory follows from the size of the catalogue; recall@100 is measured against exact search and held by a check.
    """
    index = build_index(sequence_embeddings, config)
    return artifacts.keep(context, index, index_metadata(index, sequence_embeddings, compute))
