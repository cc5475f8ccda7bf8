"""What the publisher asks of the servers before it writes, and words for their refusals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self, cast

import redis
from redis.cluster import RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)

from rec_pipeline.engine.errors import ConfigurationError, PublishRefusedError
from rec_pipeline.engine.store.cluster import primaries

STORE_ERRORS: Final = (RedisError, RedisClusterException)  # a Cluster's own errors are not among redis-py's others
OLDEST_VERSION: Final = (6, 2)
FULL_FROM: Final = 0.9
WARN_FROM: Final = 0.75


def explain(error: RedisError | RedisClusterException) -> str:
    """Return what a store's refusal means and what to do about it."""
    text = str(error).rstrip(".")
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
        case ClusterDownError() | RedisClusterException():
            return f"the Cluster is not whole: {text}"
        case redis.TimeoutError():
            return f"the server did not answer in time: {text}"
        case redis.ConnectionError():
            return f"the server cannot be reached: {text}"
    if text.startswith("MISCONF"):
        return "the server refuses writes because it cannot save to its disk (MISCONF): see its log, free its disk"
    return f"the server refused: {text}"


def is_refusal(error: RedisError | RedisClusterException) -> bool:
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
    clock_seconds
        Its clock, epoch seconds.
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
    clock_seconds: float

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> Self:
        """Take them from a reply to INFO."""
        name = "valkey" if "valkey_version" in info else "redis"
        return cls(
            name=name,
            version=str(info[f"{name}_version"]),
            compatible_version=tuple(int(part) for part in str(info["redis_version"]).split(".")[:3]),
            role=str(info["role"]),
            policy=str(info["maxmemory_policy"]),
            used_bytes=int(info["used_memory"]),
            max_bytes=int(info["maxmemory"]),
            evicted_keys=int(info["evicted_keys"]),
            run_id=str(info["run_id"]),
            has_append_only_file=bool(info["aof_enabled"]),
            clock_seconds=int(info["server_time_usec"]) / 1e6,
        )

    @property
    def release(self) -> tuple[tuple[int, int], int]:
        """Its own version as ((major, minor), patch)."""
        numbers = [int(part) for part in self.version.split(".")[:3] if part.isdigit()]
        major, minor, patch = [*numbers, 0, 0, 0][:3]
        return (major, minor), patch

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


@dataclass(frozen=True)
class StoreFacts:
    """
    The same of every primary of the store: one, or those of a Cluster that hold slots.

    Attributes
    ----------
    servers
        At least one.
    """

    servers: tuple[ServerFacts, ...]

    @classmethod
    def ask(cls, client: "redis.Redis") -> Self:
        """
        Read them.

        Raises
        ------
        redis.exceptions.ClusterDownError
            If a Cluster does not cover every slot.
        """
        cluster: Any = client
        if not isinstance(cluster, RedisCluster):
            client.ping()
            return cls((ServerFacts.read(cast("Any", client.info("everything"))),))
        state: Any = cluster.cluster_info(target_nodes=RedisCluster.DEFAULT_NODE)  # one that has answered
        if state.get("cluster_state") != "ok" or int(state.get("cluster_slots_ok", 0)) != REDIS_CLUSTER_HASH_SLOTS:
            raise ClusterDownError(
                f"state {state.get('cluster_state')}, {state.get('cluster_slots_ok')} of {REDIS_CLUSTER_HASH_SLOTS} "
                "slots served"
            )
        infos = [cast("Any", node.redis_connection.info("everything")) for node in primaries(cluster)]
        return cls(tuple(ServerFacts.read(info) for info in infos))

    @property
    def run_ids(self) -> frozenset[str]:
        """Of every primary; one that is gone later was restarted or replaced."""
        return frozenset(facts.run_id for facts in self.servers)

    @property
    def clock_seconds(self) -> float:
        """Clock of the first of them."""
        return self.servers[0].clock_seconds

    @property
    def evicted_keys(self) -> int:
        """Keys evicted by all of them."""
        return sum(facts.evicted_keys for facts in self.servers)

    def after_freeing(self, n_bytes: int) -> Self:
        """Return the facts as they will be once ``n_bytes`` are free again; a Cluster frees them evenly."""
        share = n_bytes // len(self.servers)
        return type(self)(tuple(replace(facts, used_bytes=facts.used_bytes - share) for facts in self.servers))

    def check(self, needed_bytes: int, *, allow_eviction: bool) -> list[str]:
        """Check each primary as ``ServerFacts.check`` does; a Cluster spreads the memory evenly."""
        share = needed_bytes // len(self.servers)
        warnings = [warning for facts in self.servers for warning in facts.check(share, allow_eviction=allow_eviction)]
        return list(dict.fromkeys(warnings))


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
