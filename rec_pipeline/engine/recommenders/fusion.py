"""
Merging of rankings by weighted reciprocal rank.

Cormack, Clarke & Buettcher (2009), "Reciprocal rank fusion outperforms Condorcet and individual rank learning
methods": an item gains ``1 / (rank_constant + rank)`` in each ranking that holds it, rank 1 the best. What differs
here: each ranking has a weight, the weights are normalised per user over the rankings that hold anything for that user,
and gains are scaled so that an item that is first everywhere scores 1. Within a user the scale changes no order.

Beside it stands the merging of scores (Bruch, Gai & Ingber, 2023, "An Analysis of Fusion Functions for Hybrid
Retrieval"): an item gains where its score lies between the lowest and the highest of the user's list in that source, so
that a source says not only that one item is better than another but by how much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rec_pipeline.engine.data.batches import BoolVector, IdxMatrix, Ranking, ScoreMatrix
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.recommenders.params import FusionMethod

NO_RANK = 0
LOWEST_GAIN: Final = 0.01  # of the last item of a list by score: being in the list is worth something


@dataclass(frozen=True)
class Explained:
    """
    A ranking and, for each item of it, where it came from.

    Attributes
    ----------
    ranking
        Item rows of shape (n_users, top_k), ``-1`` padded.
    sources
        Names of the sources, in the order of the last axis of ``rank`` and ``share``.
    rank
        int32 of shape (n_users, top_k, n_sources): rank of the item in that source, from 1; 0 where it was not there.
    share
        float32 of the same shape: part of the item's score that the source gave; sums to 1 for each item.
    is_fallback
        Bool of shape (n_users, top_k): items that no personal source offered: the fallback filled them in, or only
        what is trending for everybody held them.
    """

    ranking: Ranking
    sources: tuple[str, ...]
    rank: npt.NDArray[np.int32]
    share: npt.NDArray[np.float32]
    is_fallback: npt.NDArray[np.bool_]

    @cached_property
    def is_present(self) -> npt.NDArray[np.bool_]:
        """Bool of shape (n_users, top_k): places that hold an item."""
        return np.asarray(self.ranking.item_idx != NO_IDX)

    def at(self, places: IdxMatrix, score: ScoreMatrix) -> "Explained":
        """
        Return the items at some places of the lists, in another order or fewer of them.

        Parameters
        ----------
        places : int64 of shape (n_users, any)
            Columns of ``ranking``, none twice in a row; ``-1`` for no item.
        score : float32 of shape (n_users, top_k)
            Score of each item of ``ranking`` now; lowered where they would rise along the new list.
        """
        absent = places == NO_IDX
        columns = np.where(absent, 0, places)

        def taken(values: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
            table = values[np.arange(len(columns))[:, None], columns]
            table[absent] = empty
            return table

        return replace(
            self,
            ranking=Ranking(taken(self.ranking.item_idx, NO_IDX), np.minimum.accumulate(taken(score, -np.inf), axis=1)),
            rank=taken(self.rank, NO_RANK),
            share=taken(self.share, 0.0),
            is_fallback=taken(self.is_fallback, 0.0),
        )

    def first(self, n_places: int) -> "Explained":
        """Return the first places of the lists, where they are as long."""
        return replace(
            self,
            ranking=self.ranking.first(n_places),
            rank=self.rank[:, :n_places],
            share=self.share[:, :n_places],
            is_fallback=self.is_fallback[:, :n_places],
        )

    def with_silent(self, source: str) -> "Explained":
        """Return it with one more source, which gave nothing."""
        return replace(
            self,
            sources=(*self.sources, source),
            rank=np.concatenate([self.rank, np.full_like(self.rank[:, :, :1], NO_RANK)], axis=2),
            share=np.concatenate([self.share, np.zeros_like(self.share[:, :, :1])], axis=2),
        )

    def with_drawn(self, ranking: Ranking, is_drawn: npt.NDArray[np.bool_], *, source: str) -> "Explained":
        """Return it with the items of ``ranking``; those ``is_drawn`` (n_users, top_k) come from ``source`` alone."""
        rank = np.where(is_drawn[:, :, None], NO_RANK, self.rank)
        share = np.where(is_drawn[:, :, None], np.float32(0), self.share)
        return Explained(
            ranking=ranking,
            sources=(*self.sources, source),
            rank=np.concatenate([rank, is_drawn[:, :, None]], axis=2, dtype=np.int32),
            share=np.concatenate([share, is_drawn[:, :, None]], axis=2, dtype=np.float32),
            is_fallback=self.is_fallback | is_drawn,
        )

    @property
    def is_personal(self) -> BoolVector:
        """Bool of shape (n_users,): users whose list holds at least one item of a personal source."""
        return np.asarray((self.is_present & ~self.is_fallback).any(axis=1))


def fuse(
    rankings: Mapping[str, Ranking],
    weights: Mapping[str, float | npt.NDArray[np.float64]],
    *,
    rank_constant: int,
    top_k: int,
    method: FusionMethod = FusionMethod.RECIPROCAL_RANK,
) -> Explained:
    """
    Merge one ranking a source into one ranking, for every user of the batch at once.

    Parameters
    ----------
    rankings
        Ranking of each source, all over the same users; lengths may differ.
    weights
        Weight of each source by name, one for all users or float64 of shape (n_users,), >= 0. Only proportions matter;
        for a user a source of weight 0 does not answer.
    rank_constant : int
        Added to every rank, >= 0; no meaning for ``FusionMethod.SCORE``.
    top_k : int
        List length, >= 1.

    Returns
    -------
    Explained
        Scores are in (0, 1]; 1 is an item that is first for every source that answers. Equal scores are ordered by item
        row. Sources are in the order of their names, and the result does not depend on the order of ``rankings``.

    Raises
    ------
    ValueError
        If a ranking has no weight, or there are no rankings.

    Examples
    --------
    >>> first = Ranking(np.array([[7, 3]]), np.array([[0.9, 0.8]], dtype=np.float32))
    >>> second = Ranking(np.array([[3, 5]]), np.array([[12.0, 2.0]], dtype=np.float32))
    >>> fused = fuse({"a": first, "b": second}, {"a": 0.5, "b": 0.5}, rank_constant=60, top_k=3)
    >>> fused.ranking.item_idx, fused.rank[0, 0]
    (array([[3, 7, 5]]), array([2, 1], dtype=int32))
    """
    names = tuple(sorted(rankings))
    if not names or set(names) - set(weights):
        raise ValueError(f"need a weight for each ranking, found rankings {names} and weights {sorted(weights)}")
    n_users, n_sources = len(rankings[names[0]].item_idx), len(names)

    weight = np.empty((n_users, n_sources))
    for column, name in enumerate(names):
        weight[:, column] = weights[name]
    present = [(rankings[name].item_idx != NO_IDX) & (weight[:, column, None] > 0) for column, name in enumerate(names)]
    for column, mask in enumerate(present):
        weight[~mask.any(axis=1), column] = 0
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)

    # One entry for each item that a source holds for a user.
    places = [np.nonzero(mask) for mask in present]
    user = np.concatenate([rows for rows, _ in places])
    rank = np.concatenate([columns for _, columns in places]) + 1
    source = np.repeat(np.arange(n_sources), [len(rows) for rows, _ in places])
    item = np.concatenate([rankings[name].item_idx[mask] for name, mask in zip(names, present, strict=True)])

    # One pool row for each (user, item), ordered by user, then item.
    n_items = item.max(initial=0) + 1
    pairs, pool_row = np.unique(user * n_items + item, return_inverse=True)
    pool_user, pool_item = np.divmod(pairs, n_items)
    pool_rank = np.full((len(pairs), n_sources), NO_RANK, dtype=np.int32)
    pool_rank[pool_row, source] = rank
    gain = np.zeros((len(pairs), n_sources))
    if method is FusionMethod.SCORE:
        worth = np.concatenate(
            [score_gain(rankings[name].score, mask)[mask] for name, mask in zip(names, present, strict=True)]
        )
    else:
        worth = reciprocal_rank(rank, rank_constant)
    gain[pool_row, source] = weight[user, source] * worth
    score = gain.sum(axis=1)

    order = np.lexsort((pool_item, -score, pool_user))
    first_of_user = np.searchsorted(pool_user, np.arange(n_users))
    place = np.arange(len(pairs)) - first_of_user[pool_user]  # pool_user is sorted, and order keeps users together
    kept = place < top_k
    at = pool_user[kept], place[kept]
    order = order[kept]

    def laid_out(values: npt.NDArray[Any], empty: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        table = np.full((n_users, top_k, *values.shape[1:]), empty, dtype=dtype)
        table[at] = values[order]
        return table

    return Explained(
        ranking=Ranking(laid_out(pool_item, NO_IDX, np.int64), laid_out(score, -np.inf, np.float32)),
        sources=names,
        rank=laid_out(pool_rank, NO_RANK, np.int32),
        share=laid_out(gain / score[:, None], 0.0, np.float32),
        is_fallback=np.zeros((n_users, top_k), dtype=bool),
    )


def reciprocal_rank(rank: npt.NDArray[np.integer[Any]], rank_constant: int) -> npt.NDArray[np.float64]:
    """
    Return what a rank is worth, 1 for the first.

    Examples
    --------
    >>> reciprocal_rank(np.array([1, 2]), rank_constant=1)
    array([1.        , 0.66666667])
    """
    return (rank_constant + 1) / (rank_constant + rank)


def score_gain(score: ScoreMatrix, present: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """
    Return where each score lies in its row: 1 for the highest, ``LOWEST_GAIN`` for the lowest and what is not present.

    A row of equal scores is worth 1 throughout.

    Examples
    --------
    >>> score_gain(np.array([[3.0, 2.0, 1.0]], dtype=np.float32), np.array([[True, True, True]]))
    array([[1.   , 0.505, 0.01 ]])
    """
    values = np.where(present, score, 0.0).astype(np.float64)
    high = np.where(present, values, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    low = np.where(present, values, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    span = np.where(high > low, high - low, 1.0)
    inside = np.where(present, values - np.where(high > low, low, high - 1.0), 0.0) / span
    return np.asarray(LOWEST_GAIN + (1 - LOWEST_GAIN) * inside)
