"""The service as a process: one worker, stopped by Ctrl-C or SIGTERM after the requests under way are answered."""

import gc
import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from pydantic import SecretStr

from rec_pipeline.serving.http.app import create_app
from rec_pipeline.serving.http.protocol import HurriedProtocol
from rec_pipeline.serving.http.rates import Rates
from rec_pipeline.serving.http.telemetry import Telemetry
from rec_pipeline.serving.params import RecommenderConfig
from rec_pipeline.serving.recommenders import HybridRecommender

GRACE_SECONDS = 5
TEXT_SECONDS = 2.0  # the encoder loads once requests are answered; until then words count for nothing, which is said


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def run_service(
    config: RecommenderConfig,
    host: str,
    port: int,
    token: SecretStr | None,
    rates: Rates | None,
    on_ready: Callable[[], None],
) -> bool:
    """
    Serve until a signal comes.

    Returns
    -------
    bool
        False if the address could not be listened on.
    """
    import torch

    torch.set_num_threads(1)  # answers are made side by side; threads inside one only wait for each other
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn ends on them, and then raises them once more
    telemetry = Telemetry()
    config = config.model_copy(update={"text_budget": TEXT_SECONDS})
    recommender = HybridRecommender(config, on_answer=telemetry.on_answer, on_source=telemetry.on_source)

    def frozen(_: object) -> None:
        gc.freeze()
        gc.enable()

    def ready() -> None:
        gc.collect()
        gc.freeze()  # modules and the bundle live as long as the process; looking through them stops it for long
        on_ready()
        gc.disable()  # the encoder brings a quarter of a million objects; each look through them takes as long
        recommender.service.live.prepare().add_done_callback(frozen)

    options = uvicorn.Config(
        create_app(recommender, telemetry, token, rates),
        host=host,
        port=port,
        http=HurriedProtocol,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=15,
        limit_concurrency=512,
    )
    server = _Server(options, ready)
    server.run()
    return server.started
