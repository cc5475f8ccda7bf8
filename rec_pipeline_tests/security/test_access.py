"""S08, with the recipes of docs/OPERATIONS.md: the users can do what they must and no more, and only over TLS."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.events import EventRules, make_event
from rec_pipeline.engine.errors import PublishRefusedError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.doctor import examine
from rec_pipeline.engine.store.drain import backlog, drain
from rec_pipeline.engine.store.forgetting import forget, remember
from rec_pipeline.engine.store.publisher import plan, publish, rollback, unpin
from rec_pipeline.engine.store.reader import RecommendationReader, reader_client
from rec_pipeline.engine.store.status import status
from rec_pipeline.serving.store import OnlineStore, StoreUnavailableError
from rec_pipeline_tests.faults.conftest import needs_redis
from rec_pipeline_tests.faults.servers import Server, binary
from rec_pipeline_tests.fixtures.operations import PASSWORDS, USERS, blocks
from rec_pipeline_tests.fixtures.store import look_at, patiently, seal_lists
from rec_pipeline_tests.fixtures.waiting import LONG, free_port, wait_until

FORBIDDEN = {
    "rec_pub": ["FLUSHALL", "DEL x", "KEYS *", "CONFIG SET maxmemory 1", "ACL WHOAMI", "SET session:1 x", "SHUTDOWN"],
    "rec_serve": ["FLUSHALL", "SET recommendations:u1 x", "DEL x", "KEYS *", "RENAME a b", "CONFIG GET dir", "INFO"],
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what the page's commands make."""
    folder = tmp_path_factory.mktemp("tls")
    for command in blocks("TLS", "sh")[0].splitlines():
        subprocess.run(["/bin/sh", "-c", command], cwd=folder, check=True, capture_output=True)  # noqa: S603
    return folder


def url_of(user: str, folder: Path, port: int, host: str = "localhost") -> str:
    return f"rediss://{user}:{PASSWORDS[user]}@{host}:{port}/0?ssl_ca_certs={folder}/ca.crt"


@pytest.fixture(scope="module", params=["valkey", pytest.param("redis", marks=needs_redis)])
def secured(request: pytest.FixtureRequest, certificates: Path) -> Iterator[tuple[Path, int]]:
    """Certificates, and the port of a server as the page configures it; Valkey's wheel has its TLS in front."""
    port = free_port()
    if request.param == "redis":
        rules = "".join(f"user {name} {rule}\n" for name, rule in USERS.items())
        (certificates / "users.acl").write_text(rules)
        config = blocks("TLS", "conf")[0].replace("6380", str(port))
        (certificates / "store.conf").write_text(config)
        with (certificates / "log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [binary("redis"), "store.conf", "--appendonly", "yes"], cwd=certificates, stdout=log, stderr=log
            )
        try:
            with redis.Redis.from_url(url_of("rec_pub", certificates, port)) as client:
                wait_until(client.ping, despite=(redis.RedisError,))
            yield certificates, port
        finally:
            process.kill()
            process.wait()
        return
    with Server() as server:
        front = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "rec_pipeline_tests.fixtures.tls_front", str(port), str(server.port),
             str(certificates / "server.crt"), str(certificates / "server.key")],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert front.stdout is not None
            assert front.stdout.readline() == b"ready\n"
            for name in ("rec_pub", "rec_serve", "default"):
                server.ask("ACL", "SETUSER", name, *USERS[name].split())
            yield certificates, port
        finally:
            front.kill()
            front.communicate()


def test_s08_the_publisher_and_the_service_can_do_all_they_must(secured: tuple[Path, int], tmp_path: Path) -> None:
    online, rules = OnlineStore(url_of("rec_serve", *secured)), EventRules()
    event = make_event(rules, user_id="u1", item_id="i1", event_type="click")

    with publisher_client(url_of("rec_pub", *secured)) as client:
        for tag in ("g1", "g2"):
            publish(client, seal_lists(tmp_path, ["u1", "u2"], tag))
        rollback(client, tmp_path)
        assert plan(client, seal_lists(tmp_path, ["u1", "u2"], "g4")).refusal is not None
        assert unpin(client) == 3
        assert "fail" not in {finding.level for finding in examine(client, tmp_path)}
        forget(client, tmp_path, "u2")
        remember(client, tmp_path, "u2")

        async def use() -> Any:
            try:
                assert (await online.record([event, event], rules)).n_new == 1
                await online.append([{"event_type": "impression"}], 100)
                await patiently(lambda: online.keep_answer("u1", "field", b"an answer", 60))
                assert await patiently(lambda: online.read_answer("u1", "field")) == (1, b"an answer")
                assert await patiently(online.popular) is not None
                return await patiently(lambda: online.read_user("u1"))
            finally:
                await online.close()

        read = asyncio.run(use())
        assert (read.published.generation, read.published.items[0].item_id) == (3, "g1-0")
        assert drain(client, EventLog(tmp_path / "log"), rules).n_entries == 2
        assert backlog(client).n_entries == 0
        assert status(client, tmp_path).live == 3


@pytest.mark.parametrize("user", FORBIDDEN)
def test_s08_they_can_do_nothing_else(secured: tuple[Path, int], user: str) -> None:
    with redis.Redis.from_url(url_of(user, *secured)) as client:
        for command in FORBIDDEN[user]:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())


def test_s08_without_a_user_or_with_a_wrong_password_nothing_is_answered(secured: tuple[Path, int]) -> None:
    folder, port = secured
    anonymous = f"rediss://localhost:{port}/0?ssl_ca_certs={folder}/ca.crt"

    for url in (anonymous, url_of("rec_pub", folder, port).replace("PUBLISHER", "hunter2")):
        with publisher_client(url) as client, pytest.raises(PublishRefusedError, match="credentials") as caught:
            status(client, folder)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_s08_a_certificate_of_another_host_or_of_an_unknown_authority_is_refused(
    secured: tuple[Path, int], host: str
) -> None:
    folder, port = secured
    url = url_of("rec_serve", folder, port, host)  # the certificate is for localhost
    url = url if host == "127.0.0.1" else url.partition("?")[0]

    with reader_client(url, timeout_seconds=LONG) as client, pytest.raises(redis.ConnectionError, match="certificate"):
        RecommendationReader(client).get("u1")
    with pytest.raises(StoreUnavailableError, match=r"certificate|did not answer in time"):
        asyncio.run(look_at(url))


def test_s08_without_tls_nothing_is_answered(secured: tuple[Path, int]) -> None:
    _, port = secured

    with reader_client(f"redis://localhost:{port}", 1) as client, pytest.raises(redis.RedisError):
        client.get(keys.CURRENT)
