"""What is live."""

from datetime import timedelta
from typing import Any

import dagster as dg

from rec_pipeline.engine import crash_points
from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.publication import Intent, PublishParams
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.redis_store import RedisStore
from rec_pipeline.resources.release import align_aliases
from rec_pipeline.resources.retries import NETWORK, only_transient_errors_retry


class PublishConfig(dg.Config, PublishParams):
    """How a generation is written to the store."""


@dg.asset(
    kinds={"redis"},
    retry_policy=NETWORK,
    freshness_policy=dg.FreshnessPolicy.time_window(warn_window=timedelta(hours=36), fail_window=timedelta(hours=72)),
)
def published_recommendations(
    context: dg.AssetExecutionContext,
    config: PublishConfig,
    recommendations: Generation,
    artifacts: dg.ResourceParam[Artifacts],
    redis_store: RedisStore,
    tracker: MLflowTracker,
    compute: dg.ResourceParam[Compute],
) -> dg.MaterializeResult[Any]:
    """
    The generation that applications read: `GET recommendations:{user_id}` in Redis, one JSON list a user.

    Staged beside the live lists, read back and compared, then flipped user by user, so that no reader ever misses
    a list or sees half of one. Fresh for 72 hours, which is also how long a list lives.
    """
    with only_transient_errors_retry():
        client = redis_store.publisher()
        publication = publish(client, recommendations, config, Intent(context.run.run_id), compute=compute)
        note = align_aliases(client, tracker)
    for warning in (*publication.warnings, *([note] if note else [])):
        context.log.warning(warning)
    crash_points.reach("event")
    seconds = {f"{phase}_seconds": value for phase, value in publication.seconds.items()}
    return artifacts.keep(
        context,
        recommendations,
        {
            "dagster/row_count": publication.n_users,
            "generation": publication.generation,
            "published_bytes": publication.n_bytes,
            "n_restaged": publication.n_restaged,
            "n_departed": publication.n_departed,
            **seconds,
        },
    )
