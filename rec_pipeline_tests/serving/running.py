"""The service in this process, on a free port of the loopback interface, for tests that speak HTTP with it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import SecretStr

from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.generation import list_generations
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.serving.http import guards
from rec_pipeline.serving.http.app import create_app
from rec_pipeline.serving.http.protocol import HurriedProtocol
from rec_pipeline.serving.http.rates import Rates
from rec_pipeline.serving.http.telemetry import Telemetry
from rec_pipeline.serving.recommenders import HybridRecommender
from rec_pipeline.settings import settings
from rec_pipeline_tests.fixtures.project import SampleRun
from rec_pipeline_tests.fixtures.store import be_patient
from rec_pipeline_tests.fixtures.waiting import LONG


@dataclass(frozen=True)
class Running:
    """A service, and a client of it."""

    recommender: HybridRecommender
    app: Any
    url: str
    client: httpx.Client


@contextmanager
def running(config: dict[str, Any], token: str | None = None, rates: Rates | None = None) -> Iterator[Running]:
    """Serve until the block ends; neither the store nor a request has less time than a busy machine may take."""
    with pytest.MonkeyPatch.context() as patch:
        be_patient(patch)
        patch.setattr(guards, "REQUEST_SECONDS", LONG)
        patch.setattr(HurriedProtocol, "patience_seconds", LONG)
        with _running({"source_budget": LONG, **config}, token, rates) as service:
            yield service


@contextmanager
def _running(config: dict[str, Any], token: str | None, rates: Rates | None) -> Iterator[Running]:
    telemetry = Telemetry()
    recommender = HybridRecommender(config, on_answer=telemetry.on_answer, on_source=telemetry.on_source)
    app = create_app(recommender, telemetry, SecretStr(token) if token else None, rates)
    server = uvicorn.Server(
        uvicorn.Config(app, http=HurriedProtocol, log_level="error", access_log=False, timeout_graceful_shutdown=5)
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(
            base_url=url, headers=headers, timeout=LONG, transport=httpx.HTTPTransport(retries=5), trust_env=False
        ) as client:
            client.get("/health/live")
            yield Running(recommender, app, url, client)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def served_sample(sample_project: SampleRun, store_url: str) -> Iterator[Running]:
    """Serve what the sample's run made, published to the session's store."""
    with pytest.MonkeyPatch.context() as patch, publisher_client(store_url) as client:
        patch.setenv("REC_DATA_DIR", str(sample_project.project.folder / "data"))
        patch.delenv("REC_REDIS_URL", raising=False)
        settings.cache_clear()
        try:
            client.flushall()
            publish(client, list_generations(settings().generations_dir)[-1])
            with running({"rt_config": {"redis_url": store_url}, "impressions": True, "text_budget": LONG}) as service:
                yield service
        finally:
            settings.cache_clear()
