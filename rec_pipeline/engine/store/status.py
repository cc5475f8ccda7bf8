"""What is live, what is under way, and what could be rolled back to."""

from pathlib import Path
from typing import Any

import redis
from pydantic import BaseModel, Field

from rec_pipeline.engine.errors import PublishIncompleteError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.bookkeeping import explained, half_live, published_history
from rec_pipeline.engine.store.generation import list_generations
from rec_pipeline.engine.store.lock import lock_holder
from rec_pipeline.engine.store.server import number_at, text_fields


class PublicationStatus(BaseModel, frozen=True, extra="forbid"):
    """The state of a store, as JSON by ``model_dump_json()``."""

    live: int | None = Field(description="Generation that is live; null before the first.")
    n_users: int = Field(description="Users of the live generation.")
    published_at: str | None = Field(description="When it went live, ISO 8601.")
    publisher: str | None = Field(description="Who published it.")
    manifest_sha256: str | None = Field(description="Digest that names its content.")
    half_live: list[int] = Field(description="Generations whose flip was interrupted or is under way.")
    pinned: int | None = Field(description="Generation a rollback has pinned; `publish` refuses others.")
    job: dict[str, str] = Field(description="Last publication: gen, state, publisher, updated_at.")
    lock: dict[str, Any] | None = Field(description="Who is publishing now: holder, host, pid, since.")
    history: list[dict[str, Any]] = Field(description="Last publications, newest first.")
    sealed: list[int] = Field(description="Generations on disk, oldest first.")

    @property
    def exit_code(self) -> int:
        """0, or that of ``PublishIncompleteError`` while some users have a newer generation than others."""
        return PublishIncompleteError.exit_code if self.half_live else 0


def status(client: "redis.Redis", root: Path) -> PublicationStatus:
    """
    Read the state of the store and of the sealed generations under ``root``.

    Raises
    ------
    PublishFailedError
        If the store cannot be read.
    """
    with explained():
        current, job = text_fields(client, keys.CURRENT), text_fields(client, keys.JOB)
        return PublicationStatus(
            live=int(current["gen"]) if current else None,
            n_users=int(current.get("users", 0)),
            published_at=current.get("published_at"),
            publisher=current.get("publisher"),
            manifest_sha256=current.get("manifest_sha256"),
            half_live=half_live(job),
            pinned=number_at(client, keys.PIN),
            job=job,
            lock=lock_holder(client),
            history=published_history(client),
            sealed=[generation.number for generation in list_generations(root)],
        )
