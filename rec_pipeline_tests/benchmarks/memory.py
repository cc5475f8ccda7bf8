"""
Memory of every step that holds interactions, in megabytes, and of an id map, in bytes an id.

Run with ``python -m rec_pipeline_tests.benchmarks.memory interactions N`` and ``... ids N``; prints JSON. Interactions
are those of ``rec-pipeline benchmark scale``, in one Parquet file a day of the year with ``--by-day``, in one CSV file
with ``--csv``. A step runs in a process of its own: its peak is the kernel's high-water mark above what was resident
once its modules were imported, so it holds what the step reads, makes and writes. Apart from it stands its anonymous
memory, looked at every few milliseconds: without the pages of files, which the system drops when it needs room. Of
seconds there are those that passed and those of the processor. Training is of the popularity model, of item-kNN, of
what is trending, of NCF for one epoch with vectors of 16, and of the sequences; their models are not an interaction's
memory, the arrays they read are.
"""

import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import typer

from rec_pipeline.benchmarks.scale import generate
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_table, write_table
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.data.source import SourceParams, open_source
from rec_pipeline.engine.data.space import Space
from rec_pipeline.engine.data.split import (
    InteractionSplit,
    SplitParams,
    SplitStrategy,
    split_interactions,
    walk_forward,
)
from rec_pipeline.engine.data.table import Table, in_parts, put_aside
from rec_pipeline.engine.data.validation import (
    ValidatedTable,
    ValidationParams,
    validate_interactions,
    validate_items,
)
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import HeldOut
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.engine.models.ncf_params import NCFParams
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.fitting import facts_of
from rec_pipeline.engine.recommenders.lists import count_seen

app = typer.Typer()
RULES = ValidationParams()
CSV = "interactions.csv"
GLANCE_SECONDS = 0.003


def make(folder: Path, size: int, by_day: bool, csv: bool) -> None:
    """Write the generated tables as files."""
    interactions, items = generate(size)
    write_table(folder / "items.parquet", items)
    if csv:
        pacsv.write_csv(pa.Table.from_pandas(interactions, preserve_index=False), folder / CSV)
        return
    (folder / "interactions").mkdir()
    days = interactions[c.TIMESTAMP].dt.strftime("%Y-%m-%d") if by_day else pd.Series("all", interactions.index)
    for day, rows in interactions.groupby(days):
        part = folder / "interactions" / f"day={day}" if by_day else folder / "interactions"
        part.mkdir(exist_ok=True)
        write_table(part / "part.parquet", rows.reset_index(drop=True))


def raw_interactions(folder: Path) -> None:
    """Read as the asset does and write."""
    given = folder / CSV if (folder / CSV).exists() else folder / "interactions"
    source = open_source(SourceParams(dataset="files", interactions=str(given)))
    table = put_aside(in_parts(source.iterate_interactions()), folder / "scratch" / "raw")
    table.save(_made(folder / "raw"))


def interactions(folder: Path) -> None:
    """Validate and write."""
    items = validate_items(read_table(folder / "items.parquet"), RULES).table
    now = pd.Timestamp("2025-01-02", tz="UTC")
    scratch = folder / "scratch" / "validation"
    validated = validate_interactions(Table.load(folder / "raw"), items, RULES, now, scratch=scratch)
    validated.save(_made(folder / "valid"))


def interaction_split(folder: Path) -> None:
    """Split, with the id maps, and write."""
    split_interactions(*_valid(folder), SplitParams(), _scratch(folder)).save(_made(folder / "split"))


def other_splits(folder: Path) -> None:
    """Split where time does not decide, and at the last two periods of time."""
    valid, scratch = _valid(folder), _scratch(folder)
    for strategy in (SplitStrategy.random, SplitStrategy.leave_last_out):
        split_interactions(*valid, SplitParams(strategy=strategy), scratch)
    for _ in walk_forward(*valid, SplitParams(), 2, scratch):
        pass


def popularity_model(folder: Path) -> None:
    """Read the split and count."""
    split = InteractionSplit.load(folder / "split")
    PopularityModel.fit(split.by_user.fitting.user_item)


def item_knn_model(folder: Path) -> None:
    """Read the split and find each item's nearest."""
    known = InteractionSplit.load(folder / "split").by_user.fitting.user_item
    ItemKNNModel.fit(known, ItemKNNParams(), Space.for_rows(known.nnz, _scratch(folder)))


def trending_model(folder: Path) -> None:
    """Read the split and count what is recent."""
    split = InteractionSplit.load(folder / "split")
    TrendingModel.fit(split.fitting, len(split.items), half_life_days=30, newcomer_half_life_days=30)


def held_out(folder: Path) -> None:
    """Read the split and find what the users drawn for evaluation are to foresee."""
    HeldOut.of(InteractionSplit.load(folder / "split"), EvaluationParams())


def seen_items(folder: Path) -> None:
    """Look for what its user has in lists of ten items, of all interactions."""
    users = read_table(folder / "split" / "users" / "ids.parquet")["id"]
    items = read_table(folder / "items.parquet")[c.ITEM_ID].head(10).to_list()
    batch = pa.RecordBatch.from_pydict({c.USER_ID: users, c.ITEM_ID: [items] * len(users)})
    assert count_seen([batch], ValidatedTable.load(folder / "valid").kept, _scratch(folder)) >= 0


def context_lifts(folder: Path) -> None:
    """Read the split and learn what is taken when."""
    split = InteractionSplit.load(folder / "split")
    facts = facts_of(split, validate_items(read_table(folder / "items.parquet"), RULES).table)
    ContextLifts.fit(split.fitting, split.fitting[c.ITEM_IDX].to_numpy(), facts.in_category)


def ncf_model(folder: Path) -> None:
    """Read the split and train an epoch."""
    split = InteractionSplit.load(folder / "split")
    params = NCFParams(embedding_dim=16, mlp_dim=16, layers=[16], pretrain_epochs=1, epochs=1)
    fit_ncf(split.by_user.train.user_item, params)


def sequences(folder: Path) -> None:
    """Read the split and put everybody's interactions in order."""
    split = InteractionSplit.load(folder / "split")
    sequences: UserSequences = split.by_user.fitting.sequences
    assert len(sequences) == len(split.users)


def _valid(folder: Path) -> tuple[Table, pd.DataFrame]:
    items = validate_items(read_table(folder / "items.parquet"), RULES).table
    return ValidatedTable.load(folder / "valid").kept, items


def _scratch(folder: Path) -> Path:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return scratch


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


STEPS = (
    raw_interactions, interactions, interaction_split, other_splits, popularity_model, item_knn_model, trending_model,
    context_lifts, sequences, ncf_model, held_out, seen_items,
)  # fmt: skip


def peak(step: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return seconds, bytes at the peak of ``step`` and afterwards, above those at its start."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    begun, processor = time.perf_counter(), time.process_time()
    kept = step(*arguments)
    pa.default_memory_pool().release_unused()
    used = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - processor}
    used |= {"peak": resident("VmHWM") - before, "held": resident("VmRSS") - before}
    del kept
    return used


def in_a_process(step: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return ``peak`` of a step that starts with nothing but the modules, and the largest anonymous memory seen."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        process, before = pool.apply(os.getpid), pool.apply(resident, ("RssAnon",))
        running, anonymous = pool.apply_async(peak, (step, *arguments)), before
        while not running.ready():
            anonymous = max(anonymous, resident("RssAnon", process))
            running.wait(GLANCE_SECONDS)
        used: dict[str, Any] = running.get()
        return used | {"anonymous": anonymous - before}


def resident(name: str, process: int | str = "self") -> int:
    """Return a line of the kernel's account of a process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


@app.command("interactions")
def of_interactions(
    size: int, by_day: bool = False, csv: bool = False, steps: str = "", folder: Path | None = None
) -> None:
    """Print seconds and megabytes of every step; ``--folder`` keeps what they made."""
    root = folder or Path(tempfile.mkdtemp(prefix="rec-pipeline-memory-"))
    if not (root / "items.parquet").exists():
        root.mkdir(exist_ok=True)
        in_a_process(make, root, size, by_day, csv)
    try:
        for step in STEPS:
            if not steps or step.__name__ in steps.split(","):
                used = in_a_process(step, root)
                entry = {"step": step.__name__, "seconds": round(used["seconds"], 1)}
                entry |= {"processor_seconds": round(used["processor"], 1), "megabytes": round(used["peak"] / 1e6)}
                entry |= {"anonymous_megabytes": round(used["anonymous"] / 1e6)}
                typer.echo(json.dumps(entry))
    finally:
        if folder is None:
            shutil.rmtree(root)


def _ids(n_ids: int) -> "pd.Series[str]":
    numbers = pa.array(np.random.default_rng(0).permutation(n_ids)).cast(pa.string())
    padded = pc.utf8_lpad(numbers, 9, padding="0")
    return pd.Series(pc.binary_join_element_wise("user-", padded, "").to_pandas(), dtype="str")


def _map(folder: Path) -> IdMap:
    return IdMap.load(folder)


def _write(folder: Path, n_ids: int) -> None:
    IdMap.from_ids(_ids(n_ids)).save(folder)


def _look_up(folder: Path) -> IdMap:
    ids = IdMap.load(folder)
    rows = np.random.default_rng(0).integers(len(ids), size=100_000)
    assert (ids.to_idx(ids.to_ids(rows)) == rows).all()
    return ids


@app.command("ids")
def of_ids(n_ids: int) -> None:
    """Print bytes an id of a map that is loaded and looked up in, and at the peak of making and loading it."""
    with tempfile.TemporaryDirectory(prefix="rec-pipeline-memory-") as name:
        for step, arguments in ((_write, (Path(name), n_ids)), (_map, (Path(name),)), (_look_up, (Path(name),))):
            used = in_a_process(step, *arguments)
            entry = {"step": step.__name__.strip("_"), "seconds": round(used["seconds"], 1)}
            per_id = {f"bytes_{kind}_per_id": round(used[kind] / n_ids, 1) for kind in ("peak", "held")}
            typer.echo(json.dumps(entry | per_id))


if __name__ == "__main__":
    app()
