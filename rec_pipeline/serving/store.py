"""
The store as the online side sees it: little patience, one round trip a question, and a breaker in front.

Of Redis the request path uses single-key commands only, in pipelines without a transaction.
"""

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson
import redis.asyncio as aredis
from redis.exceptions import RedisError

from rec_pipeline.engine.data.events import Event, EventRules
from rec_pipeline.engine.errors import EventsNotRecordedError, RecPipelineError, StoredValueError
from rec_pipeline.engine.recommenders.list_schema import POPULAR_USER_ID
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.codec import PublishedList, decode_list
from rec_pipeline.engine.store.events import record_events_async
from rec_pipeline.engine.store.server import STORE_ERRORS, explain
from rec_pipeline.engine.store.suppression import digest_of
from rec_pipeline.serving.breaker import Breaker
from rec_pipeline.serving.connection import online_client

SOCKET_SECONDS: Final = 0.05
EVENT_SECONDS: Final = 1.0
QUESTION_SECONDS: Final = 0.12
EVENTS_READ: Final = 200
LIVE_SECONDS: Final = 1.0
MAX_TOUCHED: Final = 10_000

# One command for many entries: this process would spend longer on writing them as commands than on the answers.
_APPEND: Final = """
local waiting = redis.call('XLEN', KEYS[1])
if waiting < tonumber(ARGV[1]) then
  for _, entry in ipairs(cjson.decode(ARGV[2])) do redis.call('XADD', KEYS[1], '*', unpack(entry)) end
end
return waiting
"""

Result = TypeVar("Result")


class StoreUnavailableError(RecPipelineError):
    """The store did not answer in time, refused, or is not asked while it is known to be down."""

    exit_code = 6
    is_transient = True


@dataclass(frozen=True)
class Live:
    """
    What is live.

    Attributes
    ----------
    generation
        Its number; 0 before the first publication.
    published_at
        Unix time in seconds; 0 when unknown.
    """

    generation: int = 0
    published_at: float = 0.0


@dataclass(frozen=True)
class UserState:
    """
    What the store knows of a user.

    Attributes
    ----------
    published
        The list that was published for the user; None where there is none, or it cannot be read.
    events
        Item ids touched lately and when (Unix seconds), oldest first.
    version
        Count of the user's events; an answer made under another count is stale.
    damage
        Why ``published`` cannot be read, if so.
    is_forgotten
        Whether the user asked to be forgotten: nothing of them may be used.
    """

    published: PublishedList | None
    events: tuple[tuple[str, float], ...]
    version: int
    damage: str = ""
    is_forgotten: bool = False


@dataclass(frozen=True)
class Recorded:
    """
    What became of events.

    Attributes
    ----------
    n_new, n_duplicates
        Those that were recorded; those whose id had been.
    n_forgotten
        Those of users who asked to be forgotten, of which nothing was kept.
    """

    n_new: int
    n_duplicates: int
    n_forgotten: int


@dataclass
class _Reads:
    """Questions of one event loop that wait while the store is being asked, and the tasks that ask and that probe."""

    waiting: list[tuple[str, str, "asyncio.Future[tuple[int, bytes | None]]"]] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None
    probe: "asyncio.Task[None] | None" = None


class OnlineStore:
    """
    Reads and keeps what answers need.

    Parameters
    ----------
    url
        In any form of ``StoreAddress``; or a function that finds it, called once, on first use.

    Notes
    -----
    A client belongs to the event loop it was first used in; each loop has its own, of at most 32 connections.
    """

    def __init__(self, url: str | Callable[[], str]) -> None:
        self._url = url
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aredis.Redis] = weakref.WeakKeyDictionary()
        self._patient_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aredis.Redis]
        self._patient_clients = weakref.WeakKeyDictionary()
        self._reads: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Reads] = weakref.WeakKeyDictionary()
        self.breaker = Breaker()
        self.live = Live()
        self._live_at = 0.0
        self._is_down = False
        self._touched: set[str] = set()

    async def read_answer(self, user_id: str, field: str) -> tuple[int, bytes | None]:
        """
        Return the count of the user's events and the answer under ``field``; now and then learn what is live.

        Whoever asks while the store is being asked is asked for together with all others who do: the busier, the fewer
        round trips a question.
        """
        self._refuse_while_open()
        loop = asyncio.get_running_loop()
        reads = self._here()
        reply: asyncio.Future[tuple[int, bytes | None]] = loop.create_future()
        reads.waiting.append((user_id, field, reply))
        if reads.task is None or reads.task.done():
            reads.task = loop.create_task(self._read_waiting(reads))
        return await reply

    async def _read_waiting(self, reads: "_Reads") -> None:
        while reads.waiting:
            asked, reads.waiting = reads.waiting, []
            try:
                found = await self._read_answers([(user_id, name) for user_id, name, _ in asked])
            except Exception as error:  # of whatever kind: nobody is to wait for ever
                is_down = isinstance(error, StoreUnavailableError)
                for _, _, reply in [*asked, *reads.waiting]:
                    if not reply.done():
                        reply.set_exception(StoreUnavailableError(str(error)) if is_down else error)
                reads.waiting = []
            else:
                for (_, _, reply), answer in zip(asked, found, strict=True):
                    if not reply.done():  # given up by who asked
                        reply.set_result(answer)

    async def _read_answers(self, questions: Sequence[tuple[str, str]]) -> list[tuple[int, bytes | None]]:
        knows_what_is_live = time.monotonic() - self._live_at < LIVE_SECONDS

        async def question(client: "aredis.Redis") -> Any:
            pipeline = client.pipeline(transaction=False)
            for user_id, name in questions:
                pipeline.get(keys.user_version_key(user_id))
                pipeline.hget(keys.answers_key(user_id), name)
            if not knows_what_is_live:
                pipeline.hmget(keys.CURRENT, ["gen", "published_at"])
            return await pipeline.execute()

        replies = await self._ask(question)
        if not knows_what_is_live:
            self._learn(replies.pop())
        return [(int(version or 0), value) for version, value in zip(replies[::2], replies[1::2], strict=True)]

    def is_touched(self, user_id: str) -> bool:
        """Tell whether the user did something here since this was last asked, so that nothing kept for them counts."""
        is_touched = user_id in self._touched
        self._touched.discard(user_id)
        return is_touched

    async def read_user(self, user_id: str) -> UserState:
        """Return the user's published list and recent events."""

        async def all_of_it(client: "aredis.Redis") -> Any:
            pipeline = client.pipeline(transaction=False)
            pipeline.get(keys.user_version_key(user_id))
            pipeline.get(keys.live_key(user_id))
            pipeline.zrange(keys.events_key(user_id), 0, EVENTS_READ - 1, desc=True, withscores=True)
            pipeline.hmget(keys.CURRENT, ["gen", "published_at"])
            pipeline.sismember(keys.SUPPRESSED, digest_of(user_id))
            return await pipeline.execute()

        version, value, events, current, is_forgotten = await self._ask(all_of_it)
        self._learn(current)
        if is_forgotten:
            return UserState(None, (), 0, is_forgotten=True)
        published, damage = None, ""
        if value is not None:
            try:
                published = decode_list(value, user_id)
            except StoredValueError as error:
                damage = str(error)
        newest_first = [(item.decode(errors="replace"), float(milliseconds) / 1000) for item, milliseconds in events]
        return UserState(published, tuple(reversed(newest_first)), int(version or 0), damage)

    async def popular(self) -> PublishedList | None:
        """
        Return the popular list that is live.

        Raises
        ------
        StoredValueError
            If what stands there is no list.
        """
        value = await self._ask(lambda client: client.get(keys.POPULAR))
        return None if value is None else decode_list(value, POPULAR_USER_ID)

    async def keep_answer(self, user_id: str, field: str, value: bytes, ttl_seconds: float) -> None:
        """
        Keep an answer; the user's answers are gone ``ttl_seconds`` after the last one was kept.

        Nothing is kept of somebody who was forgotten while it was made.
        """
        key = keys.answers_key(user_id)

        async def both(client: "aredis.Redis") -> Any:
            pipeline = client.pipeline(transaction=False)
            pipeline.hset(key, field, value)
            pipeline.pexpire(key, max(1, round(ttl_seconds * 1000)))
            pipeline.sismember(keys.SUPPRESSED, digest_of(user_id))
            *_, is_forgotten = await pipeline.execute()
            if is_forgotten:
                await client.unlink(key)

        await self._ask(both)

    async def look(self) -> None:
        """Learn what is live; raise ``StoreUnavailableError`` unless the store answers."""
        self._learn(await self._ask(_what_is_live))

    async def record(self, events: Sequence[Event], rules: EventRules) -> Recorded:
        """
        Record events, see ``record_events``, but for those of users who asked to be forgotten.

        Raises
        ------
        EventsNotRecordedError
            If the store did not take them; sending all again is safe.
        """
        if self.breaker.is_open:
            raise EventsNotRecordedError("the store has not answered lately: send the events again in a moment")
        client = self._client(patient=True)
        wanted = await self._not_forgotten(client, events)
        outcomes = await record_events_async(client, wanted, rules)
        if len(self._touched) > MAX_TOUCHED:
            self._touched.clear()  # who is not in it costs a question more
        self._touched.update(event.user_id for event in wanted if rules.weights[event.event_type] > 0)
        return Recorded(sum(outcomes), outcomes.count(False), len(events) - len(wanted))

    async def append(self, entries: Sequence[Mapping[str, str]], max_backlog: int) -> None:
        """
        Append entries to the stream that change nothing of what users are recommended.

        Raises
        ------
        EventsNotRecordedError
            If the store did not take them, or ``max_backlog`` entries wait already.
        """
        if self.breaker.is_open:
            raise EventsNotRecordedError("the store has not answered lately")
        flat = orjson.dumps([[part for field in entry.items() for part in field] for entry in entries])
        try:
            n_waiting = await self._client(patient=True).eval(_APPEND, 1, keys.EVENT_STREAM, max_backlog, flat)
        except STORE_ERRORS as error:
            raise EventsNotRecordedError(explain(error)) from error
        if n_waiting >= max_backlog:
            raise EventsNotRecordedError(f"{n_waiting} entries wait to be drained")

    async def _not_forgotten(self, client: "aredis.Redis", events: Sequence[Event]) -> list[Event]:
        users = list({event.user_id for event in events})
        try:
            marks: Any = await client.smismember(keys.SUPPRESSED, [digest_of(user_id) for user_id in users])
        except STORE_ERRORS as error:
            raise EventsNotRecordedError(f"{explain(error)}; no event was recorded: send them again") from error
        forgotten = {user_id for user_id, is_on_it in zip(users, marks, strict=True) if is_on_it}
        return [event for event in events if event.user_id not in forgotten]

    @property
    def is_down(self) -> bool:
        """Whether the last question was not answered."""
        return self._is_down or self.breaker.is_open

    async def close(self) -> None:
        """Close this loop's connections."""
        if (probe := self._here().probe) is not None:
            await asyncio.gather(probe, return_exceptions=True)
        for clients in (self._clients, self._patient_clients):
            client = clients.pop(asyncio.get_running_loop(), None)
            if client is not None:
                with suppress(RedisError, OSError):
                    await client.aclose()

    def url(self) -> str:
        """
        Return where the store is.

        Raises
        ------
        StoreUnavailableError
            If it cannot be found.
        """
        if callable(self._url):
            self._url = self._url()
        return self._url

    def _learn(self, current: Any) -> None:
        generation, published_at = current
        self.live = Live(int(generation or 0), _unix_seconds(published_at))
        self._live_at = time.monotonic()

    def _client(self, *, patient: bool = False) -> "aredis.Redis":
        """Return this loop's client; the patient one is for events, which are not to be lost and safe to send again."""
        loop = asyncio.get_running_loop()
        clients = self._patient_clients if patient else self._clients
        seconds = EVENT_SECONDS if patient else SOCKET_SECONDS
        client = clients.get(loop)
        if client is None:
            client = clients[loop] = online_client(self.url(), seconds)
        return client

    def _here(self) -> "_Reads":
        return self._reads.setdefault(asyncio.get_running_loop(), _Reads())

    async def _ask(self, question: "Callable[[aredis.Redis], Awaitable[Result] | Any]") -> Any:
        self._refuse_while_open()
        return await self._asked(question)

    def _refuse_while_open(self) -> None:
        """Raise while the breaker is open; once a second that has the store tried behind the answers."""
        if self.breaker.is_open:
            reads = self._here()
            if (reads.probe is None or reads.probe.done()) and self.breaker.allows():
                reads.probe = asyncio.create_task(self._probe())
            raise StoreUnavailableError("the store has not answered lately and is asked again in a moment")

    async def _probe(self) -> None:
        """Try the store; no answer waits for it."""
        with suppress(StoreUnavailableError):
            self._learn(await self._asked(_what_is_live))

    async def _asked(self, question: "Callable[[aredis.Redis], Awaitable[Result] | Any]") -> Any:
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                answer = await question(self._client())
        except (*STORE_ERRORS, OSError, TimeoutError) as error:
            self.breaker.failed()
            self._is_down = True
            words = explain(error) if isinstance(error, STORE_ERRORS) else f"the server did not answer in time: {error}"
            raise StoreUnavailableError(words) from error
        except StoreUnavailableError:
            self.breaker.failed()
            self._is_down = True
            raise
        self.breaker.succeeded()
        self._is_down = False
        return answer


def _what_is_live(client: "aredis.Redis") -> Any:
    return client.hmget(keys.CURRENT, ["gen", "published_at"])


def _unix_seconds(published_at: Any) -> float:
    """Return the time of an ISO 8601 text or of a number of seconds; 0 where it is neither."""
    from datetime import datetime

    text = (published_at or b"").decode(errors="replace")
    with suppress(ValueError):
        return float(text)
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return 0.0
