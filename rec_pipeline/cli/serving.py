"""The command that answers over HTTP."""

from typing import Annotated

import typer

from rec_pipeline.cli.project import project_folder
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.settings import settings

LOOPBACK = "127.0.0.1"


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; this machine only by default.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port; the next free one if it is taken.")] = 8000,
    update_interval: Annotated[
        float, typer.Option(min=0, help="Seconds an answer is served as it is; older, it is made anew behind.")
    ] = 300,
    cache_ttl: Annotated[float, typer.Option(min=1, help="Seconds after which an answer is gone.")] = 3600,
    rate: Annotated[
        float, typer.Option(min=0, help="Requests a second from one address; 429 beyond, 0 for no limit.")
    ] = 1000,
    impressions: Annotated[
        bool, typer.Option(help="Record every answer to a user as shown; off if the application records what it shows.")
    ] = True,
) -> None:
    """Answer over HTTP until Ctrl-C; the page is at /, the description of the API at /openapi.json."""
    project_folder()

    from rec_pipeline.resources.deployment import resources_for
    from rec_pipeline.serving.http.rates import Rates
    from rec_pipeline.serving.http.server import run_service
    from rec_pipeline.serving.params import RecommenderConfig
    from rec_pipeline.ui import free_port, local_url

    here = settings()
    resources_for(here)["redis_store"].url()  # starts the embedded store where none is configured
    realtime = {"update_interval": update_interval, "cache_ttl": cache_ttl}
    config = RecommenderConfig.of({"rt_config": realtime, "impressions": impressions})
    port = free_port(host, port)
    rates = Rates(rate) if rate else None
    if not run_service(config, host, port, here.serve_token, rates, lambda: typer.echo(local_url(host, port))):
        raise ConfigurationError(f"cannot listen on {host}:{port}")
