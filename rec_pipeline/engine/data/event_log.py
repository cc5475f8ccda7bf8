"""
The log of events: Parquet segments, one folder a day, to which is only ever added.

A segment is written whole or not at all, is named by the first and last entry in it and by its digest, and is never
changed. An event may stand in several segments (a drain was killed and repeated, an application sent it twice): reading
a day leaves out all but the first of an event id. So drains need no lock, and writing the same again does no harm.

A day of many segments is compacted: one segment of all its events is written first, and those it is made of are removed
after, so that every event is in at least one segment at any moment, whatever is killed. As a folder cannot be listed in
one instant, compacting locks readers of that day out meanwhile (``flock``, which ends with its process).
"""

import fcntl
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import locked, write_atomically
from rec_pipeline.engine.errors import ArtifactIntegrityError

REFUSED: Final = "refused"
COMPACT_ABOVE: Final = 16
_DIGEST_DIGITS: Final = 16

EVENT_SCHEMA: Final = pa.schema(
    [
        (c.RECEIVED_AT, pa.timestamp("ms", tz="UTC")),
        (c.ENTRY, pa.int64()),
        (c.USER_ID, pa.string()),
        (c.ITEM_ID, pa.string()),
        (c.EVENT_TYPE, pa.string()),
        (c.TIMESTAMP, pa.timestamp("ms", tz="UTC")),
        (c.EVENT_ID, pa.string()),
        (c.DEVICE, pa.string()),
        (c.LOCATION, pa.string()),
        (c.SOURCES, pa.string()),
        (c.GENERATION, pa.int64()),
        (c.EXPERIMENT, pa.string()),
        (c.VARIANT, pa.string()),
        (c.POSITION, pa.int64()),
    ]
)
REFUSED_SCHEMA: Final = pa.schema(
    [
        (c.RECEIVED_AT, pa.timestamp("ms", tz="UTC")),
        (c.ENTRY, pa.int64()),
        (c.REASON, pa.string()),
        (c.FIELDS, pa.string()),
    ]
)


@dataclass(frozen=True)
class DayOfEvents:
    """
    The events of a day, each once.

    Attributes
    ----------
    table
        Columns of ``EVENT_SCHEMA``, by time. ``received_at`` and ``entry`` are the two halves of the stream's entry id;
        text is empty and a number null where there is none.
    n_repeated
        Rows left out because an earlier one has their event id.
    n_segments, n_bytes
        What the day is stored in.
    """

    table: pa.Table
    n_repeated: int
    n_segments: int
    n_bytes: int

    @property
    def digest(self) -> str:
        """16 hex digits that are the same for the same events, however they are stored."""
        ids = self.table[c.EVENT_ID].combine_chunks().sort()
        digest = hashlib.sha256("\n".join(ids.to_pylist()).encode())
        return digest.hexdigest()[:_DIGEST_DIGITS]


@dataclass(frozen=True)
class EventLog:
    """
    The log under one folder, ``<root>/<YYYY-MM-DD>/<first>_<last>_<digest>.parquet``.

    Attributes
    ----------
    root
        Made by the first write; without it the log is empty.
    """

    root: Path

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Open the log of ``directory``."""
        return cls(directory)

    def days(self) -> list[str]:
        """Return the days there are events of, in order, as ISO dates (UTC)."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name != REFUSED)

    def append(self, events: pa.Table) -> dict[str, int]:
        """
        Add events to the days they belong to by their timestamp (UTC); on disk when this returns.

        Parameters
        ----------
        events
            Columns of ``EVENT_SCHEMA``, in the order of the stream.

        Returns
        -------
        Rows added by day.
        """
        days = events[c.TIMESTAMP].cast(pa.date32())
        n_rows = {}
        for day in pc.unique(days).sort():
            of_the_day = events.filter(pc.equal(days, day))
            self._write(str(day), of_the_day)
            n_rows[str(day)] = len(of_the_day)
        return n_rows

    def refuse(self, entries: pa.Table) -> None:
        """Keep entries that are no events beside the log; columns of ``REFUSED_SCHEMA``."""
        if len(entries):
            self._write(REFUSED, entries)

    def read_day(self, day: str, columns: Sequence[str] | None = None) -> DayOfEvents:
        """
        Return the events of a day, ``columns`` of them; a day without events has none.

        Raises
        ------
        ArtifactIntegrityError
            If a segment is damaged.
        """
        paths, tables = self._read(day, EVENT_SCHEMA, _with_order(columns))
        table = pa.concat_tables(tables) if tables else EVENT_SCHEMA.empty_table()
        n_rows = len(table)
        table = _each_once(table)
        table = table.sort_by([(c.TIMESTAMP, "ascending"), (c.RECEIVED_AT, "ascending"), (c.ENTRY, "ascending")])
        return DayOfEvents(
            table=table.select(columns) if columns else table,
            n_repeated=n_rows - len(table),
            n_segments=len(paths),
            n_bytes=sum(size for _, size in paths),
        )

    def read(
        self, columns: Sequence[str], *, event_types: Sequence[str] | None = None, since: str = ""
    ) -> pd.DataFrame:
        """
        Return the events of all days, each once, by time.

        Parameters
        ----------
        columns
            Of ``EVENT_SCHEMA``.
        event_types
            Only events of these types; of all by default.
        since
            First day read, an ISO date; all by default.
        """
        tables = [EVENT_SCHEMA.empty_table().select(columns)]
        for day in self.days():
            if day >= since:
                table = self.read_day(day, list(dict.fromkeys([*columns, c.EVENT_TYPE]))).table
                if event_types is not None:
                    table = table.filter(pc.is_in(table[c.EVENT_TYPE], pa.array(event_types, pa.string())))
                tables.append(table.select(columns))
        found: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return found

    def read_refused(self) -> pd.DataFrame:
        """Return the entries that were no events, with the reason, each once, in the order of the stream."""
        _, tables = self._read(REFUSED, REFUSED_SCHEMA, None)
        table: pd.DataFrame = pa.concat_tables([REFUSED_SCHEMA.empty_table(), *tables]).to_pandas()
        order = [c.RECEIVED_AT, c.ENTRY]
        return table.drop_duplicates(order).sort_values(order, ignore_index=True)

    def strays(self, day: str) -> int:
        """Return how many events of a day's folder do not belong to that day."""
        days = self.read_day(day, [c.TIMESTAMP]).table[c.TIMESTAMP].cast(pa.date32())
        return int(pc.sum(pc.not_equal(days.cast(pa.string()), day)).as_py() or 0)

    def compact(self, day: str) -> None:
        """Make one segment of a day that has many; safe beside drains, readers and other compactions."""
        if len(self._segments(day)) <= COMPACT_ABOVE:
            return
        with locked(self.root / day):
            paths = self._segments(day)
            tables = [_read_segment(path, EVENT_SCHEMA, None) for path in paths]
            merged = self._write(day, _each_once(pa.concat_tables(tables)))
            for path in paths:
                if path != merged:
                    self._remove(path)

    def forget(self, user_id: str) -> int:
        """
        Remove every event of a user from every day; what is still in the stream comes with the next drain.

        Returns
        -------
        Rows removed.
        """
        n_removed = 0
        for day in self.days():
            with locked(self.root / day):
                for path in self._segments(day):
                    table = _read_segment(path, EVENT_SCHEMA, None)
                    kept = table.filter(pc.not_equal(table[c.USER_ID], user_id))
                    if len(kept) < len(table):
                        n_removed += len(table) - len(kept)
                        if len(kept):
                            self._write(day, kept)
                        self._remove(path)
        return n_removed

    def _write(self, day: str, table: pa.Table) -> Path:
        """Write a segment, on disk when this returns; the same rows make the same file."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        content = buffer.getvalue().to_pybytes()
        ends = [f"{table[c.RECEIVED_AT].cast(pa.int64())[row]}-{table[c.ENTRY][row]}" for row in (0, len(table) - 1)]
        folder = self.root / day
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{ends[0]}_{ends[1]}_{_digest(content)}.parquet"
        if not path.exists():
            write_atomically(path, content)
            _read_checked(path)
        return path

    def _remove(self, path: Path) -> None:
        path.unlink()

    def _exists(self, day: str) -> bool:
        return (self.root / day).is_dir()

    def _segments(self, day: str) -> list[Path]:
        folder = self.root / day
        return sorted(folder.glob("*.parquet")) if folder.is_dir() else []

    def _read(
        self, day: str, schema: pa.Schema, columns: Sequence[str] | None
    ) -> tuple[list[tuple[Path, int]], list[pa.Table]]:
        """Return the segments of a day with their sizes, and what is in them."""
        if not self._exists(day):
            return [], []
        with locked(self.root / day, fcntl.LOCK_SH):
            paths = self._segments(day)
            tables = [_read_segment(path, schema, columns) for path in paths]
            return [(path, path.stat().st_size) for path in paths], tables


def _with_order(columns: Sequence[str] | None) -> list[str] | None:
    if columns is None:
        return None
    return list(dict.fromkeys([c.RECEIVED_AT, c.ENTRY, c.TIMESTAMP, c.EVENT_ID, *columns]))


def _each_once(table: pa.Table) -> pa.Table:
    """Keep the first row of each event id in the order of the stream."""
    order = pc.sort_indices(table, [(c.RECEIVED_AT, "ascending"), (c.ENTRY, "ascending")])
    table = table.take(order)
    is_repeated = table[c.EVENT_ID].to_pandas().duplicated().to_numpy()
    return table.filter(pa.array(~np.asarray(is_repeated)))


def _read_segment(path: Path, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(_read_checked(path)), columns=columns, page_checksum_verification=True)
    except pa.ArrowInvalid as error:
        raise ArtifactIntegrityError(f"{path} cannot be read: {error}") from error
    return table.cast(pa.schema([schema.field(name) for name in table.column_names]))


def _read_checked(path: Path) -> bytes:
    content = path.read_bytes()
    if (found := _digest(content)) != (expected := path.stem.rpartition("_")[2]):
        raise ArtifactIntegrityError(f"{path} is damaged: found sha256 {found}..., expected {expected}...")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGEST_DIGITS]
