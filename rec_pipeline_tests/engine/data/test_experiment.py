import subprocess
import sys

import pytest
from scipy import stats

from rec_pipeline.engine.data.experiment import Experiment

EXPERIMENT = Experiment(name="weights", shares={"control": 0.5, "tuned": 0.3, "wild": 0.2})
USERS = [f"user{number}" for number in range(20_000)]


def test_users_are_dealt_by_the_shares() -> None:
    variants = [EXPERIMENT.variant(user) for user in USERS]

    counts = [variants.count(name) for name in EXPERIMENT.shares]
    expected = [share * len(USERS) for share in EXPERIMENT.shares.values()]
    assert stats.chisquare(counts, expected).pvalue > 0.001


def test_another_experiment_deals_anew_and_independently() -> None:
    other = Experiment(name="weights-2", shares=EXPERIMENT.shares)

    in_control = [user for user in USERS if EXPERIMENT.variant(user) == "control"]
    still = sum(other.variant(user) == "control" for user in in_control)

    assert stats.binomtest(still, len(in_control), 0.5).pvalue > 0.001


def test_another_process_deals_the_same() -> None:
    script = (
        "from rec_pipeline.engine.data.experiment import Experiment;"
        f"e = Experiment(name='weights', shares={EXPERIMENT.shares!r});"
        "print(*(e.variant(f'user{n}') for n in range(100)))"
    )

    found = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert found.stdout.split() == [EXPERIMENT.variant(user) for user in USERS[:100]]


def test_a_variant_that_grows_keeps_its_users() -> None:
    before = Experiment(name="ramp", shares={"new": 0.1, "control": 0.9})
    after = Experiment(name="ramp", shares={"new": 0.2, "control": 0.8})

    assert all(after.variant(user) == "new" for user in USERS if before.variant(user) == "new")


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.5}, {"a": 0.0, "b": 1.0}, {"a": -0.5, "b": 1.5}, {"A": 1.0}, {"a": float("nan")}]
)
def test_shares_that_make_no_sense_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Experiment(shares=shares)


def test_params_are_of_variants_there_are() -> None:
    with pytest.raises(ValueError, match=r"params are for.*wild.*, expected variants among.*control"):
        Experiment(params={"wild": {"rank_constant": 10}})
