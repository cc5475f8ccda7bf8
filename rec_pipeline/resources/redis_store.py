"""The store of live recommendations: an external Redis or Valkey, or the embedded server of this project."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    import redis

    from rec_pipeline.engine.store.generation import Generation

URL_VARIABLE = "REC_REDIS_URL"


class RedisStore(dg.ConfigurableResource[None]):
    """Connects to where recommendations are published and knows where their generations are sealed."""

    url_variable: str = Field(
        description="Name of the environment variable that holds the URL, so that no config holds it."
    )
    embedded_dir: str = Field(description="Folder of the embedded server, used while the variable is unset.")
    generations_dir: str = Field(description="Folder of the sealed generations.")

    @property
    def generations(self) -> Path:
        """Root of the sealed generations."""
        return Path(self.generations_dir)

    def url(self) -> str:
        """Return the URL of the store; starts the embedded server where none is configured."""
        from rec_pipeline.resources.embedded_valkey import ensure_server

        return os.environ.get(self.url_variable) or ensure_server(Path(self.embedded_dir))

    def publisher(self) -> "redis.Redis":
        """Return a client with the patience of a publisher: long timeouts, several retries."""
        from rec_pipeline.engine.store.connection import publisher_client

        return publisher_client(self.url())

    def live(self) -> "Generation | None":
        """Return the generation that is live; None before the first, and for one that is not sealed here."""
        from rec_pipeline.engine.store.bookkeeping import explained, live_number
        from rec_pipeline.engine.store.generation import list_generations

        with explained():
            number = live_number(self.publisher())
        return next((sealed for sealed in list_generations(self.generations) if sealed.number == number), None)

    def last_number(self) -> int:
        """Return the highest generation number ever begun here; a new generation needs a higher one."""
        from rec_pipeline.engine.store.bookkeeping import explained, last_number

        with explained():
            return last_number(self.publisher())
