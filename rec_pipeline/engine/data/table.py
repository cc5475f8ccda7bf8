"""
Tables that do not fit in memory: in parts, each of which does.

A small table is one part, a frame in memory. A large one is Parquet files of about ``PART_ROWS`` rows, of which one is
read at a time; so what handles tables part by part needs memory for a part, whatever the size of the whole.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_table, write_table

PART_ROWS: Final = 1 << 18
MOST_BUCKETS: Final = 256  # files open at a time; beyond as many parts a bucket grows with the table


@dataclass(frozen=True)
class Table:
    """
    Rows in order.

    Attributes
    ----------
    parts
        One after the other: frames, or Parquet files that ``write_table`` wrote. At least one; only the first may be
        without rows.
    """

    parts: tuple[pd.DataFrame | Path, ...]

    def __len__(self) -> int:
        return sum(pq.read_metadata(part).num_rows if isinstance(part, Path) else len(part) for part in self.parts)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        first = self.parts[0]
        return list(map(str, pq.read_schema(first).names if isinstance(first, Path) else first.columns))

    def part(self, number: int, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the rows of one part, ``columns`` of them."""
        part = self.parts[number]
        if isinstance(part, Path):
            return read_table(part, columns)
        return part if columns is None else part[list(columns)]

    def iterate(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yield the parts in order, ``columns`` of each."""
        return (self.part(number, columns) for number in range(len(self.parts)))

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return all rows, ``columns`` of them: as much memory as they take."""
        return joined(self.iterate(columns))

    def save(self, directory: Path) -> None:
        """Write one Parquet file a part, named by its number."""
        for number, part in enumerate(self.parts):
            path = directory / f"{number:05}.parquet"
            if isinstance(part, Path):
                shutil.copyfile(part, path)
            else:
                write_table(path, part)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """
        Find what ``save`` wrote.

        Raises
        ------
        FileNotFoundError
            If there is nothing.
        """
        parts = tuple(sorted(directory.glob("*.parquet")))
        if not parts:
            raise FileNotFoundError(f"no parts of a table in {directory}")
        return cls(parts)


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return one frame of all rows, numbered anew if there are several."""
    held = list(frames)
    return held[0] if len(held) == 1 else pd.concat(held, ignore_index=True)


def in_parts(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Yield the same rows in frames of at most ``PART_ROWS``, small ones joined and large ones cut."""
    held: list[pd.DataFrame] = []
    for frame in frames:
        for start in range(0, max(1, len(frame)), PART_ROWS):
            piece = frame.iloc[start : start + PART_ROWS] if len(frame) > PART_ROWS else frame
            if held and sum(map(len, held)) + len(piece) > PART_ROWS:
                yield joined(held)
                held = []
            held.append(piece)
    yield joined(held)


def put_aside(frames: Iterable[pd.DataFrame], folder: Path | None) -> Table:
    """Return the frames as the parts of a table, each written below ``folder`` before the next; None: in memory."""
    if folder is None:
        return Table(tuple(frames))
    folder.mkdir(parents=True)
    paths = []
    for number, frame in enumerate(frames):
        paths.append(folder / f"{number:05}.parquet")
        write_table(paths[-1], frame)
    return Table(tuple(paths))


class Buckets:
    """
    Rows dealt out, so that all that belong together can be read at once.

    Parameters
    ----------
    folder
        Where they are written; must not exist. None: there is one bucket, in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: list[pd.DataFrame] = []
        self._schema: pa.Schema | None = None
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        if folder is not None:
            folder.mkdir(parents=True)

    def add(self, rows: pd.DataFrame, bucket: npt.NDArray[np.int64]) -> None:
        """Put rows, which have unique numbers as their index, into the bucket 0, 1, ... of each."""
        if self._folder is None:
            self._held.append(rows)
            return
        numbered = rows.rename_axis(c.ROW_NUMBER).reset_index()
        self._schema = self._schema or pa.Schema.from_pandas(numbered, preserve_index=False)
        for number in np.unique(bucket):
            if number not in self._writers:
                self._writers[number] = pa.ipc.new_stream(str(self._folder / str(number)), self._schema)
            of_bucket = numbered[bucket == number]
            self._writers[number].write_table(pa.Table.from_pandas(of_bucket, self._schema, preserve_index=False))

    def take(self, number: int) -> pd.DataFrame:
        """Return the rows of a bucket in the order in which they were added; nothing can be added to it then."""
        if self._folder is None:
            return self._held[0] if len(self._held) == 1 else pd.concat(self._held)
        assert self._schema is not None  # noqa: S101 - something was added
        table = self._schema.empty_table()
        if number in self._writers:
            self._writers[number].close()
            with pa.OSFile(str(self._folder / str(number))) as file:
                table = pa.ipc.open_stream(file).read_all()
        rows: pd.DataFrame = table.to_pandas().set_index(c.ROW_NUMBER)
        return rows
