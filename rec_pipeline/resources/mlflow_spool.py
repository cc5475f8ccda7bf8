"""
What MLflow could not be told, kept in files until it can be.

Every MLflow run that meets a tracking store that is down, slow or wrong goes on in a file of its own: a header that
says which run it is, then one JSON line for each thing to tell. The next Dagster run tells it all, in order. Telling
twice changes nothing (parameters, metrics with their first time stamp, artefacts by name), and a file is deleted only
after everything in it was told, so each thing arrives once, whatever is killed when.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rec_pipeline.engine.errors import TrackingUnavailableError

END: Final = "end"
REFUSED_SUFFIX: Final = ".refused"
FILE_MODE: Final = 0o640
# What MLflow says to a request that it understood and will refuse again.
REFUSALS: Final = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")


@dataclass
class Patience:
    """
    How long one Dagster run waits for MLflow, in all; once it is gone, nobody asks again in that run.

    Attributes
    ----------
    seconds_left
        Of waiting; infinite for a store on this machine's disk.
    is_lost
        Whether MLflow is given up for the run.
    """

    seconds_left: float
    is_lost: bool = False

    def call(self, method: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """
        Call a method of MLflow's client.

        Raises
        ------
        TrackingUnavailableError
            If patience is gone or goes while waiting, or the call fails; it may or may not have happened. What MLflow
            understands and refuses is raised as it comes.
        """
        if self.is_lost:
            raise TrackingUnavailableError("MLflow was given up for this run")
        try:
            return self._called(method, arguments, keywords)
        except TrackingUnavailableError:
            raise
        except Exception as error:
            if getattr(error, "error_code", None) in REFUSALS:
                raise
            raise TrackingUnavailableError(f"{type(error).__name__}: {error}") from error

    def _called(self, method: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if self.seconds_left == float("inf"):
            return method(*arguments, **keywords)
        outcome: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(method(*arguments, **keywords))
            except BaseException as error:
                errors.append(error)

        started = time.monotonic()
        # Not a timeout of the client: a server that sends a byte now and then keeps every one of those waiting.
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(max(0.0, self.seconds_left))
        self.seconds_left -= time.monotonic() - started
        if errors:
            raise errors[0]
        if not outcome:
            self.is_lost = True
            raise TrackingUnavailableError("MLflow did not answer in the time a run may wait for it")
        return outcome[0]


@dataclass(frozen=True)
class PatientClient:
    """MLflow's client, asked with patience: every method may raise ``TrackingUnavailableError`` as well."""

    client: Any
    patience: Patience

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return lambda *arguments, **keywords: self.patience.call(method, *arguments, **keywords)


@dataclass(frozen=True)
class SpooledRun:
    """
    One spool file.

    Attributes
    ----------
    header
        ``key``, and either the ``run_id`` that MLflow gave or ``name``, ``tags`` and ``start_time`` to make one with.
    entries
        What to tell, in order: ``{"tell": name of a method, ...arguments}``.
    """

    path: Path
    header: Mapping[str, Any]
    entries: tuple[Mapping[str, Any], ...]

    @property
    def is_over(self) -> bool:
        """Whether nobody will add to it: it has an end, or the process that wrote it is gone."""
        if self.entries and self.entries[-1]["tell"] == END:
            return True
        return self.header["host"] == socket.gethostname() and not Path(f"/proc/{self.header['pid']}").exists()


@dataclass(frozen=True)
class Spool:
    """
    The spool files of one project.

    Attributes
    ----------
    folder
        Where they are; made when first needed.
    """

    folder: Path
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def append(self, header: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        """Add an entry to the file of ``header["key"]``, on disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{header['key']}.jsonl"
        with self._lock:
            lines = [entry]
            if not path.exists():
                lines.insert(0, {**header, "host": socket.gethostname(), "pid": os.getpid()})
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE), "w") as file:
                file.write("".join(f"{json.dumps(line)}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())

    def waiting(self) -> list[SpooledRun]:
        """Return the files that are over, oldest first; a line that a killed process left half written is left out."""
        found = []
        for path in sorted(self.folder.glob("*.jsonl")):
            lines = [parsed for line in path.read_text().splitlines() if (parsed := _parsed(line)) is not None]
            if not lines:
                path.rename(path.with_suffix(REFUSED_SUFFIX))
                continue
            run = SpooledRun(path, lines[0], tuple(lines[1:]))
            if run.is_over:
                found.append(run)
        return found

    @contextmanager
    def emptying(self) -> Iterator[bool]:
        """Hold the right to tell what is here; false where another process has it."""
        if not self.folder.is_dir():
            yield False
            return
        with (self.folder / "spool.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
