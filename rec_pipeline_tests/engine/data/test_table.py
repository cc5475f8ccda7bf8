from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data import table as module
from rec_pipeline.engine.data.table import Buckets, Table, in_parts, put_aside

pytestmark = pytest.mark.filterwarnings(
    "ignore:Series.values returning an ndarray that drops timezone"  # pyarrow 25 asks pandas 3.1 for it when writing
)


def frames(*lengths: int) -> list[pd.DataFrame]:
    numbers = iter(range(sum(lengths)))
    return [pd.DataFrame({"a": [next(numbers) for _ in range(length)], "b": "x"}) for length in lengths]


@pytest.mark.parametrize(
    ("given", "made"),
    [((3,), [3]), ((0,), [0]), ((2, 2, 1), [4, 1]), ((9,), [4, 4, 1]), ((1, 9, 3), [1, 4, 4, 4])],
)
def test_small_frames_are_joined_and_large_ones_cut(
    monkeypatch: pytest.MonkeyPatch, given: tuple[int, ...], made: list[int]
) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 4)

    parts = list(in_parts(frames(*given)))

    assert [len(part) for part in parts] == made
    assert pd.concat(parts)["a"].tolist() == list(range(sum(given)))


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_table_is_the_same_after_saving(tmp_path: Path, on_disk: bool) -> None:
    table = put_aside(frames(3, 2), tmp_path / "aside" if on_disk else None)
    (tmp_path / "saved").mkdir()

    table.save(tmp_path / "saved")

    loaded = Table.load(tmp_path / "saved")
    assert len(table) == len(loaded) == 5
    pd.testing.assert_frame_equal(loaded.read(), table.read())
    assert [part["a"].tolist() for part in loaded.iterate(["a"])] == [[0, 1, 2], [3, 4]]
    assert loaded.part(1, ["b"]).columns.tolist() == ["b"]


def test_a_folder_of_another_layout_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no parts of a table"):
        Table.load(tmp_path / "table")


def test_a_bucket_gives_back_its_rows_in_order_with_their_numbers_and_types(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "text": ["a", "", "c", "d"],
            "when": pd.to_datetime([4, 3, 2, 1], unit="s", utc=True).as_unit("us"),
            "weight": np.arange(4, dtype=np.float32),
        }
    )
    buckets = Buckets(tmp_path / "buckets")

    buckets.add(rows[:3], np.array([2, 0, 2]))
    buckets.add(rows[3:], np.array([2]))

    pd.testing.assert_frame_equal(buckets.take(2).rename_axis(None), rows.iloc[[0, 2, 3]])
    pd.testing.assert_frame_equal(buckets.take(0).rename_axis(None), rows.iloc[[1]])
    pd.testing.assert_frame_equal(buckets.take(1).rename_axis(None), rows.iloc[[]], check_index_type=False)
