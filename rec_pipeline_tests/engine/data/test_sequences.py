from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rec_pipeline.engine.artifacts import Storable
from rec_pipeline.engine.data.sequences import UserSequences


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
