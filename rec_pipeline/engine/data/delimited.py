"""
Delimited text into tables of text, some rows at a time: strict about structure, without an opinion on content.

A file is read twice. The first time it is held to its checksum, its length and its last newline and looked at for bytes
that are no text; only then are rows taken from it. So what is refused as a whole is refused before its first row.
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv

from rec_pipeline.engine.data.files import (
    DEFAULT_LIMITS,
    MAX_INFLATION,
    SLACK_BYTES,
    ReadLimits,
    check_not_empty,
    files_of,
    unchanged,
    verify_file,
)
from rec_pipeline.engine.data.table import joined
from rec_pipeline.engine.errors import InputRejectedError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

UNREADABLE: Final = "\ufdd0"  # Unicode keeps this code point free: no text holds it, and so no id may
_CHUNK_BYTES: Final = 1 << 20  # as many as Arrow parses at a time; a row must end in the one after that it begins in


def read_delimited(
    path: Path,
    *,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
    encoding: str = "utf8",
    quoted: bool = True,
) -> pd.DataFrame:
    """Read all that ``iterate_delimited`` yields."""
    return joined(iterate_delimited(path, delimiter=delimiter, names=names, encoding=encoding, quoted=quoted))


def iterate_delimited(
    path: Path,
    *,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
    encoding: str = "utf8",
    quoted: bool = True,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[pd.DataFrame]:
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
        If the file is missing, empty, without rows, cut short, ragged, too long, not text of that encoding, not what
        its checksum says, or changed meanwhile.
    """
    files_of(path)
    check_not_empty(path)
    with unchanged(path), _parse_errors(path):
        verify_file(path, limits)
        is_marked = not _check_whole(path, limits) and encoding == "utf8"
        lines: Iterator[bytes] = map(marked, _lines(path)) if is_marked else _lines(path)
        if len(delimiter) > 1:
            several, delimiter = delimiter.encode(), "\x1f"
            lines = (chunk.replace(several, b"\x1f") for chunk in lines)
        quote = '"' if quoted else False
        parsing = pacsv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=quoted)
        reading = pacsv.ReadOptions(column_names=names, encoding=encoding, block_size=_CHUNK_BYTES)
        first = list(islice(lines, 3))  # Arrow parses one of them: a row that does not end in it must end after it
        columns = names or _header(path, first, reading, parsing)
        text = pacsv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False)
        n_rows = 0
        with pacsv.open_csv(_as_file(chain(first, lines)), reading, parsing, text) as reader:
            for batch in reader:
                n_rows += len(batch)
                yield batch.to_pandas()
        if n_rows == 0:
            raise InputRejectedError(f"{path} holds no rows, only the columns {list(columns)}")


def marked(content: bytes) -> bytes:
    """Return valid UTF-8 with ``UNREADABLE`` for each run of bytes that were none."""
    return re.sub("[\udc80-\udcff]+", UNREADABLE, content.decode(errors="surrogateescape")).encode()


def _header(path: Path, first: list[bytes], reading: pacsv.ReadOptions, parsing: pacsv.ParseOptions) -> list[str]:
    """Return the names in the first line."""
    with pacsv.open_csv(_as_file(first), reading, parsing) as reader:
        names: list[str] = reader.schema.names
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputRejectedError(f"{path}: the header names column {min(repeated)!r} twice")
    if unreadable := [name for name in names if UNREADABLE in name]:
        raise InputRejectedError(f"{path} cannot be read as delimited text: the header {unreadable[0]!r} is no UTF-8")
    return names


def _check_whole(path: Path, limits: ReadLimits) -> bool:
    """Check that the content is not cut short and no longer than allowed; tell whether it is UTF-8."""
    n_lines, is_utf8, last = 0, True, b""
    for last in _lines(path):
        n_lines += last.count(b"\n")
        is_utf8 = is_utf8 and _is_utf8(last)
    if not last:
        raise InputRejectedError(f"{path} is empty once decompressed")
    if not last.endswith((b"\n", b"\r")):
        row = last.rsplit(b"\n", 1)[-1][:80].decode(errors="replace")
        raise InputRejectedError(
            f"{path} does not end in a newline and was probably cut short in its last row {row!r}; "
            "fetch it again, or end it with a newline if it is whole"
        )
    if n_lines > limits.max_rows + 1:
        raise InputRejectedError(f"{path} has {n_lines} lines, more than the {limits.max_rows} allowed (REC_MAX_ROWS)")
    return is_utf8


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the content, decompressed, in pieces that end where a line does; the last one ends as the file does."""
    limit, n_bytes, rest = MAX_INFLATION * path.stat().st_size + SLACK_BYTES, 0, b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                n_bytes += len(chunk)
                if n_bytes > limit:
                    raise InputRejectedError(
                        f"{path} inflates to more than {MAX_INFLATION} times its size, which is refused"
                    )
                end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
                if end:
                    yield rest + chunk[:end]
                    rest = chunk[end:]
                else:
                    rest += chunk
                if len(rest) > _CHUNK_BYTES:
                    raise InputRejectedError(
                        f"{path} cannot be read as delimited text: it has a line of more than {_CHUNK_BYTES} bytes"
                    )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputRejectedError(f"{path} is a truncated or corrupt gzip file: {error}") from error
    if rest:
        yield rest


def _as_file(pieces: Iterable[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Pieces(pieces))


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self._rest = iter(pieces), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        target = memoryview(buffer).cast("B")
        self._rest = self._rest or memoryview(next(self._pieces, b""))
        n_bytes = min(len(target), len(self._rest))
        target[:n_bytes], self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
        return n_bytes


@contextmanager
def _parse_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputRejectedError(f"{path} cannot be read as delimited text: {error}") from error
