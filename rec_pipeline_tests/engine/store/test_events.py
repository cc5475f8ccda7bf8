import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import redis
import redis.asyncio

from rec_pipeline.engine.data.events import Event, EventRules, Served, make_event
from rec_pipeline.engine.errors import EventsNotRecordedError, InvalidEventError
from rec_pipeline.engine.store.events import record_event, record_events, record_events_async
from rec_pipeline.engine.store.keys import EVENT_STREAM, event_ids_key, events_key, user_version_key
from rec_pipeline.engine.store.reader import reader_client

RULES = EventRules()
START = datetime(2024, 2, 10, tzinfo=UTC)


def make(user_id: str, item_id: str, minute: int, event_type: str = "click", **more: Any) -> Event:
    when = START + timedelta(minutes=minute)
    return make_event(RULES, user_id=user_id, item_id=item_id, event_type=event_type, timestamp=when, **more)


def recent(client: Any, user_id: str) -> list[tuple[str, int]]:
    found = client.zrevrange(events_key(user_id), 0, -1, withscores=True)
    return [(item_id.decode(), int(at)) for item_id, at in found]


def state(client: Any, user_id: str) -> tuple[Any, ...]:
    entries = [fields for _, fields in client.xrange(EVENT_STREAM)]
    return recent(client, user_id), client.get(user_version_key(user_id)), entries


def test_an_event_is_in_the_stream_in_the_recent_items_and_makes_answers_stale(store: "redis.Redis") -> None:
    when = "2024-02-10T15:30:00Z"

    assert record_event(store, "u1", "i7", "click", when, {"device": "tv"}, "e1", served=Served(("ncf", "content"), 3))

    ((_, fields),) = store.xrange(EVENT_STREAM)
    assert fields == {
        b"user_id": b"u1",
        b"item_id": b"i7",
        b"event_type": b"click",
        b"timestamp": b"1707579000000",
        b"event_id": b"e1",
        b"device": b"tv",
        b"sources": b"ncf|content",
        b"generation": b"3",
    }
    assert recent(store, "u1") == [("i7", 1707579000000)]
    assert store.get(user_version_key("u1")) == b"1"


def test_an_event_id_that_was_seen_changes_nothing(store: "redis.Redis") -> None:
    record_events(store, [make("u1", "i1", 1, event_id="e1"), make("u1", "i2", 2)])
    before = state(store, "u1")

    again = record_events(store, [make("u1", "i9", 9, event_id="e1"), make("u1", "i2", 2), make("u2", "i2", 2)])

    assert again == [False, False, True]
    assert state(store, "u1")[:2] == before[:2]
    assert store.xlen(EVENT_STREAM) == 3


def test_replays_in_any_order_end_in_the_same_state(store: "redis.Redis", rng: np.random.Generator) -> None:
    numbers = rng.integers((3, 20, 500), size=(200, 3)).tolist()
    events = [make(f"u{user}", f"i{item}", minute) for user, item, minute in numbers]
    record_events(store, events)
    users = ("u0", "u1", "u2")
    once = [recent(store, user) for user in users]
    store.flushall()

    for _ in range(3):
        record_events(store, [events[position] for position in rng.permutation(len(events))])

    assert [recent(store, user) for user in users] == once
    assert store.xlen(EVENT_STREAM) == len({event.event_id for event in events})


def test_a_late_event_never_moves_time_back(store: "redis.Redis") -> None:
    record_events(store, [make("u1", "i1", 10), make("u1", "i2", 5)])
    version = store.get(user_version_key("u1"))

    assert record_events(store, [make("u1", "i1", 3)]) == [True]

    assert [item for item, _ in recent(store, "u1")] == ["i1", "i2"]
    assert store.get(user_version_key("u1")) == version


def test_an_impression_is_recorded_but_makes_nothing_stale(store: "redis.Redis") -> None:
    record_events(store, [make("u1", "i1", 10, "impression")])

    assert store.xlen(EVENT_STREAM) == 1
    assert not store.exists(events_key("u1"), user_version_key("u1"))


def test_the_memory_of_one_user_is_flat_after_the_cap(store: "redis.Redis") -> None:
    rules = EventRules(max_recent=50, max_event_ids=80)
    keys = [events_key("u1"), user_version_key("u1"), event_ids_key("u1")]
    used = []
    for start in (0, 500, 1000):
        record_events(store, [make("u1", f"i{number:06d}", number) for number in range(start, start + 500)], rules)
        used.append(sum(store.memory_usage(key) for key in keys))

    assert [item for item, _ in recent(store, "u1")] == [f"i{number:06d}" for number in range(1499, 1449, -1)]
    assert store.zcard(event_ids_key("u1")) == 80
    assert max(used) < 1.2 * min(used)
    assert all(0 < store.ttl(key) <= RULES.recent_ttl_seconds for key in keys)


def test_a_full_backlog_refuses_events_and_changes_nothing(store: "redis.Redis") -> None:
    rules = EventRules(max_backlog=2)
    record_events(store, [make("u1", "i1", 1), make("u1", "i2", 2)], rules)
    before = state(store, "u1")

    with pytest.raises(EventsNotRecordedError, match="event_log"):
        record_events(store, [make("u1", "i3", 3)], rules)

    assert state(store, "u1") == before
    store.delete(EVENT_STREAM)
    assert record_events(store, [make("u1", "i3", 3)], rules) == [True]


def test_an_event_the_stream_cannot_take_is_not_marked_as_seen(store: "redis.Redis") -> None:
    store.set(EVENT_STREAM, "not a stream")

    with pytest.raises(EventsNotRecordedError, match="WRONGTYPE"):
        record_event(store, "u1", "i1", "click", START)

    assert store.keys() == [EVENT_STREAM.encode()]


def test_an_event_that_breaks_a_rule_is_not_sent() -> None:
    with (
        reader_client("redis://127.0.0.1:1") as client,
        pytest.raises(InvalidEventError, match="event_type 'stare' is unknown"),
    ):
        record_event(client, "u1", "i1", "stare")


def test_a_store_that_is_away_is_said_to_be() -> None:
    with (
        reader_client("redis://127.0.0.1:1") as client,
        pytest.raises(EventsNotRecordedError, match="cannot be reached"),
    ):
        record_event(client, "u1", "i1", "click")


def test_the_asynchronous_twin_does_the_same(store: "redis.Redis", store_url: str) -> None:
    events = [make("u1", f"i{number}", number) for number in range(450)]
    events.append(events[0])

    async def record() -> list[bool]:
        async with redis.asyncio.Redis.from_url(store_url) as client:
            return await record_events_async(client, events)

    assert asyncio.run(record()) == [True] * 450 + [False]
    assert store.xlen(EVENT_STREAM) == 450
    assert recent(store, "u1")[0] == ("i449", events[449].timestamp_ms)
