"""Table of valid interactions."""

from typing import Any

import dagster as dg
import pandas as pd

from rec_pipeline.engine.data.validation import ValidatedTable, ValidationParams, validate_interactions
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.intake import circumstances_of
from rec_pipeline.resources.metadata import validation_metadata
from rec_pipeline.resources.source import Source


class InteractionsConfig(dg.Config, ValidationParams):
    """Rules of the interactions."""


@dg.asset(kinds={"pandas", "parquet"})
def interactions(
    context: dg.AssetExecutionContext,
    config: InteractionsConfig,
    raw_interactions: pd.DataFrame,
    items: ValidatedTable,
    source: Source,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Table of interactions, one row an event between a user and an item, validated, deduplicated and typed.

    Key columns `user_id`, `item_id`, `timestamp` (UTC). Bad rows stand in a quarantine table beside it with row number
    and reason; more than the allowed share of them, too few rows, or a table unlike the last one stops the run, and
    what is live stays live. Consumed by the split and by what is published.
    """
    given = circumstances_of(context, source, artifacts)
    table = validate_interactions(raw_interactions, items.table, config, pd.Timestamp.now("UTC"), given)
    return artifacts.keep(context, table, validation_metadata(context, table))
