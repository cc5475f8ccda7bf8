"""Table of items as they came."""

from typing import Any

import dagster as dg

from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.metadata import table_metadata
from rec_pipeline.resources.retries import NETWORK, only_transient_errors_retry
from rec_pipeline.resources.source import Source


@dg.asset(kinds={"pandas", "parquet"}, retry_policy=NETWORK)
def raw_items(
    context: dg.AssetExecutionContext, source: Source, artifacts: dg.ResourceParam[Artifacts]
) -> dg.MaterializeResult[Any]:
    """
    Table of items as the source gave them, one row as it came, ids as text, nothing checked yet.

    Consumed by `items`, which validates it. Refreshed whenever the source has new data.
    """
    with only_transient_errors_retry():
        reader = source.open()
        context.log.info(f"reading items from {reader.describe()}")
        table = reader.read_items()
    return artifacts.keep(context, table, table_metadata(table) | {"origin": reader.describe()})
