"""
Publishers and readers as processes of their own, forked off a server that has the libraries loaded.

A publisher can be killed from outside at any time or kill itself at a crash point, and can run without one guard.
Readers read every user's list all the time with a plain GET and count everything that must not be.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster

from rec_pipeline.engine import crash_points
from rec_pipeline.engine.crash_points import CrashPoint
from rec_pipeline.engine.errors import RecPipelineError
from rec_pipeline.engine.store import cluster, keys
from rec_pipeline.engine.store.connection import StoreAddress, publisher_client
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.publication import Intent, PublishParams
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline_tests.faults import guards
from rec_pipeline_tests.fixtures.waiting import LONG, wait_until

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
BURST = 50
PAUSE_SECONDS = 0.004


@dataclass
class Order:
    """What a publisher is to do."""

    url: str
    directory: str
    params: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    without: str | None = None
    socket_seconds: float = 5.0
    clock_skew_seconds: float = 0.0
    cluster_seconds: float = cluster.PATIENCE_SECONDS


class Publisher:
    """A publisher at work."""

    def __init__(self, order: Order, report: Path) -> None:
        self._report = report
        self.process: ForkServerProcess = CONTEXT.Process(target=_publish, args=(order, str(report)))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = LONG) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the publisher did not end within {seconds} s")
        code = self.process.exitcode
        self.process.close()
        return code

    @property
    def is_stopped(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    @property
    def message(self) -> str:
        return self._report.read_text() if self._report.exists() else ""


def publisher_run(order: Order, report: Path) -> tuple[int, str]:
    """Run a publisher to its end; return exit code and message."""
    publisher = Publisher(order, report)
    return publisher.ended(), publisher.message


@dataclass
class Observations:
    """What readers saw; all but ``n_reads``, ``n_unreachable`` and ``generations`` must stay 0."""

    n_reads: int = 0
    n_missing: int = 0
    n_torn: int = 0
    n_foreign: int = 0
    n_backward: int = 0
    n_unreachable: int = 0
    generations: list[int] = field(default_factory=list)
    example: str = ""

    def add(self, other: "Observations") -> None:
        for name in ("n_reads", "n_missing", "n_torn", "n_foreign", "n_backward", "n_unreachable"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.generations = sorted({*self.generations, *other.generations})
        self.example = self.example or other.example

    @property
    def n_faults(self) -> int:
        return self.n_missing + self.n_torn + self.n_foreign + self.n_backward


@contextmanager
def readers(url: str, users: Sequence[str], folder: Path, n_readers: int = 2) -> Iterator[Observations]:
    """Read during the block; what was seen is in the yielded object after it. At least one read a reader is awaited."""
    total = Observations()
    reports = [folder / f"reader-{time.monotonic_ns()}-{number}.json" for number in range(n_readers)]
    processes = [CONTEXT.Process(target=_read, args=(url, list(users), str(report))) for report in reports]
    for process in processes:
        process.start()
    try:
        wait_until(lambda: all(report.with_suffix(".begun").exists() for report in reports))
        yield total
    finally:
        for process, report in zip(processes, reports, strict=True):
            os.kill(process.pid or 0, signal.SIGTERM)
            process.join(LONG)
            process.close()
            total.add(Observations(**json.loads(report.read_text())))


def _publish(order: Order, report: str) -> None:
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    guards.remove(order.without)
    cluster.PATIENCE_SECONDS = order.cluster_seconds
    if order.fault:
        crash_points.arm(CrashPoint.parse(order.fault))
    if order.clock_skew_seconds:
        now = time.time
        time.time = lambda: now() + order.clock_skew_seconds
    try:
        client = (
            publisher_client(order.url)
            if order.socket_seconds == Order.socket_seconds
            else StoreAddress.parse(order.url).connect(
                retries=2, backoff=NoBackoff(), socket_timeout=order.socket_seconds, socket_connect_timeout=1
            )
        )
        done = publish(
            client,
            Generation.open(Path(order.directory)),
            PublishParams(batch_size=50, **order.params),
            Intent(f"publisher {os.getpid()}"),
            should_stop=lambda: bool(stop),
        )
    except RecPipelineError as error:
        Path(report).write_text(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
    except BaseException:
        Path(report).write_text(traceback.format_exc())
        sys.exit(1)
    Path(report).write_text(json.dumps(asdict(done)))


def _read(url: str, users: list[str], report: str) -> None:
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    seen = Observations()
    newest: dict[str, int] = {}
    position, client = os.getpid() % len(users), None
    while not stop or not seen.n_reads:
        batch = [users[(position + step) % len(users)] for step in range(min(BURST, len(users)))]
        position = (position + len(batch)) % len(users)
        try:
            client = client or _reader_client(url)
            for user_id, value in zip(batch, _values(client, batch), strict=True):
                _judge(user_id, value, newest, seen)
        except (redis.RedisError, redis.exceptions.RedisClusterException, OSError):
            seen.n_unreachable += 1
            if stop:
                break
        Path(report).with_suffix(".begun").touch()
        time.sleep(PAUSE_SECONDS)
    seen.generations = sorted(set(newest.values()) | set(seen.generations))
    Path(report).write_text(json.dumps(asdict(seen)))


def _reader_client(url: str) -> "redis.Redis":
    return StoreAddress.parse(url).connect(
        retries=0, backoff=NoBackoff(), socket_timeout=0.5, socket_connect_timeout=0.5
    )


def _values(client: Any, users: list[str]) -> list[bytes | None]:
    names = [keys.LIVE_PREFIX + user_id for user_id in users]
    if isinstance(client, RedisCluster):
        return [client.get(name) for name in names]
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.get(name)
    found: list[bytes | None] = pipeline.execute()
    return found


def _judge(user_id: str, value: bytes | None, newest: dict[str, int], seen: Observations) -> None:
    """Decode as a client in another language does: JSON, best first, ``id`` in each object."""
    seen.n_reads += 1
    fault = ""
    if value is None:
        seen.n_missing += 1
        fault = "missing"
    else:
        try:
            items = json.loads(value)
            tags = {entry["id"].partition("-")[0] for entry in items}
            generation, checksum = items[0]["gen"], items[0]["u"]
        except (ValueError, LookupError, TypeError):
            seen.n_torn += 1
            fault = f"torn: {value!r}"
        else:
            if len(tags) != 1 or len(items) != 3:
                seen.n_torn += 1
                fault = f"torn: {value!r}"
            if checksum != f"{zlib.crc32(user_id.encode()):08x}":
                seen.n_foreign += 1
                fault = f"of another user: {value!r}"
            if generation < newest.get(user_id, 0):
                seen.n_backward += 1
                fault = f"{generation} after {newest[user_id]}"
            if generation not in seen.generations:
                seen.generations.append(generation)
            newest[user_id] = generation
    if fault and not seen.example:
        seen.example = f"{user_id} {fault}"
