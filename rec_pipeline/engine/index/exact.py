"""
Exact search by shards: of the items or of the queries, whichever is the larger, so that no worker holds all of it.

Lists of several shards of items are merged by score and then by row, which is how one process orders them.
"""

from collections.abc import Iterator

import numpy as np

from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.embeddings.encoder import Vectors

SHARD_ROWS = 65_536
BLOCK_CELLS = 1 << 24  # scores held at a time: 64 MiB

Shard = tuple[int, Vectors]


def search_exactly(
    vectors: Vectors, queries: Vectors, top_k: int, *, shard_rows: int = SHARD_ROWS, compute: Compute = LOCAL
) -> Ranking:
    """
    Return the ``top_k`` rows of ``vectors`` with the largest inner product with each query.

    Parameters
    ----------
    vectors : float32 of shape (n_items, embedding_dim)
    queries : float32 of shape (n_queries, embedding_dim)
    top_k : int
        List length, >= 1; lists are shorter where there are fewer rows.
    shard_rows : int
        Rows of the larger side that one worker gets at a time; the smaller side reaches every worker.
    compute
        Where shards are searched; changes no list.

    Returns
    -------
    Ranking
        Among equal scores the lower row comes first.
    """
    is_by_items = len(vectors) > len(queries)
    cut = vectors if is_by_items else queries
    shards = ((start, cut[start : start + shard_rows]) for start in range(0, max(1, len(cut)), shard_rows))
    if not is_by_items:
        return _stacked(compute.map(_of_queries, shards, (vectors, top_k)))
    found = compute.map(_of_items, shards, (queries, top_k))
    best = next(found)
    for more in found:
        best = _merged(best, more, top_k)
    return best


def _of_items(shared: tuple[Vectors, int], shard: Shard) -> Ranking:
    (queries, top_k), (first, vectors) = shared, shard
    found = _ranked(vectors, queries, top_k)
    return Ranking(np.where(found.item_idx >= 0, found.item_idx + first, found.item_idx), found.score)


def _of_queries(shared: tuple[Vectors, int], shard: Shard) -> Ranking:
    vectors, top_k = shared
    return _ranked(vectors, shard[1], top_k)


def _ranked(vectors: Vectors, queries: Vectors, top_k: int) -> Ranking:
    at_once = max(1, BLOCK_CELLS // max(1, len(vectors)))
    blocks = (queries[start : start + at_once] for start in range(0, max(1, len(queries)), at_once))
    return _stacked(Ranking.from_scores(block @ vectors.T, top_k) for block in blocks)


def _stacked(rankings: Iterator[Ranking]) -> Ranking:
    item_idx, score = zip(*((ranking.item_idx, ranking.score) for ranking in rankings), strict=True)
    return Ranking(np.concatenate(item_idx), np.concatenate(score))


def _merged(earlier: Ranking, later: Ranking, top_k: int) -> Ranking:
    """Merge lists; the second's rows are the higher, so a stable sort leaves the lower first among equals."""
    item_idx = np.concatenate([earlier.item_idx, later.item_idx], axis=1)
    score = np.concatenate([earlier.score, later.score], axis=1)
    order = np.argsort(-score, axis=1, kind="stable")[:, :top_k]
    return Ranking(np.take_along_axis(item_idx, order, axis=1), np.take_along_axis(score, order, axis=1))
