"""Table of valid interactions."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.online import add_events, interactions_of
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.validation import ValidatedTable, ValidationParams
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.days import BACKFILLS, DAYS_OF_INTERACTIONS, counts_of_days, log_days, validate
from rec_pipeline.resources.event_stream import EventStream
from rec_pipeline.resources.intake import circumstances_of
from rec_pipeline.resources.metadata import validation_metadata
from rec_pipeline.resources.source import Source


class InteractionsConfig(dg.Config, ValidationParams):
    """Rules of the interactions."""


@dg.asset(
    kinds={"pandas", "parquet"},
    ins={"event_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
    partitions_def=DAYS_OF_INTERACTIONS,
    backfill_policy=BACKFILLS,
)
def interactions(
    context: dg.AssetExecutionContext,
    config: InteractionsConfig,
    raw_interactions: Table,
    items: ValidatedTable,
    event_log: EventLog,
    event_stream: EventStream,
    source: Source,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Table of interactions, one row an event between a user and an item, validated, deduplicated and typed.

    The rows of the source and the events received online, of the types that have a weight (clicks, not impressions).
    Key columns `user_id`, `item_id`, `timestamp` (UTC). Bad rows stand in a quarantine table beside it with row number
    and reason; more than the allowed share of them, too few rows, or a table unlike the last one stops the run, and
    what is live stays live. Consumed by the split and by what is published. With `REC_INTERACTIONS_SINCE` one
    partition a day, whose rows are looked at alone; all days together are one table, which changes at once.
    """
    given = circumstances_of(context, source, artifacts)
    events = interactions_of(event_log, event_stream.weights)
    with artifacts.scratch("interactions") as scratch:
        of_source, days = validate(
            context, raw_interactions, items.table, config, given, artifacts, scratch / "of_source"
        )
        table = add_events(of_source, events, items.table, scratch / "with_events")
        kept = artifacts.keep(context, table, validation_metadata(context, table) | {"n_events": len(events)})
    log_days(context, counts_of_days(days))
    return kept
