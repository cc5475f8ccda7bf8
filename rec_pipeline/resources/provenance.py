"""What a bundle was made from, in the words that `rec-pipeline trace` shows."""

from importlib.metadata import version
from typing import Any

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.resources.mlflow_tracker import git_commit


def data_range(interactions: ValidatedTable) -> dict[str, Any]:
    """Return how many interactions there are, from when to when, and where they came from."""
    times = interactions.table[c.TIMESTAMP]
    origin = "" if interactions.profile is None else interactions.profile.origin
    return {"n_interactions": len(times), "first": str(times.min()), "last": str(times.max()), "origin": origin}


def code_version() -> dict[str, str | None]:
    """Return the version of this package and the commit it was checked out at, None outside a repository."""
    return {"version": version("rec-pipeline"), "commit": git_commit()}
