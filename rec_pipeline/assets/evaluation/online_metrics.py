"""Click-through of what was recommended."""

from typing import Any

import dagster as dg
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.evaluation.online import OnlineParams
from rec_pipeline.engine.evaluation.online import online_metrics as measure
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.event_stream import EventStream


class OnlineConfig(dg.Config, OnlineParams):
    """Which events are joined, and how."""


@dg.asset(
    kinds={"pandas", "parquet"},
    ins={"event_log": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
)
def online_metrics(
    context: dg.AssetExecutionContext,
    config: OnlineConfig,
    event_log: EventLog,
    event_stream: EventStream,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Table of the click-through of what was recommended online: overall, by source, by generation, by variant.

    One row a bucket of a slice: impressions, those clicked, users, and the share with its interval. Impressions and
    clicks are events that the application records; a click counts for the last impression of its item before it.
    """
    metrics = measure(event_log, event_stream.running_experiment, config, pd.Timestamp.now("UTC"))
    overall = metrics.table.iloc[0]
    metadata = {
        "dagster/row_count": len(metrics.table),
        "n_impressions": int(overall[c.N_IMPRESSIONS]),
        "n_clicks": metrics.n_clicks,
        "click_through": float(overall[c.MEAN]),
        "table": dg.MetadataValue.md(metrics.table.to_markdown(index=False, floatfmt=".4f")),
    }
    return artifacts.keep(context, metrics, metadata)
