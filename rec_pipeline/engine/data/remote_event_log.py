"""The log of events on object storage: the same segments, of which every reader keeps copies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from rec_pipeline.engine.artifacts import sha256_of, write_atomically
from rec_pipeline.engine.data.event_log import REFUSED, EventLog
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.engine.remote import RemoteFolder

LISTINGS: Final = 5  # of a day whose segments another process is compacting


@dataclass(frozen=True)
class RemoteEventLog(EventLog):
    """
    An ``EventLog`` whose truth is remote; ``root`` holds copies of segments, which never change.

    No lock reaches across machines: a segment that disappears between listing and fetching has been compacted into one
    that was there before it went, so the day is listed again. Let one process at a time compact or forget.

    Attributes
    ----------
    remote
        Where the log is.
    """

    remote: RemoteFolder

    def days(self) -> list[str]:
        """Return the days there are events of, in order, as ISO dates (UTC)."""
        return [day for day in self.remote.names() if day != REFUSED]

    def _write(self, day: str, table: pa.Table) -> Path:
        path = super()._write(day, table)
        self.remote.put(path, f"{day}/{path.name}", sha256_of(path))
        return path

    def _remove(self, path: Path) -> None:
        self.remote.delete(f"{path.parent.name}/{path.name}")
        path.unlink(missing_ok=True)

    def _exists(self, day: str) -> bool:
        (self.root / day).mkdir(parents=True, exist_ok=True)  # where the copies go
        return True

    def _segments(self, day: str) -> list[Path]:
        self._exists(day)
        for attempt in range(LISTINGS):
            names = [name for name in self.remote.names(day) if name.endswith(".parquet")]
            try:
                for name in names:
                    if not (path := self.root / day / name).exists():
                        write_atomically(path, self.remote.read(f"{day}/{name}"))
                break
            except ArtifactIntegrityError:
                if attempt + 1 == LISTINGS:
                    raise
        for path in super()._segments(day):
            if path.name not in names:  # compacted or forgotten elsewhere
                path.unlink(missing_ok=True)
        return super()._segments(day)


def open_event_log(root: Path, url: str | None) -> EventLog:
    """Return the log under ``root``, or that at ``url`` with its copies under ``root``."""
    return EventLog(root) if url is None else RemoteEventLog(root, RemoteFolder(url))
