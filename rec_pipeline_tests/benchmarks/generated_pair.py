"""
A train and a test file of the size of the published full-ranking sets, for ``rec-pipeline benchmark full-ranking``.

Run with ``python -m rec_pipeline_tests.benchmarks.generated_pair FOLDER``; writes ``train.parquet`` and
``test.parquet``. Users mix a few topics, see ``generated_topics``, and now and then leave them.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import typer

from rec_pipeline_tests.benchmarks.generated_topics import Topics

ACTIVITY_SIGMA = 0.9
TEST_SHARE = 0.2
DRAWN, KEPT = 2.2, 1.25  # times n_pairs: drawn with repeats, and kept of what is left


def main(folder: Path, n_users: int = 30_000, n_items: int = 41_000, n_pairs: int = 1_150_000, seed: int = 0) -> None:
    """Write the pair; about ``n_pairs`` rows are for training."""
    rng = np.random.default_rng(seed)
    topics = Topics.draw(rng, n_items)
    activity = rng.lognormal(0, ACTIVITY_SIGMA, n_users)
    users = rng.choice(n_users, int(DRAWN * n_pairs), p=activity / activity.sum())
    items = topics.items(rng, topics.wander(rng, topics.of_users(rng, users, n_users)))
    pairs = np.unique(users.astype(np.int64) * n_items + items)
    rng.shuffle(pairs)
    pairs = pairs[: int(KEPT * n_pairs)]
    table = pd.DataFrame({"user_id": pairs // n_items, "item_id": pairs % n_items})
    is_test = rng.random(len(table)) < TEST_SHARE
    folder.mkdir(parents=True, exist_ok=True)
    table[~is_test].to_parquet(folder / "train.parquet")
    table[is_test].to_parquet(folder / "test.parquet")
    typer.echo(f"{(~is_test).sum():,} train rows, {is_test.sum():,} test rows, {table['user_id'].nunique():,} users")


if __name__ == "__main__":
    typer.run(main)
