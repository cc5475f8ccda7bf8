"""What a bundle was made from, in the words that `rec-pipeline trace` shows."""

from importlib.metadata import version
from typing import Any

import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.resources.mlflow_tracker import git_commit


def data_range(interactions: pd.DataFrame) -> dict[str, Any]:
    """Return how many interactions there are and from when to when."""
    times = interactions[c.TIMESTAMP]
    return {"n_interactions": len(interactions), "first": str(times.min()), "last": str(times.max())}


def code_version() -> dict[str, str | None]:
    """Return the version of this package and the commit it was checked out at, None outside a repository."""
    return {"version": version("rec-pipeline"), "commit": git_commit()}
