"""What is popular lately: interactions counted less the older they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_array, read_json, write_array, write_json
from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch
from rec_pipeline.engine.data.sequences import in_order
from rec_pipeline.engine.data.space import in_blocks

A_CENTURY: Final = 36_500.0  # days: nothing is forgotten
HALF_LIVES: Final = (1.0, 3.0, 7.0, 14.0, 30.0, 90.0, 365.0, A_CENTURY)
N_PERIODS: Final = 8
KNOWN_AT_FIRST: Final = 0.2
CUTOFF: Final = 10


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
    newcomer_weight, newcomer_half_life_days
        The same for those of whom nothing is known: what a newcomer takes ages differently.

    Examples
    --------
    >>> times = pd.to_datetime(["2024-01-01", "2024-01-08", "2024-01-08"], utc=True)
    >>> part = pd.DataFrame({"user_idx": [0, 0, 1], "item_idx": [0, 1, 1], "timestamp": times})
    >>> model = TrendingModel.fit(part, n_items=3, half_life_days=7, newcomer_half_life_days=3.5)
    >>> model.weight, model.newcomer_weight
    (array([0.5, 2. , 0. ], dtype=float32), array([0.25, 2.  , 0.  ], dtype=float32))
    """

    weight: npt.NDArray[np.float32]
    half_life_days: float
    newcomer_weight: npt.NDArray[np.float32]
    newcomer_half_life_days: float

    @classmethod
    def fit(cls, part: pd.DataFrame, n_items: int, half_life_days: float, newcomer_half_life_days: float) -> Self:
        """
        Count what is in ``part``.

        Parameters
        ----------
        part : pd.DataFrame
            Columns ``item_idx``, ``timestamp``, of each user and item the last interaction alone; not modified.
        n_items : int
            Size of the catalogue.
        half_life_days, newcomer_half_life_days : float
            Above 0.
        """
        half_lives = (half_life_days, newcomer_half_life_days)
        weight, newcomer_weight = decayed_counts(part, n_items, half_lives)
        return cls(weight, half_life_days, newcomer_weight, newcomer_half_life_days)

    def score(self, users: UserBatch) -> ScoreMatrix:
        """Return the weights as float32 of shape (n_users, n_items), one equal row a user."""
        return np.tile(self.weight, (len(users), 1))

    def save(self, directory: Path) -> None:
        """Write ``weight.npy``, ``newcomer_weight.npy`` and ``trending.json``."""
        write_array(directory / "weight.npy", self.weight)
        write_array(directory / "newcomer_weight.npy", self.newcomer_weight)
        half_lives = {name: getattr(self, name) for name in ("half_life_days", "newcomer_half_life_days")}
        write_json(directory / "trending.json", half_lives)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(
            weight=read_array(directory / "weight.npy"),
            newcomer_weight=read_array(directory / "newcomer_weight.npy"),
            **read_json(directory / "trending.json"),
        )


def decayed_counts(part: pd.DataFrame, n_items: int, half_lives: Sequence[float]) -> npt.NDArray[np.float32]:
    """
    Return each item's decayed number of users in ``part``, float32 of shape (n_half_lives, n_items).

    The parameters are those of ``TrendingModel.fit``, with any number of half-lives, in days.
    """
    instant, item_idx = part[c.TIMESTAMP], part[c.ITEM_IDX].to_numpy()
    newest = instant.max()
    counts = np.zeros((len(half_lives), n_items))
    for block in in_blocks(len(part)):
        age = _days(newest - instant.iloc[block])
        for row, half_life in zip(counts, half_lives, strict=True):
            row += np.bincount(item_idx[block], weights=0.5 ** (age / half_life), minlength=n_items)
    return counts.astype(np.float32)


def _days(spans: "pd.Series[pd.Timedelta]") -> npt.NDArray[np.floating]:
    return (spans / pd.Timedelta(days=1)).to_numpy(dtype=np.float64)


def newcomer_half_life(part: pd.DataFrame, n_items: int) -> float:
    """
    Return the half-life in days under which the first items of newcomers are foreseen best.

    The time of ``part`` behind its first fifth is cut into ``N_PERIODS`` of equally many interactions. Whoever is new
    in a period is shown what was popular when it began; a half-life is worth the mean ndcg@10 of all of them. So
    everybody but the first to come was a newcomer once, and not only the few who are in the validation part.

    Parameters
    ----------
    part : pd.DataFrame
        Columns ``user_idx``, ``item_idx``, ``timestamp``, each (user, item) pair once, at least one; not modified.
    n_items : int
        Size of the catalogue.

    Returns
    -------
    float
        One of ``HALF_LIVES``; of equally good ones, and without newcomers, the longest.
    """
    by_time = in_order(part)
    instant = by_time[c.TIMESTAMP]
    user, item = by_time[c.USER_IDX].to_numpy(), by_time[c.ITEM_IDX].to_numpy()
    first_row = np.full(user.max() + 1, len(user))
    for block in reversed(list(in_blocks(len(user)))):
        # What is assigned last, the first of a user's rows, stays.
        first_row[user[block][::-1]] = block.start + np.arange(len(user[block]))[::-1]
    cuts = (np.linspace(KNOWN_AT_FIRST, 1, N_PERIODS + 1)[:-1] * len(user)).astype(np.int64)
    begins = np.unique(instant.searchsorted(instant.iloc[cuts]))
    discounts = 1 / np.log2(np.arange(CUTOFF) + 2)
    weight = {half_life: np.zeros(n_items) for half_life in HALF_LIVES}
    worth = dict.fromkeys(HALF_LIVES, 0.0)
    before = 0
    for begin, end in pairwise([*begins, len(user)]):
        rows = np.arange(begin, end)[first_row[user[begin:end]] >= begin]
        newcomer = np.unique(user[rows], return_inverse=True)[1]
        shape = (newcomer.max(initial=-1) + 1, n_items)
        taken = sp.csr_matrix((np.ones(len(rows)), (newcomer, item[rows])), shape=shape)
        ideal = discounts.cumsum()[np.minimum(np.diff(taken.indptr), CUTOFF) - 1]
        passed = (instant.iloc[begin] - instant.iloc[before]) / pd.Timedelta(days=1)
        for half_life, counts in weight.items():
            counts *= 0.5 ** (passed / half_life)
        for block in in_blocks(begin - before):
            age = _days(instant.iloc[begin] - instant.iloc[before:begin].iloc[block])
            for half_life, counts in weight.items():
                counts += np.bincount(item[before:begin][block], weights=0.5 ** (age / half_life), minlength=n_items)
        for half_life, counts in weight.items():
            hits = taken[:, np.argsort(-counts, kind="stable")[:CUTOFF]].toarray()
            worth[half_life] += float((hits @ discounts[: hits.shape[1]] / ideal).sum())
        before = begin
    return max(reversed(HALF_LIVES), key=lambda half_life: worth[half_life])
