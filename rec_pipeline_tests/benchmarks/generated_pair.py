"""
A train and a test file of the size of the published full-ranking sets, for ``rec-pipeline benchmark full-ranking``.

Run with ``python -m rec_pipeline_tests.benchmarks.generated_pair FOLDER``; writes ``train.parquet`` and
``test.parquet``. Items lie in topics, popular by Zipf's law within one; users mix a few topics and now and then leave
them, and a third of what they take is anything of the topic, so that the whole catalogue is used.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import typer

N_TOPICS = 200
TOPICS_PER_USER = 5
TOPIC_DECAY = 0.4  # chance that the first topic of those left is the one
ELSEWHERE_SHARE = 0.2
UNIFORM_SHARE = 0.35
ACTIVITY_SIGMA = 0.9
TEST_SHARE = 0.2
DRAWN, KEPT = 2.2, 1.25  # times n_pairs: drawn with repeats, and kept of what is left


def main(folder: Path, n_users: int = 30_000, n_items: int = 41_000, n_pairs: int = 1_150_000, seed: int = 0) -> None:
    """Write the pair; about ``n_pairs`` rows are for training."""
    rng = np.random.default_rng(seed)
    topic_of = rng.integers(N_TOPICS, size=n_items)
    by_topic = np.argsort(topic_of, kind="stable")
    starts = np.searchsorted(topic_of[by_topic], np.arange(N_TOPICS + 1))
    activity = rng.lognormal(0, ACTIVITY_SIGMA, n_users)
    n_drawn = int(DRAWN * n_pairs)
    users = rng.choice(n_users, n_drawn, p=activity / activity.sum())
    tastes = rng.integers(N_TOPICS, size=(n_users, TOPICS_PER_USER))
    topics = tastes[users, np.minimum(rng.geometric(TOPIC_DECAY, n_drawn), TOPICS_PER_USER) - 1]
    elsewhere = rng.random(n_drawn) < ELSEWHERE_SHARE
    topics[elsewhere] = rng.integers(N_TOPICS, size=elsewhere.sum())
    sizes = starts[topics + 1] - starts[topics]
    places = np.clip((sizes ** rng.random(n_drawn)).astype(int) - 1, 0, sizes - 1)
    uniform = rng.random(n_drawn) < UNIFORM_SHARE
    places[uniform] = (rng.random(uniform.sum()) * sizes[uniform]).astype(int)
    pairs = np.unique(users.astype(np.int64) * n_items + by_topic[starts[topics] + places])
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
