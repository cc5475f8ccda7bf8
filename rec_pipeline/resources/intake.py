"""Interactions as the source gives them, and what validation is told beside the rows of a table."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.drift import Profile
from rec_pipeline.engine.data.table import in_parts, put_aside
from rec_pipeline.engine.data.validation import Circumstances
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.days import read_days
from rec_pipeline.resources.metadata import table_metadata
from rec_pipeline.resources.source import Source


def read_interactions(
    context: dg.AssetExecutionContext, source: Source, artifacts: Artifacts
) -> dg.MaterializeResult[Any]:
    """Read the source's interactions: all of them or, where the running asset has partitions, by day."""
    reader = source.open()
    context.log.info(f"reading interactions from {reader.describe()}")
    if context.assets_def.partitions_def is not None:
        return read_days(context, reader, artifacts)
    with artifacts.scratch(context.asset_key.path[-1]) as scratch:
        table = put_aside(in_parts(reader.iterate_interactions()), scratch / "raw")
        return artifacts.keep(context, table, table_metadata(table) | {"origin": reader.describe()})


def circumstances_of(context: dg.AssetExecutionContext, source: Source, artifacts: Artifacts) -> Circumstances:
    """Return the circumstances of the table that the running asset validates."""
    try:
        last = artifacts.load(context.asset_key.path[-1], Profile)
    except ArtifactIntegrityError:  # nothing was accepted yet, or it cannot be read and is being replaced
        last = None
    return Circumstances(source.open().describe(), last, artifacts.quarantine(context))
