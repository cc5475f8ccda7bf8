"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def wait_for(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run ``coroutine`` to its end in the background loop of this process and return what it returns."""
    global _loop  # one loop a process: clients of the store belong to the loop they were made in
    with _lock:
        if _loop is None or not _loop.is_running():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="recommender-loop", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _loop).result()
