"""
The long tier of serving (P11): requests at a steady rate for as long as asked, and a random fault every half minute.

``make soak`` runs it. One ``rec-pipeline serve`` answers from a bundle of 2,000 items; every answer is looked at: that
it came, for the user who asked, and, where it is the list that was published, that it is the one of that user and
generation. Answers may be degraded while a fault lasts and for ``RECOVERY_SECONDS`` after it. Ends with exit code 1 if
an answer is missing or another user's, if over 1 % are degraded outside faults, or if memory or descriptors grow.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.serving.connection import CONNECTIONS
from rec_pipeline_tests.benchmarks.serving import Client, random_bundle, seal
from rec_pipeline_tests.faults.servers import Server
from rec_pipeline_tests.fixtures.project import new_project
from rec_pipeline_tests.fixtures.waiting import free_port

N_USERS, N_ITEMS, TOP_K = 2_000, 2_000, 10
EVENT_SHARE = 0.05
RECOVERY_SECONDS = 5.0
MAX_DEGRADED_OUTSIDE = 0.01
MAX_RSS_GROWTH = 0.05
MAX_NEW_DESCRIPTORS = 2 * CONNECTIONS + 8  # the pools of answers and of events, filled in the first rush
N_LOOKS = 40  # at its memory


@dataclass
class Row:
    """What was asked and came back while one kind of fault lasted, or none."""

    n_tries: int = 0
    n_answers: int = 0
    n_degraded: int = 0
    n_missing: int = 0
    n_foreign: int = 0
    slowest_ms: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    example: str = ""


@dataclass
class Soak:
    """A service under load, and what is done to it."""

    server: Server
    folder: Path
    rng: random.Random
    rate: float
    rows: dict[str, Row] = field(default_factory=dict)
    lists: dict[int, dict[str, list[str]]] = field(default_factory=dict)
    window: tuple[str, float] = ("none", 0.0)

    def __post_init__(self) -> None:
        self.data = self.folder / "data"
        self.bundle = random_bundle(np.random.default_rng(0), N_USERS, N_ITEMS)
        self.store = ArtifactStore(self.data / "artifacts")
        self._write_bundle(1)
        self._publish()
        self.faults: dict[str, Callable[[], Awaitable[None]]] = {
            "store stopped for 5 s": self._stop_store,
            "store killed, started again": self._kill_store,
            "connections cut": self._cut,
            "kept answers damaged": self._damage_answers,
            "generation published": lambda: asyncio.to_thread(self._publish),
            "bundle replaced": lambda: asyncio.to_thread(self._write_bundle, self.rng.randint(2, 10**6)),
            "bundle damaged": lambda: asyncio.to_thread(self._damage_bundle),
        }

    async def run(self, port: int, pid: int, seconds: float, every: float) -> dict[str, object]:
        """Ask and harm for ``seconds``; return the verdict."""
        client = Client(port)
        asked, started = set[asyncio.Task[None]](), time.monotonic()
        resident: list[int] = []
        n_descriptors = _n_descriptors(pid)
        harming = asyncio.create_task(self._harm(started + seconds, every))
        due = started
        while due - started < seconds:
            due += self.rng.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._ask(client))
            asked.add(task)
            task.add_done_callback(asked.discard)
            if due - started > len(resident) * seconds / N_LOOKS:
                resident.append(_resident_bytes(pid))
        await asyncio.gather(harming, *asked)
        client.close()
        await asyncio.sleep(RECOVERY_SECONDS)
        # The first quarter is what it takes to have met every fault; then memory has to stay where it is.
        before, after = (
            statistics.median(part) for part in (resident[N_LOOKS // 4 :][: N_LOOKS // 4], resident[-N_LOOKS // 4 :])
        )
        descriptors = [n_descriptors, _n_descriptors(pid)]
        outside = self.rows["none"]
        verdict = {
            "answers": sum(row.n_answers for row in self.rows.values()),
            "missing": sum(row.n_missing for row in self.rows.values()),
            "of_another_user": sum(row.n_foreign for row in self.rows.values()),
            "degraded_outside_faults": outside.n_degraded / max(1, outside.n_answers),
            "reasons_outside_faults": dict(outside.reasons.most_common(5)),
            "rss_mb": [round(n_bytes / 2**20) for n_bytes in resident],
            "rss_growth": after / before - 1,
            "descriptors": descriptors,
        }
        verdict["holds"] = (
            not verdict["missing"]
            and not verdict["of_another_user"]
            and outside.n_degraded <= MAX_DEGRADED_OUTSIDE * outside.n_answers
            and after <= (1 + MAX_RSS_GROWTH) * before
            and descriptors[1] <= descriptors[0] + MAX_NEW_DESCRIPTORS
        )
        return verdict

    async def _ask(self, client: Client) -> None:
        # Users with an even number never do anything, so that their published list stays their answer.
        number = self.rng.randrange(N_USERS)
        if self.rng.random() < EVENT_SHARE:
            event = {"user_id": f"u{number | 1:05d}", "item_id": f"i{self.rng.randrange(N_ITEMS):05d}"}
            try:
                await client.ask("POST", "/events", event | {"event_type": "click"})
            except (RuntimeError, OSError, asyncio.IncompleteReadError):
                return  # said so: whoever sends it sends it again
        user, started, during = f"u{number:05d}", time.monotonic(), self._during()
        try:
            answer = await client.ask("GET", f"/recommendations/{user}?top_k={TOP_K}")
        except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
            row = self._row(during)
            row.n_missing, row.example = row.n_missing + 1, f"{user}: {error!r}"[:300]
            return
        if answer["degraded"] and during == "none":
            during = self._during()  # the fault came meanwhile
        row = self._row(during)
        row.n_answers += 1
        if answer["degraded"]:
            row.n_degraded += 1
            row.reasons[answer["reason"]] += 1
        row.slowest_ms = max(row.slowest_ms, (time.monotonic() - started) * 1000)
        if not self._is_whole(answer, user, is_quiet=number % 2 == 0):
            row.n_foreign, row.example = row.n_foreign + 1, json.dumps(answer)[:300]

    def _is_whole(self, answer: dict[str, object], user: str, *, is_quiet: bool) -> bool:
        items = [item["id"] for item in answer["items"]]  # type: ignore[attr-defined]
        if answer["user_id"] != user or len(set(items)) != TOP_K:
            return False
        published = self.lists.get(int(str(answer["generation"])), {}).get(user)
        return not is_quiet or answer["source"] != "cache" or answer["degraded"] is True or items == published

    async def _harm(self, until: float, every: float) -> None:
        while time.monotonic() + every < until:
            await asyncio.sleep(every)
            name = self.rng.choice(list(self.faults))
            self.window = name, float("inf")
            self._row(name).n_tries += 1
            await self.faults[name]()
            self.window = name, time.monotonic() + RECOVERY_SECONDS

    def _during(self) -> str:
        name, until = self.window
        return name if time.monotonic() < until else "none"

    def _row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row())

    async def _stop_store(self) -> None:
        self.server.signal(signal.SIGSTOP)
        await asyncio.sleep(5)
        self.server.signal(signal.SIGCONT)

    async def _kill_store(self) -> None:
        await asyncio.to_thread(self.server.restart)

    async def _cut(self) -> None:
        with self.server.client() as client:
            for _ in range(5):
                client.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0.1)

    async def _damage_answers(self) -> None:
        with self.server.client() as client:
            for number in range(0, N_USERS, 5):
                for name in client.hkeys(keys.answers_key(f"u{number:05d}")):
                    client.hset(keys.answers_key(f"u{number:05d}"), name, self.rng.randbytes(200))

    def _publish(self) -> None:
        generation = seal(self.bundle, self.data)
        self.lists[generation.number] = _first_items(generation)
        with publisher_client(self.server.url) as client:
            publish(client, generation)

    def _write_bundle(self, mark: int) -> None:
        """Store it as a new version: its content differs by a mark."""
        marked = replace(self.bundle, metadata={"mark": mark})
        self.store.write("serving_bundle", marked.save, kind="ServingBundle")

    def _damage_bundle(self) -> None:
        self._write_bundle(self.rng.randint(2, 10**6))
        path = (
            self.store.root / "serving_bundle" / self.store.manifest("serving_bundle").version / "history" / "data.npy"
        )
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        time.sleep(6)  # it is found and refused
        self._write_bundle(self.rng.randint(2, 10**6))

    def table(self) -> str:
        """Return the rows as a Markdown table."""
        lines = [
            "| fault | tries | answers | degraded | missing | of another user | slowest, ms |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for name, row in sorted(self.rows.items()):
            cells = (row.n_tries, row.n_answers, row.n_degraded, row.n_missing, row.n_foreign, round(row.slowest_ms))
            lines.append(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
        return "\n".join(lines)


def _first_items(generation: Generation) -> dict[str, list[str]]:
    rows = (row for batch in generation.iterate() for row in batch.to_pylist())
    return {row["user_id"]: list(islice(row["item_id"], TOP_K)) for row in rows}


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _n_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> int:
    """Run the soak; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description="Random faults against the HTTP service under load.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200, help="Requests a second.")
    parser.add_argument("--every", type=float, default=30, help="Seconds between faults.")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rec-soak-") as name, Server() as server:
        soak = Soak(server, Path(name), random.Random(options.seed), options.rate)  # noqa: S311 - repeatable
        port = str(free_port())
        process = new_project(soak.folder).start(
            "serve", "--port", port, "--rate", "0", REC_REDIS_URL=server.url, OMP_NUM_THREADS="1"
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            verdict = asyncio.run(soak.run(int(port), process.pid, options.minutes * 60, options.every))
        finally:
            process.terminate()
            process.wait()
    sys.stdout.write(f"seed {options.seed}, {options.minutes:g} minutes at {options.rate:g} requests/s\n")
    sys.stdout.write(soak.table() + "\n" + json.dumps(verdict) + "\n")
    for row in soak.rows.values():
        if row.example:
            sys.stdout.write(row.example + "\n")
    return 0 if verdict["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
