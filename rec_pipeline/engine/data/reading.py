"""Files into tables of text: strict about structure, without an opinion on content."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.delimited import iterate_delimited, marked
from rec_pipeline.engine.data.files import (
    DEFAULT_LIMITS,
    MAX_INFLATION,
    SLACK_BYTES,
    ReadLimits,
    check_not_empty,
    files_of,
    unchanged,
    verify_file,
    verify_listing,
)
from rec_pipeline.engine.data.table import joined
from rec_pipeline.engine.errors import ConfigurationError, InputRejectedError

_ID_COLUMNS = (c.USER_ID, c.ITEM_ID)


def read_parquet(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> pd.DataFrame:
    """Read all that ``iterate_parquet`` yields."""
    return joined(iterate_parquet(path, limits))


def iterate_parquet(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[pd.DataFrame]:
    """
    Read a Parquet file or a folder of them, some rows at a time; page checksums are compared where there are any.

    Column types are as stored, and a folder ``name=value`` is a column as well. In text, bytes that are no UTF-8 are
    read as ``UNREADABLE``, as in delimited files. Every file has been held to its checksum before any row is read.

    Raises
    ------
    InputRejectedError
        If a file is missing, empty, truncated, corrupt, too long or without rows, or not what its checksum says; if the
        folder holds none, or others than its ``SHA256SUMS`` names.
    """
    files = files_of(path)
    if path.is_dir():
        verify_listing(path, files)
    yield from _iterate_files(path, files, path if path.is_dir() else path.parent, limits)


def iterate_folder_of(whole: Path, folder: Path, schema: pa.Schema, limits: ReadLimits) -> Iterator[pd.DataFrame]:
    """
    Read one folder of a folder of Parquet files, as ``iterate_parquet`` reads it among the others.

    Parameters
    ----------
    whole
        What ``iterate_parquet`` would read; its ``SHA256SUMS`` holds for the files.
    folder
        Below it.
    schema
        As ``schema_of`` returns it.
    limits
        Most rows of this folder, and whether files must have checksums.

    Raises
    ------
    InputRejectedError
        As ``iterate_parquet`` does.
    """
    yield from _iterate_files(folder, files_of(folder), whole, limits, schema)


def schema_of(whole: Path, file: Path, limits: ReadLimits) -> pa.Schema:
    """
    Return what all files of a folder are read as: the columns of ``file``, its first, and those of its layout.

    Raises
    ------
    InputRejectedError
        If it cannot be read, or is not what its checksum says.
    """
    check_not_empty(file)
    verify_file(file, limits, whole)
    with _parquet_errors(file):
        return _dataset([file], whole).schema


def partition_columns(files: Iterable[Path], folder: Path) -> set[str]:
    """Return the columns that folders ``name=value`` between ``folder`` and its Parquet files are read as."""
    folders = {part for file in files for part in file.relative_to(folder).parts[:-1]}
    return {part.partition("=")[0] for part in folders if "=" in part}


def iterate_any(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[pd.DataFrame]:
    """
    Read Parquet, CSV or TSV (both gzipped or not) some rows at a time, told apart by the name.

    A folder is one of Parquet files.

    Raises
    ------
    ConfigurationError
        If the name ends in none of the known ways.
    InputRejectedError
        If the content cannot be read.
    """
    name = path.name.removesuffix(".gz").lower()
    if path.is_dir() or name.endswith((".parquet", ".pq")):
        yield from iterate_parquet(path, limits)
    elif name.endswith(".csv"):
        yield from iterate_delimited(path, limits=limits)
    elif name.endswith((".tsv", ".tab")):
        yield from iterate_delimited(path, delimiter="\t", limits=limits)
    else:
        raise ConfigurationError(
            f"{path}: expected a name ending in .csv, .tsv (or these with .gz), .parquet, or a folder"
        )


def ids_as_text(table: pd.DataFrame, origin: str) -> pd.DataFrame:
    """
    Return a copy whose id columns are text; whole numbers are written out, nulls stay null.

    Raises
    ------
    InputRejectedError
        If ids are stored as fractions, truth values or anything else that does not say how it is written.
    """
    table = table.copy()
    for name in _ID_COLUMNS:
        if name not in table or isinstance(table[name].dtype, pd.StringDtype):
            continue
        kind = pd.api.types.infer_dtype(table[name], skipna=True)
        if kind == "string":  # as objects, because it may hold what a string array cannot
            continue
        if kind not in {"integer", "categorical", "empty"}:
            raise InputRejectedError(
                f"{origin}: column {name!r} holds {kind} values, expected text or whole numbers; "
                "store ids as text, so that they are not changed on the way"
            )
        table[name] = table[name].astype("str")
    return table


def require_columns(table: pd.DataFrame, names: Iterable[str], origin: str) -> None:
    """
    Check that columns are there, and no name twice.

    Raises
    ------
    InputRejectedError
        Naming the first missing column and those that were found, or the repeated one.
    """
    if table.columns.has_duplicates:
        raise InputRejectedError(f"{origin}: column {table.columns[table.columns.duplicated()][0]!r} is there twice")
    for name in names:
        if name not in table:
            found = ", ".join(repr(column) for column in table.columns)
            raise InputRejectedError(
                f"{origin}: column {name!r} is missing, found {found}; if it has another name there, map it with "
                f"--column {name}=THEIR_NAME"
            )


def _iterate_files(
    path: Path, files: Sequence[Path], folder: Path, limits: ReadLimits, schema: pa.Schema | None = None
) -> Iterator[pd.DataFrame]:
    """Read the files of ``path``; ``folder`` is where their layout begins, ``schema`` by default that of the first."""
    with _parquet_errors(path), unchanged(path):
        n_rows = 0
        for file in files:
            check_not_empty(file)
            verify_file(file, limits, folder)
            with _parquet_errors(file):
                n_rows += _declared_rows(file)
        if n_rows > limits.max_rows:
            raise InputRejectedError(
                f"{path} has {n_rows} rows, more than the {limits.max_rows} allowed (REC_MAX_ROWS)"
            )
        dataset = _dataset(files, folder)
        schema = schema or dataset.schema
        if n_rows == 0:
            raise InputRejectedError(f"{path} holds no rows, only the columns {schema.names}")
        # A scan of all files reads on ahead of whoever takes the rows; of one at a time it is at most to its end.
        batches = (fragment.to_batches(schema, batch_readahead=2) for fragment in dataset.get_fragments())
        for batch in chain.from_iterable(batches):
            table = pa.Table.from_batches([batch], schema)
            readable = pa.Table.from_arrays(list(map(_readable, table.columns)), schema=table.schema)
            yield readable.to_pandas(integer_object_nulls=True)


def _dataset(files: Sequence[Path], folder: Path) -> ds.Dataset:
    return ds.dataset(
        [str(file) for file in files],
        format=ds.ParquetFileFormat(page_checksum_verification=True),
        partitioning=ds.HivePartitioning.discover(infer_dictionary=True),
        partition_base_dir=str(folder),
    )


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column whose text is UTF-8: the format does not see to it, and nobody can read a text that is not."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        if not pa.types.is_string(column.type):
            raise
        values = column.cast(pa.binary()).to_pylist()
        return pa.chunked_array([pa.array([value and marked(value).decode() for value in values], pa.string())])
    return column


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputRejectedError(f"{path} cannot be read as Parquet, it is truncated or corrupt: {error}") from error


def _declared_rows(file: Path) -> int:
    """Return the number of rows a Parquet file says it has, refusing one that says it inflates out of proportion."""
    metadata = pq.read_metadata(file)
    n_bytes = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    if n_bytes > MAX_INFLATION * file.stat().st_size + SLACK_BYTES:
        raise InputRejectedError(f"{file} inflates to more than {MAX_INFLATION} times its size, which is refused")
    return int(metadata.num_rows)
