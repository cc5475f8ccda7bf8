"""Jobs: which part of the lineage a run makes."""

import dagster as dg

from rec_pipeline.automation.backtest import backtest
from rec_pipeline.automation.rollback import rollback_recommendations
from rec_pipeline.automation.tune import tune

PUBLISHING = dg.AssetSelection.groups("publishing")

refresh_recommendations = dg.define_asset_job(
    "refresh_recommendations",
    selection=dg.AssetSelection.all(),
    description="From the source to what is live: reads, validates, trains, evaluates; publishes if the gate passes.",
)

train_and_evaluate = dg.define_asset_job(
    "train_and_evaluate",
    selection=dg.AssetSelection.all() - PUBLISHING,
    description="Everything up to the evaluation report; nothing is published.",
)

publish_recommendations = dg.define_asset_job(
    "publish_recommendations",
    selection=PUBLISHING,
    description="Publishes from the models and the report that are there; refused unless that report passed the gate.",
)

drain_events = dg.define_asset_job(
    "drain_events",
    selection=dg.AssetSelection.assets("event_log"),
    description="Moves what is in the stream of events into the log; any day does, late events land in theirs.",
)

JOBS = (
    refresh_recommendations,
    train_and_evaluate,
    publish_recommendations,
    rollback_recommendations,
    drain_events,
    backtest,
    tune,
)
