"""How many requests one client may make: a bucket of tokens each, filled at a constant rate."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MAX_CLIENTS: Final = 10_000
BURST_SECONDS: Final = 2.0


class Rates:
    """
    Buckets by client; the ones longest unused are given up beyond ``MAX_CLIENTS``.

    Parameters
    ----------
    per_second : float
        Requests a second that a client may make for as long as it likes; twice as many at once after a pause.
    clock
        Seconds that never go back.

    Examples
    --------
    >>> now = 0.0
    >>> rates = Rates(1, clock=lambda: now)
    >>> [rates.wait_seconds("a") for _ in range(3)]
    [0.0, 0.0, 1.0]
    >>> rates.wait_seconds("b")
    0.0
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock = per_second, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, client: str) -> float:
        """Count a request of ``client`` and return 0; or, where it has none left, the seconds until it has one."""
        now, full = self._clock(), max(1.0, self._per_second * BURST_SECONDS)
        tokens, at = self._buckets.get(client, (full, now))
        tokens = min(full, tokens + (now - at) * self._per_second)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait
