"""The one place where a catalogue's ids become contiguous rows and back."""

from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_pipeline.engine.artifacts import write_table

NO_IDX = -1
_CHUNK: Final = 1 << 16  # ids that are Python objects at a time
_FEW: Final = 1000

_Strings: TypeAlias = "np.ndarray[Any, np.dtypes.StringDType]"


class IdMap:
    """
    Unique string ids in row order.

    An id takes 16 bytes, and its UTF-8 bytes besides where it has more than 15. Ids in the order of their bytes, as
    ``from_ids`` puts them, are found by bisection and need nothing else; in another order as much again and 8 bytes.

    Parameters
    ----------
    ids
        str of shape (n,); the id of row ``i`` is ``ids[i]``.

    Raises
    ------
    ValueError
        If an id occurs twice or is no text in UTF-8.

    Examples
    --------
    >>> items = IdMap.from_ids(["b", "a", "b"])
    >>> items.to_idx(["b", "a", "z"])
    array([ 1,  0, -1])
    >>> items.to_ids([1]).tolist()
    ['b']
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = self._sorted = _strings(ids)
        self._order: npt.NDArray[np.int64] | None = None
        if not (self._ids[1:] > self._ids[:-1]).all():
            self._order = np.argsort(self._ids, kind="stable")
            self._sorted = self._ids[self._order]
            is_repeated = self._sorted[1:] == self._sorted[:-1]
            if is_repeated.any():
                raise ValueError(f"ids must be unique, found {self._sorted[is_repeated.argmax()]!r} more than once")

    @classmethod
    def from_ids(cls, ids: Iterable[str]) -> Self:
        """Map the distinct ``ids``, sorted, so that the same set always gives the same rows."""
        distinct = pc.unique(_as_arrow(ids))
        return cls(distinct.take(pc.array_sort_indices(distinct)))

    @cached_property
    def ids(self) -> npt.NDArray[np.object_]:
        """All ids, str objects of shape (n,), about 70 bytes each and kept: for catalogues, not for users."""
        return self._ids.astype(object)

    def __len__(self) -> int:
        return len(self._ids)

    def to_idx(self, ids: "Iterable[str] | IdMap") -> npt.NDArray[np.int64]:
        """Return the rows of ``ids``, int64 of the same length; ``-1`` where an id is unknown."""
        wanted = pc.dictionary_encode(_as_arrow(ids._ids if isinstance(ids, IdMap) else ids))
        distinct = wanted.dictionary
        if len(distinct) < _FEW or not len(self):
            row = np.array([self.row(one_id) for one_id in distinct.to_pylist()], dtype=np.int64)
        else:
            texts = _strings(distinct)
            place = self._places(texts)
            row = np.where(self._sorted[place] == texts, place if self._order is None else self._order[place], NO_IDX)
        found: npt.NDArray[np.int64] = np.append(row, NO_IDX)[np.asarray(pc.fill_null(wanted.indices, NO_IDX))]
        return found

    def row(self, one_id: str) -> int:
        """Return the row of one id, ``-1`` if it is unknown; far quicker than ``to_idx`` of one."""
        place = bisect_left(self._sorted, one_id)
        if place == len(self) or self._sorted[place] != one_id:
            return NO_IDX
        return place if self._order is None else int(self._order[place])

    def _places(self, texts: _Strings) -> npt.NDArray[np.int64]:
        """Return where in the order of ids each text is, if anywhere."""
        # numpy's searchsorted misreads texts of more than 15 bytes, which each array keeps for itself; `<` does not.
        low, high = np.zeros(len(texts), dtype=np.int64), np.full(len(texts), len(self), dtype=np.int64)
        for _ in range(len(self).bit_length()):
            middle = np.minimum((low + high) // 2, len(self) - 1)
            is_later = (low < high) & (self._sorted[middle] < texts)
            high = np.where(is_later | (low == high), high, middle)
            low = np.where(is_later, middle + 1, low)
        return np.minimum(low, len(self) - 1)

    def to_ids(self, idx: npt.ArrayLike) -> npt.NDArray[np.object_]:
        """Return the ids of rows ``idx``, each in ``0..n-1``."""
        return self._ids[np.asarray(idx, dtype=np.int64)].astype(object)

    def subset(self, idx: npt.NDArray[np.int64]) -> "IdMap":
        """Return a map of rows ``idx``, each at most once, alone."""
        return IdMap(self._ids[idx])

    def save(self, directory: Path) -> None:
        """Write ``ids.parquet``."""
        write_table(directory / "ids.parquet", pd.DataFrame({"id": _as_arrow(self._ids).to_pandas()}))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read ``ids.parquet``, checking its page checksums."""
        with pq.ParquetFile(directory / "ids.parquet", page_checksum_verification=True) as file:
            ids, start = np.empty(file.metadata.num_rows, dtype=np.dtypes.StringDType()), 0
            for batch in file.iter_batches(_CHUNK):
                ids[start : start + len(batch)] = batch["id"].to_numpy(zero_copy_only=False)
                start += len(batch)
        return cls(ids)


def _as_arrow(ids: Any) -> pa.Array:
    """Return large_string; what cannot be text in UTF-8 is null, as an id that nobody has."""
    if isinstance(ids, pa.Array):
        return ids
    if isinstance(ids, pd.Series) and isinstance(ids.dtype, pd.StringDtype):
        array = pa.array(ids, from_pandas=True)
        return pc.cast(array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array, pa.large_string())
    values = ids if isinstance(ids, np.ndarray) else np.asarray(list(ids), dtype=object)
    chunks = [
        pa.array([_text(value) for value in values[start : start + _CHUNK].tolist()], pa.large_string())
        for start in range(0, len(values), _CHUNK)
    ]
    return pa.chunked_array(chunks, pa.large_string()).combine_chunks()


def _text(value: Any) -> str | None:
    is_text = isinstance(value, str) and (value.isascii() or value == value.encode(errors="ignore").decode())
    return value if is_text else None


def _strings(ids: Any) -> _Strings:
    """Return the ids as numpy keeps texts."""
    if isinstance(ids, np.ndarray) and isinstance(ids.dtype, np.dtypes.StringDType):
        return ids
    given = _as_arrow(ids)
    if given.null_count:
        raise ValueError(f"{given.null_count} of {len(given)} ids are no text in UTF-8")
    strings = np.empty(len(given), dtype=np.dtypes.StringDType())
    for start in range(0, len(given), _CHUNK):
        strings[start : start + _CHUNK] = given.slice(start, _CHUNK).to_numpy(zero_copy_only=False)
    return strings
