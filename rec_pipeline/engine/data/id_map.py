"""The one place where a catalogue's ids become contiguous rows and back."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine.artifacts import read_table, write_table

NO_IDX = -1


@dataclass(frozen=True)
class IdMap:
    """
    Unique string ids in row order.

    Attributes
    ----------
    ids
        str objects of shape (n,); the id of row ``i`` is ``ids[i]``.

    Raises
    ------
    ValueError
        If an id occurs twice.

    Examples
    --------
    >>> items = IdMap.from_ids(["b", "a", "b"])
    >>> items.to_idx(["b", "a", "z"])
    array([ 1,  0, -1])
    >>> items.to_ids([1]).tolist()
    ['b']
    """

    ids: npt.NDArray[np.object_]
    _index: "pd.Index[Any]" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = pd.Index(np.asarray(self.ids, dtype=object), dtype=object)
        if not index.is_unique:
            raise ValueError(f"ids must be unique, found {index[index.duplicated()][0]!r} more than once")
        object.__setattr__(self, "_index", index)

    @classmethod
    def from_ids(cls, ids: Iterable[str]) -> Self:
        """Map the distinct ``ids``, sorted, so that the same set always gives the same rows."""
        return cls(np.array(sorted(set(ids)), dtype=object))

    def __len__(self) -> int:
        return len(self.ids)

    def to_idx(self, ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the rows of ``ids``, int64 of the same length; ``-1`` where an id is unknown."""
        wanted = ids if isinstance(ids, pd.Series) else pd.Series(list(ids), dtype=object)
        return self._index.get_indexer(pd.Index(wanted, dtype=object)).astype(np.int64)

    def row(self, one_id: str) -> int:
        """Return the row of one id, ``-1`` if it is unknown; a hundred times quicker than ``to_idx`` of one."""
        return self._index.get_loc(one_id) if one_id in self._index else NO_IDX  # type: ignore[return-value]  # unique

    def to_ids(self, idx: npt.ArrayLike) -> npt.NDArray[np.object_]:
        """Return the ids of rows ``idx``, each in ``0..n-1``."""
        return self.ids[np.asarray(idx, dtype=np.int64)]

    def save(self, directory: Path) -> None:
        """Write ``ids.parquet``."""
        write_table(directory / "ids.parquet", pd.DataFrame({"id": pd.Series(self.ids, dtype="str")}))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read ``ids.parquet``."""
        return cls(read_table(directory / "ids.parquet")["id"].to_numpy(dtype=object))
