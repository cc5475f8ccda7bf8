import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import redis

from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.events import Event, EventRules, Served, make_event
from rec_pipeline.engine.data.experiment import Experiment
from rec_pipeline.engine.evaluation.online import (
    OnlineMetrics,
    OnlineParams,
    click_through,
    online_metrics,
    p_of_shares,
    wilson_interval,
)
from rec_pipeline.engine.store.drain import drain
from rec_pipeline.engine.store.events import record_events

NOON = datetime(2024, 2, 10, 12, tzinfo=UTC)
EXPERIMENT = Experiment(name="weights", shares={"control": 0.5, "tuned": 0.5})


def event(kind: str, user: str, item: str, hours: float, served: Served | None = None) -> Event:
    when = NOON + timedelta(hours=hours)
    return make_event(EventRules(), user_id=user, item_id=item, event_type=kind, timestamp=when, served=served)


def served(user: str, *sources: str, generation: int = 1) -> Served:
    return Served(sources, generation, EXPERIMENT.name, EXPERIMENT.variant(user))


@pytest.fixture
def measured(store: "redis.Redis", tmp_path: Path) -> OnlineMetrics:
    u1, u2 = served("u1", "ncf", "content"), served("u2", "content", generation=2)
    record_events(
        store,
        [
            event("impression", "u1", "i1", 0, u1),
            event("impression", "u1", "i1", 1, u1),
            event("impression", "u1", "i2", 1, u1),
            event("impression", "u2", "i1", 1, u2),
            event("click", "u1", "i1", 2, u1),  # of the second impression
            event("click", "u1", "i1", 3, u1),  # of the second impression again
            event("click", "u2", "i1", 0.5, u2),  # before the impression
            event("click", "u1", "i2", 30, u1),  # out of the window
            event("click", "u3", "i9", 1),  # found otherwise
            event("impression", "u9", "i1", -24 * 40, u1),  # too long ago
        ],
    )
    log = EventLog(tmp_path / "log")
    drain(store, log)
    return online_metrics(log, EXPERIMENT, OnlineParams(), pd.Timestamp("2024-02-11", tz="UTC"))


def counts(metrics: OnlineMetrics, name: str) -> dict[str, tuple[int, int]]:
    rows = metrics.table[metrics.table["slice"] == name]
    return {row.bucket: (row.n_impressions, row.n_clicked) for row in rows.itertuples()}


def test_a_click_counts_for_the_last_impression_before_it(measured: OnlineMetrics) -> None:
    assert counts(measured, "all") == {"all": (4, 1)}
    assert (measured.n_clicks, measured.n_clicks_of_served, measured.n_matched) == (5, 4, 2)


def test_impressions_count_for_each_source_generation_and_variant(measured: OnlineMetrics) -> None:
    assert counts(measured, "source") == {"ncf": (3, 1), "content": (4, 1)}
    assert counts(measured, "generation") == {"1": (3, 1), "2": (1, 0)}
    expected = {f"weights/{EXPERIMENT.variant('u1')}": 3}
    expected[f"weights/{EXPERIMENT.variant('u2')}"] = expected.get(f"weights/{EXPERIMENT.variant('u2')}", 0) + 1
    assert {name: n for name, (n, _) in counts(measured, "experiment/variant").items()} == expected
    assert sum(measured.users_by_variant.values()) == 2
    assert measured.n_misdealt == 0


def test_metrics_come_back_from_disk(measured: OnlineMetrics, tmp_path: Path) -> None:
    measured.save(tmp_path)

    again = OnlineMetrics.load(tmp_path)

    pd.testing.assert_frame_equal(again.table, measured.table)
    assert again.users_by_variant == measured.users_by_variant


def test_without_events_there_is_one_empty_row(tmp_path: Path) -> None:
    metrics = online_metrics(EventLog(tmp_path), EXPERIMENT, OnlineParams(), pd.Timestamp("2024-02-11", tz="UTC"))

    assert counts(metrics, "all") == {"all": (0, 0)}
    assert math.isnan(metrics.table["mean"].iloc[0])
    assert metrics.p_of_shares == 1


def test_intervals_cover_the_truth_although_users_differ(rng: np.random.Generator) -> None:
    n_covered = n_covered_naively = 0
    for _ in range(300):
        rates = rng.beta(1, 9, size=150)  # the mean is 0.1
        users = np.repeat(np.arange(150), 20)
        table = pd.DataFrame({"user_id": users, "clicked": rng.random(3000) < rates[users]})
        rate, low, high = click_through(table, 0.95)
        naive_low, naive_high = wilson_interval(rate, len(table), 0.95)
        n_covered += low <= 0.1 <= high
        n_covered_naively += naive_low <= 0.1 <= naive_high

    assert 0.90 <= n_covered / 300 <= 0.99
    assert n_covered_naively / 300 < 0.85


@pytest.mark.parametrize(
    ("users", "is_suspicious"),
    [
        ({"control": 500, "tuned": 510}, False),
        ({"control": 5000, "tuned": 5600}, True),
        ({"control": 4, "tuned": 0}, False),
    ],
)
def test_a_sample_ratio_mismatch_is_told_from_chance(users: dict[str, int], is_suspicious: bool) -> None:
    assert (p_of_shares(users, EXPERIMENT.shares) < 0.001) == is_suspicious


def test_a_user_shown_another_variant_than_theirs_is_counted(store: "redis.Redis", tmp_path: Path) -> None:
    other = next(name for name in EXPERIMENT.shares if name != EXPERIMENT.variant("u1"))
    record_events(store, [event("impression", "u1", "i1", 0, Served(("ncf",), 1, EXPERIMENT.name, other))])
    drain(store, EventLog(tmp_path))

    metrics = online_metrics(EventLog(tmp_path), EXPERIMENT, OnlineParams(), pd.Timestamp("2024-02-11", tz="UTC"))

    assert metrics.n_misdealt == 1
