"""Table of interactions as they came."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.table import in_parts, put_aside
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.metadata import table_metadata
from rec_pipeline.resources.retries import NETWORK, only_transient_errors_retry
from rec_pipeline.resources.source import Source


@dg.asset(kinds={"pandas", "parquet"}, retry_policy=NETWORK)
def raw_interactions(
    context: dg.AssetExecutionContext, source: Source, artifacts: dg.ResourceParam[Artifacts]
) -> dg.MaterializeResult[Any]:
    """
    Table of interactions as the source gave them, one row as it came, ids as text, nothing checked yet.

    Consumed by `interactions`, which validates it. Refreshed whenever the source has new data.
    """
    with only_transient_errors_retry(), artifacts.scratch(context) as scratch:
        reader = source.open()
        context.log.info(f"reading interactions from {reader.describe()}")
        table = put_aside(in_parts(reader.iterate_interactions()), scratch / "raw")
        return artifacts.keep(context, table, table_metadata(table) | {"origin": reader.describe()})
