import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rec_pipeline.engine.errors import EmbeddedServerError
from rec_pipeline.resources.embedded_valkey import (
    ADDRESS_FILE,
    GLIBC_TUNABLES,
    ensure_server,
    running_server,
    stop_server,
)
from rec_pipeline_tests.fixtures.project import listening
from rec_pipeline_tests.fixtures.waiting import LONG


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Folder of a server that is stopped whatever the test did."""
    folder = tmp_path / "store"
    yield folder
    stop_server(folder)


def client_of(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, decode_responses=True)


def test_s07_s13_the_server_answers_on_its_socket_and_on_loopback(directory: Path) -> None:
    url = ensure_server(directory)

    server = running_server(directory)

    assert server is not None
    assert server.url == url
    with client_of(url) as client, client_of(server.tcp_url) as tcp_client:
        client.set("a", "1")
        assert tcp_client.get("a") == "1"
        assert listening([server.pid]) == ["127.0.0.1"]
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendonly")["appendonly"] == "yes"
    socket_file = Path(url.removeprefix("unix://"))
    assert socket_file.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(
    ("libc", "own", "expected"),
    [
        (("glibc", "2.36"), None, GLIBC_TUNABLES),
        (("glibc", "2.36"), "glibc.malloc.check=0", "glibc.malloc.check=0"),
        (("glibc", "2.28"), None, None),
        (("", ""), None, None),
    ],
)
def test_a_server_keeps_small_blocks_where_the_c_library_can(
    directory: Path, monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str], own: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", own)

    ensure_server(directory)

    server = running_server(directory)
    assert server is not None
    variables = Path(f"/proc/{server.pid}/environ").read_text().split("\0")
    found = [text.partition("=")[2] for text in variables if text.startswith("GLIBC_TUNABLES=")]
    assert found == ([] if expected is None else [expected])


def test_asking_again_attaches_to_the_same_server(directory: Path) -> None:
    ensure_server(directory)
    first = running_server(directory)

    ensure_server(directory)

    assert running_server(directory) == first


def test_many_at_once_start_one_server(directory: Path) -> None:
    code = (
        "import sys, pathlib; from rec_pipeline.resources import embedded_valkey as server;"
        "folder = pathlib.Path(sys.argv[1]); server.ensure_server(folder); print(server.running_server(folder).pid)"
    )
    command = [sys.executable, "-c", code, str(directory)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]  # noqa: S603 - our code

    pids = {process.communicate(timeout=LONG)[0].strip() for process in processes}

    server = running_server(directory)
    assert server is not None, "it must outlive the processes that started it"
    assert pids == {str(server.pid)}


def test_data_and_port_survive_a_stop(directory: Path) -> None:
    with client_of(ensure_server(directory)) as client:
        client.set("a", "1")
    before = running_server(directory)

    assert stop_server(directory)
    assert running_server(directory) is None
    with client_of(ensure_server(directory)) as client:
        assert client.get("a") == "1"

    after = running_server(directory)
    assert before is not None
    assert after is not None
    assert (after.pid != before.pid, after.tcp_url) == (True, before.tcp_url)


def test_a_server_that_hangs_is_reported_not_doubled_and_can_be_stopped(directory: Path) -> None:
    ensure_server(directory)
    server = running_server(directory)
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)

    with pytest.raises(EmbeddedServerError, match=f"pid={server.pid}.*does not answer"):
        ensure_server(directory)

    assert stop_server(directory)
    assert running_server(directory) is None


def test_a_killed_server_is_started_again(directory: Path) -> None:
    ensure_server(directory)
    server = running_server(directory)
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)

    with client_of(ensure_server(directory)) as client:
        assert client.ping()


def test_an_address_file_that_makes_no_sense_is_replaced(directory: Path) -> None:
    directory.mkdir()
    (directory / ADDRESS_FILE).write_text('{"pid": 1, "url": "unix:///nowhere", "tcp_url": "redis://127.0.0.1:1"}')

    with client_of(ensure_server(directory)) as client:
        assert client.ping()


def test_a_path_too_long_for_a_socket_is_no_obstacle(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30) / "ümlaut and space"

    try:
        url = ensure_server(directory)
        with client_of(url) as client:
            assert client.ping()
    finally:
        assert stop_server(directory)
    assert not Path(url.removeprefix("unix://")).parent.exists()


def test_stopping_what_does_not_run_says_so(tmp_path: Path) -> None:
    assert not stop_server(tmp_path / "absent")
    assert not stop_server(tmp_path)


def test_threads_of_one_process_share_one_server(directory: Path) -> None:
    urls: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(ensure_server(directory))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(urls) == 4
    assert len(set(urls)) == 1
