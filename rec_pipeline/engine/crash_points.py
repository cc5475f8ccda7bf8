"""
Points at which a test of robustness may end this process.

``REC_FAULT=flip:300:KILL`` (a setting) arms one point: when 300 users are flipped the process sends itself SIGKILL, at
an instant that no kill from outside could choose. Unarmed, a point costs one comparison.
"""

import os
import signal
from dataclasses import dataclass
from typing import Self

from rec_pipeline.engine.errors import ConfigurationError


@dataclass(frozen=True)
class CrashPoint:
    """
    Where and how the process ends.

    Attributes
    ----------
    name, count
        The point, and how far its work must have come: users of a phase, epochs; 1 for a point that is passed once.
    signal
        What the process sends itself.
    """

    name: str
    count: int
    signal: signal.Signals

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read ``<point>:<count>:<signal>``.

        Raises
        ------
        ConfigurationError
            If it is written otherwise.

        Examples
        --------
        >>> CrashPoint.parse("flip:300:KILL").count
        300
        """
        try:
            name, count, number = text.split(":")
            return cls(name, int(count), signal.Signals[f"SIG{number}"])
        except (ValueError, KeyError) as error:
            raise ConfigurationError(f"REC_FAULT is {text!r}, expected <point>:<count>:<signal>") from error


_armed: CrashPoint | None = None


def arm(point: CrashPoint | None) -> None:
    """Arm one point in this process, or none."""
    global _armed
    _armed = point


def reach(name: str, count: int = 1) -> None:
    """Say that the work has come to a point; an armed point fires once."""
    global _armed
    if _armed is not None and _armed.name == name and count >= _armed.count:
        point, _armed = _armed, None
        os.kill(os.getpid(), point.signal)
