"""One server, the generations of a few hundred users, and what must hold of the store afterwards."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import redis

from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.bookkeeping import live_number
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.publication import Publication, PublishParams
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.engine.store.status import PublicationStatus, status
from rec_pipeline_tests.faults.processes import Observations, Order, Publisher, publisher_run, readers
from rec_pipeline_tests.fixtures.store import seal_lists
from rec_pipeline_tests.fixtures.waiting import LONG, wait_until

USERS = tuple(f"u{number}" for number in range(600))


@dataclass
class Arena:
    """
    A store under attack.

    Attributes
    ----------
    url
        Where it is.
    folder
        For generations and reports.
    users
        Whose lists are published.
    params
        Of every publication, unless it is told otherwise. A publisher that is stopped keeps its lock.
    """

    url: str
    folder: Path
    users: Sequence[str] = USERS
    params: dict[str, Any] = field(default_factory=lambda: {"lock_lease_seconds": 6 * LONG})
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def root(self) -> Path:
        return self.folder / "generations"

    def seal(self, users: Sequence[str] | None = None) -> Generation:
        """Seal a generation whose item ids name it; its number is above every one before it."""
        return seal_lists(self.root, users or self.users, f"g{next(self._numbers)}")

    def publish(self, generation: Generation | None = None, **params: Any) -> Publication:
        """Publish from this process, with every guard in place."""
        with publisher_client(self.url) as client:
            return publish(client, generation or self.seal(), PublishParams(**self.params | params))

    def order(self, generation: Generation, **options: Any) -> Order:
        params = self.params | options.pop("params", {})
        return Order(self.url, str(generation.directory), params, **options)

    def start(self, generation: Generation, **options: Any) -> Publisher:
        return Publisher(self.order(generation, **options), self._report())

    def start_and_stop(self, generation: Generation, at: str, **options: Any) -> Publisher:
        """Start a publisher that stops itself at a crash point, and wait until it has: ``SIGCONT`` lets it go on."""
        publisher = self.start(generation, fault=f"{at}:STOP", **options)
        wait_until(lambda: publisher.is_stopped or not publisher.process.is_alive())
        assert publisher.process.is_alive(), publisher.message
        return publisher

    def run(self, generation: Generation, **options: Any) -> tuple[int, str]:
        """Run a publisher in a process of its own; return its exit code and what it said."""
        return publisher_run(self.order(generation, **options), self._report())

    @contextmanager
    def watched(self, *, n_readers: int = 2) -> Iterator[Observations]:
        """Read during the block; nothing may be missing, torn, of another user or older than before."""
        with readers(self.url, self.users, self.folder, n_readers) as seen:
            yield seen
        assert seen.n_faults == 0, seen
        assert seen.n_reads > 0

    def served(self) -> dict[str, int]:
        """Generation of every user's list; -1 for none."""
        return {user_id: generation_of(value) for user_id, value in self.values().items()}

    def changed_since(self, before: dict[str, bytes | None]) -> list[str]:
        """Return the users whose live value differs; comparing the values in an assertion would print them all."""
        now = self.values()
        return [user_id for user_id, value in before.items() if now[user_id] != value]

    def values(self) -> dict[str, bytes | None]:
        with publisher_client(self.url) as client, client.pipeline(transaction=False) as pipeline:
            for user_id in self.users:
                pipeline.get(keys.live_key(user_id))
            return dict(zip(self.users, pipeline.execute(), strict=True))

    def status(self) -> PublicationStatus:
        with publisher_client(self.url) as client:
            return status(client, self.root)

    def live(self) -> int:
        with publisher_client(self.url) as client:
            return live_number(client)

    def staged(self) -> list[bytes]:
        with publisher_client(self.url) as client:
            return list(client.scan_iter(f"{keys.STAGE_PREFIX}*", count=1000))

    def free_the_lock(self) -> None:
        """Do what time does to the lock of a dead publisher."""
        with publisher_client(self.url) as client:
            client.delete(keys.LOCK)

    def converges(self, generation: Generation) -> None:
        """Publish it again: afterwards everybody has it, and nothing is left over."""
        self.free_the_lock()
        self.publish(generation)
        assert set(self.served().values()) == {generation.number}
        state = self.status()
        assert (state.live, state.exit_code, state.half_live) == (generation.number, 0, [])
        numbers = [entry["gen"] for entry in state.history]
        assert numbers == sorted(set(numbers), reverse=True)
        assert self.staged() == []
        assert state.lock is None

    def _report(self) -> Path:
        return self.folder / f"publisher-{next(self._numbers)}.txt"


def generation_of(value: bytes | None) -> int:
    return -1 if value is None else int(json.loads(value)[0].get("gen", 0))


def configure(client: "redis.Redis", **options: Any) -> None:
    for name, value in options.items():
        client.config_set(name.replace("_", "-"), value)
