"""
What the sources offer, what was taken of it, and the weights under which that is most likely.

Which of the offered items a user takes is a choice in the sense of McFadden (1974), "Conditional logit analysis of
qualitative choice behavior": the odds of an item are the exponential of its merged gain. What is looked for is smooth
and convex in the weights: a hundred users who took fifty items each are five thousand observations, where ndcg@10 sees
a few hits move in and out of ten places, so that weights which climb it follow chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import BoolVector, IdxVector, Ranking
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.recommenders.fusion import reciprocal_rank, score_gain
from rec_pipeline.engine.recommenders.params import FusionMethod

CUTOFF: Final = 10
MIN_SHARE: Final = 0.02  # so that every source serves the users whom no other knows
PRIOR_USERS: Final = 1.0

Weights: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class MergeTable:
    """
    The candidates of every user with what each source gives them; unlike ``fuse`` it knows what is relevant.

    Attributes
    ----------
    names
        Sources, in the order of the first axis of ``gain``.
    gain
        float32 of shape (n_sources, n_users, n_candidates): 0 where the source does not offer the item.
    is_offered
        Bool of shape (n_users, n_candidates): False where a user has fewer candidates.
    is_relevant
        The same of held-out items.
    ideal
        float64 of shape (n_users,): discounted gain of a perfect list.
    """

    names: tuple[str, ...]
    gain: npt.NDArray[np.float32]
    is_offered: npt.NDArray[np.bool_]
    is_relevant: npt.NDArray[np.bool_]
    ideal: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        rankings: Mapping[str, Ranking],
        relevant: sp.csr_matrix,
        method: FusionMethod,
        rank_constant: int,
        n_candidates: int,
    ) -> Self:
        """
        Lay the lists side by side.

        Parameters
        ----------
        rankings
            Lists of each source over the same users; the first ``n_candidates`` items count.
        relevant : CSR of shape (n_users, n_items)
            Stored entries are held-out items; every user has one.
        method, rank_constant
            What an item gains in a list.
        """
        names = tuple(sorted(rankings))
        n_users, n_items = relevant.shape
        users: list[IdxVector] = []
        items: list[IdxVector] = []
        gains: list[npt.NDArray[np.float64]] = []
        for name in names:
            item_idx = rankings[name].item_idx[:, :n_candidates]
            present = item_idx != NO_IDX
            rows, places = np.nonzero(present)
            if method is FusionMethod.SCORE:
                gains.append(score_gain(rankings[name].score[:, :n_candidates], present)[present])
            else:
                gains.append(reciprocal_rank(places + 1, rank_constant))
            users.append(rows)
            items.append(item_idx[present])
        source = np.repeat(np.arange(len(names)), [len(rows) for rows in users])
        pairs, row = np.unique(np.concatenate(users) * n_items + np.concatenate(items), return_inverse=True)
        pool_user = pairs // n_items
        n_pooled = np.bincount(pool_user, minlength=n_users)
        place = np.arange(len(pairs)) - (np.cumsum(n_pooled) - n_pooled)[pool_user]
        width = max(CUTOFF, int(n_pooled.max(initial=0)))
        gain = np.zeros((len(names), n_users, width), dtype=np.float32)
        gain[source, pool_user[row], place[row]] = np.concatenate(gains)
        held_out = np.repeat(np.arange(n_users), np.diff(relevant.indptr)) * n_items + relevant.indices
        is_relevant = np.zeros((n_users, width), dtype=np.bool_)
        is_relevant[pool_user, place] = np.isin(pairs, held_out)
        discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(CUTOFF) + 2))])
        is_offered = np.arange(width) < n_pooled[:, None]
        return cls(names, gain, is_offered, is_relevant, discounts[np.minimum(np.diff(relevant.indptr), CUTOFF)])

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.ideal)

    def only(self, users: BoolVector) -> Self:
        """Return the table of some users."""
        return type(self)(
            self.names, self.gain[:, users], self.is_offered[users], self.is_relevant[users], self.ideal[users]
        )

    def ndcg(self, weights: Weights) -> float:
        """Return the mean of ``user_ndcg``; 0 without users."""
        return float(self.user_ndcg(weights).mean()) if self.n_users else 0.0

    def user_ndcg(self, weights: Weights) -> npt.NDArray[np.float64]:
        """
        Return the ndcg@10 of each user's list merged under ``weights``, float64 of shape (n_users,).

        As ``evaluation.metrics`` defines it, over what the sources offer: the fallback's items are not in the table.
        Within a user normalising the weights over the sources that answer changes no order.
        """
        score = np.tensordot(np.array([weights[name] for name in self.names], dtype=np.float32), self.gain, axes=1)
        top = np.argpartition(-score, CUTOFF - 1, axis=1)[:, :CUTOFF]
        values = np.take_along_axis(score, top, axis=1)
        top = np.take_along_axis(top, np.lexsort((top, -values), axis=1), axis=1)
        hits = np.take_along_axis(self.is_relevant, top, axis=1)
        return np.asarray(hits @ (1 / np.log2(np.arange(CUTOFF) + 2)) / self.ideal)


def fit_weights(
    table: MergeTable, towards: npt.NDArray[np.float64] | None = None, prior_users: float = PRIOR_USERS
) -> npt.NDArray[np.float64]:
    """
    Return the coefficients of the sources under which what users took is most likely: a ridge conditional logit.

    A user counts by the root of the number of items taken: who took more says more, but not as many times more.

    Parameters
    ----------
    table
        What was offered and what of it was taken.
    towards : float64 of shape (n_sources,), optional
        What the coefficients are drawn to, 0 by default.
    prior_users : float
        How strongly: the squared distance counts as much as so many users.

    Returns
    -------
    float64 of shape (n_sources,)
        Each >= 0. Their proportions are the weights, their size says how sure a choice is. ``towards`` where nobody
        took what was offered.
    """
    towards = np.zeros(len(table.names)) if towards is None else towards
    n_taken = table.is_relevant.sum(axis=1)
    says_something = n_taken > 0
    if not says_something.any():
        return towards
    gain, is_offered = table.gain[:, says_something], table.is_offered[says_something]
    n_taken = n_taken[says_something]
    share = (np.sqrt(n_taken) / np.sqrt(n_taken).sum()).astype(np.float32)
    taken = table.is_relevant[says_something] * (share / n_taken)[:, None].astype(np.float32)
    mean_taken = np.tensordot(gain, taken, axes=2)
    strength = prior_users / len(n_taken)

    def loss(coefficients: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        score = np.tensordot(coefficients.astype(np.float32), gain, axes=1)
        score -= score.max(axis=1, keepdims=True)
        odds = np.where(is_offered, np.exp(score), np.float32(0))
        total = odds.sum(axis=1)
        likelihood = (taken * score).sum(dtype=np.float64) - share.astype(np.float64) @ np.log(total)
        apart = coefficients - towards
        slope = mean_taken - np.tensordot(gain, odds * (share / total)[:, None], axes=2)
        return float(strength * apart @ apart - likelihood), 2 * strength * apart - slope

    start = np.maximum(towards, MIN_SHARE)
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start))
    return np.asarray(found.x)


def weights_of(names: Sequence[str], coefficients: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the proportions of ``coefficients`` by name, each ``MIN_SHARE`` at least, summing to 1; all 0: equal."""
    shares = np.maximum(coefficients / (coefficients.sum() or 1.0), MIN_SHARE)
    return dict(zip(names, (shares / shares.sum()).tolist(), strict=True))
