"""Files into tables of text: strict about structure, without an opinion on content."""

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.files import (
    DEFAULT_LIMITS,
    ReadLimits,
    files_of,
    unchanged,
    verify_content,
    verify_listing,
)
from rec_pipeline.engine.data.table import joined
from rec_pipeline.engine.errors import ConfigurationError, InputRejectedError

MAX_INFLATION = 200  # text compresses 3 to 20 times; far beyond that the file is made to fill the memory
UNREADABLE = "\ufdd0"  # Unicode keeps this code point free: no text holds it, and so no id may
_CHUNK_BYTES = 1 << 20
_ID_COLUMNS = (c.USER_ID, c.ITEM_ID)


def read_delimited(
    path: Path,
    *,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
    encoding: str = "utf8",
    quoted: bool = True,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> pd.DataFrame:
    """
    Read a CSV-like file, gzipped or not, every column as text: ``007``, ``1e5``, ``NA`` and nothing stay what they are.

    In what should be UTF-8, bytes that are not are read as ``UNREADABLE``, by which validation refuses their row.

    Parameters
    ----------
    path
        The file; its rows all have the same number of fields and the last one ends in a newline.
    delimiter
        Between fields; more than one character is allowed.
    names
        Columns of a file without a header line.
    encoding
        Of the file.
    quoted
        Whether ``"`` encloses fields.
    limits
        Most rows, and whether a checksum must be there; one that is there is always compared.

    Raises
    ------
    InputRejectedError
        If the file is missing, empty, without rows, cut short, ragged, too long, not text of that encoding, or not
        what its checksum says.
    """
    content = _read_text_bytes(path, limits)
    if len(delimiter) > 1:
        content, delimiter = content.replace(delimiter.encode(), b"\x1f"), "\x1f"
    reading = pacsv.ReadOptions(column_names=names, encoding=encoding)
    parsing = pacsv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted)
    try:
        try:
            table = _parsed(path, content, reading, parsing)
        except pa.ArrowInvalid as error:
            if "invalid UTF8" not in str(error) or encoding != "utf8":
                raise
            table = _parsed(path, _marked(content), reading, parsing)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputRejectedError(f"{path} cannot be read as delimited text: {error}") from error
    if not len(table):
        raise InputRejectedError(f"{path} holds no rows, only the columns {table.column_names}")
    frame: pd.DataFrame = table.to_pandas()
    return frame


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
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        verify_listing(path, files)
    n_rows = 0
    for file in files:
        _check_not_empty(file)
        with _parquet_errors(file), pa.memory_map(str(file)) as source:
            verify_content(file, memoryview(source.read_buffer()), limits, folder)
            n_rows += _declared_rows(file)
    if n_rows > limits.max_rows:
        raise InputRejectedError(f"{path} has {n_rows} rows, more than the {limits.max_rows} allowed (REC_MAX_ROWS)")
    with _parquet_errors(path), unchanged(path):
        dataset = ds.dataset(
            [str(file) for file in files],
            format=ds.ParquetFileFormat(page_checksum_verification=True),
            partitioning=ds.HivePartitioning.discover(infer_dictionary=True),
            partition_base_dir=str(folder),
        )
        if n_rows == 0:
            raise InputRejectedError(f"{path} holds no rows, only the columns {dataset.schema.names}")
        for batch in dataset.to_batches(batch_readahead=2, fragment_readahead=2):
            table = pa.Table.from_batches([batch], dataset.schema)
            readable = pa.Table.from_arrays(list(map(_readable, table.columns)), schema=table.schema)
            yield readable.to_pandas(integer_object_nulls=True)


def partition_columns(path: Path) -> set[str]:
    """Return the columns of a folder of Parquet files that folders ``name=value`` in it are read as."""
    if not path.is_dir():
        return set()
    folders = {part for file in files_of(path) for part in file.relative_to(path).parts[:-1]}
    return {part.partition("=")[0] for part in folders if "=" in part}


def iterate_any(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[pd.DataFrame]:
    """
    Read Parquet some rows at a time, or CSV or TSV (both gzipped or not) at once, told apart by the name.

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
        yield read_delimited(path, limits=limits)
    elif name.endswith((".tsv", ".tab")):
        yield read_delimited(path, delimiter="\t", limits=limits)
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


def _parsed(path: Path, content: bytes, reading: pacsv.ReadOptions, parsing: pacsv.ParseOptions) -> pa.Table:
    """Parse text into columns of text, their names checked first."""
    names = reading.column_names
    if not names:
        with pacsv.open_csv(pa.BufferReader(content), reading, parsing) as reader:
            names = reader.schema.names
    if repeated := {name for name in names if list(names).count(name) > 1}:
        raise InputRejectedError(f"{path}: the header names column {min(repeated)!r} twice")
    text = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pacsv.read_csv(pa.BufferReader(content), reading, parsing, text)


def _marked(content: bytes) -> bytes:
    """Return valid UTF-8 with ``UNREADABLE`` for each run of bytes that were none."""
    return re.sub("[\udc80-\udcff]+", UNREADABLE, content.decode(errors="surrogateescape")).encode()


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column whose text is UTF-8: the format does not see to it, and nobody can read a text that is not."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        if not pa.types.is_string(column.type):
            raise
        values = column.cast(pa.binary()).to_pylist()
        return pa.chunked_array([pa.array([value and _marked(value).decode() for value in values], pa.string())])
    return column


def _read_text_bytes(path: Path, limits: ReadLimits) -> bytes:
    """Return the whole content, decompressed, having checked that it is not cut short."""
    files_of(path)
    _check_not_empty(path)
    with unchanged(path):
        content = path.read_bytes()
    verify_content(path, content, limits)
    if path.suffix == ".gz":
        content = _decompress(path, content)
    if not content:
        raise InputRejectedError(f"{path} is empty once decompressed")
    if not content.endswith((b"\n", b"\r")):
        last = content.rsplit(b"\n", 1)[-1][:80].decode(errors="replace")
        raise InputRejectedError(
            f"{path} does not end in a newline and was probably cut short in its last row {last!r}; "
            "fetch it again, or end it with a newline if it is whole"
        )
    if (n_lines := content.count(b"\n")) > limits.max_rows + 1:
        raise InputRejectedError(f"{path} has {n_lines} lines, more than the {limits.max_rows} allowed (REC_MAX_ROWS)")
    return content


def _decompress(path: Path, compressed: bytes) -> bytes:
    limit = MAX_INFLATION * len(compressed) + _CHUNK_BYTES
    content = bytearray()
    try:
        with gzip.open(io.BytesIO(compressed)) as file:
            while chunk := file.read(_CHUNK_BYTES):
                content += chunk
                if len(content) > limit:
                    raise InputRejectedError(
                        f"{path} inflates to more than {MAX_INFLATION} times its size, which is refused"
                    )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputRejectedError(f"{path} is a truncated or corrupt gzip file: {error}") from error
    return bytes(content)


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
    if n_bytes > MAX_INFLATION * file.stat().st_size + _CHUNK_BYTES:
        raise InputRejectedError(f"{file} inflates to more than {MAX_INFLATION} times its size, which is refused")
    return int(metadata.num_rows)


def _check_not_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise InputRejectedError(f"{path} is empty (0 bytes)")
