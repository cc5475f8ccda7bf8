import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.errors import ConfigurationError, TrainingDivergedError
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.search import SPACE, SearchParams, SearchResult, search_ncf
from rec_pipeline_tests.fixtures.split import split_of

START = NCFParams(embedding_dim=4, mlp_dim=2, layers=[4], pretrain_epochs=2, epochs=3, patience=3, batch_size=128)
TRAINING = TrainingOptions(seed=1, device="cpu", n_threads=1)


@pytest.fixture(scope="module")
def split() -> InteractionSplit:
    rng = np.random.default_rng(0)
    user, item = np.nonzero((np.arange(40)[:, None] + np.arange(20)) % 2 == 0)
    part = rng.choice(3, size=len(user), p=[0.7, 0.15, 0.15])
    rows = pd.DataFrame(
        {
            "user_idx": user,
            "item_idx": item,
            "timestamp": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(part, unit="D"),
            "weight": np.ones(len(user), dtype=np.float32),
        }
    )
    names = {"users": "u", "items": "i"}
    maps = {
        kind: IdMap(np.array([f"{letter}{row:02d}" for row in range(size)], dtype=object))
        for (kind, letter), size in zip(names.items(), (40, 20), strict=True)
    }
    return split_of(*(rows[part == number] for number in range(3)), **maps, strategy="time", boundaries={})


class Notes:
    """What each trial was told, by number."""

    def __init__(self, die_in: int | None = None) -> None:
        self.ended: dict[int, tuple[str, float | None]] = {}
        self.params: dict[int, NCFParams] = {}
        self._die_in = die_in

    @contextmanager
    def observe(self, number: int, params: NCFParams) -> Iterator["Notes.Trial"]:
        self.params[number] = params
        yield Notes.Trial(self, number)

    class Trial:
        def __init__(self, notes: "Notes", number: int) -> None:
            self._notes = notes
            self._number = number

        def on_epoch(self, metrics: Any) -> None:
            assert 0 <= metrics.validation_ndcg <= 1
            if self._notes._die_in == self._number:
                raise KeyboardInterrupt

        def finish(self, state: str, value: float | None) -> None:
            self._notes.ended[self._number] = (state, value)


def search(
    split: InteractionSplit, folder: Path, n_trials: int, notes: Notes, start: NCFParams = START
) -> SearchResult:
    return search_ncf(
        split, start, SearchParams(n_trials=n_trials), training=TRAINING, folder=folder, name="s", observe=notes.observe
    )


def test_the_first_trial_is_the_start_and_the_best_is_never_below_it(split: InteractionSplit, tmp_path: Path) -> None:
    notes = Notes()

    found = search(split, tmp_path, 4, notes)

    assert notes.params[0] == START
    assert notes.ended[0] == ("complete", found.first_value)
    assert found.first_value is not None
    assert found.value == max(value for state, value in notes.ended.values() if state == "complete" and value)
    assert found.value >= found.first_value
    assert found.params in notes.params.values()
    assert sum(found.counts.values()) == 4


def test_a_killed_search_goes_on_where_it_was(split: InteractionSplit, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(split, tmp_path, 3, Notes(die_in=1))
    notes = Notes()

    found = search(split, tmp_path, 3, notes)
    again = search(split, tmp_path, 3, Notes(die_in=0))

    assert sorted(notes.params) == [2, 3]  # trial 0 was complete, trial 1 died and does not count
    assert again.value == found.value


def test_a_search_killed_in_its_first_trial_begins_with_the_start_again(
    split: InteractionSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(split, tmp_path, 2, Notes(die_in=0))
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda _: True)
    notes = Notes()

    found = search(split, tmp_path, 2, notes)

    assert notes.params[1] == START
    assert notes.ended[1] == ("complete", found.first_value)  # the starting point is never cut short
    assert found.counts == {"complete": 1, "pruned": 1, "diverged": 0}


def test_a_trial_that_diverges_counts_and_one_that_was_killed_does_not(
    split: InteractionSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = START.model_copy(update={"gmf_learning_rate": 1e30})
    monkeypatch.setattr("rec_pipeline.engine.models.search.SPACE", {"gmf_learning_rate": (0.05,)})
    with pytest.raises(KeyboardInterrupt):
        search(split, tmp_path, 3, Notes(die_in=0), diverging)
    notes = Notes()

    found = search(split, tmp_path, 6, notes, diverging)

    ended = [state for state, _ in notes.ended.values()]
    assert ended[0] == "diverged"
    assert found.counts == {state: ended.count(state) for state in ("complete", "pruned", "diverged")}
    assert sum(found.counts.values()) == 6
    assert found.params.gmf_learning_rate == 0.05
    assert found.first_value is None


def test_a_search_of_which_no_trial_came_to_its_end_says_so(
    split: InteractionSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rec_pipeline.engine.models.search.SPACE", {"gmf_learning_rate": (1e30,)})

    with pytest.raises(TrainingDivergedError, match="none of 2 trials"):
        search(split, tmp_path, 2, Notes(), START.model_copy(update={"gmf_learning_rate": 1e30}))


def test_a_hopeless_trial_is_cut_short(
    split: InteractionSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda _: True)  # the pruner's own choice needs many trials
    notes = Notes()

    found = search(split, tmp_path, 2, notes)

    assert [state for state, _ in notes.ended.values()] == ["complete", "pruned"]
    assert found.params == START


def test_two_searches_do_not_share_a_folder(split: InteractionSplit, tmp_path: Path) -> None:
    with (tmp_path / "search.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another search"):
            search(split, tmp_path, 1, Notes())


def test_what_the_start_leaves_open_may_stay_open(split: InteractionSplit, tmp_path: Path) -> None:
    start, notes = START.model_copy(update={"batch_size": None}), Notes()

    search_ncf(
        split, start, SearchParams(n_trials=8), training=TRAINING, folder=tmp_path, name="s", observe=notes.observe
    )

    sizes = {params.batch_size for params in notes.params.values()}
    assert notes.params[0].batch_size is None
    assert len(sizes) > 1
    assert sizes <= {None, *SPACE["batch_size"]}


def test_every_value_of_the_space_is_a_setting() -> None:
    for name, values in SPACE.items():
        for value in values:
            assert getattr(NCFParams(**{name: value}), name) == value
