import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.sequence_training import continue_sequence, fit_sequence
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders import validation
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker
from rec_pipeline.engine.recommenders.params import TRENDING, HybridParams
from rec_pipeline.engine.recommenders.sequence import SequenceRanker
from rec_pipeline.engine.recommenders.tuning import tune_fusion
from rec_pipeline.engine.recommenders.validation import (
    MAX_WINDOWS,
    ValidationRanking,
    WindowRanking,
    sequence_lists,
    tuning_windows,
)
from rec_pipeline_tests.engine.recommenders.planted import id_map
from rec_pipeline_tests.fixtures.split import split_of

N_USERS, N_ITEMS, N_ROWS, N_HELD_OUT = 30, 50, 1000, 100


@pytest.fixture
def split(rng: np.random.Generator) -> InteractionSplit:
    """1,200 interactions, one a minute: 1,000 train, 100 held out, 100 tested."""
    rows = pd.DataFrame(
        {
            "user_idx": rng.integers(N_USERS, size=N_ROWS + 2 * N_HELD_OUT),
            "item_idx": rng.integers(N_ITEMS, size=N_ROWS + 2 * N_HELD_OUT),
            "timestamp": pd.date_range("2024-01-01", periods=N_ROWS + 2 * N_HELD_OUT, freq="min", tz="UTC"),
            "weight": np.float32(1),
        }
    )
    ends = (0, N_ROWS, N_ROWS + N_HELD_OUT, len(rows))
    parts = [rows[begin:end].reset_index(drop=True) for begin, end in itertools.pairwise(ends)]
    return split_of(*parts, users=id_map(N_USERS, "u"), items=id_map(N_ITEMS), strategy="time", boundaries={})


def test_windows_lie_one_before_the_other_and_know_nothing_later(split: InteractionSplit) -> None:
    windows = tuning_windows(split)

    assert len(windows) == MAX_WINDOWS
    assert windows[0] is split
    for later, window in itertools.pairwise(windows):
        assert len(window.validation) == N_HELD_OUT
        assert window.train["timestamp"].max() < window.validation["timestamp"].min()
        assert window.validation["timestamp"].max() < later.validation["timestamp"].min()
        assert len(window.train) == len(later.train) - N_HELD_OUT
        assert window.users is split.users


def test_windows_cut_where_no_instant_is_torn(split: InteractionSplit) -> None:
    torn = split.train.assign(timestamp=split.train["timestamp"].dt.floor("70min"))

    for window in tuning_windows(split.with_known(torn, split.validation)):
        assert window.train["timestamp"].max() < window.validation["timestamp"].min()


def test_enough_users_or_another_strategy_need_no_earlier_window(
    split: InteractionSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuning_windows(replace(split, strategy="leave_last_out")) == [replace(split, strategy="leave_last_out")]
    monkeypatch.setattr(validation, "ENOUGH_USERS", 50)
    assert [len(window.train) for window in tuning_windows(split)] == [1000, 900]  # 30 users a window, or nearly


def test_windows_leave_half_of_the_train_part_to_learn_from(split: InteractionSplit) -> None:
    short = split.with_known(split.train[-300:], split.validation)

    assert [len(window.train) for window in tuning_windows(short)] == [300, 200]


def test_first_events_alone_are_nothing_to_learn_from(split: InteractionSplit) -> None:
    newcomers = split.train.assign(user_idx=np.arange(N_ROWS))
    users = id_map(N_ROWS, "u")

    assert len(tuning_windows(replace(split.with_known(newcomers, split.validation), users=users))) == 1


def test_a_merge_is_tuned_on_the_users_of_all_windows(split: InteractionSplit) -> None:
    known = []

    def fit(window: InteractionSplit) -> GlobalRanker:
        known.append(len(window.train))
        return GlobalRanker(TRENDING, TrendingModel.fit(window.train, N_ITEMS, 1.0, 1.0).weight)

    lists = ValidationRanking.of(fit, split)
    tuned = tune_fusion({"trending": lists}, split, HybridParams(weights={"trending": 1.0}))

    assert known == [700, 800, 900, 1000]
    assert tuned.trials["n_users"][0] == sum(len(window.user_idx) for window in lists.windows) > 100


def test_a_sequence_model_is_trained_on_from_window_to_window(split: InteractionSplit) -> None:
    params = SequenceParams(embedding_dim=16, n_layers=1, n_heads=1, epochs=2)
    first = fit_sequence(split.by_user.train.sequences, N_ITEMS, params)

    found = sequence_lists(first, split).windows

    latest, *_, later, earliest = tuning_windows(split)
    alone = fit_sequence(earliest.by_user.train.sequences, N_ITEMS, first.refit_params).model
    continued = continue_sequence(alone, later.by_user.train.sequences)
    for lists, model, window in (
        (found[0], first.model, latest),
        (found[2], continued, later),
        (found[3], alone, earliest),
    ):
        expected = WindowRanking.of(SequenceRanker(model), window)
        assert np.array_equal(lists.ranking.item_idx, expected.ranking.item_idx)
        assert np.array_equal(lists.ranking.score, expected.ranking.score)
    assert not np.array_equal(found[2].ranking.score[:10], found[3].ranking.score[:10])
