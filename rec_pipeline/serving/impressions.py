"""What was recommended, recorded as events behind the answers: a failure costs impressions and no answer."""

import asyncio
import logging
import time
import uuid
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from rec_pipeline.engine.data.entries import shown_list_fields
from rec_pipeline.engine.data.events import Served
from rec_pipeline.engine.errors import EventsNotRecordedError
from rec_pipeline.serving.answers import Answer
from rec_pipeline.serving.store import OnlineStore

WAIT_SECONDS: Final = 0.2
MAX_WAITING: Final = 10_000
AT_ONCE: Final = 50  # so few that writing them holds up no answer

log = logging.getLogger(__name__)


@dataclass
class _Waiting:
    """Entries that one event loop has yet to send, and its task that does."""

    entries: deque[dict[str, str]] = field(default_factory=deque)
    task: "asyncio.Task[None] | None" = None


class Impressions:
    """
    Records lists, one entry each, some times a second.

    Parameters
    ----------
    store
        Its stream is written to while fewer than half of the events wait that may: clicks go before impressions.
    max_backlog
        Events that may wait.
    """

    def __init__(self, store: OnlineStore, max_backlog: int) -> None:
        self._store, self._max_backlog = store, max_backlog
        self._n_lost = 0
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiting] = weakref.WeakKeyDictionary()

    def add(self, answer: Answer) -> None:
        """Record soon that an answer was given; past ``MAX_WAITING`` it is left out."""
        here = self._loops.setdefault(asyncio.get_running_loop(), _Waiting())
        if answer.user_id is None or not answer.items or len(here.entries) >= MAX_WAITING:
            return
        here.entries.append(
            shown_list_fields(
                answer.user_id,
                [(item["id"], item["sources"]) for item in answer.items],
                timestamp_ms=time.time_ns() // 1_000_000,
                list_id=uuid.uuid4().hex,
                served=Served((), answer.generation or None, answer.experiment, answer.variant),
            )
        )
        if here.task is None or here.task.done():
            here.task = asyncio.create_task(self._send_soon(here))

    async def settled(self) -> None:
        """Send what waits in this event loop now."""
        here = self._loops.get(asyncio.get_running_loop())
        if here is not None and here.task is not None:
            here.task.cancel()
            with suppress(asyncio.CancelledError):
                await here.task
            await self._send(here)

    async def _send_soon(self, here: _Waiting) -> None:
        await asyncio.sleep(WAIT_SECONDS)
        await self._send(here)

    async def _send(self, here: _Waiting) -> None:
        while here.entries:
            some = [here.entries.popleft() for _ in range(min(AT_ONCE, len(here.entries)))]
            try:
                await self._store.append(some, self._max_backlog // 2)
            except EventsNotRecordedError as error:
                if not self._n_lost:
                    log.warning("lists are not recorded as impressions: %s", error)
                self._n_lost += len(some) + len(here.entries)
                here.entries.clear()
            else:
                if self._n_lost:
                    log.warning("lists are recorded as impressions again; %d were not", self._n_lost)
                    self._n_lost = 0
