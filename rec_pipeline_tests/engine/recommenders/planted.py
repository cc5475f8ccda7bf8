"""Models whose answers are known, for the tests of what is built on models."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import BoolVector, IdxMatrix, Ranking, ScoreMatrix, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX, IdMap
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.models.scorer import Retrieve


@dataclass(frozen=True)
class TableScorer:
    """Scores are rows of a table; a user outside of it gets zeros."""

    table: npt.NDArray[np.float32]

    def score(self, users: UserBatch) -> ScoreMatrix:
        return np.where(users.user_idx[:, None] >= 0, self.table[users.user_idx], np.float32(0))


@dataclass(frozen=True)
class ListRecommender:
    """Recommends the rows of a given ranking, whatever is asked."""

    name: str
    given: Ranking

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:  # noqa: ARG002 # the protocol's
        return Ranking(self.given.item_idx[users.user_idx, :top_k], self.given.score[users.user_idx, :top_k])


@dataclass(frozen=True)
class InnerProductModel:
    """Scores are inner products plus a term that the vectors do not show."""

    users: npt.NDArray[np.float32]
    items: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32]

    def score(self, users: UserBatch) -> ScoreMatrix:
        known = users.user_idx[:, None] >= 0
        return np.where(known, self.user_vectors(users) @ self.items.T + self.hidden, np.float32(0))

    def retrieve_and_score(self, users: UserBatch, retrieve: Retrieve) -> tuple[IdxMatrix, ScoreMatrix]:
        queries = self.user_vectors(users)
        candidates, product = retrieve(queries)
        if product is None:
            product = np.einsum("ud,ucd->uc", queries, self.items[candidates])
        score = np.where(users.user_idx[:, None] >= 0, product + self.hidden[0, candidates], np.float32(0))
        return candidates, np.where(candidates == NO_IDX, np.float32(-np.inf), score)

    def user_vectors(self, users: UserBatch) -> npt.NDArray[np.float32]:
        return np.where(users.user_idx[:, None] >= 0, self.users[users.user_idx], np.float32(0))

    def item_vectors(self) -> npt.NDArray[np.float32]:
        return self.items


class FixedEncoder:
    """Reads the same taste out of every text: that of the odd items of the planted bundle."""

    model_id = "planted"

    def encode(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return np.tile(np.float32([0.0, 1.0, 0.0]), (len(texts), 1))


def id_map(n: int, prefix: str = "i") -> IdMap:
    return IdMap(np.array([f"{prefix}{row:03d}" for row in range(n)], dtype=object))


def batch(history: list[list[float]], user_idx: list[int] | None = None) -> UserBatch:
    rows = np.arange(len(history)) if user_idx is None else np.array(user_idx)
    return UserBatch(rows.astype(np.int64), sp.csr_matrix(np.array(history, dtype=np.float32)))


def sequences_of(history: sp.csr_matrix) -> UserSequences:
    """Return the items of each user in an order that tells nothing."""
    users = np.repeat(np.arange(history.shape[0]), np.diff(history.indptr))
    order = np.lexsort((np.random.default_rng(7).random(history.nnz), users))
    return UserSequences(history.indptr.astype(np.int64), history.indices[order].astype(np.int64))


def ranking(rows: list[list[int]]) -> Ranking:
    item_idx = np.array(rows, dtype=np.int64)
    score = np.broadcast_to(-np.arange(item_idx.shape[1], dtype=np.float32), item_idx.shape)
    return Ranking(item_idx, np.where(item_idx == NO_IDX, np.float32(-np.inf), score))


def embeddings(vectors: list[list[float]] | npt.NDArray[np.float32]) -> ItemEmbeddings:
    """Unit vectors; a row of zeros is an item without a vector."""
    rows = np.array(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return ItemEmbeddings(id_map(len(rows)), unit, norms[:, 0] > 0, "planted")
