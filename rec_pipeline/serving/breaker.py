"""A switch that stops asking a store that does not answer, and tries it again once a second."""

import time
from collections import deque
from dataclasses import dataclass, field


@dataclass
class Breaker:
    """
    Opens after ``failures`` failures within ``window`` seconds; then lets one probe through every ``pause`` seconds.

    Attributes
    ----------
    failures, window, pause
        As above.
    """

    failures: int = 5
    window: float = 1.0
    pause: float = 1.0
    _failed_at: deque[float] = field(default_factory=deque, repr=False)
    _next_probe: float | None = field(default=None, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for the probes."""
        return self._next_probe is not None

    def allows(self) -> bool:
        """Tell whether to make a call now; a call that is allowed while open is the probe."""
        if self._next_probe is None:
            return True
        now = time.monotonic()
        if now < self._next_probe:
            return False
        self._next_probe = now + self.pause
        return True

    def succeeded(self) -> None:
        """Close: the store answers."""
        if self._next_probe is not None or self._failed_at:
            self._next_probe = None
            self._failed_at.clear()

    def failed(self) -> None:
        """Count a failure, and open at the last one allowed."""
        now = time.monotonic()
        self._failed_at.append(now)
        while self._failed_at and self._failed_at[0] < now - self.window:
            self._failed_at.popleft()
        if self._next_probe is None and len(self._failed_at) >= self.failures:
            self._next_probe = now + self.pause
