from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec_pipeline.engine.data.events import Event, EventRules, Served, make_event
from rec_pipeline.engine.data.ids import is_valid_id
from rec_pipeline.engine.errors import InvalidEventError

NOW = datetime(2024, 2, 10, 15, 30, tzinfo=UTC)
RULES = EventRules()


def event(**fields: Any) -> Event:
    given_fields = {"user_id": "u1", "item_id": "i1", "event_type": "click", "timestamp": NOW, "now": NOW}
    return make_event(RULES, **(given_fields | fields))


@pytest.mark.parametrize(
    "timestamp",
    [
        1707579000,
        1707579000.0,
        "2024-02-10T15:30:00+00:00",
        "2024-02-10T15:30:00Z",
        "2024-02-10T16:30:00+01:00",
        datetime(2024, 2, 10, 10, 30, tzinfo=timezone(timedelta(hours=-5))),
        None,
    ],
)
def test_one_instant_may_be_written_in_many_ways(timestamp: Any) -> None:
    assert event(timestamp=timestamp).timestamp_ms == 1707579000000


def test_an_event_without_an_id_has_the_same_one_whenever_it_is_sent() -> None:
    assert event().event_id == event(now=NOW + timedelta(minutes=1)).event_id
    assert event().event_id != event(item_id="i2").event_id


def test_clocks_may_differ_by_five_minutes_and_no_more() -> None:
    assert event(timestamp=NOW + timedelta(minutes=5)).timestamp_ms == 1707579300000

    with pytest.raises(InvalidEventError, match=r"timestamp .* is 6 minutes ahead of now, expected at most 5"):
        event(timestamp=NOW + timedelta(minutes=6))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", "a\nb"),
        ("user_id", 7),
        ("item_id", ""),
        ("item_id", "{i}"),
        ("event_id", "x" * 257),
        ("event_type", "stare"),
        ("event_type", ["click"]),
        ("timestamp", "2024-02-10T15:30:00"),
        ("timestamp", datetime(2024, 2, 10, 15, 30)),
        ("timestamp", "yesterday"),
        ("timestamp", 1707579000000),
        ("timestamp", float("nan")),
        ("timestamp", True),
        ("timestamp", -1),
        ("timestamp", "1999-12-31T23:59:59Z"),
        ("context", {"time": "2024-02-10"}),
        ("context", "tv"),
        ("context", {"device": 3}),
        ("context", {"location": "x" * 65}),
        ("served", Served(sources=("Two\nLines",))),
        ("served", Served(sources=("a",) * 17)),
        ("served", Served(generation=0)),
        ("served", Served(position=True)),
        ("served", Served(variant="Variant B")),
    ],
)
def test_what_breaks_a_rule_is_refused_by_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(InvalidEventError) as refused:
        event(**{field: value})

    assert refused.value.field.startswith(field)
    assert str(refused.value).startswith(refused.value.field)
    assert len(str(refused.value)) < 400


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.floats() | st.text(max_size=20))
def test_anything_is_an_event_or_refused(user_id: str, item_id: str, event_type: str, timestamp: float | str) -> None:
    try:
        made = event(user_id=user_id, item_id=item_id, event_type=event_type, timestamp=timestamp)
    except InvalidEventError:
        return

    assert is_valid_id(made.user_id)
    assert is_valid_id(made.item_id)
    assert made.event_type in RULES.weights
    assert 946684800000 <= made.timestamp_ms <= 1707579300000


@pytest.mark.parametrize("weights", [{"Click": 1}, {"click": -1}, {"click": float("inf")}, {"click": float("nan")}])
def test_rules_refuse_names_and_weights_that_make_no_sense(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        EventRules(weights=weights)
