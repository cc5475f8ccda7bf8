"""Recommendations from what a user did last: the next item of a sequence, found by inner product."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rec_pipeline.engine.data.batches import BoolVector, Ranking, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.models.ncf_params import EXACT_SCORING_ITEMS
from rec_pipeline.engine.models.scorer import Scorer
from rec_pipeline.engine.recommenders.collaborative import CandidateIndex
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker


class NextItemModel(Scorer, Protocol):
    """A model whose score is an inner product of what a user did last with an item."""

    @property
    def is_fitted_item(self) -> BoolVector:
        """Bool of shape (n_items,): items that the model can recommend."""

    def user_vectors(self, users: UserBatch) -> npt.NDArray[np.float32]:
        """Return float32 of shape (n_users, dim), the query side; zeros for a user without recent events."""


@dataclass(frozen=True)
class SequenceRanker:
    """
    Ranks by what is expected to come next, given ``UserBatch.recent`` and nothing else about a user.

    Nothing is stored per user, so one who has just come is served after their first event. Items that the model never
    saw in training are not recommended.

    Attributes
    ----------
    model
        Fitted model.
    index
        Index over the model's item vectors; without one every item is scored.
    name
        Name in reports and in the sources of a recommendation.
    exact_up_to
        Largest catalogue, in items, that is scored without the index.
    """

    model: NextItemModel
    index: CandidateIndex | None = None
    name: str = "sequence"
    exact_up_to: int = EXACT_SCORING_ITEMS

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """Rank eligible, unseen items that the model knows by its score; ties by item row."""
        eligible = self.model.is_fitted_item if eligible is None else self.model.is_fitted_item & eligible
        if self.index is None or users.n_items <= self.exact_up_to:
            return ScoreRanker(self.name, self.model).recommend(users, top_k, eligible=eligible)
        queries = self.model.user_vectors(users)
        found = self.index.search(queries, top_k, eligible=eligible, excluded=users.history)
        is_known = queries.any(axis=1, keepdims=True)
        return Ranking(
            item_idx=np.where(is_known, found.item_idx, NO_IDX),
            score=np.where(is_known, found.score, np.float32(-np.inf)),
        )
