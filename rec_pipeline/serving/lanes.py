"""
The sources of one question: one after another in one thread while all is well, side by side once one takes its time.

Threads of Python that compute side by side take turns in one interpreter and pay for each turn, so that sources of a
few milliseconds are all answered sooner by one thread. A source that hangs is another matter: the rest is taken over
by a second thread after ``PATIENCE_SECONDS``, and by a third.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Final, Generic, TypeVar

PATIENCE_SECONDS: Final = 0.02
CALLS_AT_ONCE: Final = 2  # of one source: with as many hanging it is left out at once
THREADS: Final = 32  # more than all sources can take with hanging calls

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """
    How a source ended.

    Attributes
    ----------
    name
        ``ok``, ``late``, ``busy`` or the name of its error.
    seconds
        How long it took, or was waited for.
    result
        What it gave; None unless it is ok.
    failure
        Why there is no result, in words; empty if there is.
    """

    name: str
    seconds: float
    result: Result | None = None
    failure: str = ""


class Lanes:
    """
    Asks the sources of a question.

    Parameters
    ----------
    budget
        Seconds after a question at which a source that has not answered is left out.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="source", initializer=_compute_alone)
        self._seats: defaultdict[str, BoundedSemaphore] = defaultdict(lambda: BoundedSemaphore(CALLS_AT_ONCE))

    async def ask(self, sources: Mapping[str, Callable[[], Result]]) -> dict[str, Outcome[Result]]:
        """Return how each source ended, in the order given; what it raises is its own failure, not the question's."""
        loop = asyncio.get_running_loop()
        deadline, ended = loop.time() + self._budget, asyncio.Event()
        outcomes: dict[str, Outcome[Result]] = {}
        waiting: deque[str] = deque()
        for name in sources:
            if self._seats[name].acquire(blocking=False):
                waiting.append(name)
            else:
                outcomes[name] = Outcome("busy", 0.0, failure="busy")

        def lane() -> None:
            with suppress(IndexError):  # another lane took the last one
                while waiting:
                    name = waiting.popleft()
                    outcomes[name] = self._asked(name, sources[name])
            if len(outcomes) == len(sources):
                with suppress(RuntimeError):  # whoever asked is gone, and the loop with them
                    loop.call_soon_threadsafe(ended.set)

        while len(outcomes) < len(sources) and loop.time() < deadline:
            if waiting:
                self._threads.submit(lane)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, loop.time() + PATIENCE_SECONDS) if waiting else deadline):
                    await ended.wait()
        with suppress(IndexError):
            while True:
                self._seats[waiting.popleft()].release()
        late = Outcome[Result]("late", self._budget, failure=f"late: no answer within {self._budget * 1000:g} ms")
        return {name: outcomes.get(name, late) for name in sources}

    def close(self) -> None:
        """End the threads, without waiting for a source that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _asked(self, name: str, source: Callable[[], Result]) -> Outcome[Result]:
        started = time.perf_counter()
        try:
            result = source()
        except Exception as error:
            kind = type(error).__name__
            return Outcome(kind, 0.0, failure=f"failed: {kind}")
        finally:
            self._seats[name].release()
        return Outcome("ok", time.perf_counter() - started, result)


def _compute_alone() -> None:
    """Keep the libraries from starting threads of their own for this one: they would only wait for each other."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
