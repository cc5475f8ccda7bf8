"""Table of interactions as they came."""

from typing import Any

import dagster as dg

from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.days import BACKFILLS, DAYS_OF_INTERACTIONS
from rec_pipeline.resources.intake import read_interactions
from rec_pipeline.resources.retries import NETWORK, only_transient_errors_retry
from rec_pipeline.resources.source import Source


@dg.asset(
    kinds={"pandas", "parquet"}, retry_policy=NETWORK, partitions_def=DAYS_OF_INTERACTIONS, backfill_policy=BACKFILLS
)
def raw_interactions(
    context: dg.AssetExecutionContext, source: Source, artifacts: dg.ResourceParam[Artifacts]
) -> dg.MaterializeResult[Any]:
    """
    Table of interactions as the source gave them, one row as it came, ids as text, nothing checked yet.

    Consumed by `interactions`, which validates it. Refreshed whenever the source has new data. With
    `REC_INTERACTIONS_SINCE` one partition a day: materialising the latest reads every day that is new or whose files
    have changed, materialising others reads those.
    """
    with only_transient_errors_retry():
        return read_interactions(context, source, artifacts)
