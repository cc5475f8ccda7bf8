"""Interactions in daily partitions, as Dagster runs them: a process of its own, since settings decide the graph."""

import json
import os
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest

from rec_pipeline_tests.fixtures.daily_lineage import DATES, SIZES
from rec_pipeline_tests.fixtures.project import REPOSITORY

TODAY = "today"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("by_day")
    items = {"item_id": [f"i{number}" for number in range(30)], "title": [f"Work {number}" for number in range(30)]}
    pd.DataFrame(items).to_csv(folder / "items.csv", index=False)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("REC_", "MLFLOW_", "DAGSTER_"))}
    variables = {
        "PYTHONPATH": str(REPOSITORY),  # the tests are not installed
        "REC_DATA_DIR": str(folder / "data"),
        "REC_DATASET": "files",
        "REC_INTERACTIONS": str(folder / "input"),
        "REC_ITEMS": str(folder / "items.csv"),
        "REC_INTERACTIONS_SINCE": "2024-02-01",
        "REC_EVENTS_SINCE": "2024-02-10",
    }
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-m", "rec_pipeline_tests.fixtures.daily_lineage", str(folder / "input")],
        env=own | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "BetaWarning" not in done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def days_read(run: dict[str, Any]) -> list[str]:
    """Return the days whose files a run read: those of which it counted rows."""
    return sorted(
        day for day, counts in run["made"]["raw_interactions"].items() if "dagster/partition_row_count" in counts
    )


def test_interactions_have_daily_partitions_and_a_backfill_is_one_run(said: dict[str, Any]) -> None:
    assert said["partitioned"] == ["event_log", "interactions", "raw_interactions"]
    assert said["single_run"]
    assert said["first"] == "2024-02-01"


def test_a_backfill_reads_its_days_alone_and_says_what_became_of_each(said: dict[str, Any]) -> None:
    run = said["backfill"]

    assert days_read(run) == list(DATES[:2])
    assert list(run["made"]["interactions"]) == list(DATES[:2])
    assert run["kept_by_day"] == dict.fromkeys(DATES[:2], 799)
    for counts in run["made"]["interactions"].values():
        assert [counts[name] for name in ("n_rows_in", "n_kept", "n_duplicates", "n_quarantined")] == [800, 799, 0, 1]


def test_a_backfill_with_a_day_that_is_not_there_changes_nothing(said: dict[str, Any]) -> None:
    assert "holds nothing of 2024-03-03, which was asked for" in said["hole"]
    assert said["after_hole"] == said["backfill"]["version"]


def test_a_refresh_takes_up_what_is_new_and_the_split_reads_all_days(said: dict[str, Any]) -> None:
    run = said["refresh"]

    assert days_read(run) == list(DATES[2:])
    assert run["kept_by_day"] == {day: n - 1 for day, n in SIZES.items()}
    assert run["checks_failed"] == []


def test_a_refresh_with_nothing_new_reads_nothing_and_makes_the_same(said: dict[str, Any]) -> None:
    assert days_read(said["again"]) == []
    assert said["again"]["version"] == said["refresh"]["version"]


def test_a_day_with_late_events_is_taken_again_and_one_without_files_goes(said: dict[str, Any]) -> None:
    run = said["late"]

    assert days_read(run) == [DATES[0]]
    assert run["kept_by_day"] == {day: SIZES[day] - 1 for day in DATES[:3]}
    counts = run["made"]["interactions"][DATES[0]]
    assert [counts[name] for name in ("n_rows_in", "n_kept", "n_duplicates", "n_quarantined")] == [850, 799, 49, 2]


def test_a_forgotten_user_is_in_no_day(said: dict[str, Any]) -> None:
    before, after = said["late"], said["without_the_forgotten"]

    assert said["forgotten"] == 20 + 2 + 20 + 8  # rows of one of 40 users, in three days and in 50 late events
    assert days_read(after) == []
    assert sum(before["kept_by_day"].values()) - sum(after["kept_by_day"].values()) == 20 + 20 + 8


def test_schedule_and_sensor_ask_for_the_partition_of_today(said: dict[str, Any]) -> None:
    assert said["schedule"]
    assert said["sensor"]
