from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data.id_map import IdMap


def test_ids_that_look_like_numbers_or_nulls_stay_different() -> None:
    ids = ["007", "7", "7.0", "1e5", "NA", "null", "nan", "ünïcödé 🎬"]

    items = IdMap.from_ids(ids)

    assert len(items) == len(ids)
    assert items.to_ids(items.to_idx(ids)).tolist() == ids
    assert [items.row(item_id) for item_id in ids] == items.to_idx(ids).tolist()


def test_an_unknown_id_has_no_row() -> None:
    items = IdMap.from_ids(["a", "b"])

    assert items.to_idx(["z", "b"]).tolist() == [-1, 1]
    assert items.row("z") == -1


def test_the_same_set_gives_the_same_rows_in_any_order() -> None:
    assert IdMap.from_ids(["b", "a"]).ids.tolist() == IdMap.from_ids(["a", "b", "a"]).ids.tolist()


def test_a_repeated_id_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' more than once"):
        IdMap(np.array(["a", "a"], dtype=object))


def test_what_is_no_text_is_no_id() -> None:
    items = IdMap.from_ids(["a", "None"])

    assert items.to_idx(pd.Series(["\ud800", None, "a"], dtype=object)).tolist() == [-1, -1, items.row("a")]
    assert items.row("\ud800") == -1
    with pytest.raises(ValueError, match="1 of 2 ids are no text"):
        IdMap(["a", "\ud800"])


@pytest.mark.parametrize("n_ids", [10, 3000])
def test_ids_of_any_order_and_length_have_the_rows_they_were_given(n_ids: int) -> None:
    rng = np.random.default_rng(0)
    ids = [f"{row}-{'ü' * (row % 40)}" for row in rng.permutation(n_ids)]
    asked = rng.permutation([*ids, *(f"unknown {row}" for row in range(n_ids))])

    items = IdMap(ids)

    expected = {item_id: row for row, item_id in enumerate(ids)}
    assert items.to_idx(asked).tolist() == [expected.get(item_id, -1) for item_id in asked.tolist()]
    assert items.to_idx(IdMap(ids[::-1])).tolist() == list(range(n_ids))[::-1]
    assert items.to_ids(np.arange(n_ids)).tolist() == items.ids.tolist() == ids


def test_a_map_comes_back_from_disk(tmp_path: Path) -> None:
    IdMap.from_ids(["x", "y"]).save(tmp_path)

    assert IdMap.load(tmp_path).ids.tolist() == ["x", "y"]


def test_an_empty_map_works(tmp_path: Path) -> None:
    IdMap.from_ids([]).save(tmp_path)

    assert len(IdMap.load(tmp_path)) == 0
    assert IdMap.load(tmp_path).to_idx(["a"]).tolist() == [-1]
