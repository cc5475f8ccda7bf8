"""Recommendations from what similar users did: NeuMF (He et al., 2017), in one stage or two."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import BoolVector, IdxMatrix, Ranking, ScoreMatrix, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.models.ncf_params import EXACT_SCORING_ITEMS, N_CANDIDATES
from rec_pipeline.engine.models.scorer import Retrieve, Scorer
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker


class CollaborativeModel(Scorer, Protocol):
    """A model that scores exactly, and has an inner product to retrieve candidates with."""

    def retrieve_and_score(self, users: UserBatch, retrieve: Retrieve) -> tuple[IdxMatrix, ScoreMatrix]:
        """
        Hand the query side of the inner product to ``retrieve``.

        Returns
        -------
        int64 of shape (n_users, n_candidates)
            What it found, ``-1`` padded.
        float32 of the same shape
            Scores of these.
        """

    def item_vectors(self) -> npt.NDArray[np.float32]:
        """Return the other side of the inner product, float32 of shape (n_items, dim)."""


class CandidateIndex(Protocol):
    """Finds the items of the largest inner product."""

    @property
    def scores_exactly(self) -> bool:
        """Whether the scores of a search are the inner products, and not estimates of them."""

    def search(
        self,
        queries: npt.NDArray[np.float32],
        top_k: int,
        *,
        eligible: BoolVector | None = None,
        excluded: sp.csr_matrix | None = None,
    ) -> Ranking:
        """Return the ``top_k`` best items for each query, without the ineligible and the excluded ones."""


@dataclass(frozen=True)
class CollaborativeRanker:
    """
    Ranks by a collaborative model: all items where the catalogue fits, retrieved candidates above that.

    In two stages ``n_candidates`` are retrieved by the inner product of the GMF branch, and the whole network re-ranks
    them; what retrieval misses cannot be recommended.

    Attributes
    ----------
    model
        Fitted model.
    index
        Index over the item vectors of ``model``; without one candidates are looked for among all of them.
    name
        Name in reports and in the sources of a recommendation.
    n_candidates
        Items retrieved per user in two stages; at least the list length is always retrieved.
    exact_up_to
        Largest catalogue, in items, that is scored in one stage.
    """

    model: CollaborativeModel
    index: CandidateIndex | None = None
    name: str = "collaborative"
    n_candidates: int = N_CANDIDATES
    exact_up_to: int = EXACT_SCORING_ITEMS

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """Rank eligible, unseen items by the model's score; ties by item row."""
        if users.n_items <= self.exact_up_to:
            return ScoreRanker(self.name, self.model).recommend(users, top_k, eligible=eligible)
        n_candidates = max(top_k, self.n_candidates)

        def retrieve(queries: npt.NDArray[np.float32]) -> tuple[IdxMatrix, ScoreMatrix | None]:
            if self.index is not None:
                found = self.index.search(queries, n_candidates, eligible=eligible, excluded=users.history)
                return found.item_idx, found.score if self.index.scores_exactly else None
            score = queries @ self.model.item_vectors().T  # (n_users, n_items)
            if eligible is not None:
                score[:, ~eligible] = -np.inf
            found = Ranking.from_scores(score, n_candidates, excluded=users.history)
            return found.item_idx, found.score

        return rank_candidates(*self.model.retrieve_and_score(users, retrieve), top_k)


def rank_candidates(candidates: IdxMatrix, score: ScoreMatrix, top_k: int) -> Ranking:
    """
    Order each user's candidates by score, best first, and keep ``top_k``.

    Parameters
    ----------
    candidates : int64 of shape (n_users, n_candidates), n_candidates >= top_k
        Item rows without repeats, in any order; ``-1`` where there is none.
    score : float32 of the same shape
        Scores where there is a candidate; anything elsewhere. Two or more candidates that are all equal say nothing
        about the user, whose row becomes ``-1``.

    Examples
    --------
    >>> rank_candidates(np.array([[4, 2, -1]]), np.array([[0.5, 0.7, 9.0]], dtype=np.float32), top_k=3).item_idx
    array([[ 2,  4, -1]])
    """
    absent = candidates == NO_IDX
    score = np.where(absent, np.float32(-np.inf), score)
    highest = score.max(axis=1, keepdims=True)
    n_present = np.count_nonzero(~absent, axis=1)
    score[((score == highest) | absent).all(axis=1) & (n_present > 1)] = -np.inf
    cost = -score
    order = np.argsort(cost, axis=1)
    best = np.take_along_axis(score, order, axis=1)
    # Sorting by two keys takes six times as long, so only where it matters.
    tied = np.flatnonzero(((best[:, 1:] == best[:, :-1]) & ~np.isneginf(best[:, 1:])).any(axis=1))
    order[tied] = np.lexsort((candidates[tied], cost[tied]), axis=1)
    order, best = order[:, :top_k], best[:, :top_k]
    item_idx = np.take_along_axis(candidates, order, axis=1)
    return Ranking(item_idx=np.where(np.isneginf(best), NO_IDX, item_idx), score=best)
