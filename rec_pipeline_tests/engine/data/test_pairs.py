from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data import pairs, space
from rec_pipeline.engine.data.pairs import by_users, is_first_of_pair
from rec_pipeline.engine.data.space import Space


def test_the_first_of_each_pair_is_found_whatever_the_number_of_users(rng: np.random.Generator) -> None:
    table = pd.DataFrame({"user_idx": rng.integers(100, size=3000), "item_idx": rng.integers(30, size=3000)})
    table = table.astype(np.int32)

    is_first = is_first_of_pair(table)

    assert np.array_equal(is_first, ~table.duplicated().to_numpy())
    assert np.array_equal(is_first_of_pair(table, from_end=True), ~table.duplicated(keep="last").to_numpy())
    assert 0 < is_first.sum() < 3000


def test_pairs_of_large_rows_do_not_collide() -> None:
    largest = np.iinfo(np.int32).max
    table = pd.DataFrame({"user_idx": [largest, largest, 0], "item_idx": [largest, 0, largest]}).astype(np.int32)

    assert is_first_of_pair(table).all()


@pytest.mark.parametrize("on_disk", [True, False])
def test_rows_are_dealt_by_user_in_their_order(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, on_disk: bool
) -> None:
    table = pd.DataFrame({"user_idx": rng.integers(5, 40, size=3000), "item_idx": rng.integers(30, size=3000)})
    for module in (pairs, space):
        monkeypatch.setattr(module, "PART_ROWS", 500)

    used = Space(tmp_path if on_disk else None)
    dealt = list(by_users(table, used))

    assert len(dealt) == 6
    together = pd.concat(dealt)
    assert all(before.user_idx.max() < after.user_idx.min() for before, after in pairwise(dealt))
    pd.testing.assert_frame_equal(together.sort_index(), table, check_names=False)
    assert all(rows.index.is_monotonic_increasing for rows in dealt)
    assert np.array_equal(is_first_of_pair(table, used), ~table.duplicated().to_numpy())
