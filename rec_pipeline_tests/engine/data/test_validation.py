import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data import validation
from rec_pipeline.engine.data.delimited import UNREADABLE
from rec_pipeline.engine.data.drift import Profile
from rec_pipeline.engine.data.online import add_events
from rec_pipeline.engine.data.table import Table, put_aside
from rec_pipeline.engine.data.validation import (
    MANGLED,
    Circumstances,
    TimestampUnit,
    ValidatedTable,
    ValidationParams,
    parse_timestamps,
    told_unit,
    validate_interactions,
    validate_items,
)
from rec_pipeline.engine.errors import InputRejectedError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Series.values returning an ndarray that drops timezone"  # pyarrow 25 asks pandas 3.1 for it when writing
)

NOW = pd.Timestamp("2024-06-01", tz="UTC")
SMALL = ValidationParams(min_interactions=1, min_users=0, min_items=1)
LENIENT = SMALL.model_copy(update={"max_quarantined_share": 1, "max_unreadable_share": 1})


def lenient(**changes: Any) -> ValidationParams:
    return ValidationParams(**LENIENT.model_dump() | changes)


ITEMS = pd.DataFrame({c.ITEM_ID: pd.Series([f"i{n}" for n in range(5)], dtype="str")})


def rows_of(n: int, **columns: Any) -> pd.DataFrame:
    """Return ``n`` valid interactions, some columns replaced; a dict replaces single rows."""
    table: dict[str, list[Any]] = {
        c.USER_ID: [f"u{row}" for row in range(n)],
        c.ITEM_ID: [f"i{row % 5}" for row in range(n)],
        c.TIMESTAMP: [str(1_700_000_000 + row) for row in range(n)],
    }
    for name, values in columns.items():
        if isinstance(values, dict):
            table[name] = [values.get(row, value) for row, value in enumerate(table.get(name, ["1"] * n))]
        else:
            table[name] = values
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in table.items()})


def test_valid_rows_come_out_typed_and_in_order() -> None:
    raw = rows_of(3, timestamp=["1700000002", "1700000000", "1700000001"], device=["tv", None, "mobile"])

    validated = validate_interactions(raw, ITEMS, SMALL, NOW)

    assert validated.table[c.USER_ID].tolist() == ["u1", "u2", "u0"]
    assert validated.table[c.WEIGHT].tolist() == [1, 1, 1]
    assert validated.table[c.DEVICE].tolist() == ["", "mobile", "tv"]
    assert {name: str(dtype) for name, dtype in validated.table.dtypes.items()} == {
        c.USER_ID: "str", c.ITEM_ID: "str", c.TIMESTAMP: "datetime64[us, UTC]", c.WEIGHT: "float32", c.DEVICE: "str"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (c.USER_ID, None, "user_id is missing"),
        (c.USER_ID, "", "user_id is missing"),
        (c.USER_ID, "u\n1", "user_id holds what ids may not"),
        (c.USER_ID, " u1", "user_id holds what ids may not"),
        (c.USER_ID, "u{1}", "user_id holds what ids may not"),
        (c.USER_ID, "u" * 257, "user_id holds what ids may not"),
        (c.USER_ID, "é" * 129, "user_id holds what ids may not"),
        (c.USER_ID, "u\ud800", "user_id holds what ids may not"),
        (c.ITEM_ID, "i\u2028", "item_id holds what ids may not"),
        (c.ITEM_ID, "i99", "item_id is not in the catalogue"),
        (c.TIMESTAMP, "soon", "timestamp is missing or unreadable"),
        (c.TIMESTAMP, None, "timestamp is missing or unreadable"),
        (c.TIMESTAMP, "inf", "timestamp is missing or unreadable"),
        (c.TIMESTAMP, "1", "timestamp is before 1990-01-01"),
        (c.TIMESTAMP, "-5", "timestamp is before 1990-01-01"),
        (c.TIMESTAMP, "1717200301", "timestamp is in the future"),
        (c.TIMESTAMP, "1700000000000", "timestamp is in the future"),
        (c.WEIGHT, "0", "weight is not a number above 0"),
        (c.WEIGHT, "many", "weight is not a number above 0"),
        (c.WEIGHT, "1e39", "weight is not a number above 0"),
        (c.RATING, "nan", "rating is not a number"),
        (c.RATING, "", "rating is not a number"),
        (c.RATING, "5.5", "rating is out of range"),
        (c.RATING, "0.4", "rating is out of range"),
    ],
)
def test_each_bad_row_is_quarantined_with_its_reason(column: str, value: object, reason: str) -> None:
    params = lenient(max_quarantined_share=0.2, min_rating=0.5, max_rating=5)
    raw = rows_of(10, **{column: {3: value, 7: value}})

    validated = validate_interactions(raw, ITEMS, params, NOW)

    assert validated.quarantine[c.ROW_NUMBER].tolist() == [3, 7]
    assert validated.quarantine[c.REASON].tolist() == [reason, reason]
    assert len(validated.table) == 8


def test_timestamp_five_minutes_ahead_is_still_the_present() -> None:
    raw = rows_of(2, timestamp=["2024-06-01T00:05:00Z", "2024-06-01T00:05:01Z"])

    validated = validate_interactions(raw, ITEMS, LENIENT, NOW)

    assert validated.quarantine[c.ROW_NUMBER].tolist() == [1]


def test_look_alike_ids_stay_apart() -> None:
    ids = ["007", "7", "1e5", "NA", "null", "nan", "None", "é", "e\u0301", "ÄÖ", "用户", "🎬", "a:b/c.d@e*f?g[h", "7.0"]

    validated = validate_interactions(rows_of(len(ids), user_id=ids), ITEMS, SMALL, NOW)

    assert sorted(validated.table[c.USER_ID]) == sorted(ids)


def test_quarantine_shows_what_was_there_as_printable_text() -> None:
    raw = rows_of(2, user_id=["a\nb\ud800用", "u1"])

    validated = validate_interactions(raw, ITEMS, LENIENT, NOW)

    assert validated.quarantine[c.USER_ID].tolist() == [r"a\nb\ud800用"]
    assert validated.quarantine[c.TIMESTAMP].tolist() == ["1700000000"]


def test_same_event_twice_counts_once() -> None:
    raw = pd.concat([rows_of(4), rows_of(2)], ignore_index=True)

    validated = validate_interactions(raw, ITEMS, SMALL, NOW)

    assert (len(validated.table), validated.n_duplicates, len(validated.quarantine)) == (4, 2, 0)


def test_two_events_at_one_moment_are_two_unless_their_event_id_is_one() -> None:
    raw = rows_of(
        5, user_id=["u"] * 5, item_id=["i1"] * 5, timestamp=["1700000000"] * 5,
        event_type=["view", "buy", "save", "rate", "share"], event_id=["a", "b", "b", None, None],
    )  # fmt: skip

    validated = validate_interactions(raw, ITEMS, SMALL, NOW)

    assert validated.table[c.EVENT_TYPE].tolist() == ["view", "buy", "rate", "share"]
    assert validated.n_duplicates == 1


def test_too_many_bad_rows_stop_the_run_and_one_less_does_not() -> None:
    params = lenient(max_quarantined_share=0.02)
    bad = {0: None, 1: "a\tb", 2: None}

    with pytest.raises(InputRejectedError, match=r"3 of 100 interactions.*user_id is missing \(2 rows\).*max_quaran"):
        validate_interactions(rows_of(100, user_id=bad), ITEMS, params, NOW)
    del bad[2]
    assert len(validate_interactions(rows_of(100, user_id=bad), ITEMS, params, NOW).quarantine) == 2


def test_too_few_valid_rows_stop_the_run() -> None:
    with pytest.raises(InputRejectedError, match=r"left of 3 interactions .* 3 interactions of at least 4"):
        validate_interactions(rows_of(3), ITEMS, lenient(min_interactions=4), NOW)


def test_missing_column_is_named() -> None:
    with pytest.raises(InputRejectedError, match="column 'timestamp' is missing, found 'user_id', 'item_id'"):
        validate_interactions(rows_of(3).drop(columns=c.TIMESTAMP), ITEMS, SMALL, NOW)


def test_ids_stored_as_fractions_are_refused() -> None:
    with pytest.raises(InputRejectedError, match="'user_id' holds floating values"):
        validate_interactions(rows_of(3).assign(user_id=[1.0, 2.0, 3.0]), ITEMS, SMALL, NOW)


def test_raw_table_is_left_as_it_was() -> None:
    raw = rows_of(6, user_id={1: None})
    before = raw.copy()

    validate_interactions(raw, ITEMS, LENIENT, NOW)

    pd.testing.assert_frame_equal(raw, before)


@pytest.mark.parametrize("factor", [1, 1_000, 1_000_000, 1_000_000_000])
def test_unit_of_numbers_is_told_by_their_size(factor: int) -> None:
    seconds = [964_982_703, 1_700_000_000, 881_250_949]

    times = parse_timestamps(pd.Series([value * factor for value in seconds]))

    assert times.tolist() == [pd.Timestamp(value, unit="s", tz="UTC") for value in seconds]
    assert str(times.dtype) == "datetime64[us, UTC]"


def test_stated_unit_wins() -> None:
    times = parse_timestamps(pd.Series(["1700000000"]), TimestampUnit.ms)

    assert times[0] == pd.Timestamp("1970-01-20 16:13:20", tz="UTC")


def test_datetimes_without_a_timezone_are_utc_and_others_are_converted() -> None:
    naive = pd.Series(pd.to_datetime(["2024-01-01 10:00"]))

    assert parse_timestamps(naive)[0] == pd.Timestamp("2024-01-01 10:00", tz="UTC")
    assert parse_timestamps(naive.dt.tz_localize("Asia/Tokyo"))[0] == pd.Timestamp("2024-01-01 01:00", tz="UTC")


def test_items_get_every_column_and_sorted_ids() -> None:
    raw = pd.DataFrame({"item_id": ["b", "a"], "title": ["B", None], "shelf": [2, 1]})

    validated = validate_items(raw, SMALL)

    assert validated.table.to_dict("list") | {c.PUBLISHED_AT: None} == {
        c.ITEM_ID: ["a", "b"], c.TITLE: ["", "B"], "shelf": [1, 2], c.DESCRIPTION: ["", ""], c.CATEGORIES: ["", ""],
        c.PUBLISHED_AT: None, c.AVAILABLE: [True, True],
    }  # fmt: skip
    assert validated.table[c.PUBLISHED_AT].isna().all()


def test_equal_item_rows_count_once_and_conflicting_ones_are_all_refused() -> None:
    raw = pd.DataFrame({"item_id": ["a", "a", "b", "b", "b", "c"], "title": ["A", "A", "B", "b", "B", "C"]})

    validated = validate_items(raw, LENIENT)

    assert validated.table[c.ITEM_ID].tolist() == ["a", "c"]
    assert validated.n_duplicates == 1
    assert validated.quarantine[c.ROW_NUMBER].tolist() == [2, 3, 4]
    assert set(validated.quarantine[c.REASON]) == {"item_id has rows that differ"}


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        (c.ITEM_ID, ["", None], "item_id is missing"),
        (c.ITEM_ID, ["a{b", "\t"], "item_id holds what ids may not"),
        (c.ITEM_ID, ["i0", "i0"], "item_id has rows that differ"),
        (c.TITLE, [UNREADABLE, f"a{UNREADABLE}b"], MANGLED),
        (c.AVAILABLE, ["maybe", "2"], "available is neither true nor false"),
        (c.PUBLISHED_AT, ["soon", "32/13/2024"], "published_at is unreadable"),
    ],
)
def test_of_items_exactly_the_bad_rows_are_quarantined(column: str, values: list[Any], reason: str) -> None:
    raw = pd.DataFrame({c.ITEM_ID: [f"i{row + 1}" for row in range(10)], c.TITLE: [f"t{row}" for row in range(10)]})
    raw[column] = [*values, *(raw[column][2:] if column in raw else [None] * 8)]

    validated = validate_items(raw.astype(object if None in values else "str"), LENIENT)

    assert validated.quarantine[c.ROW_NUMBER].tolist() == [0, 1]
    assert validated.quarantine[c.REASON].tolist() == [reason, reason]
    assert len(validated.table) == 8


def test_availability_is_read_in_words_and_numbers() -> None:
    raw = pd.DataFrame({"item_id": list("abcdef"), "available": ["true", "0", None, "No", "YES", "maybe"]})

    validated = validate_items(raw, LENIENT)

    assert validated.table[c.AVAILABLE].tolist() == [True, False, True, False, True]
    assert validated.quarantine[c.REASON].tolist() == ["available is neither true nor false"]


def test_unreadable_publication_is_refused_and_a_missing_one_is_not() -> None:
    raw = pd.DataFrame({"item_id": list("abc"), "published_at": ["2024-02-10", "", "yesterday"]})

    validated = validate_items(raw, LENIENT)

    assert validated.table[c.ITEM_ID].tolist() == ["a", "b"]
    assert validated.quarantine[c.REASON].tolist() == ["published_at is unreadable"]


def test_lists_of_categories_become_one_text_and_long_texts_are_cut() -> None:
    raw = pd.DataFrame({"item_id": ["a"], "categories": [["Space", "Mystery"]], "description": ["é" * 20_000]})

    table = validate_items(raw, SMALL).table

    assert table[c.CATEGORIES].tolist() == ["Space|Mystery"]
    assert len(table[c.DESCRIPTION][0].encode()) <= 64 * 1024


def test_no_valid_item_stops_the_run() -> None:
    with pytest.raises(InputRejectedError, match="0 items of at least 1"):
        validate_items(pd.DataFrame({"item_id": [""]}), LENIENT)


def test_validated_table_is_the_same_after_saving(tmp_path: Path) -> None:
    validated = validate_interactions(rows_of(10, user_id={2: "a\x00b"}), ITEMS, LENIENT, NOW)

    validated.save(tmp_path)

    loaded = ValidatedTable.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.table, validated.table)
    pd.testing.assert_frame_equal(loaded.quarantine, validated.quarantine)
    assert (loaded.n_rows_in, loaded.n_duplicates) == (10, 0)


def test_rows_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows came in, but 1 were kept"):
        ValidatedTable(
            Table((pd.DataFrame({"a": [1]}),)), Table((pd.DataFrame({"a": []}),)), n_rows_in=3, n_duplicates=1
        )


def test_one_row_more_than_a_thousandth_unreadable_stops_the_run() -> None:
    params = lenient(max_unreadable_share=0.01)
    bad = {0: "soon"}

    assert len(validate_interactions(rows_of(100, timestamp=bad), ITEMS, params, NOW).quarantine) == 1
    bad[1] = "later"
    with pytest.raises(InputRejectedError, match=r"2 of 100 .* timestamp is missing or unreadable, .* 1.00%"):
        validate_interactions(rows_of(100, timestamp=bad), ITEMS, params, NOW)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"min_interactions": 21}, "20 interactions of at least 21"),
        ({"min_users": 6}, "5 users with at least 2 interactions of at least 6"),
        ({"min_items": 6}, "5 items interacted with of at least 6"),
    ],
)
def test_each_minimum_holds_at_its_bound_and_stops_below(params: dict[str, int], message: str) -> None:
    raw = rows_of(20, user_id=[f"u{row % 5}" for row in range(20)])

    with pytest.raises(InputRejectedError, match=message):
        validate_interactions(raw, ITEMS, lenient(**params), NOW)
    at_bound = {name: value - 1 for name, value in params.items()}
    assert len(validate_interactions(raw, ITEMS, lenient(**at_bound), NOW).table) == 20


def test_an_empty_table_is_below_every_minimum() -> None:
    with pytest.raises(InputRejectedError, match="0 interactions of at least 1000"):
        validate_interactions(rows_of(0), ITEMS, ValidationParams(), NOW)


def test_unknown_event_types_are_refused_where_the_known_are_stated() -> None:
    raw = rows_of(4, event_type=["view", "buy", "hack", ""])

    validated = validate_interactions(raw, ITEMS, lenient(event_types=["view", "buy"]), NOW)

    assert validated.quarantine[c.ROW_NUMBER].tolist() == [2, 3]
    assert set(validated.quarantine[c.REASON]) == {"event_type is unknown"}


def test_a_user_beyond_the_cap_keeps_the_latest_and_everything_still_adds_up() -> None:
    raw = rows_of(30, user_id=["bot"] * 20 + [f"u{row}" for row in range(10)])

    validated = validate_interactions(raw, ITEMS, lenient(max_user_interactions=5, max_quarantined_share=0), NOW)

    bot = validated.table[validated.table[c.USER_ID] == "bot"]
    assert bot[c.TIMESTAMP].min() == pd.Timestamp(1_700_000_015, unit="s", tz="UTC")
    assert len(validated.table) == 15
    assert set(validated.quarantine[c.REASON]) == {"user is beyond the cap of 5 interactions"}
    assert "15 interactions of users beyond the cap" in validated.warnings[0]


def test_replayed_rows_change_nothing(rng: np.random.Generator) -> None:
    raw = rows_of(50, event_id=[f"e{row}" for row in range(50)])
    replayed = pd.concat([raw, raw, raw]).sample(frac=1, random_state=rng)

    once = validate_interactions(raw, ITEMS, SMALL, NOW)
    thrice = validate_interactions(replayed, ITEMS, SMALL, NOW)

    pd.testing.assert_frame_equal(thrice.table, once.table)
    assert thrice.n_duplicates == 100


def test_warnings_name_columns_and_look_alikes_but_no_user() -> None:
    raw = rows_of(3, user_id=["Ann", "ann", "bob"], mood=["a", "b", "c"])

    warnings = validate_interactions(raw, ITEMS, SMALL, NOW).warnings

    assert warnings == (
        "columns that are not read: 'mood'",
        "1 groups of user ids differ only in case or composition and stay apart",
    )


def test_one_user_with_much_of_a_large_table_is_worth_a_look() -> None:
    raw = rows_of(10_000, user_id=["bot"] * 600 + [f"u{row}" for row in range(9_400)])

    (warning,) = validate_interactions(raw, ITEMS, SMALL, NOW).warnings

    assert warning == "one user_id has 6% of all interactions, more than 5%: a bot?"


def test_a_feed_that_stands_still_stops_the_run() -> None:
    with pytest.raises(InputRejectedError, match="the feed stands still"):
        validate_interactions(rows_of(5), ITEMS, lenient(max_age_hours=48), NOW)
    assert validate_interactions(rows_of(5), ITEMS, lenient(max_age_hours=9000), NOW)


@pytest.mark.parametrize(("n_rows", "n_users", "message"), [
    (49, 25, r"49 rows where .* had 100, a change of -51% where 50% is allowed; if that is meant"),
    (151, 25, r"151 rows where .* a change of \+51%"),
    (100, 19, r"19 distinct user_id where .* had 25, a change of -24%"),
    (100, 31, r"31 distinct user_id"),
])  # fmt: skip
def test_a_table_unlike_the_last_accepted_one_stops_the_run(n_rows: int, n_users: int, message: str) -> None:
    def table(n_rows: int, n_users: int) -> pd.DataFrame:
        return rows_of(n_rows, user_id=[f"u{row % n_users}" for row in range(n_rows)])

    here = Circumstances("events.csv")
    last = validate_interactions(table(100, 25), ITEMS, SMALL, NOW, here).profile
    changed = table(n_rows, n_users)

    with pytest.raises(InputRejectedError, match=message):
        validate_interactions(changed, ITEMS, SMALL, NOW, Circumstances("events.csv", last))
    assert validate_interactions(changed, ITEMS, SMALL, NOW, Circumstances("another.csv", last))
    assert validate_interactions(changed, ITEMS, lenient(accept_variance=True), NOW, Circumstances("events.csv", last))


@pytest.mark.parametrize("scale", [20.0, 0.1])
def test_ratings_on_another_scale_stop_the_run(scale: float) -> None:
    stars = [1.0, 2.0, 3.0, 4.0, 5.0] * 4
    last = validate_interactions(rows_of(20, rating=stars), ITEMS, SMALL, NOW).profile
    rescaled = rows_of(20, rating=[scale * value for value in stars])

    with pytest.raises(InputRejectedError, match="the scale has changed"):
        validate_interactions(rescaled, ITEMS, SMALL, NOW, Circumstances(last=last))


def test_s13_refused_rows_are_on_disk_for_their_owner_even_when_the_input_is_refused(tmp_path: Path) -> None:
    raw = rows_of(10, user_id={2: "a\x00b"}, timestamp={5: "soon"})
    folder = tmp_path / "quarantine" / "run1"

    with pytest.raises(InputRejectedError, match=r"The refused rows are in .*run1/interactions"):
        validate_interactions(raw, ITEMS, SMALL, NOW, Circumstances(quarantine=folder))

    report = json.loads((folder / "interactions" / "report.json").read_text())
    assert report["n_rows_in"] == report["n_kept"] + report["n_duplicates"] + report["n_quarantined"] == 10
    assert report["n_rows_by_reason"] == {
        "user_id holds what ids may not": 1, "timestamp is missing or unreadable": 1
    }  # fmt: skip
    (line,) = (folder / "interactions" / "user_id-holds-what-ids-may-not.jsonl").read_text().splitlines()
    assert json.loads(line)["user_id"] == r"a\x00b"
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_profile_is_the_same_after_saving(tmp_path: Path) -> None:
    profile = Profile.of(rows_of(4, rating=[1.0, 2.0, 3.0, 4.0]).astype({"rating": float}), "here")

    profile.save(tmp_path)

    assert Profile.load(tmp_path) == profile == Profile("here", {"rows": 4, "user_id": 4, "item_id": 4}, (1, 2.5, 4))


def test_wrong_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="above max_rating"):
        ValidationParams(min_rating=5, max_rating=1)
    with pytest.raises(ValueError, match="earliest"):
        ValidationParams(earliest="once upon a time")


def test_hundred_thousand_rows_take_under_two_seconds(rng: np.random.Generator) -> None:
    n = 100_000
    raw = pd.DataFrame(
        {
            c.USER_ID: pd.Series(rng.integers(1000, size=n)).astype("str"),
            c.ITEM_ID: pd.Series(rng.integers(5, size=n)).astype("str").radd("i"),
            c.TIMESTAMP: pd.Series(rng.integers(1_600_000_000, 1_700_000_000, size=n)).astype("str"),
            c.RATING: pd.Series(rng.integers(1, 6, size=n)).astype("str"),
        }
    )
    validate_interactions(raw.head(10), ITEMS, LENIENT, NOW)  # imports pandera

    start = time.process_time()
    validate_interactions(raw, ITEMS, LENIENT, NOW)

    assert time.process_time() - start < 2


anything = st.none() | st.text(max_size=5) | st.integers() | st.floats() | st.booleans() | st.binary(max_size=3)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(*[anything] * 5), min_size=1, max_size=8))
def test_whatever_comes_in_is_accounted_for_or_rejected(rows: list[tuple[Any, ...]]) -> None:
    names = [c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.RATING, c.DEVICE]
    raw = pd.DataFrame(rows, columns=names, dtype=object)

    try:
        validated = validate_interactions(raw, ITEMS, LENIENT, NOW)
    except InputRejectedError:
        return

    assert len(validated.table) + validated.n_duplicates + len(validated.quarantine) == len(rows)


texts = st.text(max_size=6) | st.sampled_from(["i1", "u1", "1700000000", "2024-01-01", "", "1e5", "{", "\n"])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(texts, st.sampled_from(["i1", "i2", "x"]), texts), min_size=1, max_size=8))
def test_kept_rows_are_valid_whatever_the_texts(rows: list[tuple[str, str, str]]) -> None:
    names = [c.USER_ID, c.ITEM_ID, c.TIMESTAMP]
    raw = pd.DataFrame(rows, columns=names, dtype=object)

    try:
        table = validate_interactions(raw, ITEMS, LENIENT, NOW).table
    except InputRejectedError:
        return

    assert table[c.ITEM_ID].isin(ITEMS[c.ITEM_ID]).all()
    assert table[c.TIMESTAMP].between(pd.Timestamp("1990-01-01", tz="UTC"), NOW + pd.Timedelta(minutes=5)).all()
    assert not table[c.USER_ID].str.contains(r"[\n{}]").any()


def validated_in_parts(
    raw: pd.DataFrame, params: ValidationParams, scratch: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> ValidatedTable:
    """Return what comes of ``raw`` as files of ``part_rows``, handled in as many buckets."""
    monkeypatch.setattr(validation, "PART_ROWS", part_rows)
    cut = [raw[start : start + part_rows].reset_index(drop=True) for start in range(0, len(raw), part_rows)]
    parts = put_aside(cut, scratch / "raw")
    return validate_interactions(parts, ITEMS, params, NOW, scratch=scratch / "validation")


def hostile_rows(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Return rows with repetitions near and far, a bot, ratings, ties in time and every kind of fault."""
    raw = rows_of(
        n,
        user_id=rng.choice(["bot", *(f"u{row}" for row in range(40)), "U1", "", "a{"], size=n).tolist(),
        item_id=rng.choice(["i0", "i1", "i2", "x"], size=n, p=[0.4, 0.3, 0.28, 0.02]).tolist(),
        timestamp=rng.choice([*(str(1_700_000_000 + 9_000 * row) for row in range(60)), "soon"], size=n).tolist(),
        event_type=rng.choice(["view", "buy"], size=n).tolist(),
        event_id=rng.choice(["", *(f"e{row}" for row in range(3 * n))], size=n).tolist(),
        rating=rng.choice(["1", "2.5", "5", "many"], size=n, p=[0.4, 0.3, 0.28, 0.02]).tolist(),
        mood=["fine"] * n,
    )
    raw.loc[rng.random(n) < 0.4, c.USER_ID] = "bot"
    return raw


@pytest.mark.parametrize("part_rows", [1, 7, 100, 599])
def test_a_table_in_parts_is_validated_as_the_whole(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    raw = hostile_rows(rng, 600 if part_rows > 1 else 60)
    params = lenient(max_user_interactions=50 if part_rows > 1 else 5)
    whole = validate_interactions(raw, ITEMS, params, NOW)

    in_parts = validated_in_parts(raw, params, tmp_path, monkeypatch, part_rows)

    assert len(in_parts.kept.parts) > 1
    pd.testing.assert_frame_equal(in_parts.table, whole.table)
    pd.testing.assert_frame_equal(in_parts.quarantine, whole.quarantine)
    for name in ("n_rows_in", "n_duplicates", "warnings", "profile"):
        assert getattr(in_parts, name) == getattr(whole, name)
    assert whole.n_duplicates > 0
    assert "beyond the cap" in " ".join(whole.quarantine[c.REASON])
    begins = [part[c.TIMESTAMP].min() for part in in_parts.kept.iterate()][1:]
    ends = [part[c.TIMESTAMP].max() for part in in_parts.kept.iterate()][:-1]
    assert all(end < begin for end, begin in zip(ends, begins, strict=True))


@settings(max_examples=100, deadline=None)
@given(
    exponents=st.lists(st.lists(st.integers(8, 20), max_size=4), min_size=1, max_size=5),
    scale=st.sampled_from([1.0, 3.0, 9.9]),
)
def test_the_unit_told_part_by_part_is_that_of_the_median(exponents: list[list[int]], scale: float) -> None:
    parts = [pd.Series([scale * 10.0**exponent for exponent in part], dtype=float) for part in exponents]
    median = pd.concat(parts).median()

    unit = told_unit(parts)

    bounds = {TimestampUnit.s: 1e11, TimestampUnit.ms: 1e14, TimestampUnit.us: 1e17}
    assert unit == next((name for name, bound in bounds.items() if median < bound), TimestampUnit.ns)


@pytest.mark.parametrize("with_ids", [True, False])
def test_events_added_to_a_table_in_parts_are_those_added_to_the_whole(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_ids: bool
) -> None:
    raw = hostile_rows(rng, 600)
    later = raw[50:90].assign(timestamp="1700000500")  # the same event ids
    sent = pd.concat([hostile_rows(rng, 300), raw[:50], later], ignore_index=True).assign(device="tv")
    raw = raw.drop(columns=[] if with_ids else [c.EVENT_ID])
    events = validate_interactions(sent, ITEMS, LENIENT, NOW).table
    events = events.assign(location="").drop(columns=c.RATING).sample(frac=1, random_state=0)
    events.iloc[5:15, events.columns.get_loc(c.ITEM_ID)] = "gone"
    whole = add_events(validate_interactions(raw, ITEMS, LENIENT, NOW), events, ITEMS)

    in_parts = validated_in_parts(raw, LENIENT, tmp_path, monkeypatch, 100)
    with_events = add_events(in_parts, events, ITEMS, tmp_path / "with_events")

    pd.testing.assert_frame_equal(with_events.table, whole.table)
    pd.testing.assert_frame_equal(with_events.quarantine, whole.quarantine)
    assert with_events.n_duplicates == whole.n_duplicates > in_parts.n_duplicates
    assert whole.table[c.EVENT_ID].replace("", None).dropna().is_unique
    assert len(with_events.kept.parts) == len(in_parts.kept.parts) > 1
