import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data import space
from rec_pipeline.engine.data.space import MEMORY, Space, count, map_table, write_mapped


def table(n_rows: int) -> pd.DataFrame:
    times = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(n_rows), unit="h").as_unit("us")
    devices = pd.Series([("tv", "", "phone")[row % 3] for row in range(n_rows)], dtype="str")
    numbers = np.arange(n_rows, dtype=np.int32)
    return pd.DataFrame({"item_idx": numbers, "timestamp": times, "device": devices})


@pytest.mark.parametrize("on_disk", [True, False])
def test_frames_become_one_table_that_shares_its_arrays(tmp_path: Path, *, on_disk: bool) -> None:
    whole = table(10)
    frames = (whole.iloc[start : start + 4] for start in range(0, 10, 4))

    made = Space(tmp_path if on_disk else None).table(frames, 12)

    pd.testing.assert_frame_equal(made.astype({"device": "str"}), whole)
    assert isinstance(made.device.dtype, pd.CategoricalDtype)
    assert not any(tmp_path.iterdir())


def test_texts_that_come_late_or_are_missing_keep_what_they_say() -> None:
    frames = [pd.DataFrame({"device": pd.Series(texts, dtype="str")}) for texts in (["b", None], ["a", "b"])]

    made = MEMORY.table(iter(frames), 4)
    again = MEMORY.table(iter([made.iloc[2:], made.iloc[:2]]), 4)

    assert made.device.to_list() == ["b", np.nan, "a", "b"]
    assert again.device.to_list() == ["a", "b", "b", np.nan]


def test_a_disk_without_room_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)

    with pytest.raises(OSError, match="No space left"):
        Space(tmp_path).array(10, np.int32)


@pytest.mark.parametrize("n_rows", [0, 7])
def test_a_mapped_table_is_the_one_written(tmp_path: Path, n_rows: int) -> None:
    written = MEMORY.table([table(n_rows)], n_rows)

    write_mapped(tmp_path / "table", written)

    pd.testing.assert_frame_equal(map_table(tmp_path / "table"), written)


def test_counting_in_blocks_is_counting(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "PART_ROWS", 64)
    idx = rng.integers(5, size=1000).astype(np.int32)

    counts = count(idx, 7)

    assert np.array_equal(counts, np.bincount(idx, minlength=7))
