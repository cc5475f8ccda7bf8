from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.artifacts import Storable
from rec_pipeline.engine.data import pairs, space
from rec_pipeline.engine.data.histories import Histories, histories_of
from rec_pipeline.engine.data.space import Space


def interactions(rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    user_idx, item_idx, day = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    instants = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(day, unit="D")
    weight = np.ones(len(rows), dtype=np.float32)
    return pd.DataFrame({"user_idx": user_idx, "item_idx": item_idx, "timestamp": instants, "weight": weight})


def many(rng: np.random.Generator, n_rows: int, n_users: int, n_items: int) -> pd.DataFrame:
    drawn = interactions(list(zip(*(rng.integers(n, size=n_rows) for n in (n_users, n_items, 50)), strict=True)))
    return drawn.assign(weight=rng.integers(1, 5, size=n_rows).astype(np.float32)).sort_values("timestamp")


def test_items_are_ordered_by_row_and_by_time_within_the_user() -> None:
    (made,) = histories_of(interactions([(1, 5, 3), (0, 7, 2), (1, 6, 1), (1, 4, 2)]), n_users=3, n_items=8)

    assert len(made) == 3
    assert made.user_item.toarray().nonzero()[1].tolist() == [7, 4, 5, 6]
    assert made.sequences.recent(np.array([0, 1, 2])).tolist() == [[-1, -1, 7], [6, 4, 5], [-1, -1, -1]]


def test_items_of_one_instant_stay_in_table_order() -> None:
    (made,) = histories_of(interactions([(0, 9, 1), (0, 2, 1), (0, 5, 1)]), n_users=1, n_items=10)

    assert made.by_time.tolist() == [9, 2, 5]


def test_of_repeated_interactions_the_first_counts_in_time_and_all_do_in_weight() -> None:
    rows = interactions([(0, 4, 3), (0, 4, 1), (0, 8, 2)]).assign(weight=np.float32([2, 3, 1]))

    (made,) = histories_of(rows, n_users=1, n_items=9)

    assert made.by_time.tolist() == [4, 8]
    assert made.user_item.toarray()[0, [4, 8]].tolist() == [5, 1]


@pytest.mark.parametrize("n_users", [9, 300])
def test_histories_in_files_are_those_in_memory(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_users: int
) -> None:
    rows = many(rng, 5000, n_users, 70)
    parts = [range(4000), range(4000, 5000), range(5000)]
    in_memory = histories_of(rows, n_users + 2, 70, parts)
    for module in (pairs, space):
        monkeypatch.setattr(module, "PART_ROWS", 512)

    in_files = histories_of(rows, n_users + 2, 70, parts, Space(tmp_path))

    for found, expected in zip(in_files, in_memory, strict=True):
        for name in ("starts", "by_item", "weight", "by_time"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert not any(tmp_path.iterdir())


def test_histories_of_parts_are_those_of_their_rows(rng: np.random.Generator) -> None:
    rows = many(rng, 500, 9, 70).sample(frac=1, random_state=0)  # as a random split leaves them

    of_parts = histories_of(rows, 9, 70, [range(400), range(400, 500)])

    for part, found in zip((rows[:400], rows[400:]), of_parts, strict=True):
        (alone,) = histories_of(part, 9, 70)
        assert (found.user_item != alone.user_item).nnz == 0
        assert found.by_time.tolist() == alone.by_time.tolist()


def test_what_is_beside_others_is_what_they_do_not_have() -> None:
    rows = interactions([(0, 1, 1), (0, 2, 2), (1, 1, 3), (1, 3, 4)]).assign(weight=np.float32([0, 1, 2, 3]))
    (known,) = histories_of(rows[:3], 2, 4)
    (tested,) = histories_of(rows.iloc[[0, 3]], 2, 4)

    (new,) = tested.beside(known)

    assert new.toarray().tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_storing_keeps_the_histories(tmp_path: Path) -> None:
    (made,) = histories_of(interactions([(0, 4, 3), (0, 4, 1), (0, 8, 2)]), n_users=2, n_items=9)

    made.save(tmp_path)

    loaded = Histories.load(tmp_path)
    assert isinstance(made, Storable)
    assert (loaded.user_item != made.user_item).nnz == 0
    assert loaded.user_item.shape == (2, 9)
    assert loaded.by_time.tolist() == made.by_time.tolist()
