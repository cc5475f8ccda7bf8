"""One order of the catalogue for everybody, less what each has seen."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rec_pipeline.engine.data.batches import BoolVector, IdxVector, Ranking, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX


@dataclass(frozen=True)
class GlobalRanker:
    """
    Ranks by one number an item, the same for every user.

    The catalogue is sorted once, not scored once a user: a batch costs its lists and its histories.

    Attributes
    ----------
    name
        Name in reports and in the sources of a recommendation.
    weight
        float32 of shape (n_items,), higher is better.
    """

    name: str
    weight: npt.NDArray[np.float32]

    @cached_property
    def _order(self) -> IdxVector:
        return np.argsort(-self.weight, kind="stable")

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """Rank all eligible, unseen items by their weight; ties by item row. Nobody gets an empty answer."""
        order = self._order if eligible is None else self._order[eligible[self._order]]
        n_seen = np.diff(users.history.indptr)
        order = order[: top_k + int(n_seen.max(initial=0))]
        place = np.full(users.n_items, NO_IDX, dtype=np.int64)
        place[order] = np.arange(len(order))

        unseen = np.ones((len(users), len(order)), dtype=np.bool_)
        seen_place = place[users.history.indices]
        rows = np.repeat(np.arange(len(users)), n_seen)
        unseen[rows[seen_place != NO_IDX], seen_place[seen_place != NO_IDX]] = False
        rank = np.cumsum(unseen, axis=1) - 1  # of each unseen item in the user's list
        user, column = np.nonzero(unseen & (rank < top_k))
        item_idx = np.full((len(users), top_k), NO_IDX, dtype=np.int64)
        item_idx[user, rank[user, column]] = order[column]
        score = np.where(item_idx == NO_IDX, np.float32(-np.inf), self.weight[item_idx])
        return Ranking(item_idx=item_idx, score=score.astype(np.float32))
