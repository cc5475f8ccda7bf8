"""
Rows in order of time, each once, no more of one user than a cap: of any number of rows, in the memory of some of them.

Equal rows have equal times, so rows are dealt out to buckets by time and each bucket is looked at alone. Rows of one
event id may be far apart in time; they are dealt out by a digest of the id.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.table import Buckets
from rec_pipeline.engine.data.tally import Tally


class Deduplicator:
    """
    Takes typed rows in any order of time and gives them back sorted, without repetitions.

    Parameters
    ----------
    edges : datetime64[us] of shape (n_buckets - 1,)
        Times at which buckets begin, increasing; the first begins before all.
    folder
        Where rows are put aside; None: in memory, with no edges.

    Attributes
    ----------
    n_duplicates
        Rows left out by ``newest_first`` because an earlier one is equal or has the event id.
    n_kept_by_run, n_duplicates_by_run : int64
        Of each run of rows that ``newest_first`` was told of.
    beyond_cap
        Numbers of the rows that it left out because of the cap.
    """

    def __init__(self, edges: npt.NDArray[np.datetime64], folder: Path | None) -> None:
        self.n_kept_by_run = self.n_duplicates_by_run = np.empty(0, dtype=np.int64)
        self.n_duplicates = 0
        self.beyond_cap: list[pd.Index[int]] = []
        self._edges = edges
        self._n_buckets = len(edges) + 1
        self._rows = Buckets(folder and folder / "rows")
        self._event_ids: Buckets | None = None
        self._folder = folder
        self._of_user = Tally()

    def add(self, rows: pd.DataFrame) -> None:
        """Take valid rows; their index numbers them, ascending from call to call."""
        self._rows.add(rows, np.searchsorted(self._edges, instants_of(rows), side="right"))
        self._of_user.add(rows[c.USER_ID])
        if c.EVENT_ID in rows:
            self._event_ids = self._event_ids or Buckets(self._folder and self._folder / "event_ids")
            with_id = rows.loc[rows[c.EVENT_ID] != "", [c.EVENT_ID]]
            digest = pd.util.hash_pandas_object(with_id[c.EVENT_ID], index=False).to_numpy()
            self._event_ids.add(with_id, (digest % np.uint64(self._n_buckets)).astype(np.int64))

    def newest_first(self, cap: int, runs: Sequence[int] = ()) -> Iterator[pd.DataFrame]:
        """
        Yield the rows of each bucket that has any, the latest bucket first; one empty frame if none has.

        Parameters
        ----------
        cap : int
            Most rows of a user, >= 1; the latest are kept.
        runs
            Lengths of the runs into which the numbers from 0 on fall, which are counted apart.

        Yields
        ------
        pd.DataFrame
            The columns given, by time, then user, then item.
        """
        counts = self._of_user.counts
        newer = dict.fromkeys(counts.index[counts > cap], 0)
        repeated_ids = self._repeated_ids()
        self.n_kept_by_run = self.n_duplicates_by_run = np.zeros(len(runs), dtype=np.int64)
        n_kept = 0
        for number in reversed(range(self._n_buckets)):
            rows = self._rows.take(number)
            is_repeated = rows.duplicated([c.USER_ID, c.ITEM_ID, c.TIMESTAMP, *({c.EVENT_TYPE} & set(rows.columns))])
            is_repeated |= rows.index.isin(repeated_ids)
            self.n_duplicates += int(is_repeated.sum())
            self.n_duplicates_by_run = self.n_duplicates_by_run + counts_by_run(rows.index[is_repeated], runs)
            rows = rows[~is_repeated]
            over = _beyond_cap(rows, cap, newer)
            self.beyond_cap.append(over)
            rows = rows.drop(index=over)
            self.n_kept_by_run = self.n_kept_by_run + counts_by_run(rows.index, runs)
            n_kept += len(rows)
            if len(rows) or (number == 0 and n_kept == 0):
                yield rows.sort_values([c.TIMESTAMP, c.USER_ID, c.ITEM_ID], kind="stable", ignore_index=True)

    def _repeated_ids(self) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows that have the event id of an earlier row."""
        if self._event_ids is None:
            return np.empty(0, dtype=np.int64)
        found = (self._event_ids.take(number) for number in range(self._n_buckets))
        return np.concatenate([ids.index[ids[c.EVENT_ID].duplicated()].to_numpy() for ids in found])


def counts_by_run(numbers: "pd.Index[int]", runs: Sequence[int]) -> npt.NDArray[np.int64]:
    """
    Count numbers by the run they are in.

    Parameters
    ----------
    numbers
        From 0 to the sum of ``runs``, exclusive.
    runs
        Lengths of the runs; without any there is nothing to count.

    Examples
    --------
    >>> counts_by_run(pd.Index([0, 1, 5]), [2, 3, 1])
    array([2, 0, 1])
    """
    if not runs:
        return np.empty(0, dtype=np.int64)
    run_of = np.searchsorted(np.cumsum(runs), numbers.to_numpy(), side="right")
    return np.bincount(run_of, minlength=len(runs))


def instants_of(rows: pd.DataFrame) -> npt.NDArray[np.datetime64]:
    """Return the times of rows, datetime64[us] in UTC."""
    instants: npt.NDArray[np.datetime64] = rows[c.TIMESTAMP].dt.tz_convert(None).to_numpy(dtype="datetime64[us]")
    return instants


def _beyond_cap(rows: pd.DataFrame, cap: int, newer: dict[str, int]) -> "pd.Index[int]":
    """Return the rows of each user of ``newer`` before the latest ``cap``; rows so far are counted there, and these."""
    busy = rows[rows[c.USER_ID].isin(list(newer))]
    newest_first = busy.sort_values([c.TIMESTAMP, c.ITEM_ID], ascending=False, kind="stable")
    n_newer = newest_first.groupby(c.USER_ID).cumcount() + newest_first[c.USER_ID].map(newer).astype(np.int64)
    for user_id, n_rows in busy[c.USER_ID].value_counts().items():
        newer[str(user_id)] += int(n_rows)
    return newest_first.index[n_newer >= cap]
