"""Generated data and the table of the growth benchmark; the runs themselves are too long for a test."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from rec_pipeline.benchmarks import scale
from rec_pipeline.benchmarks.scale import StepCost, by_workers, generate, table_of
from rec_pipeline.cli.benchmark import app
from rec_pipeline.engine.errors import RecPipelineError


def test_generated_data_is_deterministic_distinct_and_of_the_size_asked_for() -> None:
    interactions, items = generate(30_000, seed=1)
    again, _ = generate(30_000, seed=1)

    pd.testing.assert_frame_equal(interactions, again)
    assert len(interactions) == 30_000
    assert not interactions.duplicated(["user_id", "item_id"]).any()
    assert interactions["item_id"].isin(items["item_id"]).all()
    assert interactions["user_id"].nunique() > 500
    assert items["title"].nunique() == 400


def test_users_are_a_number_of_their_own() -> None:
    interactions, items = generate(30_000, n_users=3_000)

    assert 2_400 < interactions["user_id"].nunique() <= 3_000
    assert len(items) == 1_000


def test_users_mostly_stay_within_two_genres() -> None:
    interactions, items = generate(30_000)
    genre = interactions["item_id"].map(items.set_index("item_id")["categories"])

    per_user = genre.groupby(interactions["user_id"]).agg(lambda genres: genres.value_counts(normalize=True)[:2].sum())

    assert per_user.mean() > 0.6


def test_the_table_says_how_time_grows_with_the_data() -> None:
    costs = {
        1000: [StepCost("split", 1.0, 200.0), StepCost("train", 2.0, 300.0)],
        10_000: [StepCost("split", 10.0, 210.0), StepCost("train", 200.0, 900.0), StepCost("new", 1.0, 1.0)],
    }

    split, train, new, total = table_of(costs)

    assert (split["growth"], train["growth"], new["growth"]) == (pytest.approx(1), pytest.approx(2), None)
    assert (split["seconds_1000"], new["seconds_1000"]) == (1.0, None)
    assert (total["seconds_10000"], total["peak_mb_10000"]) == (211.0, 900)


def test_the_table_of_workers_says_what_each_step_gains() -> None:
    costs = {
        workers: [StepCost("train", 10.0, 1.0), StepCost("lists", seconds, 1.0, 7.04 * workers)]
        for workers, seconds in {0: 8.0, 1: 9.0, 2: 4.0}.items()
    }

    train, lists = by_workers(costs)

    assert train["speedup"] == pytest.approx(1)
    assert lists == {
        "step": "lists",
        "seconds_0_workers": 8.0,
        "seconds_1_workers": 9.0,
        "seconds_2_workers": 4.0,
        "speedup": 2.0,
        "moved_mb": 14.1,
    }


@pytest.mark.parametrize("workers", [["--workers", "2", "1", "4"], ["--workers", "4", "--workers", "1", "2"]])
def test_numbers_of_workers_follow_one_option_or_several(workers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*arguments: object) -> list[StepCost]:
        environment = next(argument for argument in arguments if isinstance(argument, dict))
        return [StepCost("lists", 8.0 / int(environment.get("REC_RAY_WORKERS", 1)), 1.0)]

    monkeypatch.setattr(scale, "measure", measured)

    result = CliRunner().invoke(app, ["scale", "--compute", "ray", *workers, "--json"], catch_exceptions=False)

    (row,) = json.loads(result.stdout)["rows"]
    seconds = {name: value for name, value in row.items() if name.startswith("seconds_")}
    assert seconds == {"seconds_0_workers": 8, "seconds_1_workers": 8, "seconds_2_workers": 4, "seconds_4_workers": 2}


@pytest.mark.parametrize(
    ("arguments", "message"), [(["3"], "3 belongs to no option"), (["--workers", "2"], "--compute ray")]
)
def test_numbers_of_workers_that_would_do_nothing_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["scale", *arguments])

    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("lines", "said"),
    [(["1/2 split", "error: no room", "Nothing is live yet."], "error: no room"), (["1/2 split", "Killed"], "Killed")],
)
def test_a_run_that_fails_is_told_by_its_error_or_its_last_line(lines: list[str], said: str) -> None:
    text = "\n".join(lines)
    program = f"import sys, time; print({text!r}, file=sys.stderr, flush=True); time.sleep(1); sys.exit(3)"
    command = [sys.executable, "-c", program]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,  # noqa: S603 - this interpreter
        pytest.raises(RecPipelineError, match=rf"step split failed after \d s: {said}$"),
    ):
        list(scale._costs(process, lambda _: None))
