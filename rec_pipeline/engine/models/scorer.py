"""What models offer: scores of the whole catalogue, and of what is retrieved for them."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rec_pipeline.engine.data.batches import IdxMatrix, ScoreMatrix, UserBatch

Retrieve = Callable[[npt.NDArray[np.float32]], tuple[IdxMatrix, ScoreMatrix | None]]
"""
Finds items of large inner product with queries, float32 of shape (n_users, dim).

Returns their rows, int64 of shape (n_users, n_candidates) and ``-1`` padded, and the inner products, float32 of that
shape, or None if it does not know them exactly.
"""


class Scorer(Protocol):
    """A fitted model that scores the whole catalogue for a batch of users."""

    def score(self, users: UserBatch) -> ScoreMatrix:
        """
        Return float32 scores of shape (n_users, n_items), higher is better, all finite.

        A user whom the model cannot tell apart from any other (unknown, no history) gets a row of equal scores.
        """
