"""Queries to measure an index with."""

import numpy as np

from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.embeddings.encoder import Vectors
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.vector_index import VectorIndex


def sample_queries(embeddings: ItemEmbeddings, n_queries: int = 500, seed: int = 0) -> Vectors:
    """
    Draw item vectors to search with, without repeats.

    Returns
    -------
    float32 of shape (min(n_queries, n_vectors), embedding_dim)
        The vectors of a random choice of items that have one.
    """
    rows = np.flatnonzero(embeddings.has_vector)
    chosen = np.random.default_rng(seed).permutation(rows)[:n_queries]
    queries: Vectors = embeddings.vectors[np.sort(chosen)]
    return queries


def index_recall(index: VectorIndex, embeddings: ItemEmbeddings, cutoff: int, *, compute: Compute = LOCAL) -> float:
    """Return ``recall_at`` for a sample of the index's own vectors as queries; 1 where there are none to miss."""
    queries = sample_queries(embeddings)
    return index.recall_at(embeddings, queries, cutoff, compute=compute) if len(queries) else 1.0
