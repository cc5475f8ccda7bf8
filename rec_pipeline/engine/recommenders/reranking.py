"""
What happens to a list after the merge: more variety, no category above its share, a little exploration.

Variety is maximal marginal relevance: Carbonell & Goldstein (1998), "The use of MMR, diversity-based reranking for
reordering documents and producing summaries", SIGIR. Differs from it in that relevance is the item's score divided by
the best of the list, so that one trade-off serves lists of any scale.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import BoolVector, IdxMatrix, Ranking
from rec_pipeline.engine.data.id_map import NO_IDX

EXPLORATION: Final = "exploration"


def diversify(ranking: Ranking, vectors: npt.NDArray[np.float32], top_k: int, trade_off: float) -> Ranking:
    """
    Choose ``top_k`` items of each list one after the other, each worthy and unlike those before it.

    Parameters
    ----------
    ranking
        Lists of at least ``top_k`` places with scores >= 0, best first.
    vectors : float32 of shape (n_items, dim)
        Unit vectors; a zero row is like no other item.
    top_k : int
        Places of the result.
    trade_off : float
        MMR's lambda, in [0, 1]: 1 keeps the order, 0 looks at variety only.

    Returns
    -------
    Ranking
        The same items' scores lowered so that they never increase along a list.
    """
    n_users, width = ranking.item_idx.shape
    present = ranking.item_idx != NO_IDX
    own = vectors[np.where(present, ranking.item_idx, 0)]  # (n_users, width, dim)
    score = np.where(present, ranking.score, 0.0).astype(np.float64)
    relevance = score / np.maximum(score.max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    nearest = np.zeros((n_users, width))
    open_ = present.copy()
    users = np.arange(n_users)
    chosen = np.full((n_users, top_k), NO_IDX, dtype=np.int64)  # places in the given list
    for place in range(min(top_k, width)):
        worth = np.where(open_, trade_off * relevance - (1 - trade_off) * nearest, -np.inf)
        best = worth.argmax(axis=1)
        alive = open_[users, best]
        chosen[alive, place] = best[alive]
        open_[users, best] = False
        nearest = np.maximum(nearest, np.einsum("uwd,ud->uw", own, own[users, best]))
    return _taken(ranking, chosen)


def cap_categories(ranking: Ranking, in_category: sp.csr_matrix, top_k: int, cap: int) -> Ranking:
    """
    Keep at most ``cap`` items of each category among the first ``top_k``, in the given order.

    Parameters
    ----------
    ranking
        Lists longer than ``top_k``, so that others can move up.
    in_category : CSR of shape (n_items, n_categories)
        An item may be in several; it must have room in all of them. One in none has room always.
    cap : int
        Items a category, >= 1.

    Notes
    -----
    If the given list cannot fill ``top_k`` places within the caps, the rest is filled in order without them: a full
    list comes before a varied one.
    """
    n_users = len(ranking.item_idx)
    chosen = np.full((n_users, top_k), NO_IDX, dtype=np.int64)
    for user in range(n_users):
        used = np.zeros(in_category.shape[1], dtype=np.int64)
        kept: list[int] = []
        passed_over: list[int] = []
        for place in np.flatnonzero(ranking.item_idx[user] != NO_IDX).tolist():
            item = ranking.item_idx[user, place]
            own = in_category.indices[in_category.indptr[item] : in_category.indptr[item + 1]]
            if len(kept) < top_k and (used[own] < cap).all():
                used[own] += 1
                kept.append(place)
            else:
                passed_over.append(place)
        places = (kept + passed_over)[:top_k]
        chosen[user, : len(places)] = places
    return _taken(ranking, chosen)


def explore(
    ranking: Ranking, seen: sp.csr_matrix, eligible: BoolVector, share: float, rng: np.random.Generator
) -> tuple[Ranking, npt.NDArray[np.bool_]]:
    """
    Put items drawn at random in a share of the places, never in the first.

    Parameters
    ----------
    ranking
        Lists of a batch of users.
    seen : CSR of shape (n_users, n_items)
        Items not to draw.
    eligible : bool of shape (n_items,)
        Items that may be drawn.
    share : float
        Probability of each place but the first to be given away, in [0, 1].
    rng
        Decides places and items; equal states give equal lists.

    Returns
    -------
    Ranking
        Drawn items have the score of what they replaced. Nothing occurs twice.
    bool of shape (n_users, top_k)
        Places whose source is ``EXPLORATION``.
    """
    item_idx = ranking.item_idx.copy()
    given_away = rng.random(item_idx.shape) < share
    given_away[:, :1] = False
    given_away &= item_idx != NO_IDX
    for user in np.flatnonzero(given_away.any(axis=1)):
        may = eligible.copy()
        may[seen.indices[seen.indptr[user] : seen.indptr[user + 1]]] = False
        may[item_idx[user][item_idx[user] != NO_IDX]] = False
        pool = np.flatnonzero(may)
        places = np.flatnonzero(given_away[user])
        drawn = rng.choice(pool, min(len(pool), len(places)), replace=False)
        item_idx[user, places[: len(drawn)]] = drawn
        given_away[user, places[len(drawn) :]] = False
    return Ranking(item_idx, ranking.score.copy()), given_away


def _taken(ranking: Ranking, chosen: IdxMatrix) -> Ranking:
    """Return the items at the chosen places; ``-1`` is none. Scores are lowered where they would rise."""
    absent = chosen == NO_IDX
    places = np.where(absent, 0, chosen)
    item_idx = np.where(absent, NO_IDX, np.take_along_axis(ranking.item_idx, places, axis=1))
    score = np.where(absent, np.float32(-np.inf), np.take_along_axis(ranking.score, places, axis=1))
    return Ranking(item_idx, np.minimum.accumulate(score, axis=1))
