"""How often each id occurs in more rows than fit in memory."""

from typing import TYPE_CHECKING, Self

import pandas as pd

from rec_pipeline.engine.data.table import PART_ROWS, Table

if TYPE_CHECKING:
    Ids = pd.Series[str]
    Counts = pd.Series[int]


class Tally:
    """
    Occurrences by id, added up part by part; memory is that of the distinct ids.

    Examples
    --------
    >>> tally = Tally()
    >>> tally.add(pd.Series(["a", "b", "a"]))
    >>> tally.add(pd.Series(["b", "c"]))
    >>> tally.counts.to_dict()
    {'a': 2, 'b': 2, 'c': 1}
    """

    def __init__(self) -> None:
        self._counts: list[Counts] = []

    @classmethod
    def of(cls, table: Table, column: str) -> Self:
        """Count the ids of a column."""
        tally = cls()
        for part in table.iterate([column]):
            tally.add(part[column])
        return tally

    def add(self, ids: "Ids") -> None:
        """Count more ids."""
        self._counts.append(ids.value_counts(sort=False))
        if sum(map(len, self._counts[1:])) > max(PART_ROWS, len(self._counts[0])):
            self._counts = [self.counts]

    @property
    def ids(self) -> "Ids":
        """Each id once."""
        return self.counts.index.to_series()

    @property
    def counts(self) -> "Counts":
        """Occurrences, int64, indexed by id in the order of their first."""
        if not self._counts:
            return pd.Series(index=pd.Index([], dtype="str"), dtype="int64")
        return pd.concat(self._counts).groupby(level=0, sort=False).sum()
