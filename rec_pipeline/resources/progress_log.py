"""Progress of a long step as lines of its log: not one a batch, but one every few seconds and one at the end."""

import time
from collections.abc import Callable

import dagster as dg

SECONDS_BETWEEN_LINES = 3.0


def progress_log(
    context: dg.AssetExecutionContext, what: str, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """
    Return a callback for ``(done, of)`` that logs ``what`` with both numbers.

    Parameters
    ----------
    context
        The step whose log is written.
    what
        A sentence with ``{done:,}`` and ``{of:,}``.
    clock
        Seconds from any origin.
    """
    last = clock()

    def log(done: int, of: int) -> None:
        nonlocal last
        if done < of and clock() - last < SECONDS_BETWEEN_LINES:
            return
        last = clock()
        context.log.info(what.format(done=done, of=of))

    return log
