"""Table of valid items."""

from typing import Any

import dagster as dg
import pandas as pd

from rec_pipeline.engine.data.validation import ValidationParams, validate_items
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.intake import circumstances_of
from rec_pipeline.resources.metadata import validation_metadata
from rec_pipeline.resources.source import Source


class ItemsConfig(dg.Config, ValidationParams):
    """Rules of the items."""


@dg.asset(kinds={"pandas", "parquet"})
def items(
    context: dg.AssetExecutionContext,
    config: ItemsConfig,
    raw_items: pd.DataFrame,
    source: Source,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Table of items, one row an item of the catalogue, validated, deduplicated and typed.

    Key column `item_id`. Bad rows stand in a quarantine table beside it with row number and reason. Consumed by
    everything that needs the catalogue: splits, text embeddings, recommendations.
    """
    table = validate_items(raw_items, config, circumstances_of(context, source, artifacts))
    return artifacts.keep(context, table, validation_metadata(context, table))
