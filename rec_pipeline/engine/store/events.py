"""
Recording of events: appended to the stream, the user's recent items updated, the user's cached answers made stale.

On one server (Sentinel included) all of it is one script, hence one atomic step. On Redis Cluster the stream lies in
another slot than the user's keys, so the stream comes first and the user's keys follow in one step of their own: an
event that changed what a user is recommended is always in the stream, and one that was reported as recorded is in both.
Whoever gets an error sends the same event again; the log leaves out what the stream then holds twice.

An event id that has been seen changes nothing. A recent item only moves forward in time (``ZADD GT``), so late events
and replays that are no longer recognised by their id change nothing either.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.cluster import RedisCluster

from rec_pipeline.engine.data.entries import entry_fields
from rec_pipeline.engine.data.events import Event, EventRules, Served, make_event
from rec_pipeline.engine.errors import EventsNotRecordedError
from rec_pipeline.engine.store.keys import EVENT_STREAM, event_ids_key, events_key, user_version_key
from rec_pipeline.engine.store.server import STORE_ERRORS, explain

if TYPE_CHECKING:
    import redis.asyncio

BATCH: Final = 200

# Writes begin where nothing can refuse any more but a key of the wrong type; the stream's goes first, so that an event
# is never marked as seen without being in it.
_RECORD: Final = """
local recent, version, ids, stream = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local event_id, item_id, at, now, weight = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local max_recent, recent_ttl, max_ids, ids_ttl, max_backlog = unpack(ARGV, 6, 10)
if redis.call('ZSCORE', ids, event_id) then return 0 end
if stream then
  if redis.call('XLEN', stream) >= tonumber(max_backlog) then return -1 end
  redis.call('XADD', stream, '*', unpack(ARGV, 11))
end
redis.call('ZADD', ids, now, event_id)
redis.call('ZREMRANGEBYRANK', ids, 0, -1 - max_ids)
redis.call('EXPIRE', ids, ids_ttl)
if weight > 0 and redis.call('ZADD', recent, 'GT', 'CH', at, item_id) == 1 then
  redis.call('ZREMRANGEBYRANK', recent, 0, -1 - max_recent)
  redis.call('EXPIRE', recent, recent_ttl)
  redis.call('INCR', version)
  redis.call('EXPIRE', version, recent_ttl)
end
return 1
"""
_RECORD_SHA: Final = hashlib.sha1(_RECORD.encode(), usedforsecurity=False).hexdigest()  # how Redis names scripts
_NEW: Final = 1
_BACKLOG_FULL: Final = -1


def record_event(
    client: "redis.Redis | RedisCluster",
    user_id: str,
    item_id: str,
    event_type: str,
    timestamp: datetime | str | float | None = None,
    context: Mapping[str, str] | None = None,
    event_id: str | None = None,
    *,
    served: Served | None = None,
    rules: EventRules | None = None,
) -> bool:
    """
    Record one event; see ``make_event`` for what its parts may be.

    Returns
    -------
    False if an event of this id had been recorded, and nothing changed.

    Raises
    ------
    InvalidEventError
        If it breaks a rule; nothing is sent.
    EventsNotRecordedError
        If the store did not take it; sending it again is safe.

    Examples
    --------
    >>> client = redis.Redis()
    >>> record_event(client, "u1", "i7", "click", "2024-02-10T15:30:00+00:00", {"device": "tv"})  # doctest: +SKIP
    True
    """
    rules = rules or EventRules()
    event = make_event(
        rules,
        user_id=user_id,
        item_id=item_id,
        event_type=event_type,
        timestamp=timestamp,
        context=context,
        event_id=event_id,
        served=served,
    )
    return record_events(client, [event], rules)[0]


def record_events(
    client: "redis.Redis | RedisCluster", events: Sequence[Event], rules: EventRules | None = None
) -> list[bool]:
    """
    Record events in pipelines, each in a step of its own.

    Parameters
    ----------
    client
        Of one server, Sentinel's, or of a cluster.
    events
        As ``make_event`` makes them, in any order.
    rules
        The ones they were made by.

    Returns
    -------
    For each event, False if one of its id had been recorded, and nothing changed.

    Raises
    ------
    EventsNotRecordedError
        If the store did not take all of them; sending all again is safe.
    """
    on_cluster = isinstance(client, RedisCluster)
    rules = rules or EventRules()
    recorded: list[bool] = []
    for calls in _batches(events, rules, on_cluster=on_cluster):
        with _explained():
            if on_cluster:
                _check_backlog(client.xlen(EVENT_STREAM), rules)
                _appending(client.pipeline(), calls).execute()
                replies = [client.eval(_RECORD, *call) for _, call in calls]
            else:
                replies = _scripts(client.pipeline(transaction=False), calls).execute()[1:]
        recorded += _outcomes(replies)
    return recorded


async def record_events_async(
    client: "redis.asyncio.Redis | redis.asyncio.RedisCluster",
    events: Sequence[Event],
    rules: EventRules | None = None,
) -> list[bool]:
    """Do what ``record_events`` does, for a client of ``redis.asyncio``."""
    from redis.asyncio import RedisCluster as AsyncRedisCluster

    on_cluster = isinstance(client, AsyncRedisCluster)
    rules = rules or EventRules()
    recorded: list[bool] = []
    for calls in _batches(events, rules, on_cluster=on_cluster):
        with _explained():
            if on_cluster:
                _check_backlog(await client.xlen(EVENT_STREAM), rules)
                await _appending(client.pipeline(), calls).execute()
                replies = [await client.eval(_RECORD, *call) for _, call in calls]
            else:
                replies = (await _scripts(client.pipeline(transaction=False), calls).execute())[1:]
        recorded += _outcomes(replies)
    return recorded


_Call = tuple[Event, tuple[Any, ...]]


def _batches(events: Sequence[Event], rules: EventRules, *, on_cluster: bool) -> Iterator[list[_Call]]:
    now_ms = time.time_ns() // 1_000_000
    for start in range(0, len(events), BATCH):
        yield [_call(event, rules, now_ms, on_cluster=on_cluster) for event in events[start : start + BATCH]]


def _call(event: Event, rules: EventRules, now_ms: int, *, on_cluster: bool) -> _Call:
    """Return the event with what follows the script in its call: number of keys, keys, arguments."""
    keys = [events_key(event.user_id), user_version_key(event.user_id), event_ids_key(event.user_id)]
    entry: list[str] = []
    if not on_cluster:
        keys.append(EVENT_STREAM)
        entry = [part for field in entry_fields(event).items() for part in field]
    bounds = (
        rules.max_recent,
        rules.recent_ttl_seconds,
        rules.max_event_ids,
        rules.event_ids_ttl_seconds,
        rules.max_backlog,
    )
    weight = rules.weights[event.event_type]
    return event, (len(keys), *keys, event.event_id, event.item_id, event.timestamp_ms, now_ms, weight, *bounds, *entry)


def _scripts(pipeline: Any, calls: Sequence[_Call]) -> Any:
    pipeline.script_load(_RECORD)  # cheaper than finding out, and going back, whether the server has it
    for _, call in calls:
        pipeline.evalsha(_RECORD_SHA, *call)
    return pipeline


def _appending(pipeline: Any, calls: Sequence[_Call]) -> Any:
    for event, _ in calls:
        pipeline.xadd(EVENT_STREAM, entry_fields(event))
    return pipeline


def _outcomes(replies: Sequence[Any]) -> list[bool]:
    if _BACKLOG_FULL in replies:
        raise _backlog_is_full()
    return [reply == _NEW for reply in replies]


def _check_backlog(n_waiting: int, rules: EventRules) -> None:
    if n_waiting >= rules.max_backlog:
        raise _backlog_is_full()


def _backlog_is_full() -> EventsNotRecordedError:
    return EventsNotRecordedError("max_backlog events wait to be drained: drain them by materialising `event_log`")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise EventsNotRecordedError(f"{explain(error)}; not all events were recorded: send them again") from error
