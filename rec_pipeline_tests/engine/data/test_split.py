from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data import pairs, space
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.split import (
    InteractionSplit,
    SplitParams,
    SplitStrategy,
    check_leakage,
    encode_interactions,
    k_core,
    split_interactions,
    walk_forward,
)
from rec_pipeline.engine.data.table import Table, put_aside
from rec_pipeline.engine.errors import ConfigurationError, InputRejectedError, LeakageError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Series.values returning an ndarray that drops timezone"  # pyarrow 25 asks pandas 3.1 for it when writing
)


def table_of(*rows: tuple[str, str, int]) -> pd.DataFrame:
    """Return interactions from (user, item, day) rows."""
    users, items, days = zip(*rows, strict=True)
    start = pd.Timestamp("2024-01-01", tz="UTC")
    return pd.DataFrame(
        {
            c.USER_ID: pd.Series(users, dtype="str"),
            c.ITEM_ID: pd.Series(items, dtype="str"),
            c.TIMESTAMP: (start + pd.to_timedelta(list(days), unit="D")).as_unit("us"),
            c.WEIGHT: np.ones(len(rows), dtype=np.float32),
        }
    )


def drawn(rng: np.random.Generator, n: int, n_users: int, n_items: int) -> pd.DataFrame:
    """Return ``n`` interactions in order of time, three a day."""
    days = np.sort(rng.integers(n // 3, size=n)).tolist()
    return table_of(*[(f"u{rng.integers(n_users)}", f"i{rng.integers(n_items)}", day) for day in days])


def catalogue_of(*item_ids: str) -> pd.DataFrame:
    return pd.DataFrame({c.ITEM_ID: pd.Series(item_ids, dtype="str")})


def ids(split: InteractionSplit, part: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(split.users.to_ids(part[c.USER_IDX]), split.items.to_ids(part[c.ITEM_IDX]), strict=True))


TEN = table_of(*[(f"u{day % 2}", f"i{day}", day) for day in range(10)])
TEN_ITEMS = catalogue_of(*[f"i{day}" for day in range(11)])


def test_time_split_cuts_at_the_shares() -> None:
    split = split_interactions(TEN, TEN_ITEMS, SplitParams(validation_share=0.2, test_share=0.1))

    assert ids(split, split.train) == [(f"u{day % 2}", f"i{day}") for day in range(7)]
    assert ids(split, split.validation) == [("u1", "i7"), ("u0", "i8")]
    assert ids(split, split.test) == [("u1", "i9")]
    assert split.boundaries["test_from"] == "2024-01-10T00:00:00+00:00"


def test_rows_of_one_instant_stay_together_on_the_later_side() -> None:
    tied = table_of(*[(f"u{n}", "i0", min(n, 5)) for n in range(8)], *[(f"u{n}", "i1", n) for n in range(8, 10)])

    split = split_interactions(tied, catalogue_of("i0", "i1"), SplitParams(validation_share=0.3, test_share=0.2))

    assert len(split.train) == 5
    assert len(split.validation) == 3
    assert split.train[c.TIMESTAMP].max() < split.validation[c.TIMESTAMP].min()


def test_items_without_interactions_stay_in_the_catalogue() -> None:
    split = split_interactions(TEN, TEN_ITEMS, SplitParams())

    assert len(split.items) == 11
    assert split.items.to_idx(["i10"])[0] >= 0


def test_repeated_pair_counts_at_its_first_occurrence() -> None:
    repeated = pd.concat([TEN, table_of(("u0", "i0", 11), ("u1", "i1", 12))], ignore_index=True)

    split = split_interactions(repeated, TEN_ITEMS, SplitParams())

    assert len(split.train) + len(split.validation) + len(split.test) == 10
    assert ("u0", "i0") in ids(split, split.train)


def test_leave_last_out_tests_the_last_and_validates_the_one_before() -> None:
    table = table_of(("a", "x", 3), ("a", "y", 1), ("a", "z", 2), ("b", "x", 1), ("b", "y", 2), ("a", "w", 0))

    split = split_interactions(
        table, catalogue_of("w", "x", "y", "z"), SplitParams(strategy=SplitStrategy.leave_last_out)
    )

    assert ids(split, split.test) == [("a", "x")]
    assert ids(split, split.validation) == [("a", "z")]
    assert sorted(ids(split, split.train)) == [("a", "w"), ("a", "y"), ("b", "x"), ("b", "y")]


def test_random_split_depends_on_the_seed_alone(rng: np.random.Generator) -> None:
    table = table_of(*[(f"u{n % 50}", f"i{n}", int(rng.integers(365))) for n in range(2000)])
    items = catalogue_of(*table[c.ITEM_ID])

    first, again, other = (
        split_interactions(table, items, SplitParams(strategy=SplitStrategy.random, seed=seed)) for seed in (1, 1, 2)
    )

    assert abs(len(first.test) / 2000 - 0.1) < 0.03
    assert abs(len(first.validation) / 2000 - 0.1) < 0.03
    pd.testing.assert_frame_equal(first.test, again.test)
    assert not first.test.equals(other.test)


def test_k_core_removes_until_nothing_is_left_to_remove() -> None:
    # Without i3 (one user) u3 has one item only; without u3 i2 has two users still.
    rows = pd.DataFrame({c.USER_IDX: [1, 1, 2, 2, 3, 3], c.ITEM_IDX: [1, 2, 1, 2, 2, 3]})

    core = k_core(rows, 2, 2)

    assert set(core[c.USER_IDX]) == {1, 2}
    assert set(core[c.ITEM_IDX]) == {1, 2}


def test_without_an_item_of_the_core_the_maps_are_those_of_the_core() -> None:
    lone = table_of(("a lone user", "i3", 2), ("u0", "an item of one", 3))
    table = pd.concat([TEN.assign(**{c.ITEM_ID: [f"i{day // 2}" for day in range(10)]}), lone], ignore_index=True)

    split = split_interactions(
        table, catalogue_of(*TEN_ITEMS[c.ITEM_ID], "an item of one"), SplitParams(min_item_interactions=2)
    )

    assert split.items.ids.tolist() == ["i0", "i1", "i2", "i3", "i4"]
    assert split.users.ids.tolist() == ["a lone user", "u0", "u1"]
    pairs = [pair for part in (split.train, split.validation, split.test) for pair in ids(split, part)]
    assert sorted(pairs) == [("a lone user", "i3"), *((f"u{n}", f"i{item}") for n in (0, 1) for item in range(5))]


def test_k_core_that_leaves_nothing_says_so() -> None:
    with pytest.raises(InputRejectedError, match="min_user_interactions 6"):
        split_interactions(TEN, TEN_ITEMS, SplitParams(min_user_interactions=6))


def test_all_rows_at_one_instant_cannot_be_split_by_time() -> None:
    table = table_of(*[(f"u{n}", "i0", 1) for n in range(10)])

    with pytest.raises(InputRejectedError, match="train part of the time split is empty"):
        split_interactions(table, catalogue_of("i0"), SplitParams())


def test_interactions_outside_the_maps_are_left_out_when_encoding() -> None:
    encoded = encode_interactions(Table((TEN,)), IdMap.from_ids(["u1"]), IdMap.from_ids(["i1", "i3"]))

    assert encoded[c.ITEM_IDX].tolist() == [0, 1]
    assert encoded[c.USER_IDX].tolist() == [0, 0]
    assert encoded.dtypes.astype(str).to_dict() == {
        c.USER_IDX: "int32", c.ITEM_IDX: "int32", c.TIMESTAMP: "datetime64[us, UTC]", c.WEIGHT: "float32"
    }  # fmt: skip


def test_a_pair_in_two_parts_is_leakage() -> None:
    split = split_interactions(TEN, TEN_ITEMS, SplitParams())

    with pytest.raises(LeakageError, match=r"1 \(user, item\) pairs"):
        check_leakage(replace(split, test=pd.concat([split.train.head(1), split.test])))


def test_time_that_overlaps_is_leakage() -> None:
    split = split_interactions(TEN, TEN_ITEMS, SplitParams())

    with pytest.raises(LeakageError, match="train part reaches into"):
        check_leakage(split.with_known(split.validation, split.train))


def test_held_out_before_the_history_is_leakage() -> None:
    table = pd.concat([TEN, table_of(("u2", "i0", 10))], ignore_index=True)  # of u2 nothing is held out
    split = split_interactions(table, TEN_ITEMS, SplitParams(strategy=SplitStrategy.leave_last_out))

    with pytest.raises(LeakageError, match="later than"):
        check_leakage(replace(split.with_known(split.train, split.test), test=split.validation))


def test_inputs_are_left_as_they_were() -> None:
    before = TEN.copy()

    split_interactions(TEN, TEN_ITEMS, SplitParams(min_user_interactions=1, min_item_interactions=1))

    pd.testing.assert_frame_equal(TEN, before)


def test_split_is_the_same_after_saving(tmp_path: Path) -> None:
    split = split_interactions(TEN, TEN_ITEMS, SplitParams())

    split.save(tmp_path)

    loaded = InteractionSplit.load(tmp_path)
    for name in ("train", "validation", "test"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(split, name))
    assert loaded.boundaries == split.boundaries
    assert loaded.items.ids.tolist() == split.items.ids.tolist()


@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=40),
    strategy=st.sampled_from(SplitStrategy),
    k=st.integers(0, 3),
)
def test_every_split_partitions_the_distinct_pairs(
    rows: list[tuple[int, int, int]], strategy: SplitStrategy, k: int
) -> None:
    table = table_of(*[(f"u{user}", f"i{item}", day) for user, item, day in rows])
    params = SplitParams(strategy=strategy, min_user_interactions=k, min_item_interactions=k)

    try:
        split = split_interactions(table, catalogue_of(*[f"i{n}" for n in range(7)]), params)
    except InputRejectedError:
        return

    parts = [pair for part in (split.train, split.validation, split.test) for pair in ids(split, part)]
    core = {(f"u{user}", f"i{item}") for user, item, _ in rows}
    for _ in rows:
        users, items = (Counter(pair[place] for pair in core) for place in (0, 1))
        core = {pair for pair in core if users[pair[0]] >= k and items[pair[1]] >= k}
    assert sorted(parts) == sorted(core)


@pytest.mark.parametrize("strategy", SplitStrategy)
def test_a_table_in_parts_is_split_as_the_whole(
    rng: np.random.Generator, tmp_path: Path, strategy: SplitStrategy
) -> None:
    table = drawn(rng, 300, 20, 9).assign(device=rng.choice(["tv", ""], size=300))
    params = SplitParams(strategy=strategy, min_user_interactions=4)
    items = catalogue_of(*[f"i{n}" for n in range(9)])
    parts = put_aside((table.iloc[start : start + 70] for start in range(0, 300, 70)), tmp_path / "parts")

    whole, in_parts = (split_interactions(given, items, params) for given in (table, parts))

    for name in ("train", "validation", "test"):
        pd.testing.assert_frame_equal(getattr(in_parts, name), getattr(whole, name))
    assert in_parts.boundaries == whole.boundaries
    assert in_parts.users.ids.tolist() == whole.users.ids.tolist()


@pytest.mark.parametrize("strategy", SplitStrategy)
def test_a_split_in_files_is_that_in_memory(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: SplitStrategy
) -> None:
    table, items = drawn(rng, 900, 90, 60), catalogue_of(*[f"i{n}" for n in range(61)])
    params = SplitParams(strategy=strategy, min_user_interactions=8, min_item_interactions=8)
    in_memory = split_interactions(table, items, params)
    for module in (pairs, space):
        monkeypatch.setattr(module, "PART_ROWS", 64)

    in_files = split_interactions(table, items, params, tmp_path)

    assert len(in_files.users) < 90
    assert_equal_splits(in_files, in_memory)
    assert not any(tmp_path.iterdir())


def test_periods_in_files_are_those_in_memory(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, items = drawn(rng, 900, 90, 60), catalogue_of(*[f"i{n}" for n in range(60)])
    in_memory = list(walk_forward(table, items, SplitParams(), 3))
    for module in (pairs, space):
        monkeypatch.setattr(module, "PART_ROWS", 64)

    for found, expected in zip(walk_forward(table, items, SplitParams(), 3, tmp_path), in_memory, strict=True):
        assert_equal_splits(found, expected)


def assert_equal_splits(found: InteractionSplit, expected: InteractionSplit) -> None:
    for name in ("fitting", "test"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))
    for name in ("train", "validation", "fitting", "test"):
        part, expected_part = getattr(found.by_user, name), getattr(expected.by_user, name)
        assert (part.user_item != expected_part.user_item).nnz == 0
        np.testing.assert_array_equal(part.by_time, expected_part.by_time)
    assert (found.n_train, found.boundaries) == (expected.n_train, expected.boundaries)
    assert found.users.ids.tolist() == expected.users.ids.tolist()
    assert found.items.ids.tolist() == expected.items.ids.tolist()


def test_walking_forward_tests_each_period_once_with_nothing_later_known() -> None:
    splits = list(walk_forward(TEN, TEN_ITEMS, SplitParams(test_share=0.2, validation_share=0.25), n_periods=3))

    tested = [[item for _, item in ids(split, split.test)] for split in splits]
    known = [[item for _, item in ids(split, split.fitting)] for split in splits]
    assert tested == [["i4", "i5"], ["i6", "i7"], ["i8", "i9"]]
    assert known == [[f"i{day}" for day in range(4)], [f"i{day}" for day in range(6)], [f"i{day}" for day in range(8)]]
    assert [len(split.validation) for split in splits] == [1, 2, 2]


def test_only_time_has_periods_and_something_must_come_before_them() -> None:
    with pytest.raises(ConfigurationError, match="strategy random"):
        next(walk_forward(TEN, TEN_ITEMS, SplitParams(strategy=SplitStrategy.random), n_periods=2))
    with pytest.raises(ConfigurationError, match="leave less than a tenth"):
        next(walk_forward(TEN, TEN_ITEMS, SplitParams(test_share=0.3), n_periods=4))
    at_one_instant = TEN.assign(**{c.TIMESTAMP: TEN[c.TIMESTAMP].iloc[0]})
    with pytest.raises(InputRejectedError, match="before the period"):
        next(walk_forward(at_one_instant, TEN_ITEMS, SplitParams(), n_periods=2))
