"""Reading published lists back, as any client does: one GET a user."""

from typing import Any

import redis
from redis.backoff import NoBackoff

from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.recommenders.list_schema import POPULAR_USER_ID
from rec_pipeline.engine.store.codec import PublishedList, decode_list
from rec_pipeline.engine.store.connection import StoreAddress
from rec_pipeline.engine.store.keys import POPULAR, live_key


def reader_client(url: str, timeout_seconds: float = 0.2) -> "redis.Redis":
    """
    Return a client that gives up early: one retry, at most ``timeout_seconds`` for each attempt.

    Raises
    ------
    ConfigurationError
        If the URL is in no form of ``StoreAddress``.
    redis.exceptions.RedisClusterException
        If no node of a Cluster can be reached.
    """
    try:
        return StoreAddress.parse(url).connect(
            retries=1,
            backoff=NoBackoff(),
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            client_name="rec-pipeline-reader",
        )
    except ValueError as error:
        raise ConfigurationError("the store's URL has a malformed part: host, port, database or option") from error


class RecommendationReader:
    """
    Reads users' lists.

    Parameters
    ----------
    client
        As ``reader_client`` makes it; errors of the connection are raised as redis-py's own.

    Examples
    --------
    >>> reader = RecommendationReader(reader_client("redis://127.0.0.1:6379"))
    >>> published = reader.get("u1")  # doctest: +SKIP
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client

    def get(self, user_id: str) -> PublishedList | None:
        """
        Return the list published for a user, or None where there is none.

        Raises
        ------
        InvalidIdError
            If ``user_id`` cannot be an id; nothing is sent.
        StoredValueError
            If what is stored is not a list made for this user.
        """
        return self._read(live_key(user_id), user_id)

    def popular(self) -> PublishedList | None:
        """Return the published popular list, or None before the first publication."""
        return self._read(POPULAR, POPULAR_USER_ID)

    def _read(self, key: str, user_id: str) -> PublishedList | None:
        value: Any = self._client.get(key)
        return None if value is None else decode_list(value.encode() if isinstance(value, str) else value, user_id)
