"""What is popular lately: interactions counted less the older they are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_array, read_json, write_array, write_json
from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch

HALF_LIVES: Final = (1.0, 3.0, 7.0, 14.0, 30.0, 90.0, 365.0)


@dataclass(frozen=True)
class TrendingModel:
    """
    Scores an item by its users, each counting half as much for every half-life since the newest interaction of all.

    Attributes
    ----------
    weight
        float32 of shape (n_items,): decayed number of users. A user counts once an item, at the last interaction.
    half_life_days
        Days after which an interaction counts half.

    Examples
    --------
    >>> times = pd.to_datetime(["2024-01-01", "2024-01-08", "2024-01-08"], utc=True)
    >>> part = pd.DataFrame({"user_idx": [0, 0, 1], "item_idx": [0, 1, 1], "timestamp": times})
    >>> TrendingModel.fit(part, n_items=3, half_life_days=7).weight
    array([0.5, 2. , 0. ], dtype=float32)
    """

    weight: npt.NDArray[np.float32]
    half_life_days: float

    @classmethod
    def fit(cls, part: pd.DataFrame, n_items: int, half_life_days: float) -> Self:
        """
        Count what is in ``part``.

        Parameters
        ----------
        part : pd.DataFrame
            Columns ``user_idx``, ``item_idx``, ``timestamp``; not modified.
        n_items : int
            Size of the catalogue.
        half_life_days : float
            Above 0.
        """
        last = part.groupby([c.USER_IDX, c.ITEM_IDX], as_index=False)[c.TIMESTAMP].max()
        age_days = (last[c.TIMESTAMP].max() - last[c.TIMESTAMP]) / pd.Timedelta(days=1)
        decayed = 0.5 ** (age_days.to_numpy(dtype=np.float64) / half_life_days)
        weight = np.bincount(last[c.ITEM_IDX], weights=decayed, minlength=n_items)
        return cls(weight.astype(np.float32), half_life_days)

    def score(self, users: UserBatch) -> ScoreMatrix:
        """Return the weights as float32 of shape (n_users, n_items), one equal row a user."""
        return np.tile(self.weight, (len(users), 1))

    def save(self, directory: Path) -> None:
        """Write ``weight.npy`` and ``trending.json``."""
        write_array(directory / "weight.npy", self.weight)
        write_json(directory / "trending.json", {"half_life_days": self.half_life_days})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(read_array(directory / "weight.npy"), **read_json(directory / "trending.json"))
