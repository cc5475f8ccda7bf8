"""What validation is told beside the rows: where they came from, what was accepted last, where refused ones go."""

import dagster as dg

from rec_pipeline.engine.data.drift import Profile
from rec_pipeline.engine.data.validation import Circumstances
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.source import Source


def circumstances_of(context: dg.AssetExecutionContext, source: Source, artifacts: Artifacts) -> Circumstances:
    """Return the circumstances of the table that the running asset validates."""
    try:
        last = artifacts.load(context.asset_key.path[-1], Profile)
    except ArtifactIntegrityError:  # nothing was accepted yet, or it cannot be read and is being replaced
        last = None
    return Circumstances(source.open().describe(), last, artifacts.quarantine(context))
