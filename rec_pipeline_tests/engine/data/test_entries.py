from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rec_pipeline.engine.data import entries
from rec_pipeline.engine.data.entries import entry_fields, read_entries, shown_list_fields
from rec_pipeline.engine.data.events import Event, EventRules, Served, make_event
from rec_pipeline.engine.errors import InvalidEventError

RULES = EventRules()
NOW = datetime(2024, 2, 10, 15, 30, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
SERVED = Served(("collaborative", "content"), 3, "weights", "tuned", 4)


def made(**fields: Any) -> Event:
    required = {"user_id": "u1", "item_id": "i1", "event_type": "click", "timestamp": NOW, "now": NOW}
    return make_event(RULES, **(required | fields))


def encoded(fields: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): text.encode() for name, text in fields.items()}


def flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [part for field in fields.items() for part in field]


def test_an_event_comes_back_as_it_was() -> None:
    event = made(context={"device": "tv", "location": "São Paulo"}, served=SERVED, event_id="e1")

    table, refused = read_entries([(b"%d-5" % NOW_MS, flat(encoded(entry_fields(event))))], RULES)

    assert len(refused) == 0
    assert table.to_pylist() == [
        {
            "received_at": NOW,
            "entry": 5,
            "user_id": "u1",
            "item_id": "i1",
            "event_type": "click",
            "timestamp": NOW,
            "event_id": "e1",
            "device": "tv",
            "location": "São Paulo",
            "sources": "collaborative|content",
            "generation": 3,
            "experiment": "weights",
            "variant": "tuned",
            "position": 4,
        }
    ]


def test_a_list_that_was_shown_comes_back_as_its_impressions() -> None:
    items = [("i 1", ("content", "trending")), ("i|2", ()), ("ü3", ("sequence",))]
    fields = shown_list_fields("u1", items, timestamp_ms=NOW_MS, list_id="l1", served=Served((), 3, "weights", "tuned"))
    alone = shown_list_fields("u2", items[:1], timestamp_ms=NOW_MS, list_id="l2", served=Served())

    table, refused = read_entries(
        [(b"%d-5" % NOW_MS, flat(encoded(fields))), (b"%d-6" % NOW_MS, flat(encoded(alone)))], RULES
    )

    assert len(refused) == 0
    columns = ["item_id", "sources", "position", "entry", "generation", "variant"]
    assert [tuple(row[name] for name in columns) for row in table.to_pylist()] == [
        ("i 1", "content|trending", 1, 5, 3, "tuned"),
        ("i|2", "", 2, 5, 3, "tuned"),
        ("ü3", "sequence", 3, 5, 3, "tuned"),
        ("i 1", "content|trending", 1, 6, None, ""),
    ]
    assert len(set(table["event_id"].to_pylist())) == 4
    assert set(table["event_type"].to_pylist()) == {"impression"}


def test_a_list_whose_lines_do_not_match_is_refused_whole() -> None:
    fields = encoded(shown_list_fields("u1", [("i1", ()), ("i2", ())], timestamp_ms=1, list_id="l1", served=Served()))

    table, refused = read_entries([(b"%d-5" % NOW_MS, flat({**fields, b"sources": b"content"}))], RULES)

    assert (len(table), len(refused)) == (0, 1)


def test_nothing_at_all_is_two_empty_tables() -> None:
    table, refused = read_entries([], RULES)

    assert (len(table), len(refused)) == (0, 0)


WORDS = ("", "u1", "click", "impression", "a|b", "a|B", "0", "1", "07", "-1", "1e3", str(NOW_MS), "x" * 65)
TEXT = st.sampled_from(WORDS) | st.text(max_size=5)
VALUE = TEXT.map(str.encode) | st.binary(max_size=3)
NAME = st.sampled_from([name.encode() for name in entries._FIELDS]) | st.binary(max_size=3)
PLAIN = encoded(entry_fields(made(event_id="e1")))


@given(st.lists(st.dictionaries(NAME, VALUE, max_size=4).map(lambda found: PLAIN | found), max_size=5))
def test_judging_by_columns_is_judging_one_by_one(rows: list[dict[bytes, bytes]]) -> None:
    rows = [fields for fields in rows if b"\n" not in fields[b"item_id"]]
    batch = [(b"%d-%d" % (NOW_MS, row), flat(fields)) for row, fields in enumerate(rows)]
    expected = []
    for row, fields in enumerate(rows):
        try:
            expected.append((row, entry_fields(entries._event_of(fields, NOW_MS, RULES))))
        except InvalidEventError:
            continue

    table, refused = read_entries(batch, RULES)

    plain = table.drop_columns(["received_at", "timestamp"]).append_column(
        "timestamp", table["timestamp"].cast("int64")
    )
    found = [
        (row.pop("entry"), {name: str(value) for name, value in row.items() if value not in ("", None)})
        for row in plain.to_pylist()
    ]
    assert found == expected
    assert len(table) + len(refused) == len(rows)
