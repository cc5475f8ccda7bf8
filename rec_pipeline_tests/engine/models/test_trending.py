from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.models.trending import A_CENTURY, HALF_LIVES, TrendingModel, newcomer_half_life


def joining(n_users: int, *, follow_the_month: bool) -> pd.DataFrame:
    """One newcomer a day takes three items, those of the month or the same as everybody before, and one that varies."""
    rows = []
    for day in range(n_users):
        first = 10 + day // 28 * 3 if follow_the_month else 0
        rows += [(day, first + step, pd.Timedelta(days=day, minutes=step)) for step in range(3)]
        rows.append((day, 5 + day % 4, pd.Timedelta(days=day, minutes=5)))
    table = pd.DataFrame(rows, columns=["user_idx", "item_idx", "after"])
    return table.assign(timestamp=pd.Timestamp("2024-01-01", tz="UTC") + table.pop("after"))


def test_newcomers_who_follow_the_month_are_shown_what_is_new_and_others_what_always_was() -> None:
    of_the_month, of_all_time = (joining(140, follow_the_month=follow) for follow in (True, False))

    assert newcomer_half_life(of_the_month, 80) <= 14
    assert newcomer_half_life(of_all_time, 80) == A_CENTURY


def test_without_newcomers_nothing_is_forgotten() -> None:
    assert newcomer_half_life(joining(1, follow_the_month=True), 80) == A_CENTURY == max(HALF_LIVES)


def test_interactions_in_blocks_count_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = joining(140, follow_the_month=True)
    at_once, half_life = TrendingModel.fit(table, 80, 7.0, A_CENTURY), newcomer_half_life(table, 80)
    monkeypatch.setattr("rec_pipeline.engine.data.space.PART_ROWS", 32)

    in_blocks = TrendingModel.fit(table, 80, 7.0, A_CENTURY)

    np.testing.assert_allclose(in_blocks.weight, at_once.weight, rtol=1e-6)
    assert newcomer_half_life(table, 80) == half_life


def test_both_weights_come_back_from_disk(tmp_path: Path) -> None:
    model = TrendingModel.fit(joining(30, follow_the_month=True), 80, 7.0, A_CENTURY)

    model.save(tmp_path)

    found = TrendingModel.load(tmp_path)
    assert np.array_equal(found.weight, model.weight)
    assert np.array_equal(found.newcomer_weight, model.newcomer_weight)
    assert (found.half_life_days, found.newcomer_half_life_days) == (7.0, A_CENTURY)
    assert found.newcomer_weight.max() > found.weight.max()
