"""Where interactions and items come from: the bundled sample, MovieLens, or anybody's files."""

import hashlib
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final, Protocol

import pandas as pd
import pyarrow as pa
from pydantic import Field

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.fetching import local_path
from rec_pipeline.engine.data.files import DEFAULT_LIMITS, ReadLimits, files_of, fingerprint_of, verify_listing
from rec_pipeline.engine.data.movielens import ARCHIVES, MOVIELENS_URL, MovieLensSource, download_movielens
from rec_pipeline.engine.data.reading import (
    ids_as_text,
    iterate_any,
    iterate_folder_of,
    partition_columns,
    read_parquet,
    require_columns,
    schema_of,
)
from rec_pipeline.engine.data.table import joined
from rec_pipeline.engine.errors import ConfigurationError, InputRejectedError

SAMPLE_DIRECTORY: Final = Path(__file__).parents[3] / "data" / "sample"
DATASETS: Final = ("sample", *ARCHIVES, "files")
DAY: Final = "day"
REQUIRED: Final = (c.USER_ID, c.ITEM_ID, c.TIMESTAMP)
INTERACTION_COLUMNS: Final = (
    c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.WEIGHT, c.RATING, c.EVENT_TYPE, c.EVENT_ID, c.LOCATION, c.DEVICE,
)  # fmt: skip
ITEM_COLUMNS: Final = (c.ITEM_ID, c.TITLE, c.DESCRIPTION, c.CATEGORIES, c.AVAILABLE, c.PUBLISHED_AT)


class SourceParams(ReadLimits):
    """Which data set is read, and from where."""

    dataset: str = Field("sample", description=f"one of {', '.join(DATASETS)}")
    data_dir: str | None = Field(
        None, description="folder of a MovieLens set in GroupLens's layout; downloaded if unset"
    )
    interactions: str | None = Field(
        None, description="files: CSV, TSV, Parquet or folder of Parquet with the interactions"
    )
    items: str | None = Field(
        None, description="files: the same with the items; unset: the interacted ids, without titles"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="files: our column name to the file's")
    download_dir: str = Field("data/downloads", description="where downloaded archives are kept")
    movielens_url: str = Field(MOVIELENS_URL, description="where the MovieLens archives are; their checksums are fixed")


class InteractionSource(Protocol):
    """Reads the two raw tables: ids as text, columns by our names, nothing validated."""

    def read_interactions(self) -> pd.DataFrame:
        """Return the interactions as they came; ``user_id``, ``item_id`` and ``timestamp`` are there."""

    def iterate_interactions(self) -> Iterator[pd.DataFrame]:
        """Yield the same some rows at a time, in order."""

    def read_items(self) -> pd.DataFrame:
        """Return the items as they came; ``item_id`` and ``title`` are there."""

    def fingerprint(self) -> str:
        """Return a short text that changes when the data does, without reading the data."""

    def describe(self) -> str:
        """Say where the data comes from."""


def open_source(params: SourceParams) -> InteractionSource:
    """
    Return the reader of a data set, having downloaded it if need be.

    Raises
    ------
    ConfigurationError
        If the data set is unknown, a path is missing, or a download failed.
    """
    if params.dataset == "sample":
        return SampleSource()
    if params.dataset in ARCHIVES:
        return MovieLensSource(params.dataset, _movielens_folder(params))
    if params.dataset == "files":
        return _file_source(params)
    raise ConfigurationError(f"dataset {params.dataset!r} is unknown, expected one of {', '.join(DATASETS)}")


@dataclass(frozen=True)
class SampleSource:
    """The sample that lies beside the package, or is generated where it does not (an installed wheel)."""

    directory: Path = SAMPLE_DIRECTORY

    def read_interactions(self) -> pd.DataFrame:
        """Return the sample's interactions."""
        return self._read("interactions")

    def iterate_interactions(self) -> Iterator[pd.DataFrame]:
        """Yield them all at once."""
        yield self.read_interactions()

    def read_items(self) -> pd.DataFrame:
        """Return the sample's items."""
        return self._read("items")

    def fingerprint(self) -> str:
        """Return the digest of the files' sizes and times, or of the generator's seed."""
        from rec_pipeline.engine.data.sample import SEED

        return fingerprint_of(self._paths()) if self.directory.is_dir() else f"sample-seed-{SEED}"

    def describe(self) -> str:
        """Say whether the sample is read or generated."""
        return f"the bundled sample in {self.directory}" if self.directory.is_dir() else "the sample, generated here"

    def _paths(self) -> list[Path]:
        return [self.directory / "interactions.parquet", self.directory / "items.parquet"]

    def _read(self, name: str) -> pd.DataFrame:
        if self.directory.is_dir():
            return read_parquet(self.directory / f"{name}.parquet")
        from rec_pipeline.engine.data.sample import generate_sample

        sample = generate_sample()
        return sample.interactions if name == "interactions" else sample.items


@dataclass(frozen=True)
class FileSource:
    """
    Anybody's interactions and, if there are any, items.

    Attributes
    ----------
    interactions, items
        CSV, TSV or Parquet files, or folders of Parquet. Without items the catalogue is the interacted ids.
    columns
        Our column name to the file's, for those that differ.
    limits
        Most rows, and whether files must have checksums.
    """

    interactions: Path
    items: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)
    limits: ReadLimits = DEFAULT_LIMITS

    def read_interactions(self) -> pd.DataFrame:
        """Return the interactions under our column names."""
        return joined(self.iterate_interactions())

    def iterate_interactions(self) -> Iterator[pd.DataFrame]:
        """Yield the interactions under our column names, some rows at a time."""
        return self._iterate(self.interactions, REQUIRED, INTERACTION_COLUMNS)

    def read_items(self) -> pd.DataFrame:
        """Return the items under our column names, or one row an interacted id with an empty title."""
        if self.items is not None:
            return joined(self._iterate(self.items, (c.ITEM_ID, c.TITLE), ITEM_COLUMNS))
        found = joined(part[[c.ITEM_ID]].dropna().drop_duplicates() for part in self.iterate_interactions())
        item_ids = found[c.ITEM_ID].drop_duplicates().sort_values(ignore_index=True)
        return pd.DataFrame({c.ITEM_ID: item_ids, c.TITLE: pd.Series("", index=item_ids.index, dtype="str")})

    def fingerprint(self) -> str:
        """Return the digest of the files' names, sizes and times."""
        return fingerprint_of(path for path in (self.interactions, self.items) if path is not None)

    def describe(self) -> str:
        """Name the files."""
        return f"{self.interactions} and {self.items or 'no item file'}"

    def by_day(self, first: str, last: str) -> "DailyFiles":
        """
        Return the interactions day by day, those of the folders ``day=YYYY-MM-DD``.

        Parameters
        ----------
        first, last
            Days to be read, ISO dates; others are left out.

        Raises
        ------
        ConfigurationError
            If the interactions are not a folder.
        InputRejectedError
            If it holds no such day, or a file that is in none.
        """
        whole = self.interactions
        if not whole.is_dir():
            raise ConfigurationError(f"{whole} is read by day, so it must be a folder of folders day=YYYY-MM-DD")
        files = files_of(whole)
        verify_listing(whole, files)
        found: dict[str, list[Path]] = {}
        for file in files:
            found.setdefault(_day_of(file, whole), []).append(file)
        taken = {day: of_day for day, of_day in found.items() if first <= day <= last}
        if not taken:
            raise InputRejectedError(f"{whole} holds no day from {first} to {last}, but {min(found)} to {max(found)}")
        schema = schema_of(whole, next(iter(taken.values()))[0], self.limits)
        read_as = f"{schema.remove_metadata()} {sorted(self.columns.items())}"
        days = {day: _digest(f"{fingerprint_of(of_day)} {read_as}") for day, of_day in taken.items()}
        of_layout = frozenset(partition_columns(files, whole))
        return DailyFiles(self, days, tuple(found.keys() - taken.keys()), schema, of_layout)

    def _iterate(self, path: Path, required: tuple[str, ...], known: tuple[str, ...]) -> Iterator[pd.DataFrame]:
        of_layout = partition_columns(files_of(path), path) if path.is_dir() else set()
        for table in iterate_any(path, self.limits):
            yield self._named(table, of_layout, str(path), required, known)

    def _named(
        self,
        table: pd.DataFrame,
        of_layout: Set[str],
        origin: str,
        required: tuple[str, ...],
        known: tuple[str, ...],
    ) -> pd.DataFrame:
        # How a folder is laid out is no data, unless a column of ours is to be read from it.
        table = table.drop(columns=list(of_layout - {*known, *self.columns.values()}), errors="ignore")
        for ours, theirs in self.columns.items():
            if ours in known and ours not in table and theirs not in table:
                found = ", ".join(repr(name) for name in table.columns)
                raise InputRejectedError(
                    f"{origin}: column {theirs!r}, to be read as {ours!r}, is missing, found {found}"
                )
        renamed = {theirs: ours for ours, theirs in self.columns.items() if ours in known and theirs in table}
        # A column that already bears our name gives way to the one that the mapping names.
        table = table.drop(columns=[ours for theirs, ours in renamed.items() if ours in table and ours != theirs])
        table = table.rename(columns=renamed)
        require_columns(table, required, origin)
        return ids_as_text(table, origin)


@dataclass(frozen=True)
class DailyFiles:
    """
    Interactions in one folder a day, read as ``FileSource`` reads the whole.

    Attributes
    ----------
    source
        The whole.
    days
        What changes when the files of a day do, or how they are read, by day in order.
    left_out
        Days that are there and are not read.
    schema
        Columns and types of all files: those of the first.
    of_layout
        Columns that folders are read as.
    """

    source: FileSource
    days: Mapping[str, str]
    left_out: tuple[str, ...]
    schema: pa.Schema
    of_layout: frozenset[str]

    def iterate(self, day: str) -> Iterator[pd.DataFrame]:
        """Yield the interactions of a day under our column names, some rows at a time."""
        whole, folder = self.source.interactions, self.source.interactions / f"{DAY}={day}"
        for table in iterate_folder_of(whole, folder, self.schema, self.source.limits):
            yield self.source._named(table, self.of_layout, str(folder), REQUIRED, INTERACTION_COLUMNS)


def _day_of(file: Path, whole: Path) -> str:
    folder = file.relative_to(whole).parts[0]
    with suppress(ValueError):
        name, _, day = folder.partition("=")
        if name == DAY and date.fromisoformat(day).isoformat() == day:
            return day
    raise InputRejectedError(f"{file} is in no folder day=YYYY-MM-DD of {whole}, which is read by day")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file_source(params: SourceParams) -> FileSource:
    if not params.interactions:
        raise ConfigurationError("dataset 'files' needs the path of the interactions (--interactions PATH)")
    known = sorted({*INTERACTION_COLUMNS, *ITEM_COLUMNS})
    for ours in params.columns:
        if ours not in known:
            raise ConfigurationError(f"columns: {ours!r} is not a column of ours, expected one of {', '.join(known)}")
    folder = Path(params.download_dir)
    interactions = local_path(params.interactions, folder)
    items = local_path(params.items, folder) if params.items else None
    for path in (interactions, items):
        if path and not path.exists():
            raise ConfigurationError(f"there is no file or folder {path}")
    limits = ReadLimits(max_rows=params.max_rows, require_checksums=params.require_checksums)
    return FileSource(interactions, items, params.columns, limits)


def _movielens_folder(params: SourceParams) -> Path:
    if params.data_dir is None:
        return download_movielens(params.dataset, Path(params.download_dir), params.movielens_url)
    folder = Path(params.data_dir)
    if not folder.is_dir():
        raise ConfigurationError(f"data_dir: there is no folder {folder}, expected the unpacked {params.dataset}.zip")
    return folder
