"""Clients for answers: they give up early, and know the same URLs as the publisher's (``engine.store.connection``)."""

from typing import Any, Final, cast

import redis.asyncio as aredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.store.connection import StoreAddress

CONNECTIONS: Final = 32
# redis-py leaves these without annotations.
_Sentinel: Any = Sentinel
_ClusterNode: Any = ClusterNode


class _BlockingSentinelPool(SentinelConnectionPool, aredis.BlockingConnectionPool):
    """Connections to the primary that Sentinel names; who finds all of them taken waits for one."""


class _SentinelClient(aredis.Redis):
    """Closes the connections to the Sentinels with its own."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all of them."""
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def online_client(url: str, seconds: float) -> "aredis.Redis":
    """
    Return a client with one retry and at most 32 connections; for a Cluster one that answers the same calls.

    Parameters
    ----------
    url
        In any form of ``StoreAddress``.
    seconds : float
        Most that one attempt to connect, to send or to receive may take, and the wait for a free connection.

    Raises
    ------
    ConfigurationError
        If the URL has another form.
    """
    address = StoreAddress.parse(url)
    options: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 1),
        "health_check_interval": 15,
        "max_connections": CONNECTIONS,
        "client_name": "rec-pipeline-serving",
    }
    if address.kind == "cluster":
        nodes = [_ClusterNode(host, port) for host, port in address.hosts]
        own = {key: value for key, value in address.options.items() if key != "db"}
        return cast("aredis.Redis", RedisCluster(startup_nodes=nodes, **own, **options))
    options["timeout"] = seconds
    if address.kind == "sentinel":
        timeouts = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
        sentinel = _Sentinel(list(address.hosts), sentinel_kwargs=address.sentinel_options | timeouts)
        return cast(
            "aredis.Redis",
            sentinel.master_for(address.service, _SentinelClient, _BlockingSentinelPool, **address.options, **options),
        )
    try:
        return aredis.Redis.from_pool(aredis.BlockingConnectionPool.from_url(url, **options))
    except ValueError as error:
        raise ConfigurationError("the store's URL has a malformed part: host, port, database or option") from error
