"""Sensors: what starts a run besides people and the clock."""

import dagster as dg

from rec_pipeline.automation.jobs import refresh_recommendations
from rec_pipeline.resources.source import Source

CHECK_EVERY_SECONDS = 300


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
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=fingerprint)], cursor=fingerprint)
