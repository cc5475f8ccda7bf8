"""Artefacts as assets get them: what another version of the code has laid out is refused in words."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rec_pipeline.engine.artifacts import Storable, read_json, write_json, write_table
from rec_pipeline.engine.data.split import SplitParams, split_interactions
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.recommenders.tuning import FusionWeights
from rec_pipeline.resources.artifacts import TABLE, Artifacts, SealedArtifact

pytestmark = pytest.mark.filterwarnings(
    "ignore:Series.values returning an ndarray that drops timezone"  # pyarrow 25 asks pandas 3.1 for it when writing
)
ROWS = pd.DataFrame({"user_id": ["u1"] * 10, "item_id": [f"i{n}" for n in range(10)], "weight": 1.0}).assign(
    timestamp=pd.date_range("2024-02-10", periods=10, tz="UTC").as_unit("us")
)
SPLIT = split_interactions(ROWS, ROWS[["item_id"]], SplitParams())
TABLES = ValidatedTable(Table((ROWS,)), Table((ROWS,)), 20, 0, (), None)
WEIGHTS = FusionWeights(HybridParams(), ROWS[["weight"]])


def with_tables_of_parquet(directory: Path) -> None:
    """Lay a split out as it was before its tables were mapped from disk."""
    for part in ("fitting", "test", "by_user"):
        shutil.rmtree(directory / part)
    for name in ("train", "validation", "test"):
        write_table(directory / f"{name}.parquet", ROWS)


def in_one_file(directory: Path) -> None:
    """Lay validated rows out as they were before they were written in parts."""
    (directory / "table" / "00000.parquet").rename(directory / TABLE)
    (directory / "table").rmdir()


def with_members(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        document = read_json(directory / name)
        change(document)
        write_json(directory / name, document)

    return edit


@pytest.mark.parametrize(
    ("value", "lay_out", "reason"),
    [
        (SPLIT, with_tables_of_parquet, "FileNotFoundError: .*fitting"),
        (SPLIT, with_members("split.json", lambda split: split.pop("strategy")), "TypeError: .*'strategy'"),
        (TABLES, in_one_file, "FileNotFoundError: no parts of a table in .*table"),
        (TABLES, with_members("counts.json", lambda counts: counts.pop("n_rows_in")), "KeyError: 'n_rows_in'"),
        (WEIGHTS, with_members("params.json", lambda params: params.update(depth=3)), "ValidationError: .*depth"),
    ],
)
def test_another_layout_is_told_with_what_was_found_and_expected_and_what_makes_it_again(
    tmp_path: Path, value: Storable, lay_out: Callable[[Path], None], reason: str
) -> None:
    def save(directory: Path) -> None:
        value.save(directory)
        lay_out(directory)

    artifacts, kind = Artifacts(root=str(tmp_path)), type(value)
    manifest = artifacts.store.write("made_before", save, kind=kind.__name__)
    folder = artifacts.store.path("made_before")
    found = f"{folder} is whole, but laid out by another version of rec-pipeline: found {kind.__name__} of "
    words = (
        f"(?s)^{re.escape(found + ', '.join(sorted(manifest.files)[:8]))}.*{reason}.*`rec-pipeline run` makes it again$"
    )

    for load in (lambda: artifacts.load("made_before", kind), lambda: SealedArtifact(folder).open(kind)):
        with pytest.raises(ArtifactIntegrityError, match=words):
            load()


def test_a_frame_of_another_layout_is_told_too(tmp_path: Path) -> None:
    artifacts = Artifacts(root=str(tmp_path))
    artifacts.store.write("raw_items", lambda folder: write_table(folder / "rows.parquet", ROWS), kind="DataFrame")

    with pytest.raises(ArtifactIntegrityError, match=r"found DataFrame of rows\.parquet, .*table\.parquet"):
        artifacts.load("raw_items", pd.DataFrame)
