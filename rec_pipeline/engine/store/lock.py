"""The lease that keeps two publishers from working on one store at a time."""

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.exceptions import RedisError

from rec_pipeline.engine.errors import LockHeldError
from rec_pipeline.engine.store.keys import LOCK

_EXTEND: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
_RELEASE: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('UNLINK', KEYS[1]) or 0"


class PublishLock:
    """
    A lock that expires by itself when its holder dies.

    It is an optimisation of order, not what keeps lists right: a holder that stalls past its lease may wake up while
    another one works, and then the generation fences of the publisher hold it off.

    Parameters
    ----------
    client
        Client of the store.
    holder
        Who publishes, for the message to others.
    lease_seconds : int
        How long the lock outlives its last renewal.
    """

    def __init__(self, client: "redis.Redis", holder: str, lease_seconds: int) -> None:
        self._client = client
        self._lease_ms = lease_seconds * 1000
        self._value = json.dumps(
            {
                "token": uuid.uuid4().hex,
                "holder": holder,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": time.time(),
            }
        )
        self._extend = client.register_script(_EXTEND)
        self._release = client.register_script(_RELEASE)
        self._renewed_at = 0.0

    def __enter__(self) -> Self:
        # A repeated SET after a lost reply finds this very value: then the lock is ours as well.
        if not self._client.set(LOCK, self._value, nx=True, px=self._lease_ms) and self._stored() != self._value:
            raise LockHeldError(describe_lock(self._client) or "the lock was held a moment ago: try again")
        self._renewed_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where the store is gone or refuses, the lease ends by itself and the error under way says why.
        with suppress(RedisError):
            self._release(keys=[LOCK], args=[self._value])

    def renew(self) -> None:
        """
        Extend the lease when a quarter of it has passed; cheap enough to call for every batch.

        Raises
        ------
        LockHeldError
            If the lease had ended: another publisher may be at work.
        """
        if (time.monotonic() - self._renewed_at) * 1000 < self._lease_ms / 4:
            return
        if not self._extend(keys=[LOCK], args=[self._value, self._lease_ms]):
            found = describe_lock(self._client) or "nobody holds it now"
            raise LockHeldError(
                f"this publisher stalled past its lease of {self._lease_ms // 1000} s and lost it; {found}"
            )
        self._renewed_at = time.monotonic()

    def _stored(self) -> str | None:
        value: Any = self._client.get(LOCK)
        return value.decode() if isinstance(value, bytes) else value


def lock_holder(client: "redis.Redis") -> dict[str, Any] | None:
    """Return who holds the lock (holder, host, pid, since, expires_in_seconds), or None."""
    value: Any = client.get(LOCK)
    if value is None:
        return None
    try:
        holder = json.loads(value)
    except ValueError:
        holder = {}
    fields = {name: holder.get(name) for name in ("holder", "host", "pid", "since")} if isinstance(holder, dict) else {}
    return {**fields, "expires_in_seconds": max(0, int(client.pttl(LOCK))) / 1000}


def describe_lock(client: "redis.Redis") -> str | None:
    """Return a sentence about the holder of the lock, or None if it is free."""
    holder = lock_holder(client)
    if holder is None:
        return None
    since = holder.get("since")
    age = f"{time.time() - since:.0f} s ago" if isinstance(since, int | float) else "at an unknown time"
    return (
        f"publisher {holder.get('holder')!r} on {holder.get('host')} (pid {holder.get('pid')}) took the lock {age}; "
        f"if it died, the lock expires in {holder['expires_in_seconds']:.0f} s"
    )
