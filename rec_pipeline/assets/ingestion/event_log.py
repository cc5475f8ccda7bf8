"""Events received online."""

from typing import Any

import dagster as dg

from rec_pipeline.resources.days import BACKFILLS, DAYS
from rec_pipeline.resources.event_stream import EventStream
from rec_pipeline.resources.redis_store import RedisStore
from rec_pipeline.resources.retries import NETWORK, only_transient_errors_retry


@dg.asset(kinds={"redis", "parquet"}, retry_policy=NETWORK, partitions_def=DAYS, backfill_policy=BACKFILLS)
def event_log(
    context: dg.AssetExecutionContext, event_stream: EventStream, redis_store: RedisStore
) -> dg.MaterializeResult[Any]:
    """
    Table of events received online, one row an event, one partition a day (UTC) by the time it happened.

    Key columns `event_id`, `user_id`, `item_id`, `event_type`, `timestamp`; for items that were recommended also
    `sources`, `generation`, `experiment`, `variant` and `position`. Materialising any day drains the whole stream:
    late events land in the day they belong to, and an event sent twice is there once. Consumed by `interactions` and
    `online_metrics`.
    """
    with only_transient_errors_retry():
        drained = event_stream.drain(redis_store)
    return event_stream.materialised(context, drained)
