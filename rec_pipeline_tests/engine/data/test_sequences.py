from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from rec_pipeline.engine.artifacts import Storable
from rec_pipeline.engine.data.sequences import UserSequences


def interactions(rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    user_idx, item_idx, day = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    instants = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(day, unit="D")
    return pd.DataFrame({"user_idx": user_idx, "item_idx": item_idx, "timestamp": instants})


def test_events_are_ordered_by_time_within_the_user() -> None:
    sequences = UserSequences.from_interactions(interactions([(1, 5, 3), (0, 7, 2), (1, 6, 1), (1, 4, 2)]), n_users=3)

    assert len(sequences) == 3
    assert sequences.lengths.tolist() == [1, 3, 0]
    assert sequences.recent(np.array([0, 1, 2])).tolist() == [[-1, -1, 7], [6, 4, 5], [-1, -1, -1]]


def test_events_of_one_instant_stay_in_table_order() -> None:
    sequences = UserSequences.from_interactions(interactions([(0, 9, 1), (0, 2, 1), (0, 5, 1)]), n_users=1)

    assert sequences.recent(np.array([0])).tolist() == [[9, 2, 5]]


def test_the_first_of_repeated_events_is_kept() -> None:
    sequences = UserSequences.from_interactions(interactions([(0, 4, 3), (0, 4, 1), (0, 8, 2)]), n_users=1)

    assert sequences.recent(np.array([0])).tolist() == [[4, 8]]


def test_storing_keeps_the_sequences(tmp_path: Path) -> None:
    sequences = UserSequences(np.array([0, 2, 2, 3]), np.array([4, 1, 0]))
    sequences.save(tmp_path)

    loaded = UserSequences.load(tmp_path)

    assert isinstance(sequences, Storable)
    assert loaded.recent(np.arange(3)).tolist() == [[4, 1], [-1, -1], [-1, 0]]


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5), st.integers(1, 8))
def test_recent_is_the_end_of_every_sequence(lists: list[list[int]], length: int) -> None:
    starts = np.cumsum([0, *(len(items) for items in lists)])
    sequences = UserSequences(starts, np.array([item for items in lists for item in items], dtype=np.int64))

    recent = sequences.recent(np.array([*range(len(lists)), -1]), length)

    assert recent.shape[1] == max(min(len(items), length) for items in lists)
    assert [[item for item in row if item >= 0] for row in recent.tolist()] == [
        *(items[-length:] for items in lists),
        [],
    ]
