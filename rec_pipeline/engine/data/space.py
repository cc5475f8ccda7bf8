"""Large arrays: in memory, or in files of which the system holds what is used and drops it when it needs room."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine.artifacts import map_array, read_json, write_array, write_json
from rec_pipeline.engine.data.table import PART_ROWS

_INSTANTS: Final = "datetime64[us, UTC]"
_COLUMNS: Final = "columns.json"


@dataclass(frozen=True)
class Space:
    """
    Where large arrays are made.

    Attributes
    ----------
    folder
        Each array is a file there that has no name and is gone with the array. None: in memory.
    """

    folder: Path | None = None

    @classmethod
    def for_rows(cls, n_rows: int, scratch: Path | None) -> Self:
        """Return memory for few rows, or where there is no ``scratch``, else that folder."""
        return cls(scratch if n_rows > PART_ROWS else None)

    def array(self, n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """
        Make an array of shape (n,), its values undefined.

        Raises
        ------
        OSError
            If the disk has no room for it.
        """
        if self.folder is None or n == 0:
            return np.empty(n, dtype)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            os.posix_fallocate(file.fileno(), 0, n * np.dtype(dtype).itemsize)  # a full disk shows here, not in use
            return np.asarray(np.memmap(file, dtype, "r+", shape=(n,)))

    def table(self, frames: Iterable[pd.DataFrame], most_rows: int) -> pd.DataFrame:
        """
        Return the rows of all frames, ``most_rows`` at most, numbered anew; one frame is held at a time.

        Numbers stay what they are in the first frame, instants are datetime64[us, UTC], texts become categories.
        """
        columns: dict[str, npt.NDArray[Any]] = {}
        texts: dict[str, dict[str, int]] = {}
        instants: set[str] = set()
        end = 0
        for frame in frames:
            start, end = end, end + len(frame)
            for name, column in frame.items():
                values, known = _plain(column)
                if known is not None:
                    of_all = texts.setdefault(str(name), {})
                    codes = np.array([*(of_all.setdefault(text, len(of_all)) for text in known), -1], dtype=np.int32)
                    values = codes[values]
                elif isinstance(column.dtype, pd.DatetimeTZDtype):
                    instants.add(str(name))
                if name not in columns:
                    columns[str(name)] = self.array(most_rows, values.dtype)
                columns[str(name)][start:end] = values
        table = {}
        for name, values in columns.items():
            if name in texts:
                codes = self.array(end, pd.Categorical([], categories=list(texts[name])).codes.dtype)
                codes[:] = values[:end]
                table[name] = _typed(codes, texts=list(texts[name]))
            else:
                table[name] = _typed(values[:end], are_instants=name in instants)
        return pd.DataFrame(table, copy=False)

    def chosen(self, rows: pd.DataFrame, is_chosen: npt.NDArray[np.bool_]) -> pd.DataFrame:
        """Return some of the rows, numbered anew; those given if all are chosen."""
        if is_chosen.all():
            return rows
        return self.table((rows.iloc[block][is_chosen[block]] for block in in_blocks(len(rows))), is_chosen.sum())


MEMORY: Final = Space()


def in_blocks(n_rows: int) -> Iterator[slice]:
    """Yield ``PART_ROWS`` rows after the other, at least one block."""
    return (slice(start, start + PART_ROWS) for start in range(0, max(1, n_rows), PART_ROWS))


def count(idx: npt.NDArray[Any], n: int) -> npt.NDArray[np.int64]:
    """Return how often each of ``0..n-1`` occurs, int64 of shape (n,), as ``bincount`` does, which copies ``idx``."""
    counts = np.zeros(n, dtype=np.int64)
    for block in in_blocks(len(idx)):
        counts += np.bincount(idx[block], minlength=n)
    return counts


def write_mapped(directory: Path, table: pd.DataFrame) -> None:
    """Write a frame without its index as it lies in memory, one array a column, for ``map_table``."""
    directory.mkdir()
    columns = []
    for name, column in table.items():
        values, texts = _plain(column)
        write_array(directory / f"{name}.npy", values)
        are_instants = isinstance(column.dtype, pd.DatetimeTZDtype)
        columns.append({"name": name, "texts": texts, "are_instants": are_instants})
    write_json(directory / _COLUMNS, columns)


def map_table(directory: Path) -> pd.DataFrame:
    """Return a frame whose columns are the files that ``write_mapped`` wrote; the system reads of them what is used."""
    columns = {
        column["name"]: _typed(
            map_array(directory / f"{column['name']}.npy"), texts=column["texts"], are_instants=column["are_instants"]
        )
        for column in read_json(directory / _COLUMNS)
    }
    return pd.DataFrame(columns, copy=False)


def _plain(column: "pd.Series[Any]") -> tuple[npt.NDArray[Any], list[str] | None]:
    """Return the numbers that a column is, for texts their codes (-1: none) and what they stand for."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column.astype(_INSTANTS).astype(np.int64).to_numpy(), None
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(), None
    texts = pd.Categorical(column) if not isinstance(column.dtype, pd.CategoricalDtype) else column.array
    return np.asarray(texts.codes), texts.categories.to_list()


def _typed(values: npt.NDArray[Any], *, texts: list[str] | None = None, are_instants: bool = False) -> Any:
    """Return the column that these numbers are; they are not copied."""
    if texts is not None:
        return pd.Categorical.from_codes(values, categories=pd.Index(texts, dtype="str"), validate=False)
    column = pd.Series(values, copy=False)
    return column.astype(_INSTANTS) if are_instants else column
