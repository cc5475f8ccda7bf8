"""
The drain: from the stream into the log, each event exactly once in effect.

Entries are read for a consumer group and so stay its pending entries until they are acknowledged. They are written to
the log, on disk, and only then acknowledged and deleted from the stream, in one transaction. A drain that dies anywhere
leaves them pending: the next one reads those first and writes them again, and the log tells them apart by their event
id. Two drains at once do no harm for the same reason. Nothing else deletes from the stream.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from rec_pipeline.engine.data.entries import Entry, read_entries
from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.events import EventRules
from rec_pipeline.engine.errors import EventsNotDrainedError
from rec_pipeline.engine.store.keys import EVENT_GROUP, EVENT_STREAM
from rec_pipeline.engine.store.server import STORE_ERRORS, explain

BATCH: Final = 10_000
_CONSUMER: Final = "drain"

Progress = Callable[[str, int], None]
"""Called with a phase (``read``, ``written``, ``acknowledged``) and the entries that have reached it."""


@dataclass(frozen=True)
class Drained:
    """
    What a drain did.

    Attributes
    ----------
    n_entries, n_refused
        Entries taken from the stream, and those of them that were no events.
    n_by_day
        Events written by the day they belong to, ISO dates.
    seconds
        Wall time.
    """

    n_entries: int
    n_refused: int
    n_by_day: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Backlog:
    """
    What waits in the stream.

    Attributes
    ----------
    n_entries
        Entries not yet in the log.
    oldest_age_seconds
        How long ago the oldest of them arrived; 0 where there is none.
    """

    n_entries: int
    oldest_age_seconds: float


def drain(
    client: "redis.Redis",
    log: EventLog,
    rules: EventRules | None = None,
    *,
    batch_size: int = BATCH,
    on_progress: Progress | None = None,
) -> Drained:
    """
    Move what is in the stream to the log, until there is less left than a batch.

    Parameters
    ----------
    client
        Of a server or of a Cluster.
    log
        Where the events go.
    rules
        Which entries are events.
    batch_size : int
        Entries held in memory at a time.
    on_progress
        Called as each batch reaches a phase.

    Raises
    ------
    EventsNotDrainedError
        If the store fails; what was not acknowledged is drained the next time.
    OSError
        If the disk refuses; likewise.
    """
    rules, on_progress = rules or EventRules(), on_progress or (lambda *_: None)
    started = time.perf_counter()
    n_by_day: Counter[str] = Counter()
    n_entries = n_refused = 0
    with _explained():
        client = _of_the_stream(client)
        _ensure_group(client)
        for entries in _batches(client, batch_size):
            on_progress("read", len(entries))
            events, refused = read_entries(entries, rules)
            log.refuse(refused)
            n_by_day.update(log.append(events))
            on_progress("written", len(entries))
            _let_go(client, [entry_id for entry_id, _ in entries])
            n_entries, n_refused = n_entries + len(entries), n_refused + len(refused)
            on_progress("acknowledged", len(entries))
    return Drained(n_entries, n_refused, dict(sorted(n_by_day.items())), time.perf_counter() - started)


def backlog(client: "redis.Redis") -> Backlog:
    """Return how much waits in the stream and for how long; deleted is only what is in the log."""
    with _explained():
        n_entries = int(client.xlen(EVENT_STREAM))
        oldest: Any = client.xrange(EVENT_STREAM, count=1)
    if not oldest:
        return Backlog(0, 0.0)
    entry_id = oldest[0][0]
    received_ms = int((entry_id.decode() if isinstance(entry_id, bytes) else entry_id).partition("-")[0])
    return Backlog(n_entries, max(0.0, time.time() - received_ms / 1000))


def _of_the_stream(client: "redis.Redis") -> "redis.Redis":
    """Return the client itself, or that of the node of a Cluster that has the stream."""
    cluster: Any = client
    if not isinstance(cluster, RedisCluster):
        return client
    nodes: Any = cluster
    return cast("redis.Redis", nodes.get_redis_connection(nodes.get_node_from_key(EVENT_STREAM)))


def _ensure_group(client: "redis.Redis") -> None:
    try:
        client.xgroup_create(EVENT_STREAM, EVENT_GROUP, id="0", mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


def _batches(client: "redis.Redis", batch_size: int) -> Iterator[list[Entry]]:
    """Yield what an earlier drain has read and not acknowledged, then what is new."""
    reader = redis.Redis(connection_pool=client.connection_pool)
    reader.response_callbacks.pop("XREADGROUP")  # a dictionary an entry would take a quarter of the drain's time
    for first in ("0", ">"):
        while True:
            reply: Any = reader.xreadgroup(EVENT_GROUP, _CONSUMER, {EVENT_STREAM: first}, count=batch_size)
            streams = reply.items() if isinstance(reply, dict) else reply or ()  # by the protocol of the connection
            found = [entry for _, entries in streams for entry in entries]
            gone = [entry_id for entry_id, flat in found if not flat]  # deleted by other hands while pending
            if gone:
                _let_go(client, gone)
            if entries := [entry for entry in found if entry[1]]:
                yield entries
            if len(found) < batch_size:
                break


def _let_go(client: "redis.Redis", entry_ids: list[bytes]) -> None:
    with client.pipeline(transaction=True) as pipeline:
        pipeline.xack(EVENT_STREAM, EVENT_GROUP, *entry_ids)
        pipeline.xdel(EVENT_STREAM, *entry_ids)
        pipeline.execute()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise EventsNotDrainedError(f"{explain(error)}; what is in the stream stays there") from error
