"""The baseline every recommender must beat: the same items for everybody, those most users have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.artifacts import read_array, write_array
from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch
from rec_pipeline.engine.data.space import in_blocks


@dataclass(frozen=True)
class PopularityModel:
    """
    Scores an item by the number of users who interacted with it.

    Attributes
    ----------
    n_interactions
        int64 of shape (n_items,): users with at least one interaction, per item. An item that one user met ten times
        counts once, so nobody can push an item alone.

    Examples
    --------
    >>> train = sp.csr_matrix(np.array([[1, 0, 5], [1, 1, 0]], dtype=np.float32))
    >>> PopularityModel.fit(train).n_interactions
    array([2, 1, 1])
    """

    n_interactions: npt.NDArray[np.int64]

    @classmethod
    def fit(cls, train: sp.csr_matrix) -> Self:
        """Count the users of each item in ``train``, CSR of shape (n_users, n_items); stored zeros do not count."""
        n_interactions = np.zeros(train.shape[1], dtype=np.int64)
        for block in in_blocks(train.nnz):
            items = train.indices[block][train.data[block] != 0]
            n_interactions += np.bincount(items, minlength=train.shape[1])
        return cls(n_interactions)

    def score(self, users: UserBatch) -> ScoreMatrix:
        """Return the counts as float32 of shape (n_users, n_items), one equal row a user."""
        return np.tile(self.n_interactions.astype(np.float32), (len(users), 1))

    def save(self, directory: Path) -> None:
        """Write ``n_interactions.npy``."""
        write_array(directory / "n_interactions.npy", self.n_interactions)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read ``n_interactions.npy``."""
        return cls(read_array(directory / "n_interactions.npy"))
