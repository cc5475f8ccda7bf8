"""
What Ray costs and gives: lists for all users, computed here and by workers of a local cluster.

    python -m rec_pipeline_tests.benchmarks.compute DATA_DIR --workers 1 2

``DATA_DIR`` is the data folder of a run. Its users are ranked over and over, ``--repeats`` times. Seconds are wall time
from the first shard's result to the last one's, best of ``--rounds``; processor seconds are this process's and, on Ray,
those that the shards took in the workers.
"""

import argparse
import pickle
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pyarrow as pa

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.recommenders import lists
from rec_pipeline.engine.recommenders.bundle import ServingBundle

TOP_K = 50
Shared = tuple[ServingBundle, "lists._ListWriter", int]


def timed(shared: Shared, rows: range) -> tuple[pa.RecordBatch, float]:
    """Make the lists of one shard; also the processor seconds it took."""
    begun = time.process_time()
    made = lists._lists_of(shared, rows)
    return made, time.process_time() - begun


@contextmanager
def compute_of(n_workers: int) -> Iterator[Compute]:
    """Yield this process for 0, else a cluster of so many workers."""
    with ExitStack() as stack:
        if n_workers:
            from rec_pipeline.resources.ray_compute import RayCompute

            yield stack.enter_context(closing(RayCompute(n_workers=n_workers)))
        else:
            yield LOCAL


def main() -> None:
    """Print one line for this process and for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    store = ArtifactStore(options.data_dir / "artifacts")
    bundle = ServingBundle.load(store.path("serving_bundle"))
    shared = bundle, lists._ListWriter(bundle, time.time()), TOP_K
    n_users = len(bundle.users)
    starts = range(0, n_users, options.batch_size)
    shards = [range(start, min(start + options.batch_size, n_users)) for start in starts] * options.repeats
    print(f"{n_users} users, {len(bundle.items)} items, {len(shards)} shards of {options.batch_size}")  # noqa: T201
    print(f"put once: {len(pickle.dumps(shared, protocol=5)) / 1e6:.1f} MB")  # noqa: T201
    for n_workers in [0, *options.workers]:
        with compute_of(n_workers) as compute:
            begun = time.perf_counter()
            first, _ = next(iter(compute.map(timed, shards[:1], shared)))
            start_seconds = time.perf_counter() - begun
            rounds = []
            for _ in range(options.rounds):
                begun, here = time.perf_counter(), time.process_time()
                results = list(compute.map(timed, shards, shared))
                own = time.process_time() - here
                rounds.append((time.perf_counter() - begun, own, sum(seconds for _, seconds in results)))
            wall, own, there = min(rounds)
            n_lists = sum(len(made) for made, _ in results)
            print(  # noqa: T201
                f"{n_workers} workers: first shard after {start_seconds:.1f} s, then {n_lists / wall:,.0f} users/s; "
                f"processor seconds {own:.2f} here, {there:.2f} in shards, {1e6 * there / n_lists:.0f} µs a user; "
                f"returned {first.nbytes / len(first):,.0f} B a user"
            )


if __name__ == "__main__":
    main()
