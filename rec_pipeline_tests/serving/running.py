"""The service in this process, on a free port of the loopback interface, for tests that speak HTTP with it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from pydantic import SecretStr

from rec_pipeline.serving.http.app import create_app
from rec_pipeline.serving.http.telemetry import Telemetry
from rec_pipeline.serving.recommenders import HybridRecommender


@dataclass(frozen=True)
class Running:
    """A service, and a client of it."""

    recommender: HybridRecommender
    app: Any
    url: str
    client: httpx.Client


@contextmanager
def running(config: dict[str, Any], token: str | None = None) -> Iterator[Running]:
    """Serve until the block ends."""
    telemetry = Telemetry()
    recommender = HybridRecommender(config, on_answer=telemetry.on_answer, on_source=telemetry.on_source)
    app = create_app(recommender, telemetry, SecretStr(token) if token else None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=5))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(
            base_url=url, headers=headers, timeout=20, transport=httpx.HTTPTransport(retries=5), trust_env=False
        ) as client:
            client.get("/health/live")
            yield Running(recommender, app, url, client)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
