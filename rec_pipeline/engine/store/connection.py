"""
Clients of the store, from one URL: a server, a server behind Sentinel, or a Cluster, with or without TLS.

========================================  ==================================================
``redis://user:password@host:6379/0``     one server; ``rediss://`` with TLS, ``unix://`` a socket
``redis+sentinel://host:26379,host/name``  the primary that Sentinel calls ``name``
``redis+cluster://host:7000,host:7001``   a Cluster; any of its nodes
========================================  ==================================================

``rediss+sentinel`` and ``rediss+cluster`` add TLS. Options follow as a query: ``ssl_ca_certs=/path``,
``sentinel_username``, ``sentinel_password``. Certificates and host names are verified unless an option says otherwise.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Final, Self, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import AbstractBackoff, ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url as _untyped_parse_url
from redis.exceptions import AuthenticationError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from rec_pipeline.engine.errors import ConfigurationError, PublishFailedError

PATIENCE_SECONDS: Final = 25.0
"""No command is tried again later than this after its first try."""
DEFAULT_PORTS: Final = {"sentinel": 26379, "cluster": 6379}
# redis-py leaves these without annotations.
_parse_url: Any = _untyped_parse_url
_Sentinel: Any = Sentinel
_ClusterNode: Any = ClusterNode


class PatientRetry(Retry):
    """
    Retries lost connections within a budget of time, and never refused credentials.

    redis-py counts refused credentials among connection errors, where trying again only adds to the server's log.
    """

    def call_with_retry(self, do: Any, fail: Any, is_retryable: Any = None, with_failure_count: bool = False) -> Any:
        """Call ``do`` until it succeeds, as ``Retry`` does, within the budget."""
        deadline = time.monotonic() + PATIENCE_SECONDS

        def may_retry(error: Exception) -> bool:
            if isinstance(error, AuthenticationError) or time.monotonic() > deadline:
                return False
            return is_retryable is None or bool(is_retryable(error))

        return super().call_with_retry(do, fail, may_retry, with_failure_count)


class _PatientPool(redis.ConnectionPool):
    """Connections to a server; one that is lost in the moment it is handed out is made again, as redis-py does once."""

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        """Return a connection that is ready."""
        get: Any = super().get_connection
        return PatientRetry(NoBackoff(), 2).call_with_retry(lambda: get(*arguments, **options), lambda _: None)


@dataclass(frozen=True)
class StoreAddress:
    """
    Where the store is.

    Attributes
    ----------
    kind
        ``server``, ``sentinel`` or ``cluster``.
    url
        As given; it may hold a password, so it is in no repr.
    hosts
        Nodes of a Cluster, or Sentinels.
    service
        Name of the primary at Sentinel.
    options
        Keyword arguments for redis-py: credentials, TLS.
    sentinel_options
        Those for Sentinel itself.
    """

    kind: str
    url: str = field(repr=False)
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """
        Read a URL of the store.

        Raises
        ------
        ConfigurationError
            If it has another form; the message does not repeat the URL, which may hold a password.

        Examples
        --------
        >>> StoreAddress.parse("redis+cluster://a:7000,b").hosts
        (('a', 7000), ('b', 6379))
        """
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigurationError("the store's URL has a malformed host") from error
        scheme, _, kind = parts.scheme.partition("+")
        if not kind and scheme in {"redis", "rediss", "unix"}:
            return cls("server", url)
        if kind not in DEFAULT_PORTS or scheme not in {"redis", "rediss"}:
            raise ConfigurationError(
                "the store's URL must begin with redis://, rediss:// or unix://, or redis+sentinel://, redis+cluster://"
            )
        credentials, _, nodes = parts.netloc.rpartition("@")
        service, _, database = parts.path.strip("/").partition("/")
        try:
            hosts = tuple(_host(node, DEFAULT_PORTS[kind]) for node in nodes.split(","))
            options: dict[str, Any] = _parse_url(f"{scheme}://host?{parts.query}")
            options["db"] = int(database) if database else None
        except ValueError as error:
            raise ConfigurationError(
                f"the store's URL has a malformed part: {kind} hosts, database or option"
            ) from error
        if kind == "sentinel" and not service:
            raise ConfigurationError("a redis+sentinel:// URL must end in the name of the primary: /<name>")
        username, _, password = credentials.rpartition(":") if ":" in credentials else (credentials, "", "")
        options |= {"username": unquote(username) or None, "password": unquote(password) or None}
        options.pop("host", None)
        options.pop("connection_class", None)
        prefix = "sentinel_"
        own = {key.removeprefix(prefix): value for key, value in parse_qsl(parts.query) if key.startswith(prefix)}
        tls = {key: value for key, value in options.items() if key.startswith("ssl_")} | {"ssl": scheme == "rediss"}
        options = {key: value for key, value in options.items() if value is not None and not key.startswith(prefix)}
        return cls(kind, url, hosts, service, options | tls, own | tls)

    def connect(self, *, retries: int, backoff: AbstractBackoff, **options: Any) -> "redis.Redis":
        """
        Return a client; for a Cluster one that answers the same calls.

        Parameters
        ----------
        retries
            Times a command is sent again after a lost connection.
        backoff
            Pauses between them.
        options
            Keyword arguments for redis-py: timeouts, the client's name.

        Raises
        ------
        redis.exceptions.RedisClusterException
            If no node of a Cluster can be reached.
        """
        retry = PatientRetry(backoff, retries)
        if self.kind == "server":
            return redis.Redis.from_pool(_PatientPool.from_url(self.url, retry=retry, **options))
        if self.kind == "sentinel":
            timeouts = {key: value for key, value in options.items() if key.startswith("socket_")}
            sentinel = _Sentinel(list(self.hosts), sentinel_kwargs=self.sentinel_options | timeouts, **self.options)
            return cast("redis.Redis", sentinel.master_for(self.service, retry=retry, **options))
        nodes = [_ClusterNode(host, port) for host, port in self.hosts]
        own = {key: value for key, value in self.options.items() if key != "db"}
        return cast("redis.Redis", RedisCluster(startup_nodes=nodes, retry=retry, **own, **options))


def publisher_client(url: str) -> "redis.Redis":
    """
    Return a client with the patience of a publisher: 5 s timeouts, 5 retries with growing, jittered pauses.

    No retry begins after 25 s. Behind Sentinel and in a Cluster it is more patient, as a failover takes its time.

    Parameters
    ----------
    url
        In one of the forms above.

    Raises
    ------
    ConfigurationError
        If the URL has another form.
    PublishFailedError
        If no node of a Cluster can be reached.
    """
    address = StoreAddress.parse(url)
    try:
        return address.connect(
            retries=5 if address.kind == "server" else 20,
            backoff=ExponentialWithJitterBackoff(base=0.05, cap=2),
            socket_timeout=5,
            socket_connect_timeout=5,
            client_name="rec-pipeline-publisher",
        )
    except RedisClusterException as error:
        raise PublishFailedError(f"no node of the Cluster can be reached: {error}") from error
    except ValueError as error:
        raise ConfigurationError("the store's URL has a malformed part: host, port, database or option") from error


def _host(node: str, default_port: int) -> tuple[str, int]:
    host, _, port = node.rpartition(":") if ":" in node else (node, "", "")
    if not host:
        raise ValueError(node)
    return host, int(port) if port else default_port
