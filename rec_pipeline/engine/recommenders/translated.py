"""A recommender of one catalogue asked in the rows of another: a model of last month on the users of today."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import BoolVector, IdxVector, Ranking, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX, IdMap
from rec_pipeline.engine.recommenders.ranker import Ranker


@dataclass(frozen=True)
class TranslatedRanker:
    """
    Converts users and items by their ids, on the way in and on the way out.

    The inner recommender sees of a history what its own catalogue has, and is never asked for an item that the outer
    catalogue lacks. What only the outer catalogue has, it cannot recommend.

    Attributes
    ----------
    ranker
        Works on rows of ``own_users`` and ``own_items``.
    own_users, own_items
        Id maps of the inner recommender.
    users, items
        Id maps of those who ask.
    name
        Name in reports.
    """

    ranker: Ranker
    own_users: IdMap
    own_items: IdMap
    users: IdMap
    items: IdMap
    name: str

    @cached_property
    def _user_rows(self) -> IdxVector:
        """Own row of each outer user, and of nobody at the end."""
        return np.append(self.own_users.to_idx(self.users), NO_IDX)

    @cached_property
    def _item_rows(self) -> IdxVector:
        """Outer row of each own item, and of nothing at the end."""
        return np.append(self.items.to_idx(self.own_items), NO_IDX)

    @cached_property
    def _own_rows(self) -> IdxVector:
        """Own row of each outer item, and of nothing at the end."""
        return np.append(self.own_items.to_idx(self.items), NO_IDX)

    @cached_property
    def _to_own(self) -> sp.csr_matrix:
        """One entry an item of both catalogues, shape (n_items, n_own_items)."""
        own = np.flatnonzero(self._item_rows[:-1] != NO_IDX)
        cells = (np.ones(len(own), dtype=np.float32), (self._item_rows[own], own))
        return sp.csr_matrix(cells, shape=(len(self.items), len(self.own_items)))

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """Return what the inner recommender answers, in outer rows."""
        rows = self._item_rows[:-1]
        may_show = rows != NO_IDX
        if eligible is not None:
            may_show &= eligible[rows]
        history = sp.csr_matrix(users.history @ self._to_own)
        recent = self._own_rows[users.recent]
        oldest_first = np.argsort(recent != NO_IDX, axis=1, kind="stable")  # gaps to the left, the rest in its order
        asked = UserBatch(
            user_idx=self._user_rows[users.user_idx],
            history=history,
            recent=np.take_along_axis(recent, oldest_first, axis=1),
        )
        found = self.ranker.recommend(asked, top_k, eligible=may_show)
        return Ranking(self._item_rows[found.item_idx], found.score)
