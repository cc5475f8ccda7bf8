"""Recommendations from what the items say: the nearest texts to the taste of a user."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rec_pipeline.engine.data.batches import BoolVector, Ranking, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.recommenders.collaborative import CandidateIndex

# Length of a mean of unit vectors below which only rounding is left of it.
NO_TASTE = 1e-5


class ItemVectors(Protocol):
    """Vectors of the catalogue's items, in row order."""

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """Float32 of shape (n_items, dim); zero rows where there is none."""

    @property
    def has_vector(self) -> BoolVector:
        """Bool of shape (n_items,): items whose vector means something."""


@dataclass(frozen=True)
class ContentRanker:
    """
    Ranks by inner product with the user's taste.

    The taste is the weighted mean of the vectors of the items in the history, less the mean of the catalogue: what all
    items have in common says nothing about anybody. It needs no training on interactions, so a new item can be
    recommended once it has text, and a new user after one interaction. Weights of the history that favour recent or
    liked items shift the taste towards them.

    Attributes
    ----------
    embeddings
        Unit vectors of the catalogue, aligned with its rows.
    index
        Index over the same vectors, without the items that have none.
    name
        Name in reports and in the sources of a recommendation.
    """

    embeddings: ItemVectors
    index: CandidateIndex
    name: str = "content"

    @cached_property
    def _centre(self) -> npt.NDArray[np.float32]:
        n_vectors = max(1, int(np.count_nonzero(self.embeddings.has_vector)))
        return np.asarray(self.embeddings.vectors.sum(axis=0) / np.float32(n_vectors))  # (dim,)

    def taste(self, users: UserBatch) -> npt.NDArray[np.float32]:
        """
        Return unit taste vectors, float32 of shape (n_users, dim).

        A zero row is a user whose history holds no item with a vector, or is just like the catalogue.
        """
        history = users.history
        rows = np.repeat(np.arange(len(users)), np.diff(history.indptr))
        counted = history.data * self.embeddings.has_vector[history.indices]
        weight = np.bincount(rows, counted, minlength=len(users)).astype(np.float32)[:, None]
        known = weight > 0
        mean = history @ self.embeddings.vectors / np.where(known, weight, np.float32(1))  # (n_users, dim)
        taste = np.where(known, mean - self._centre, np.float32(0))
        taste[np.linalg.norm(taste, axis=1) < NO_TASTE] = 0
        return unit_rows(taste)

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """Rank eligible, unseen items that have a vector; the score is in [-1, 1]."""
        queries = self.taste(users)
        found = self.index.search(queries, top_k, eligible=eligible, excluded=users.history)
        has_taste = queries.any(axis=1, keepdims=True)
        return Ranking(
            item_idx=np.where(has_taste, found.item_idx, NO_IDX),
            score=np.where(has_taste, found.score, np.float32(-np.inf)),
        )


def unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return float32 rows of length one, so that an inner product is a cosine; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)
