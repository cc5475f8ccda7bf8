"""
Item-based nearest neighbours on implicit feedback, the baseline that many published networks did not beat.

Dacrema, Cremonesi & Jannach (2019), "Are We Really Making Much Progress?", RecSys, section 3.1: cosine similarity with
a shrinkage term, the most similar items kept per item. Differs from it in that weights are never used: an item is in a
user's history or it is not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import scipy.sparse as sp
from pydantic import BaseModel, Field

from rec_pipeline.engine.artifacts import read_json, write_json
from rec_pipeline.engine.data.batches import Ranking, ScoreMatrix, UserBatch, binary
from rec_pipeline.engine.data.histories import USERS_AT_ONCE
from rec_pipeline.engine.data.space import MEMORY, Space, count

# Cells of the dense similarity block held at a time; a fit peaks at about 40 bytes a cell.
BLOCK_CELLS = 4_000_000


class ItemKNNParams(BaseModel, frozen=True, extra="forbid"):
    """Hyper-parameters of ``ItemKNNModel``."""

    n_neighbours: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Most similar items kept per item. More smooths and costs memory (12 bytes each). "
        "Default of the code of Dacrema et al. (2019); they searched 5 to 800.",
    )
    shrinkage: float = Field(
        default=100.0,
        ge=0,
        allow_inf_nan=False,
        description="Added to the denominator of the cosine, so that a similarity seen on few users counts less. "
        "Default of the code of Dacrema et al. (2019); they searched 0 to 1000.",
    )


@dataclass(frozen=True)
class ItemKNNModel:
    """
    Scores an item by its similarity to the items in the user's history.

    ``similarity(i, j) = n_users(i and j) / (sqrt(n_users(i) * n_users(j)) + shrinkage)``, and the score of ``j`` is the
    sum over those items ``i`` of the history that are among the nearest neighbours of ``j``. The history comes with the
    request, so users and events newer than the fit are served.

    Attributes
    ----------
    similarity
        float32 CSR of shape (n_items, n_items), history item by scored item; at most ``n_neighbours`` entries a column,
        all positive, none on the diagonal.
    params
        What it was fitted with.
    """

    similarity: sp.csr_matrix
    params: ItemKNNParams

    @classmethod
    def fit(cls, train: sp.csr_matrix, params: ItemKNNParams, space: Space = MEMORY) -> Self:
        """
        Compute the truncated similarities of all items.

        Parameters
        ----------
        train : CSR of shape (n_users, n_items)
            Not modified; any non-zero weight is one interaction.
        params : ItemKNNParams
            Neighbourhood size and shrinkage.
        space
            Where ``train`` is put by item and its ones lie, 12 bytes an interaction.

        Notes
        -----
        Works through blocks of items, so memory beside ``space`` is bounded by the block and the result. Among equally
        similar neighbours the lowest item row wins.
        """
        n_items = train.shape[1]
        user_item = binary(train, out=space.array(train.nnz, np.float32))
        item_user = _by_item(user_item, space)
        norm = np.sqrt(np.asarray(user_item.sum(axis=0), dtype=np.float32)).ravel()  # (n_items,)
        block_size = max(1, BLOCK_CELLS // max(1, n_items))
        blocks = [sp.csr_matrix(np.zeros((0, n_items), dtype=np.float32))]
        for start in range(0, n_items, block_size):
            block = slice(start, start + block_size)
            dense = (item_user[block] @ user_item).toarray()  # (block, n_items)
            shared = dense > 0
            np.divide(dense, np.outer(norm[block], norm) + np.float32(params.shrinkage), out=dense, where=shared)
            np.copyto(dense, -np.inf, where=~shared)
            dense[np.arange(len(dense)), np.arange(start, start + len(dense))] = -np.inf
            nearest = Ranking.from_scores(dense, top_k=min(params.n_neighbours, n_items))
            kept = nearest.item_idx >= 0
            indptr = np.concatenate(([0], np.cumsum(kept.sum(axis=1))))
            blocks.append(
                sp.csr_matrix((nearest.score[kept], nearest.item_idx[kept], indptr), shape=(len(dense), n_items))
            )
        return cls(similarity=sp.csr_matrix(sp.vstack(blocks, format="csr").T), params=params)

    def score(self, users: UserBatch) -> ScoreMatrix:
        """Return float32 scores of shape (n_users, n_items), >= 0; a row of zeros for a user without history."""
        return np.asarray((binary(users.history) @ self.similarity).toarray(), dtype=np.float32)

    def save(self, directory: Path) -> None:
        """Write ``similarity.npz`` and ``params.json``."""
        sp.save_npz(directory / "similarity.npz", self.similarity, compressed=False)
        write_json(directory / "params.json", self.params.model_dump())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote; ``load_npz`` refuses pickled objects."""
        return cls(
            similarity=sp.csr_matrix(sp.load_npz(directory / "similarity.npz")),
            params=ItemKNNParams(**read_json(directory / "params.json")),
        )


def _by_item(user_item: sp.csr_matrix, space: Space) -> sp.csr_matrix:
    """Return the transposed matrix, CSR of shape (n_items, n_users), users ascending, moved some users at a time."""
    n_users, n_items = user_item.shape
    starts = np.concatenate(([0], np.cumsum(count(user_item.indices, n_items))))
    users, values = space.array(user_item.nnz, np.int32), space.array(user_item.nnz, np.float32)
    ends = starts[:-1].copy()  # of what is there already
    for start in range(0, n_users, USERS_AT_ONCE):
        part = user_item[start : start + USERS_AT_ONCE].tocsc()
        n_new = np.diff(part.indptr)
        place = np.repeat(ends - part.indptr[:-1], n_new) + np.arange(part.nnz)
        users[place], values[place] = part.indices + start, part.data
        ends += n_new
    return sp.csr_matrix((values, users, starts), (n_items, n_users))
