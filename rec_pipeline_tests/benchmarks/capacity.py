"""
What a user costs: memory of the store, disk, memory and time of a publication, by the number of users.

``python -m rec_pipeline_tests.benchmarks.capacity --users 10000 --users 100000`` publishes two generations of lists of
50 to an embedded server of its own, so that the peak holds one live and one staged, and prints a table.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from rec_pipeline.engine.recommenders.list_schema import POPULAR_USER_ID
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.generation import Generation, GenerationWriter
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.resources.embedded_valkey import ensure_server, stop_server
from rec_pipeline_tests.fixtures.store import make_lists

LIST_LENGTH = 50
CHUNK = 1000


def seal(root: Path, n_users: int, tag: str) -> Generation:
    """Seal a generation of equal lists, each of its own user."""
    lists = make_lists([f"u{number:09d}" for number in range(CHUNK)], tag, LIST_LENGTH)
    place = lists.schema.get_field_index("user_id")
    with GenerationWriter(root) as writer:
        for start in range(0, n_users, CHUNK):
            ids = pa.array([f"u{number:09d}" for number in range(start, start + CHUNK)])
            writer.add(lists.set_column(place, "user_id", ids))
        return writer.seal({}, popular=make_lists([POPULAR_USER_ID], tag, LIST_LENGTH))


def measure(n_users: int) -> dict[str, Any]:
    """Publish twice; what one user costs is taken of the second time."""
    with tempfile.TemporaryDirectory() as name:
        root, store = Path(name) / "generations", Path(name) / "store"
        started = time.perf_counter()
        first, second = seal(root, n_users, "g1"), seal(root, n_users, "g2")
        seal_seconds = (time.perf_counter() - started) / 2
        try:
            with publisher_client(ensure_server(store)) as client:
                empty = int(client.info("memory")["used_memory"])
                publish(client, first)
                live = int(client.info("memory")["used_memory"]) - empty
                started = time.perf_counter()
                done = publish(client, second)
                seconds = time.perf_counter() - started
                peak = int(client.info("memory")["used_memory_peak"]) - empty
        finally:
            stop_server(store)
        disk = sum(path.stat().st_size for path in second.directory.iterdir())
    return {
        "users": n_users,
        "bytes a list": done.n_bytes // n_users,
        "store live, MB": round(live / 1e6, 1),
        "store peak, MB": round(peak / 1e6, 1),
        "disk a generation, MB": round(disk / 1e6, 1),
        "seal, s": round(seal_seconds, 2),
        "publish, s": round(seconds, 2),
        "process, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    }


def main() -> None:
    """Print a line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, action="append")
    for n_users in parser.parse_args().users or [10_000, 100_000]:
        sys.stdout.write(f"{measure(n_users)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
