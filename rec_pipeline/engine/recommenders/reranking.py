"""
What happens to a list after the merge: more variety, places for new items, no category above its share, exploration.

Variety is maximal marginal relevance: Carbonell & Goldstein (1998), "The use of MMR, diversity-based reranking for
reordering documents and producing summaries", SIGIR. Differs from it in that relevance is the item's score divided by
the best of the list, so that one trade-off serves lists of any scale.
"""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import BoolVector, IdxMatrix, Ranking, ScoreMatrix, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.recommenders.fusion import NO_RANK, Explained
from rec_pipeline.engine.recommenders.params import CONTENT, HybridParams


def diversify(ranking: Ranking, vectors: npt.NDArray[np.float32], top_k: int, trade_off: float) -> IdxMatrix:
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
    int64 of shape (n_users, top_k)
        Places of the chosen items in the given lists; ``-1`` where there are no more.
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
    return chosen


def with_new_items(merged: Explained, is_new: BoolVector, n_kept: int, params: HybridParams) -> Explained:
    """
    Keep places for the new items that are nearest to what the user likes by their texts.

    Nobody has taken them yet, so no other source offers them and they would stand too far behind to be seen. They need
    no click to begin: the next lists reach those whose taste they meet, and only those.

    Parameters
    ----------
    merged
        All that the sources offer, merged, the content source among them.
    is_new : bool of shape (n_items,)
        Items for which places are kept.
    n_kept : int
        Length of the result.
    params
        Which new items count and how many places they get.
    """
    offered = merged.rank[:, :, merged.sources.index(CONTENT)]
    is_near = (offered != NO_RANK) & (offered <= params.new_item_rank)
    is_candidate = is_near & is_new[merged.ranking.item_idx]
    if not is_candidate.any():
        return merged.first(n_kept)
    return merged.at(*keep_places(merged.ranking, is_candidate, n_kept, params.new_item_every))


def keep_places(
    ranking: Ranking, is_candidate: npt.NDArray[np.bool_], top_k: int, every: int
) -> tuple[IdxMatrix, ScoreMatrix]:
    """
    Give one place of ``every`` to the candidates of each list, where they do not have it by themselves.

    The first candidate stands at place ``every`` at the latest, the second at twice that, and so on; all others move
    back and stay in their order.

    Parameters
    ----------
    ranking
        Lists of at least ``top_k`` places, best first.
    is_candidate : bool of the shape of the lists
        Items that may move forward.
    top_k : int
        Places of the result.
    every : int
        >= 2.

    Returns
    -------
    int64 of shape (n_users, top_k)
        Places of the items in the given lists; ``-1`` where there are no more.
    float32 of the shape of the lists
        Their scores; who moved forward has that of the item behind.

    Examples
    --------
    >>> lists = Ranking(np.array([[7, 3, 5, 9]]), np.array([[0.9, 0.8, 0.7, 0.1]], dtype=np.float32))
    >>> keep_places(lists, np.array([[False, False, False, True]]), top_k=3, every=2)
    (array([[0, 3, 1]]), array([[0.9, 0.8, 0.7, 0.8]], dtype=float32))
    """
    present = ranking.item_idx != NO_IDX
    number = np.cumsum(is_candidate & present, axis=1)
    is_candidate = is_candidate & present & (number <= top_k // every)
    n_others = np.cumsum(~is_candidate, axis=1)  # up to and with each place
    # How many others may stand before the first, the second candidate; where there is none, all of them.
    users, columns = np.nonzero(is_candidate)
    of_user = number[users, columns]
    before = np.full((len(present), top_k // every), present.shape[1])
    before[users, of_user - 1] = np.minimum(n_others[users, columns], of_user * (every - 1))
    place = n_others - 1
    for others in before.T:
        place += n_others > others[:, None]
    place[users, columns] = before[users, of_user - 1] + of_user - 1
    rows, kept = np.nonzero(present & (place < top_k))
    places = np.full((len(present), top_k), NO_IDX, dtype=np.int64)
    places[rows, place[rows, kept]] = kept
    score = ranking.score.copy()
    moved_to = np.minimum(place[users, columns], present.shape[1] - 1)
    score[users, columns] = np.maximum(score[users, columns], ranking.score[users, moved_to])
    listed = np.full(places.shape, -np.inf, dtype=np.float32)
    listed[rows, place[rows, kept]] = score[rows, kept]
    listed = np.maximum.accumulate(listed[:, ::-1], axis=1)[:, ::-1]
    score[rows, kept] = listed[rows, place[rows, kept]]
    return places, score


def cap_categories(ranking: Ranking, in_category: sp.csr_matrix, top_k: int, cap: int) -> IdxMatrix:
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

    Returns
    -------
    int64 of shape (n_users, top_k)
        Places of the kept items in the given lists; ``-1`` where there are no more.

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
    return chosen


def explore(
    ranking: Ranking, users: UserBatch, share: float, seed: int, *, eligible: BoolVector | None = None
) -> tuple[Ranking, npt.NDArray[np.bool_]]:
    """
    Put items drawn at random in a share of the places, never in the first.

    Parameters
    ----------
    ranking
        Lists of a batch of users.
    users
        The same users; what is in their history is not drawn.
    share : float
        Probability of each place but the first to be given away, in [0, 1].
    seed : int
        Decides places and items, with the user's row and the size of the history: the same user is shown the same until
        something happened.
    eligible : bool of shape (n_items,), optional
        Items that may be drawn; all by default.

    Returns
    -------
    Ranking
        Drawn items have the score of what they replaced. Nothing occurs twice.
    bool of shape (n_users, top_k)
        Places that were given away.
    """
    item_idx = ranking.item_idx.copy()
    given_away = np.zeros(item_idx.shape, dtype=np.bool_)
    for user, row in enumerate(users.user_idx.tolist()):
        seen = users.history.indices[users.history.indptr[user] : users.history.indptr[user + 1]]
        rng = np.random.default_rng([seed, row + 1, len(seen)])
        given_away[user, 1:] = (rng.random(item_idx.shape[1] - 1) < share) & (item_idx[user, 1:] != NO_IDX)
        if not given_away[user].any():
            continue
        may = np.ones(users.n_items, dtype=np.bool_) if eligible is None else eligible.copy()
        may[seen] = False
        may[item_idx[user][item_idx[user] != NO_IDX]] = False
        pool = np.flatnonzero(may)
        places = np.flatnonzero(given_away[user])
        drawn = rng.choice(pool, min(len(pool), len(places)), replace=False)
        item_idx[user, places[: len(drawn)]] = drawn
        given_away[user, places[len(drawn) :]] = False
    return Ranking(item_idx, ranking.score.copy()), given_away
