"""Table of contents: the stages in lineage order, and everything Dagster loads."""

import dagster as dg

from rec_pipeline import checks
from rec_pipeline.assets import embeddings, evaluation, fusion, indexing, ingestion, publishing, training
from rec_pipeline.automation.jobs import JOBS
from rec_pipeline.automation.schedules import nightly_refresh
from rec_pipeline.automation.sensors import event_log_sensor, new_source_data_sensor
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.resources.progress_logger import progress_logger
from rec_pipeline.settings import settings

STAGES = (ingestion, training, embeddings, indexing, fusion, evaluation, publishing)
OWNERS = ["team:recsys"]
TAGS = {"domain": "recsys"}

assets = [
    asset
    for stage in STAGES
    for asset in dg.load_assets_from_package_module(stage, group_name=stage.__name__.rpartition(".")[2])
    if isinstance(asset, dg.AssetsDefinition)
]

defs = dg.Definitions(
    assets=dg.map_asset_specs(lambda spec: spec.replace_attributes(owners=OWNERS, tags={**spec.tags, **TAGS}), assets),
    asset_checks=dg.load_asset_checks_from_package_module(checks),
    jobs=JOBS,
    schedules=[nightly_refresh],
    sensors=[new_source_data_sensor, event_log_sensor],
    resources=resources_for(settings()),
    loggers={"console": dg.colored_console_logger, "progress": progress_logger},
    executor=dg.in_process_executor,
)
