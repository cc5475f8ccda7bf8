"""Assets in daily partitions: which days there are, which a run is for, and what it says of each."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pandas as pd

from rec_pipeline.engine.data.days import DailyTable, TableOfDays, take_days, validate_days
from rec_pipeline.engine.data.source import FileSource, InteractionSource
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.validation import (
    Circumstances,
    Counts,
    ValidatedTable,
    ValidationParams,
    validate_interactions,
)
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.metadata import table_metadata
from rec_pipeline.settings import settings

SINCE: Final = str(settings().interactions_since or "")
# One definition: a job's assets must share it. Today is a partition as well: what was clicked an hour ago is in
# tonight's training.
DAYS: Final = dg.DailyPartitionsDefinition(
    start_date=min(SINCE or settings().events_since, settings().events_since), end_offset=1
)
DAYS_OF_INTERACTIONS: Final = DAYS if SINCE else None
BACKFILLS: Final = dg.BackfillPolicy.single_run() if SINCE else None
if SINCE:
    warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)


def partition_of_a_refresh() -> str | None:
    """Return the partition that stands for all that has come until now; None where interactions have none."""
    return DAYS.get_last_partition_key() if SINCE else None


def days_of(context: dg.AssetExecutionContext) -> set[str]:
    """Return the partitions of a run, none for a run without."""
    return set(context.partition_keys) if context.has_partition_key or context.has_partition_key_range else set()


def log_days(context: dg.AssetExecutionContext, about: Mapping[str, Mapping[str, Any]]) -> None:
    """Say what is known of each day: of the run's own with its result, of any other beside it."""
    asked, partitions = days_of(context), context.assets_def.partitions_def
    for day, metadata in about.items():
        if day in asked:
            context.add_asset_metadata(metadata, partition_key=day)
        elif partitions is not None and partitions.has_partition_key(day):
            context.log_event(dg.AssetMaterialization(context.asset_key, metadata=metadata, partition=day))


def read_days(
    context: dg.AssetExecutionContext, reader: InteractionSource, artifacts: Artifacts
) -> dg.MaterializeResult[Any]:
    """
    Read the days of the run; a run of the latest day also reads all that are new or whose files have changed.

    Raises
    ------
    ConfigurationError
        If the data set is none of files.
    """
    if not isinstance(reader, FileSource):
        raise ConfigurationError(
            f"REC_INTERACTIONS_SINCE asks for days, which {reader.describe()} does not come in: set REC_DATASET=files"
        )
    asked, today = days_of(context), _today(context)
    raw = DailyTable(artifacts.store, context.asset_key.path[-1])
    files = reader.by_day(SINCE, str(DAYS.get_last_partition_key()))
    if files.left_out:
        context.log.warning(f"left out: {', '.join(files.left_out)}, which are before {SINCE} or still to come")
    taken = take_days(raw, files, asked - {today}, others=today in asked or not asked)
    context.log.info(f"{len(taken.read)} of {len(files.days)} days were read, {len(taken.gone)} are gone")
    with raw.locked():
        days = taken.applied_to(raw.meant())
        table = raw.read(days)
        counts = {"n_days": len(days.versions), "n_days_read": len(taken.read), "n_days_gone": len(taken.gone)}
        result = artifacts.keep(context, days, table_metadata(table) | counts | {"origin": reader.describe()})
    for day in taken.gone:
        raw.delete(day)
    log_days(context, {day: {"dagster/partition_row_count": len(table.tables[day])} for day in taken.read})
    return result


def validate(
    context: dg.AssetExecutionContext,
    raw: Table,
    items: pd.DataFrame,
    params: ValidationParams,
    given: Circumstances,
    artifacts: Artifacts,
    scratch: Path,
) -> tuple[ValidatedTable, Mapping[str, Counts]]:
    """Validate interactions as they came, in days or as one table; return also what became of the days looked at."""
    now = pd.Timestamp.now("UTC")
    if not isinstance(raw, TableOfDays):
        return validate_interactions(raw, items, params, now, given, scratch), {}
    examined = DailyTable(artifacts.store, context.asset_key.path[-1])
    asked = days_of(context) - {_today(context)}
    validated, days = validate_days(raw, items, params, now, given, scratch, examined=examined, asked=asked)
    return validated, {day: validated.by_day[day] for day in days}


def counts_of_days(days: Mapping[str, Counts]) -> dict[str, dict[str, Any]]:
    """Return what became of the rows of each day, as metadata."""
    return {day: {"dagster/partition_row_count": counts.n_kept} | asdict(counts) for day, counts in days.items()}


def _today(context: dg.AssetExecutionContext) -> str:
    """Return the day on which the run was asked for (UTC): it may begin, or get here, after midnight."""
    record = context.instance.get_run_record_by_id(context.run.run_id)
    asked_for = record.create_timestamp if record else datetime.now(UTC)
    return f"{asked_for.astimezone(UTC):%Y-%m-%d}"
