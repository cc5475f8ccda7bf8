"""Schedules: when the lineage is refreshed by the clock."""

import dagster as dg

from rec_pipeline.automation.jobs import refresh_recommendations
from rec_pipeline.resources.days import partition_of_a_refresh
from rec_pipeline.settings import settings


@dg.schedule(
    job=refresh_recommendations,
    cron_schedule=settings().schedule,
    execution_timezone=settings().timezone,
    description="Refreshes everything once a night (REC_SCHEDULE, REC_TIMEZONE). Stopped until you switch it on.",
)
def nightly_refresh() -> dg.RunRequest:
    """Ask for a refresh."""
    return dg.RunRequest(partition_key=partition_of_a_refresh())
