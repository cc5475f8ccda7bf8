"""
Answers over HTTP while the store hangs (P05) and while it is down (P06), under load that does not wait.

Run with ``python -m rec_pipeline_tests.benchmarks.store_faults``; prints JSON. The service, its bundle and the way of
asking are those of the benchmark of serving. Requests come at random moments, 200 a second, few users often: some
seconds while all is well, ten with the server stopped (SIGSTOP) or killed (SIGKILL), and some after it is back.
Latency counts from the moment a request was due. First, as many ask whether the process lives, of which nothing has to
be answered: what the machine itself takes.
"""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
import uvloop

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.resources.embedded_valkey import ensure_server, running_server, stop_server
from rec_pipeline_tests.benchmarks.serving import (
    CONNECTIONS,
    ZIPF,
    Client,
    Load,
    milliseconds,
    random_bundle,
    seal_and_publish,
    served,
)
from rec_pipeline_tests.fixtures.project import new_project

NOT_ASKED = "has not answered lately"


class Asked(NamedTuple):
    """One request: when it was due, in seconds since the fault began, how long it took, and what came."""

    due: float
    seconds: float
    source: str
    degraded: bool
    reason: str


def main(
    n_items: int = 10_000,
    n_users: int = 5_000,
    rate: float = 200,
    seconds: float = 10,
    around_seconds: float = 6,
    seed: int = 0,
) -> None:
    """Measure both faults for ``seconds`` each, with ``around_seconds`` before and after."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        project = new_project(Path(name))
        data = project.folder / "data"
        store = data / "store"
        try:
            bundle = random_bundle(rng, n_users, n_items)
            ArtifactStore(data / "artifacts").write("serving_bundle", bundle.save, kind="ServingBundle")
            seal_and_publish(data, ensure_server(store))
            results: dict[str, Any] = {"load_average_before": os.getloadavg()[0]}
            with served(project.folder) as (port, cpu_seconds):
                load = Load(Client(port), rng, n_users, n_items, seconds, cpu_seconds)
                results["is_alive"] = uvloop.run(load.at(rate, load.alive, [""]))

                def measure(name: str, begin: Callable[[], object], end: Callable[[], object]) -> None:
                    instants = np.cumsum(rng.exponential(1 / rate, int(rate * (seconds + 2 * around_seconds))))
                    users = [f"u{row:05d}" for row in np.minimum(rng.zipf(ZIPF, instants.size), 10**9) % n_users]
                    spent: list[float] = []

                    def counted(event: Callable[[], object]) -> Callable[[], object]:
                        return lambda: (spent.append(cpu_seconds()), event())

                    faults = {0.0: counted(begin), seconds: counted(end)}
                    found = uvloop.run(asked_at(Client(port), (instants - around_seconds).tolist(), users, faults))
                    results[name] = summary(found, seconds, spent[1] - spent[0])

                pid = server_pid(store)
                measure("hangs", lambda: os.kill(pid, signal.SIGSTOP), lambda: os.kill(pid, signal.SIGCONT))
                measure("is_down", lambda: os.kill(pid, signal.SIGKILL), lambda: ensure_server(store))
            results["load_average_after"] = os.getloadavg()[0]
        finally:
            stop_server(store)
    typer.echo(json.dumps(results, indent=2))


def server_pid(store: Path) -> int:
    """Return the process of the server."""
    server = running_server(store)
    assert server is not None
    return server.pid


async def asked_at(
    client: Client, instants: Sequence[float], users: Sequence[str], events: dict[float, Callable[[], object]]
) -> list[Asked]:
    """Ask for each user at its instant, and make each event happen at its own; instants are relative to the fault."""
    found: list[Asked] = []
    gate = asyncio.Semaphore(CONNECTIONS)
    begun = time.perf_counter() - instants[0]

    async def one(due: float, user: str) -> None:
        async with gate:
            answer = await client.ask("GET", f"/recommendations/{user}?top_k=10")
        assert answer["user_id"] == user
        assert len(answer["items"]) == 10
        spent = time.perf_counter() - begun - due
        found.append(Asked(due, spent, answer["source"], answer["degraded"], answer["reason"]))

    async def happens(due: float, event: Callable[[], object]) -> None:
        await asyncio.sleep(begun + due - time.perf_counter())
        await asyncio.to_thread(event)

    async with asyncio.TaskGroup() as tasks:
        for due, event in events.items():
            tasks.create_task(happens(due, event))
        for due, user in zip(instants, users, strict=True):
            await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
            tasks.create_task(one(due, user))
    client.close()
    return sorted(found)


def summary(found: Sequence[Asked], seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """Return what was answered before, during and after the fault, and the processor time the service took in it."""
    during = [asked for asked in found if 0 <= asked.due < seconds]
    unasked = [asked for asked in during if NOT_ASKED in asked.reason]
    opened = min((asked.due for asked in unasked), default=seconds)
    waited = [asked for asked in during if NOT_ASKED not in asked.reason]
    back = [asked.due for asked in found if asked.due >= seconds and not asked.degraded]
    return {
        "before": milliseconds([asked.seconds for asked in found if asked.due < 0]),
        "during": {
            "n": len(during),
            "cpu_ms_per_answer": round(1000 * cpu_seconds / len(during), 2),
            "first_answer_ms": round(during[0].seconds * 1000, 1),
            "slowest_ms": round(max(asked.seconds for asked in during) * 1000, 1),
            "breaker_opened_after_seconds": round(opened, 2),
            "waited_for_the_store": {
                "n_before_it_opened": sum(asked.due < opened for asked in waited),
                "n_afterwards": sum(asked.due >= opened for asked in waited),
            },
            "not_asked": {"n": len(unasked), **milliseconds([asked.seconds for asked in unasked])},
            "sources": Counter(asked.source for asked in during),
        },
        "after": {"first_whole_answer_seconds": round(min(back) - seconds, 2) if back else None},
    }


if __name__ == "__main__":
    typer.run(main)
