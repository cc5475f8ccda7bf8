"""
The whole pipeline on generated data of growing size: seconds and peak memory by step.

Each size runs as ``rec-pipeline run`` in a process of its own, in an empty project folder, on Parquet files. The peak
of a step is the largest resident set of that process while the step ran (the kernel's high-water mark, reset at its
start), the embedded store not counted. Linux only.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import write_table
from rec_pipeline.engine.errors import RecPipelineError

USERS_PER_INTERACTION: Final = 1 / 50
ITEMS_PER_INTERACTION: Final = 1 / 200
MIN_ITEMS: Final = 1000
DRAWN_PER_PAIR: Final = 2.2  # popular items are drawn more than once by active users
N_GENRES: Final = 20
N_TEXTS: Final = 400
STEP: Final = re.compile(r"^\s*\d+/\d+ (\w+)\s*$")
MOVED: Final = re.compile(r"^\s*moved ([\d,]+) bytes between processes")
REST: Final = "start and end"


def generate(n_interactions: int, n_users: int | None = None, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    Draw interactions and items, without a loop over either.

    A user likes two of the genres; three of four interactions are drawn within them. Within a genre popularity falls
    with the rank as in Zipf's law, and the activity of users is log-normal. Pairs are distinct. There are ``N_TEXTS``
    different item texts: an encoder reads 20 to 100 a second, which is a matter of the encoder and not of the pipeline,
    and equal texts are encoded once.

    Parameters
    ----------
    n_interactions : int
        Interactions, at least 20,000; items are a 200th of them, but no fewer than 1,000.
    n_users : int
        Users to draw from, a 50th of the interactions by default; who is never drawn is not in the table.
    seed : int
        The same seed draws the same tables.

    Returns
    -------
    interactions : ``user_id``, ``item_id``, ``timestamp`` over one year
    items : ``item_id``, ``title``, ``description``, ``categories``
    """
    rng = np.random.default_rng(seed)
    n_users = n_users or int(n_interactions * USERS_PER_INTERACTION)
    n_items = max(MIN_ITEMS, int(n_interactions * ITEMS_PER_INTERACTION))
    n_drawn = int(n_interactions * DRAWN_PER_PAIR)
    activity = np.cumsum(rng.lognormal(0, 1, n_users))
    user = np.searchsorted(activity, rng.random(n_drawn) * activity[-1])
    liked = rng.integers(N_GENRES, size=(n_users, 2))
    genre = liked[user, rng.integers(2, size=n_drawn)]
    anywhere = rng.random(n_drawn) < 0.25
    genre[anywhere] = rng.integers(N_GENRES, size=int(anywhere.sum()))
    per_genre = n_items // N_GENRES
    # The inverse of a truncated Zipf-like law: few items of a genre take most of its interactions.
    rank = (per_genre ** rng.random(n_drawn)).astype(np.int64) - 1
    item = genre * per_genre + rank
    first = np.unique(user.astype(np.int64) * n_items + item, return_index=True)[1]
    first = rng.permutation(first)[:n_interactions]
    second = rng.integers(365 * 86_400, size=len(first))
    interactions = pd.DataFrame(
        {
            c.USER_ID: _ids("u", user[first]),
            c.ITEM_ID: _ids("i", item[first]),
            c.TIMESTAMP: pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(second, unit="s"),
        }
    )
    rows = np.arange(per_genre * N_GENRES)
    text = (rows % per_genre) % (N_TEXTS // N_GENRES)
    names = pd.Series((rows // per_genre).astype(str)) + "-" + pd.Series(text.astype(str))
    items = pd.DataFrame(
        {
            c.ITEM_ID: _ids("i", rows),
            c.TITLE: ("Work " + names).to_numpy(),
            c.DESCRIPTION: ("A piece of kind " + names).to_numpy(),
            c.CATEGORIES: ("genre " + pd.Series((rows // per_genre).astype(str))).to_numpy(),
        }
    )
    return interactions, items


def _ids(prefix: str, rows: np.ndarray[Any, Any]) -> pd.Series:
    return prefix + pd.Series(rows).astype(str)


@dataclass(frozen=True)
class StepCost:
    """Seconds and peak resident memory of a step of one run, and what Ray moved between processes in it."""

    step: str
    seconds: float
    peak_mb: float
    moved_mb: float = 0.0


def measure(
    n_interactions: int,
    project: Path,
    config: Path | None,
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    n_users: int | None = None,
) -> list[StepCost]:
    """
    Run the pipeline on ``n_interactions`` generated interactions and return the cost of every step, in order.

    Parameters
    ----------
    n_interactions : int
        Size of the data.
    project
        Folder whose ``dagster.yaml`` and ``workspace.yaml`` are used; nothing is written there.
    config
        Run config for all sizes.
    on_line
        Called with each line of the run.
    environment
        Settings of the run on top of this process's.
    n_users : int
        As for `generate`.

    Raises
    ------
    RecPipelineError
        If the run fails, with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="rec-pipeline-scale-") as name:
        folder = Path(name)
        for file in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(project / file, folder)
        tables = dict(zip(("interactions", "items"), generate(n_interactions, n_users), strict=True))
        for table, frame in tables.items():
            write_table(folder / f"{table}.parquet", frame)
        del tables
        command = [sys.executable, "-m", "rec_pipeline"]
        inputs = ["--dataset", "files", "--interactions", "interactions.parquet", "--items", "items.parquet"]
        settings = ["--config", str(config.absolute())] if config else []
        try:
            with subprocess.Popen(  # noqa: S603 - this interpreter
                [*command, "run", "--json", *inputs, *settings],
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                costs = list(_costs(process, on_line))
        finally:
            subprocess.run([*command, "stop"], cwd=folder, capture_output=True, check=False)  # noqa: S603 - as above
    return costs


def _costs(process: "subprocess.Popen[str]", on_line: Callable[[str], None]) -> Iterator[StepCost]:
    status, step, begun, said = Path(f"/proc/{process.pid}"), REST, time.perf_counter(), "it said nothing"
    peak, moved_mb = 0.0, 0.0
    rest_seconds, rest_peak = 0.0, 0.0
    assert process.stderr is not None  # noqa: S101 - it was asked for
    for text in process.stderr:
        line = text.rstrip("\n")
        on_line(line)
        if not said.startswith("error: "):
            said = line.strip()
        peak = max(peak, _peak_mb(status))
        if found := MOVED.match(line):
            moved_mb += int(found.group(1).replace(",", "")) / 1e6
        if not (found := STEP.match(line)):
            continue
        now = time.perf_counter()
        if step == REST:
            rest_seconds, rest_peak = now - begun, peak
        else:
            yield StepCost(step, now - begun, peak, moved_mb)
        step, begun, peak, moved_mb = found.group(1), now, 0.0, 0.0
        (status / "clear_refs").write_text("5")  # resets the high-water mark
    seconds = time.perf_counter() - begun
    if process.wait() != 0:
        raise RecPipelineError(f"the run of step {step} failed after {seconds:.0f} s: {said}")
    yield StepCost(step, seconds, peak, moved_mb)
    yield StepCost(REST, rest_seconds, rest_peak)


def _peak_mb(status: Path) -> float:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", (status / "status").read_text())
    except OSError:  # it has just ended
        return 0.0
    return int(found.group(1)) / 1024 if found else 0.0


def table_of(costs: Mapping[int, Sequence[StepCost]]) -> list[dict[str, Any]]:
    """
    Return one row a step with seconds and peak of every size, and how much faster than the data its time grew.

    ``growth`` is the exponent between the two largest sizes: 1 where seconds grow as the data, 2 as its square; None
    for a single size.
    """
    sizes = sorted(costs)
    by_step = {size: {cost.step: cost for cost in costs[size]} for size in sizes}
    rows: list[dict[str, Any]] = []
    for cost in costs[sizes[-1]]:
        row: dict[str, Any] = {"step": cost.step}
        for size in sizes:
            found = by_step[size].get(cost.step)
            row[f"seconds_{size}"] = round(found.seconds, 1) if found else None
            row[f"peak_mb_{size}"] = round(found.peak_mb) if found else None
        row["growth"] = _exponent(by_step, sizes, cost.step)
        rows.append(row)
    total: dict[str, Any] = {"step": "total"}
    for size in sizes:
        total[f"seconds_{size}"] = round(sum(cost.seconds for cost in costs[size]), 1)
        total[f"peak_mb_{size}"] = round(max(cost.peak_mb for cost in costs[size]))
    return [*rows, total | {"growth": None}]


def by_workers(costs: Mapping[int, Sequence[StepCost]]) -> list[dict[str, Any]]:
    """
    Return one row a step with its seconds by the number of Ray workers; 0 is the process alone.

    ``speedup`` is the seconds of the process alone by those of the most workers, ``moved_mb`` the megabytes that went
    to these and came back.
    """
    rows: list[dict[str, Any]] = []
    moved_mb = {cost.step: cost.moved_mb for cost in costs[max(costs)]}
    seconds = {n_workers: {cost.step: cost.seconds for cost in run} for n_workers, run in costs.items()}
    for step in seconds[0]:
        row: dict[str, Any] = {"step": step}
        row |= {f"seconds_{n_workers}_workers": round(run[step], 1) for n_workers, run in sorted(seconds.items())}
        speedup = round(seconds[0][step] / seconds[max(seconds)][step], 2)
        rows.append(row | {"speedup": speedup, "moved_mb": round(moved_mb[step], 1)})
    return rows


def _exponent(by_step: Mapping[int, Mapping[str, StepCost]], sizes: Sequence[int], step: str) -> float | None:
    if len(sizes) < 2 or step not in by_step[sizes[-2]]:
        return None
    before, after = by_step[sizes[-2]][step].seconds, by_step[sizes[-1]][step].seconds
    return round(float(np.log(after / before) / np.log(sizes[-1] / sizes[-2])), 2)
