"""
EASE: the linear item-item model with a closed form, the baseline that most published networks did not beat.

Steck (2019), "Embarrassingly Shallow Autoencoders for Sparse Data", WWW, equations 5 to 8. Differs from it in that
weights are never used: an item is in a user's history or it is not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from pydantic import BaseModel, Field
from scipy.linalg import lapack

from rec_pipeline.engine.artifacts import read_array, read_json, write_array, write_json
from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch, binary

# Rows of the Gram matrix that are made dense at a time.
BLOCK_ROWS = 1024


class EASEParams(BaseModel, frozen=True, extra="forbid"):
    """Hyper-parameters of ``EASEModel``."""

    l2: float = Field(
        default=500.0,
        gt=0,
        allow_inf_nan=False,
        description="Penalty on the squared weights. Steck (2019) used 200 to 1000 by data set.",
    )
    max_items: int = Field(
        default=20_000,
        ge=1,
        description="Largest catalogue. A fit holds two float32 matrices of that many rows and columns (3.2 GB at "
        "20,000) and takes time with the cube (about a minute and a half on two cores at 20,000).",
    )


@dataclass(frozen=True)
class EASEModel:
    """
    Scores an item by a learned weight from each item of the user's history.

    Attributes
    ----------
    weights
        float32 of shape (n_items, n_items), history item by scored item; zero on the diagonal.
    params
        What it was fitted with.
    """

    weights: npt.NDArray[np.float32]
    params: EASEParams

    @classmethod
    def fit(cls, train: sp.csr_matrix, params: EASEParams) -> Self:
        """
        Solve for the weights that best rebuild each user's history from the rest of it.

        With ``P`` the inverse of ``X.T @ X + l2 * I``, the weights are ``-P[i, j] / P[j, j]`` off the diagonal.

        Parameters
        ----------
        train : CSR of shape (n_users, n_items)
            Not modified; any non-zero weight is one interaction.
        params : EASEParams
            Penalty and the limit on the catalogue.

        Raises
        ------
        ValueError
            If the catalogue is larger than ``params.max_items``.
        """
        n_items = train.shape[1]
        if n_items > params.max_items:
            raise ValueError(f"EASE needs a matrix of all pairs of items: {n_items} items, at most {params.max_items}")
        user_item = binary(train)
        item_user = user_item.T.tocsr()
        gram = np.empty((n_items, n_items), dtype=np.float32, order="F")
        for start in range(0, n_items, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            gram[:, rows] = (item_user[rows] @ user_item).toarray().T  # symmetric: by column, as LAPACK works in place
        gram[np.diag_indices(n_items)] += np.float32(params.l2)
        factor, _ = lapack.spotrf(gram, lower=1, overwrite_a=1)
        inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
        diagonal = np.diag(inverse).copy()
        for start in range(0, n_items, BLOCK_ROWS):  # spotri fills the lower triangle only
            rows = slice(start, start + BLOCK_ROWS)
            inverse[rows, rows] = np.tril(inverse[rows, rows]) + np.tril(inverse[rows, rows], -1).T
            inverse[rows, start + BLOCK_ROWS :] = inverse[start + BLOCK_ROWS :, rows].T
        inverse /= -diagonal
        inverse[np.diag_indices(n_items)] = 0
        return cls(weights=inverse, params=params)

    def score(self, users: UserBatch) -> ScoreMatrix:
        """Return float32 scores of shape (n_users, n_items); a row of zeros for a user without history."""
        return np.asarray(binary(users.history) @ self.weights, dtype=np.float32)

    def save(self, directory: Path) -> None:
        """Write ``weights.npy`` and ``params.json``."""
        write_array(directory / "weights.npy", self.weights)
        write_json(directory / "params.json", self.params.model_dump())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(
            weights=read_array(directory / "weights.npy"), params=EASEParams(**read_json(directory / "params.json"))
        )
