"""Sensors: what starts a run besides people and the clock."""

import dagster as dg

from rec_pipeline.automation.jobs import drain_events, refresh_recommendations
from rec_pipeline.engine.errors import RecPipelineError
from rec_pipeline.resources.days import DAYS, partition_of_a_refresh
from rec_pipeline.resources.event_stream import EventStream
from rec_pipeline.resources.redis_store import RedisStore
from rec_pipeline.resources.source import Source

CHECK_EVERY_SECONDS = 300
LOOK_AT_STREAM_EVERY_SECONDS = 30
DRAIN_FROM_EVENTS = 1000
DRAIN_FROM_AGE_SECONDS = 300
UNDER_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


@dg.sensor(
    job=refresh_recommendations,
    minimum_interval_seconds=CHECK_EVERY_SECONDS,
    description="Starts a refresh when the files of the source have changed since the last one it started.",
)
def new_source_data_sensor(context: dg.SensorEvaluationContext, source: Source) -> dg.SensorResult | dg.SkipReason:
    """Compare the source's fingerprint with the one seen last."""
    fingerprint = source.open().fingerprint()
    if fingerprint == context.cursor:
        return dg.SkipReason(f"the source is unchanged (fingerprint {fingerprint})")
    request = dg.RunRequest(run_key=fingerprint, partition_key=partition_of_a_refresh())
    return dg.SensorResult(run_requests=[request], cursor=fingerprint)


@dg.sensor(
    job=drain_events,
    minimum_interval_seconds=LOOK_AT_STREAM_EVERY_SECONDS,
    description=f"Starts a drain when {DRAIN_FROM_EVENTS:,} events wait in the stream, or one has for "
    f"{DRAIN_FROM_AGE_SECONDS // 60} minutes.",
)
def event_log_sensor(
    context: dg.SensorEvaluationContext, event_stream: EventStream, redis_store: RedisStore
) -> dg.RunRequest | dg.SkipReason:
    """Look at how much waits in the stream and for how long; not while a drain that was started is under way."""
    try:
        waiting = event_stream.backlog(redis_store)
    except RecPipelineError as error:
        return dg.SkipReason(f"the stream cannot be looked at: {error}")
    if waiting.n_entries < DRAIN_FROM_EVENTS and waiting.oldest_age_seconds < DRAIN_FROM_AGE_SECONDS:
        return dg.SkipReason(f"{waiting.n_entries:,} events wait, the oldest for {waiting.oldest_age_seconds:.0f} s")
    under_way = dg.RunsFilter(job_name=drain_events.name, statuses=UNDER_WAY)
    if context.instance.get_runs_count(under_way):
        return dg.SkipReason("a drain is under way")
    return dg.RunRequest(partition_key=DAYS.get_last_partition_key())
