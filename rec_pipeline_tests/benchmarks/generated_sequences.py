"""
A file of events in the size and shape of the published Amazon Beauty set, for ``rec-pipeline benchmark sequential``.

Run with ``python -m rec_pipeline_tests.benchmarks.generated_sequences FILE``; writes Parquet. Half of the users have
the fewest events there may be, a few more than a hundred. A user stays in a topic (``generated_topics``) for some
events, and now and then takes one of the few items that go with the one before.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import typer

from rec_pipeline_tests.benchmarks.generated_topics import Topics

FEWEST_EVENTS = 5
LENGTH_SIGMA = 2.4
MOST_MORE = 500  # times the median of what users have beyond the fewest
STAY_SHARE = 0.7
FOLLOW_SHARE = 0.25
FOLLOWERS = 4
DRAWN = 1.6  # times the events kept: a user has an item once


def main(file: Path, n_users: int = 40_226, n_items: int = 56_400, n_events: int = 353_962, seed: int = 0) -> None:
    """Write the events, oldest first; an item of ``n_items`` that nobody took is not among them."""
    rng = np.random.default_rng(seed)
    topics = Topics.draw(rng, n_items)
    more = np.minimum(rng.lognormal(0, LENGTH_SIGMA, n_users), MOST_MORE)
    more *= (n_events - FEWEST_EVENTS * n_users) / more.sum()
    lengths = FEWEST_EVENTS + np.diff(np.floor(np.cumsum(more)), prepend=0).astype(np.int64)
    n_drawn = np.ceil(DRAWN * lengths + 3).astype(np.int64)
    topic_of = np.empty(n_items, dtype=np.int64)
    topic_of[topics.by_topic] = np.repeat(np.arange(len(topics.starts) - 1), np.diff(topics.starts))
    followers = topics.items(rng, np.repeat(topic_of, FOLLOWERS)).reshape(n_items, FOLLOWERS)

    users = np.repeat(np.arange(n_users), n_drawn)
    place = np.arange(len(users)) - np.repeat(np.cumsum(n_drawn) - n_drawn, n_drawn)
    first_of_stay = np.where((place == 0) | (rng.random(len(users)) >= STAY_SHARE), np.arange(len(users)), 0)
    stay = np.maximum.accumulate(first_of_stay)
    items = topics.items(rng, topics.wander(rng, topics.of_users(rng, users, n_users)[stay]))
    follows = (place > 0) & (rng.random(len(users)) < FOLLOW_SHARE)
    which = rng.integers(FOLLOWERS, size=len(users))
    for step in range(1, int(n_drawn.max())):
        at = np.flatnonzero(follows & (place == step))
        items[at] = followers[items[at - 1], which[at]]

    table = pd.DataFrame({"user_id": users, "item_id": items}).drop_duplicates()
    table = table[table.groupby("user_id").cumcount() < lengths[table["user_id"]]]
    file.parent.mkdir(parents=True, exist_ok=True)
    table.assign(timestamp=np.arange(len(table))).to_parquet(file)
    n_each = table.groupby("user_id").size()
    typer.echo(
        f"{len(table):,} events, {len(n_each):,} users with {n_each.median():.0f} in the median, {n_each.min()} to "
        f"{n_each.max()}, {table['item_id'].nunique():,} items"
    )


if __name__ == "__main__":
    typer.run(main)
