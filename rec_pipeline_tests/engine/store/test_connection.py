from typing import Any

import pytest
import redis

from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.store.connection import StoreAddress, publisher_client


def test_sentinels_and_cluster_nodes_are_read_from_one_url() -> None:
    sentinel = StoreAddress.parse("rediss+sentinel://pub:p%40ss@a:1,b/main/2?sentinel_password=other&ssl_ca_certs=/ca")
    cluster = StoreAddress.parse("redis+cluster://:secret@a:7000,b:7001")

    assert (sentinel.kind, sentinel.hosts, sentinel.service) == ("sentinel", (("a", 1), ("b", 26379)), "main")
    assert sentinel.options == {"username": "pub", "password": "p@ss", "db": 2, "ssl": True, "ssl_ca_certs": "/ca"}
    assert sentinel.sentinel_options == {"password": "other", "ssl": True, "ssl_ca_certs": "/ca"}
    assert (cluster.kind, cluster.hosts) == ("cluster", (("a", 7000), ("b", 7001)))
    assert cluster.options == {"password": "secret", "ssl": False}
    assert "secret" not in repr(cluster)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@host",
        "redis+sentinel://:hunter2@host:26379",
        "redis+sentinel://:hunter2@host:port/main",
        "redis+cluster://:hunter2@:7000",
        "unix+cluster://hunter2",
        "redis://:hunter2@host:port",
    ],
)
def test_a_malformed_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        publisher_client(url)

    assert "hunter2" not in str(caught.value)


def test_a_connection_that_is_lost_while_it_is_handed_out_is_made_again(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_out: Any = redis.ConnectionPool.get_connection
    n_lost = []

    def lose_two(pool: redis.ConnectionPool, *arguments: Any) -> Any:
        if len(n_lost) < 2:
            n_lost.append(1)
            raise redis.ConnectionError("Connection closed by server.")
        return hand_out(pool, *arguments)

    monkeypatch.setattr(redis.ConnectionPool, "get_connection", lose_two)

    with publisher_client(store_url) as client:
        assert client.ping()
    assert len(n_lost) == 2
