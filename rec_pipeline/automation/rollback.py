"""The job that takes back what is live, for people who work in the Dagster UI."""

import dagster as dg
from pydantic import Field

from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.redis_store import RedisStore
from rec_pipeline.resources.retries import NETWORK, only_transient_errors_retry


class RollbackConfig(dg.Config):
    """Where to go back to."""

    to: int | None = Field(default=None, description="Sealed generation; the one before what is live when unset.")


@dg.op(retry_policy=NETWORK)
def roll_back(
    context: dg.OpExecutionContext, config: RollbackConfig, redis_store: RedisStore, tracker: MLflowTracker
) -> None:
    """Publish an older sealed generation again under a new number, pin it, and make its model the champion."""
    from rec_pipeline.engine.store.publisher import rollback
    from rec_pipeline.resources.release import align_aliases

    with only_transient_errors_retry():
        client = redis_store.publisher()
        publication = rollback(client, redis_store.generations, config.to, publisher=context.run_id)
        note = align_aliases(client, tracker)
    if note:
        context.log.warning(note)
    context.log_event(
        dg.AssetMaterialization(
            "published_recommendations",
            description="Rolled back; pinned until `rec-pipeline unpin`.",
            metadata={"generation": publication.generation, "dagster/row_count": publication.n_users},
        )
    )


@dg.job(description="Publishes an older generation again and pins it; nothing is trained.")
def rollback_recommendations() -> None:
    """Roll back, in one step."""
    roll_back()
