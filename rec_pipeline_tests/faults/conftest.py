"""Servers and arenas for the faults."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rec_pipeline_tests.faults.arena import Arena
from rec_pipeline_tests.faults.servers import Server

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="no redis-server on the PATH: make extras"
)
KINDS = [pytest.param("valkey"), pytest.param("redis", marks=needs_redis)]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A Valkey with an append-only file; of another kind where the test is parametrised so, indirectly."""
    with Server(getattr(request, "param", "valkey")) as server:
        yield server


@pytest.fixture
def arena(server: Server, tmp_path: Path) -> Arena:
    """The server with one generation live."""
    arena = Arena(server.url, tmp_path)
    arena.publish()
    return arena
