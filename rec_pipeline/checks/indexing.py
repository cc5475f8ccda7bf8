"""Checks of the indexes: what they find against what exact search finds."""

import dagster as dg
import numpy as np

from rec_pipeline.checks.verdict import verdict
from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.queries import index_recall
from rec_pipeline.engine.index.vector_index import VectorIndex

CUTOFF = 100
MIN_RECALL = 0.99  # what retrieval loses no re-ranking brings back


@dg.asset_check(asset="content_index", blocking=True, additional_ins={"content_embeddings": dg.AssetIn()})
def content_index_finds_what_exact_search_finds(
    content_index: VectorIndex, content_embeddings: ItemEmbeddings, compute: dg.ResourceParam[Compute]
) -> dg.AssetCheckResult:
    """recall@100 against exact search is at least 0.99."""
    return _recall(content_index, content_embeddings, compute)


@dg.asset_check(asset="content_index", additional_ins={"content_embeddings": dg.AssetIn()})
def content_index_holds_every_vector(
    content_index: VectorIndex, content_embeddings: ItemEmbeddings
) -> dg.AssetCheckResult:
    """An item that has a vector and is not in the index can never be found."""
    return _count(content_index, content_embeddings)


@dg.asset_check(asset="collaborative_index", blocking=True, additional_ins={"collaborative_embeddings": dg.AssetIn()})
def collaborative_index_finds_what_exact_search_finds(
    collaborative_index: VectorIndex, collaborative_embeddings: ItemEmbeddings, compute: dg.ResourceParam[Compute]
) -> dg.AssetCheckResult:
    """recall@100 against exact search is at least 0.99."""
    return _recall(collaborative_index, collaborative_embeddings, compute)


@dg.asset_check(asset="collaborative_index", additional_ins={"collaborative_embeddings": dg.AssetIn()})
def collaborative_index_holds_every_vector(
    collaborative_index: VectorIndex, collaborative_embeddings: ItemEmbeddings
) -> dg.AssetCheckResult:
    """An item that has a vector and is not in the index can never be found."""
    return _count(collaborative_index, collaborative_embeddings)


@dg.asset_check(asset="sequence_index", blocking=True, additional_ins={"sequence_embeddings": dg.AssetIn()})
def sequence_index_finds_what_exact_search_finds(
    sequence_index: VectorIndex, sequence_embeddings: ItemEmbeddings, compute: dg.ResourceParam[Compute]
) -> dg.AssetCheckResult:
    """recall@100 against exact search is at least 0.99."""
    return _recall(sequence_index, sequence_embeddings, compute)


@dg.asset_check(asset="sequence_index", additional_ins={"sequence_embeddings": dg.AssetIn()})
def sequence_index_holds_every_vector(
    sequence_index: VectorIndex, sequence_embeddings: ItemEmbeddings
) -> dg.AssetCheckResult:
    """An item that has a vector and is not in the index can never be found."""
    return _count(sequence_index, sequence_embeddings)


def _recall(index: VectorIndex, embeddings: ItemEmbeddings, compute: Compute) -> dg.AssetCheckResult:
    recall = index_recall(index, embeddings, CUTOFF, compute=compute)
    return verdict(recall >= MIN_RECALL, recall_at_100=recall, bound=MIN_RECALL, factory=index.factory)


def _count(index: VectorIndex, embeddings: ItemEmbeddings) -> dg.AssetCheckResult:
    n_expected = np.count_nonzero(embeddings.has_vector)
    return verdict(index.n_vectors == n_expected, n_indexed=index.n_vectors, n_expected=n_expected)
