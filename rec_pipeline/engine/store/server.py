"""What the publisher asks of a server: a patient client, checks before it writes, and words for its refusals."""

from dataclasses import dataclass
from typing import Any, Final, Self

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.retry import Retry

from rec_pipeline.engine.errors import ConfigurationError, PublishRefusedError

OLDEST_VERSION: Final = (6, 2)
FULL_FROM: Final = 0.9
WARN_FROM: Final = 0.75


class _RetryUnlessRefused(Retry):
    """Retries lost connections but not refused credentials, which redis-py counts among connection errors."""

    def call_with_retry(self, do: Any, fail: Any, is_retryable: Any = None, with_failure_count: bool = False) -> Any:
        return super().call_with_retry(
            do,
            fail,
            is_retryable or (lambda error: not isinstance(error, AuthenticationError)),
            with_failure_count,
        )


def publisher_client(url: str) -> "redis.Redis":
    """
    Return a client with the patience of a publisher: 5 s timeouts, 5 retries with growing, jittered pauses.

    Parameters
    ----------
    url
        ``redis://``, ``rediss://`` or ``unix://``.

    Raises
    ------
    ConfigurationError
        If the URL has another scheme; the message does not repeat the URL, which may hold a password.
    """
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=5,
            socket_connect_timeout=5,
            retry=_RetryUnlessRefused(ExponentialWithJitterBackoff(base=0.05, cap=2), 5),
            client_name="rec-pipeline-publisher",
        )
    except ValueError as error:
        raise ConfigurationError("the store's URL must begin with redis://, rediss:// or unix://") from error


def explain(error: RedisError) -> str:
    """Return what a store's refusal means and what to do about it."""
    text = str(error)
    match error:
        case ReadOnlyError():
            return "the server is a read-only replica (READONLY): publish to its primary"
        case BusyLoadingError():
            return "the server is still loading its data (LOADING): try again in a moment"
        case AuthenticationError():
            return f"the server refuses the credentials (NOAUTH or WRONGPASS: {text}): put user and password in the URL"
        case NoPermissionError():
            return f"the server's ACL forbids it (NOPERM: {text}): grant the publishing user this command and key"
        case OutOfMemoryError():
            return "the server is out of memory (OOM): raise maxmemory, or publish in more shards"
        case redis.TimeoutError():
            return f"the server did not answer in time: {text}"
        case redis.ConnectionError():
            return f"the server cannot be reached: {text}"
    if text.startswith("MISCONF"):
        return "the server refuses writes because it cannot save to its disk (MISCONF): see its log, free its disk"
    return f"the server refused: {text}"


def is_refusal(error: RedisError) -> bool:
    """Tell whether trying the same again would meet the same error."""
    return isinstance(error, ReadOnlyError | AuthenticationError | NoPermissionError)


def text_fields(client: "redis.Redis", key: str) -> dict[str, str]:
    """Return a hash as text, whether or not the client decodes replies."""
    found: Any = client.hgetall(key)
    return {_text(name): _text(value) for name, value in found.items()}


def number_at(client: "redis.Redis", key: str) -> int | None:
    """Return the integer at a key, or None where there is none."""
    value: Any = client.get(key)
    return None if value is None else int(value)


@dataclass(frozen=True)
class ServerFacts:
    """
    What a server says about itself.

    Attributes
    ----------
    name, version
        ``valkey`` or ``redis``, and the version as it states it.
    compatible_version
        The Redis version whose commands it speaks.
    role, policy
        ``master`` or ``slave``; its ``maxmemory-policy``.
    used_bytes, max_bytes
        Memory in use and its limit; a limit of 0 is none.
    evicted_keys
        Keys it has evicted since it started.
    run_id
        Differs after a restart or a failover.
    has_append_only_file
        Whether what it acknowledged survives its being killed, but for the last second.
    """

    name: str
    version: str
    compatible_version: tuple[int, ...]
    role: str
    policy: str
    used_bytes: int
    max_bytes: int
    evicted_keys: int
    run_id: str
    has_append_only_file: bool

    @classmethod
    def ask(cls, client: "redis.Redis") -> Self:
        """Read them with PING and INFO."""
        client.ping()
        info: Any = client.info("everything")
        name = "valkey" if "valkey_version" in info else "redis"
        return cls(
            name=name,
            version=str(info[f"{name}_version"]),
            compatible_version=tuple(int(part) for part in str(info["redis_version"]).split(".")[:2]),
            role=str(info["role"]),
            policy=str(info["maxmemory_policy"]),
            used_bytes=int(info["used_memory"]),
            max_bytes=int(info["maxmemory"]),
            evicted_keys=int(info["evicted_keys"]),
            run_id=str(info["run_id"]),
            has_append_only_file=bool(info["aof_enabled"]),
        )

    def check(self, needed_bytes: int, *, allow_eviction: bool) -> list[str]:
        """
        Refuse a server that cannot take a publication safely.

        Parameters
        ----------
        needed_bytes : int
            Estimate of the memory the publication adds at its peak.
        allow_eviction : bool
            Accept a server that may evict live lists.

        Returns
        -------
        Warnings, one sentence each.

        Raises
        ------
        ConfigurationError
            For a server too old or one that evicts keys.
        PublishRefusedError
            For a replica, or where the memory would not suffice.
        """
        if self.compatible_version < OLDEST_VERSION:
            raise ConfigurationError(f"the store runs {self.name} {self.version}, expected Redis or Valkey >= 6.2")
        if self.role != "master":
            raise PublishRefusedError(f"the store is a read-only replica (role {self.role}): publish to its primary")
        if self.policy != "noeviction" and not allow_eviction:
            raise ConfigurationError(
                f"the store's maxmemory-policy is {self.policy}, with which it drops live lists without an error: run "
                "CONFIG SET maxmemory-policy noeviction, or allow eviction"
            )
        peak = self.used_bytes + needed_bytes
        if self.max_bytes and peak > FULL_FROM * self.max_bytes:
            raise PublishRefusedError(
                f"publishing needs about {needed_bytes:,} bytes on top of {self.used_bytes:,}, over {FULL_FROM:.0%} of "
                f"the store's maxmemory {self.max_bytes:,}: raise maxmemory or publish in more shards"
            )
        warnings = []
        if self.max_bytes and peak > WARN_FROM * self.max_bytes:
            warnings.append(f"memory will reach {peak / self.max_bytes:.0%} of maxmemory")
        if not self.has_append_only_file:
            warnings.append("appendonly is off: if the store dies, lists newer than its last snapshot are gone")
        return warnings


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
