"""What a bundle was made from, in the words that `rec-pipeline trace` shows."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.validation import ValidatedTable


def data_range(interactions: ValidatedTable) -> dict[str, Any]:
    """Return how many interactions there are, from when to when, and where they came from."""
    first, last = (interactions.kept.part(number, [c.TIMESTAMP])[c.TIMESTAMP] for number in (0, -1))
    origin = "" if interactions.profile is None else interactions.profile.origin
    n_interactions = len(interactions.kept)
    return {"n_interactions": n_interactions, "first": str(first.min()), "last": str(last.max()), "origin": origin}


def code_version() -> dict[str, str | None]:
    """Return the version of this package and the commit it was checked out at, None outside a repository."""
    return {"version": version("rec-pipeline"), "commit": git_commit()}


@cache
def git_commit() -> str | None:
    """Return the commit this code was checked out at; None without git or outside a repository."""
    try:
        found = subprocess.run(  # noqa: S603 - the arguments are constants
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],  # noqa: S607 - git is found on the PATH
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
