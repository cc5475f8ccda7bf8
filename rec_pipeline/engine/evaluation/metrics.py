"""
Every metric, defined once.

Accuracy metrics compare a user's ranking with the items held out for that user; list metrics look at the ranking and
facts about its items; aggregate metrics look at the lists of all users together. The first two give one value per user,
NaN where the metric is undefined; averages are macro-averages over the users where it is defined. ``DEFINITIONS`` is
the wording that reports print. The ranking order is taken as given: ties were broken by whoever made it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import BoolVector, IdxMatrix, is_member
from rec_pipeline.engine.data.id_map import NO_IDX

FloatVector: TypeAlias = npt.NDArray[np.float64]
FloatMatrix: TypeAlias = npt.NDArray[np.float64]
ItemVectors: TypeAlias = npt.NDArray[np.float32]

ACCURACY_METRICS: Final = ("precision", "recall", "ndcg", "hit_rate", "mrr", "map")
LIST_METRICS: Final = ("diversity", "novelty", "popularity_percentile")
AGGREGATE_METRICS: Final = ("coverage", "exposure_gini")

DEFINITIONS: Final[Mapping[str, str]] = {
    "precision": "Held-out items among the first `cutoff`, divided by `cutoff` (also when the list is shorter).",
    "recall": "Held-out items among the first `cutoff`, divided by all held-out items of the user.",
    "ndcg": "Sum of 1 / log2(rank + 1) over held-out items among the first `cutoff`, divided by the same sum for an "
    "ideal list that has min(`cutoff`, held-out) of them at the top.",
    "hit_rate": "1 if any held-out item is among the first `cutoff`, else 0.",
    "mrr": "1 / rank of the first held-out item if that rank is at most `cutoff`, else 0.",
    "map": "Precision at the rank of each held-out item among the first `cutoff`, summed and divided by all held-out "
    "items of the user (as trec_eval does, so missing items count as 0).",
    "diversity": "1 minus the mean cosine over all pairs of the first `cutoff` items that have a content vector; "
    "undefined below two such items.",
    "novelty": "Mean of -log2((users with the item + 1) / (users + 1)) over the first `cutoff` items, users counted in "
    "the fitting data; undefined for an empty list.",
    "popularity_percentile": "Mean share of the catalogue that is less popular than the item (items of equal count "
    "share the middle), over the first `cutoff` items: 0.5 is what a random item gets, 1 the most popular; undefined "
    "for an empty list.",
    "coverage": "Distinct items among the first `cutoff` of any user, divided by the items that may be recommended.",
    "exposure_gini": "Gini coefficient of how often each item that may be recommended is among the first `cutoff` of a "
    "user: 0 when all are shown equally often, towards 1 when few take everything; undefined if nothing is shown.",
}


def label(metric: str, cutoff: int) -> str:
    """Return the name of ``metric`` at ``cutoff``, e.g. ``ndcg@10``."""
    return f"{metric}@{cutoff}"


def accuracy_metrics(item_idx: IdxMatrix, relevant: sp.csr_matrix, cutoffs: Sequence[int]) -> dict[str, FloatVector]:
    """
    Compute every accuracy metric at every cutoff in one pass.

    With ``hits`` the held-out items among the first ``cutoff`` ranks and ``relevant`` all held-out items of a user:
    precision is ``hits / cutoff``; recall ``hits / relevant``; ndcg the sum of ``1 / log2(rank + 1)`` over hits divided
    by that sum for ``min(cutoff, relevant)`` hits at the top; hit_rate ``hits > 0``; mrr ``1 / rank`` of the first hit,
    else 0; map the sum over hits of the precision at their rank, divided by ``relevant``.

    Parameters
    ----------
    item_idx : int64 of shape (n_users, top_k)
        Item rows, best first, out of any candidate set; no repeats within a row; ``-1`` pads short lists. An empty list
        scores 0.
    relevant : CSR of shape (n_users, n_items)
        A stored entry is a held-out item, whatever its value.
    cutoffs
        Ranks considered, each in 1..top_k.

    Returns
    -------
    dict of float64 of shape (n_users,)
        ``ndcg@10`` and so on, in [0, 1]; NaN for users without a held-out item (undefined, not zero).

    Raises
    ------
    ValueError
        If a cutoff lies outside 1..top_k, shapes differ, or an item row is out of range.

    References
    ----------
    Järvelin & Kekäläinen (2002), TOIS 20(4), for ndcg with log2(rank + 1) as discount. map divides as trec_eval's
    ``map_cut`` does; the other common choice, min(cutoff, relevant), would call a list perfect that recall does not.

    Examples
    --------
    >>> values = accuracy_metrics(np.array([[7, 3]]), sp.csr_matrix(([1.0], ([0], [3])), shape=(1, 8)), [1, 2])
    >>> [float(values[name][0]) for name in ("precision@1", "recall@2", "mrr@2")]
    [0.0, 1.0, 0.5]
    """
    _check_cutoffs(item_idx, cutoffs)
    if not relevant.has_canonical_format:
        relevant = relevant.copy()
        relevant.sum_duplicates()
    n_users, ordered = len(item_idx), np.sort(cutoffs)
    length, at_cutoff = int(ordered[-1]), ordered[:, None]
    n_relevant = np.diff(relevant.indptr)
    defined = np.where(n_relevant > 0, 1.0, np.nan)
    discount = 1.0 / np.log2(np.arange(2, length + 2))
    ideal = np.concatenate([[np.nan], np.cumsum(discount)])

    # Hits are few, so the rest works on them alone: one (user, position) pair each, in ranking order.
    hits = np.flatnonzero(is_member(item_idx[:, :length], relevant))
    user = hits // length
    position = hits - user * length
    count = np.bincount(user, minlength=n_users)
    n_hits_before = np.cumsum(count) - count
    nth_hit = np.arange(1, len(hits) + 1) - n_hits_before[user]
    first_rank = np.full(n_users, np.inf)
    first_rank[count > 0] = position[n_hits_before[count > 0]] + 1
    stretch = (np.searchsorted(ordered, np.arange(length), side="right") * n_users)[position] + user

    def summed(weights: FloatVector | None) -> FloatMatrix:
        """Sum over the hits of each user up to each cutoff, (n_cutoffs, n_users): sums between cutoffs, accumulated."""
        between = np.bincount(stretch, weights=weights, minlength=n_users * len(ordered))
        return between.reshape(len(ordered), n_users).cumsum(axis=0, dtype=np.float64)

    n_hits = summed(None) * defined
    found = (first_rank <= at_cutoff) * defined
    by_metric = {
        "precision": n_hits / at_cutoff,
        "recall": n_hits / np.maximum(n_relevant, 1),
        "ndcg": summed(discount[position]) / ideal[np.minimum(n_relevant, at_cutoff)],
        "hit_rate": found,
        "mrr": found / first_rank,
        "map": summed(nth_hit / (position + 1)) * defined / np.maximum(n_relevant, 1),
    }
    return {
        label(metric, cutoff): values[row]
        for row, cutoff in enumerate(ordered.tolist())
        for metric, values in by_metric.items()
    }


def list_diversity(item_idx: IdxMatrix, item_vectors: ItemVectors, cutoffs: Sequence[int]) -> dict[str, FloatVector]:
    """
    Compute intra-list diversity: 1 minus the mean cosine over all pairs of items of a list.

    Numerator: sum of ``1 - cosine`` over unordered pairs; denominator: number of pairs; both over the items among the
    first ``cutoff`` whose vector is not zero (a zero vector is an item nothing is known about). One value per user.

    Parameters
    ----------
    item_idx : int64 of shape (n_users, top_k)
        Item rows; ``-1`` pads short lists.
    item_vectors : float32 of shape (n_items, dim)
        One vector an item, of any length.
    cutoffs
        Ranks considered, each in 1..top_k.

    Returns
    -------
    dict of float64 of shape (n_users,)
        ``diversity@10`` and so on, in [0, 2], to about 1e-6 (sums are in float32); NaN below two items with a vector.

    References
    ----------
    Ziegler et al. (2005), WWW, intra-list similarity, here as its complement and a mean.

    Examples
    --------
    >>> list_diversity(np.array([[0, 1, 2]]), np.array([[1, 0], [0, 1], [0, 2]], dtype=np.float32), [2, 3])
    {'diversity@2': array([1.]), 'diversity@3': array([0.66666667])}
    """
    _check_cutoffs(item_idx, cutoffs)
    length = np.linalg.norm(item_vectors, axis=1, keepdims=True)
    unit = np.divide(item_vectors, length, out=np.zeros_like(item_vectors, dtype=np.float32), where=length > 0)
    is_known = np.append(length[:, 0] > 0, False)[item_idx]
    total = np.zeros((len(item_idx), item_vectors.shape[1]), dtype=np.float32)
    n_known, start = np.zeros(len(item_idx)), 0
    values: dict[str, FloatVector] = {}
    for cutoff in sorted(cutoffs):
        known = is_known[:, start:cutoff]
        indptr = np.append(0, np.cumsum(known.sum(axis=1)))
        columns = item_idx[:, start:cutoff][known]
        shown = sp.csr_matrix((np.ones(len(columns), np.float32), columns, indptr), (len(item_idx), len(unit)))
        total += shown @ unit
        n_known += known.sum(axis=1)
        # |sum of unit vectors|^2 = n + 2 * (sum of cosines over pairs), so no pair is ever formed.
        n_pairs = np.where(n_known > 1, n_known * (n_known - 1), np.nan)
        cosines = np.square(total, dtype=np.float64).sum(axis=1) - n_known
        values[label("diversity", cutoff)] = np.clip(1.0 - cosines / n_pairs, 0.0, 2.0)
        start = cutoff
    return values


def list_mean(
    metric: str, item_idx: IdxMatrix, item_value: FloatVector, cutoffs: Sequence[int]
) -> dict[str, FloatVector]:
    """
    Average a value of the items over each list: novelty from self-information, popularity from percentiles.

    Numerator: sum of ``item_value`` over the items among the first ``cutoff``; denominator: their number (not
    ``cutoff``, for short lists). One value per user.

    Parameters
    ----------
    metric
        Name the results get.
    item_idx : int64 of shape (n_users, top_k)
        Item rows; ``-1`` pads short lists.
    item_value : float64 of shape (n_items,)
        Finite.
    cutoffs
        Ranks considered, each in 1..top_k.

    Returns
    -------
    dict of float64 of shape (n_users,)
        ``{metric}@10`` and so on; NaN for an empty list.
    """
    _check_cutoffs(item_idx, cutoffs)
    ordered = sorted(cutoffs)
    shown = item_idx[:, : ordered[-1]]
    values = np.append(item_value, 0.0).take(shown, mode="wrap")
    sums = np.cumsum(np.add.reduceat(values, [0, *ordered[:-1]], axis=1), axis=1)
    counts = np.minimum((shown != NO_IDX).sum(axis=1)[:, None], ordered)
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return {label(metric, cutoff): means[:, column] for column, cutoff in enumerate(ordered)}


def self_information(item_n_users: npt.NDArray[np.int64], n_users: int) -> FloatVector:
    """
    Return ``-log2 p`` of each item in bits, with ``p = (users with the item + 1) / (users + 1)``.

    The added one keeps an item that nobody has finite: it gets the most that this many users can tell. Float64 of shape
    (n_items,), >= 0.

    References
    ----------
    Zhou et al. (2010), PNAS 107(10), "surprisal"; the smoothing is ours.

    Examples
    --------
    >>> self_information(np.array([3, 1, 0]), n_users=3)
    array([0., 1., 2.])
    """
    return np.abs(np.log2((item_n_users + 1) / (n_users + 1)))


def popularity_percentile(item_count: npt.NDArray[np.int64]) -> FloatVector:
    """
    Return the share of the catalogue that is less popular than each item; half of the items of equal count are added.

    Float64 of shape (n_items,) in (0, 1) with mean 0.5.

    Examples
    --------
    >>> popularity_percentile(np.array([9, 0, 0, 5]))
    array([0.875, 0.25 , 0.25 , 0.625])
    """
    _, group, size = np.unique(item_count, return_inverse=True, return_counts=True)
    return ((np.cumsum(size) - size / 2) / max(1, len(item_count)))[group]


def exposure(item_idx: IdxMatrix, n_items: int, cutoffs: Sequence[int]) -> npt.NDArray[np.int64]:
    """
    Count how many lists show each item among their first ``cutoff``.

    Int64 of shape (n_cutoffs, n_items), rows in the order of the ascending ``cutoffs``; add up the counts of batches.
    """
    _check_cutoffs(item_idx, cutoffs)
    shown = item_idx[:, : cutoffs[-1]]
    # One row of cells between two cutoffs, each with a cell in front for the padding.
    row = np.searchsorted(cutoffs, np.arange(cutoffs[-1]), side="right")
    cells = (shown + row * (n_items + 1) + 1).ravel()
    between = np.bincount(cells, minlength=len(cutoffs) * (n_items + 1)).reshape(len(cutoffs), n_items + 1)
    return between[:, 1:].cumsum(axis=0, dtype=np.int64)


def coverage(n_shown: npt.NDArray[np.int64], eligible: BoolVector) -> float:
    """
    Return the share of the ``eligible`` items that at least one list shows; NaN if none is eligible.

    Parameters
    ----------
    n_shown : int64 of shape (n_items,)
        Lists that show each item, from ``exposure``.
    eligible : bool of shape (n_items,)
        Items that may be recommended.

    Examples
    --------
    >>> coverage(np.array([5, 0, 1, 0]), np.array([True, True, True, False]))
    0.6666666666666666
    """
    return float((n_shown[eligible] > 0).mean()) if eligible.any() else float("nan")


def exposure_gini(n_shown: npt.NDArray[np.int64], eligible: BoolVector) -> float:
    """
    Return the Gini coefficient of the exposure of the ``eligible`` items; NaN if nothing is shown.

    Numerator: sum over all ordered pairs of items of the absolute difference of their exposures; denominator: twice the
    number of items times the total exposure. In [0, 1 - 1 / n_eligible].

    Parameters
    ----------
    n_shown : int64 of shape (n_items,)
        Lists that show each item, from ``exposure``.
    eligible : bool of shape (n_items,)
        Items that may be recommended.

    Examples
    --------
    >>> exposure_gini(np.array([0, 0, 0, 8]), np.ones(4, dtype=bool))
    0.75
    """
    ordered = np.sort(n_shown[eligible]).astype(np.float64)
    if not ordered.sum():
        return float("nan")
    n_items = len(ordered)
    return float((2 * np.arange(1, n_items + 1) - n_items - 1) @ ordered / (n_items * ordered.sum()))


class RecommenderMetrics:
    """
    Score one list of recommendations by the ids it holds, with the same definitions as the reports.

    Parameters
    ----------
    item_vectors : mapping of id to vector, optional
        What diversity compares, all of one length.
    categories : mapping of id to category names, optional
        Compared instead if there are no vectors: the cosine of two sets, shared / sqrt(size * size).

    Raises
    ------
    ValueError
        If both are given.

    Notes
    -----
    Diversity is ``list_diversity`` of the vectors or categories. With neither, nothing tells items apart but their
    identity, and it is the share of distinct ids in the list: 1 unless an id is repeated.

    Examples
    --------
    >>> scores = RecommenderMetrics().evaluate(["a", "b"], ["b", "c", "d", "e"])
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'precision': 0.5, 'recall': 0.25, 'ndcg': 0.387, 'hit_rate': 1.0, 'mrr': 0.5, 'map': 0.125, 'diversity': 1.0}
    """

    def __init__(
        self,
        item_vectors: Mapping[str, npt.ArrayLike] | None = None,
        categories: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        if item_vectors is not None and categories is not None:
            raise ValueError("give item_vectors or categories, not both")
        if categories is not None:
            sets = {item: set(names) for item, names in categories.items()}
            every = sorted(set().union(*sets.values()))
            item_vectors = {item: [name in names for name in every] for item, names in sets.items()}
        self._item_vectors = item_vectors

    def evaluate(self, recommended_ids: Sequence[str], ground_truth_items: Iterable[str]) -> dict[str, float]:
        """
        Score a list against the items the user went on to choose, at a cutoff of the list's own length.

        A repeated id can hit once, at its first rank. An empty list scores 0 (diversity NaN); without any ground truth
        accuracy is undefined, hence NaN.

        Parameters
        ----------
        recommended_ids
            Item ids, best first.
        ground_truth_items
            Item ids, each counted once.

        Returns
        -------
        dict of float
            ``precision``, ``recall``, ``ndcg``, ``hit_rate``, ``mrr``, ``map``, ``diversity``.
        """
        truth = set(ground_truth_items)
        distinct = list(dict.fromkeys(recommended_ids))
        idx = {item: row for row, item in enumerate(dict.fromkeys([*distinct, *sorted(truth)]))}
        cutoff = max(1, len(recommended_ids))
        item_idx = np.full((1, cutoff), NO_IDX, dtype=np.int64)
        for item in distinct:
            item_idx[0, recommended_ids.index(item)] = idx[item]
        columns = [idx[item] for item in truth]
        relevant = sp.csr_matrix((np.ones(len(truth)), (np.zeros(len(truth), int), columns)), shape=(1, len(idx)))
        values = accuracy_metrics(item_idx, relevant, [cutoff])
        scores = {metric: float(values[label(metric, cutoff)][0]) for metric in ACCURACY_METRICS}
        return {**scores, "diversity": self._diversity(recommended_ids)}

    def _diversity(self, ids: Sequence[str]) -> float:
        if not ids:
            return float("nan")
        if self._item_vectors is None:
            return len(set(ids)) / len(ids)
        known: list[Any] = [self._item_vectors[item] for item in ids if item in self._item_vectors]
        if len(known) < 2:
            return float("nan")
        item_idx = np.arange(len(known))[None, :]
        (value,) = list_diversity(item_idx, np.array(known, dtype=np.float32), [len(known)]).values()
        return float(value[0])


def _check_cutoffs(item_idx: IdxMatrix, cutoffs: Sequence[int]) -> None:
    if not cutoffs or min(cutoffs) < 1 or max(cutoffs) > item_idx.shape[1]:
        raise ValueError(f"cutoffs must lie in 1..{item_idx.shape[1]}, the length of the lists, found {list(cutoffs)}")
