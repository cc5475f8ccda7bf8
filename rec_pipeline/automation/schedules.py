"""Schedules: when the lineage is refreshed by the clock."""

import dagster as dg

from rec_pipeline.automation.jobs import refresh_recommendations
from rec_pipeline.settings import settings

nightly_refresh = dg.ScheduleDefinition(
    name="nightly_refresh",
    job=refresh_recommendations,
    cron_schedule=settings().schedule,
    execution_timezone=settings().timezone,
    description="Refreshes everything once a night (REC_SCHEDULE, REC_TIMEZONE). Stopped until you switch it on.",
)
