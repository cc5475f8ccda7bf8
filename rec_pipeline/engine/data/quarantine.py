"""Refused rows on disk, one JSON line each, where their owner can look at them and nobody else can."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rec_pipeline.engine import columns as c
from rec_pipeline.engine import mirrors
from rec_pipeline.engine.data.table import Table, joined

ROWS_PER_REASON: Final = 1000
RUNS_KEPT: Final = 10


def write_quarantine(directory: Path, table: str, quarantine: Table, report: Mapping[str, Any]) -> Path:
    """
    Write the first refused rows of each reason and the counts of all, readable by this user alone.

    Parameters
    ----------
    directory
        Folder of one run; older runs' folders beside it are deleted beyond the last few.
    table
        Which table the rows are of, e.g. ``interactions``.
    quarantine
        Columns ``row_number``, ``reason`` and the raw ones as escaped text.
    report
        Facts that stand in ``report.json`` beside the number of rows by reason.

    Returns
    -------
    Path
        Folder with ``report.json`` and one ``<reason>.jsonl`` for each reason.
    """
    folder = directory / table
    shutil.rmtree(folder, ignore_errors=True)
    for made in (directory.parent, directory, folder):
        made.mkdir(parents=True, exist_ok=True, mode=0o700)
    counts = quarantine.read([c.REASON])[c.REASON].value_counts().to_dict()
    first = joined(part.groupby(c.REASON).head(ROWS_PER_REASON) for part in quarantine.iterate())
    for reason in counts:
        rows = first[first[c.REASON] == reason].head(ROWS_PER_REASON).to_dict("records")
        _write(folder / f"{_slug(str(reason))}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    _write(folder / "report.json", json.dumps({**report, "n_rows_by_reason": counts}, indent=2, default=str))
    runs = sorted((path for path in directory.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in runs[:-RUNS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
        mirrors.delete(old)
    return folder


def _write(path: Path, content: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(content)
    mirrors.send(path)


def _slug(reason: str) -> str:
    """
    Return a file name for a reason.

    Examples
    --------
    >>> _slug("timestamp is before 1990-01-01")
    'timestamp-is-before-1990-01-01'
    """
    return re.sub(r"[^\w.]+", "-", reason).strip("-")[:100]
