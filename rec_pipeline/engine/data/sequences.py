"""What each user did, in order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import map_array, write_array
from rec_pipeline.engine.data.batches import RECENT_EVENTS, IdxMatrix, IdxVector
from rec_pipeline.engine.data.id_map import NO_IDX


@dataclass(frozen=True)
class UserSequences:
    """
    The items of every user, oldest first, one user after the other.

    Attributes
    ----------
    starts
        int64 of shape (n_users + 1,), non-decreasing from 0: the events of user row ``u`` are
        ``item_idx[starts[u] : starts[u + 1]]``.
    item_idx
        int32 of shape (n_events,), 4 bytes an event; int64 is taken as well.
    """

    starts: IdxVector
    item_idx: npt.NDArray[np.int32 | np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Events of each user, int64 of shape (n_users,)."""
        return np.diff(self.starts)

    def recent(self, user_idx: IdxVector, length: int = RECENT_EVENTS) -> IdxMatrix:
        """
        Return the last ``length`` events of each user, as ``UserBatch.recent`` holds them.

        Parameters
        ----------
        user_idx : int64 of shape (n_users,)
            ``-1`` is a user of whom nothing is known.
        length : int
            Most events of a user, >= 1.

        Returns
        -------
        int64 of shape (n_users, width)
            Oldest first, ``-1`` at the left of shorter rows; width is that of the longest, at most ``length``.

        Examples
        --------
        >>> sequences = UserSequences(np.array([0, 3, 4]), np.array([7, 5, 6, 9]))
        >>> sequences.recent(np.array([1, 0, -1]), length=2)
        array([[-1,  9],
               [ 5,  6],
               [-1, -1]])
        """
        is_known = user_idx != NO_IDX
        known = np.where(is_known, user_idx, 0)
        ends = self.starts[known + 1]
        counts = np.where(is_known, np.minimum(ends - self.starts[known], length), 0)
        width = int(counts.max(initial=0))
        from_end = np.arange(width, 0, -1)
        is_event = from_end <= counts[:, None]  # (n_users, width)
        recent = np.full(is_event.shape, NO_IDX, dtype=np.int64)
        recent[is_event] = self.item_idx[(ends[:, None] - from_end)[is_event]]
        return recent

    def save(self, directory: Path) -> None:
        """Write ``starts.npy`` and ``item_idx.npy``."""
        write_array(directory / "starts.npy", self.starts)
        write_array(directory / "item_idx.npy", self.item_idx)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(map_array(directory / "starts.npy"), map_array(directory / "item_idx.npy"))


def in_order(interactions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by time, those of one instant as they were; what is in order already is not copied."""
    if interactions[c.TIMESTAMP].is_monotonic_increasing:
        return interactions
    return interactions.sort_values(c.TIMESTAMP, kind="stable")
