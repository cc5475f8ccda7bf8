"""
Events recorded and drained per second, on an embedded store of its own.

Run with ``python -m rec_pipeline_tests.benchmarks.events``; prints JSON. ``per_second`` is by the clock;
``per_cpu_second`` by this process's processor time, which other work on the machine changes less.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.events import EventRules, Served, make_event
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.drain import drain
from rec_pipeline.engine.store.events import record_events
from rec_pipeline.engine.store.keys import EVENT_STREAM
from rec_pipeline.resources.embedded_valkey import ensure_server, stop_server


def main(n_events: int = 100_000, n_users: int = 5_000, n_items: int = 10_000) -> None:
    """Record ``n_events`` in batches of 500 with context and origin, and drain them into four days."""
    rng, rules, now = random.Random(0), EventRules(), time.time()  # noqa: S311 - not for secrets
    served = Served(("collaborative", "content"), 3, "weights", "tuned", 4)
    events = [
        make_event(
            rules,
            user_id=f"u{rng.randrange(n_users)}",
            item_id=f"i{rng.randrange(n_items)}",
            event_type="click",
            timestamp=now - rng.random() * 3 * 86_400,
            context={"device": "tv", "location": "Berlin"},
            served=served,
        )
        for _ in range(n_events)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with publisher_client(ensure_server(folder / "store")) as client:
                batches = [events[start : start + 500] for start in range(0, n_events, 500)]
                recorded = timed(lambda: [record_events(client, batch, rules) for batch in batches], n_events)
                n_bytes = client.memory_usage(EVENT_STREAM, samples=0)
                drained = timed(lambda: drain(client, EventLog(folder / "log"), rules), n_events)
            log_bytes = sum(path.stat().st_size for path in (folder / "log").rglob("*.parquet"))
        finally:
            stop_server(folder / "store")
    sizes = {"stream_bytes_per_event": n_bytes / n_events, "log_bytes_per_event": log_bytes / n_events}
    typer.echo(json.dumps({"n_events": n_events, "record": recorded, "drain": drained, **sizes}, indent=2))


def timed(work: Callable[[], Any], n_events: int) -> dict[str, float]:
    """Run ``work`` once and return events per second of either clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "per_second": round(n_events / (time.perf_counter() - wall)),
        "per_cpu_second": round(n_events / (time.process_time() - cpu)),
    }


if __name__ == "__main__":
    typer.run(main)
