from pathlib import Path

import numpy as np
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


def test_a_map_comes_back_from_disk(tmp_path: Path) -> None:
    IdMap.from_ids(["x", "y"]).save(tmp_path)

    assert IdMap.load(tmp_path).ids.tolist() == ["x", "y"]


def test_an_empty_map_works(tmp_path: Path) -> None:
    IdMap.from_ids([]).save(tmp_path)

    assert len(IdMap.load(tmp_path)) == 0
    assert IdMap.load(tmp_path).to_idx(["a"]).tolist() == [-1]
