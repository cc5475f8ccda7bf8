"""
Which bytes are read: those of files that lie where they were named, hold still, and equal their checksums.

A checksum is optional and is what ``sha256sum`` writes: ``events.csv.sha256`` beside ``events.csv``, or a
``SHA256SUMS`` in the folder. Where one is there it is compared before anything parses the file. It is the only thing
that finds a CSV cut at the end of a row, a flipped digit, or a folder that lost one of its parts.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field

from rec_pipeline.engine.artifacts import sha256_of, write_atomically
from rec_pipeline.engine.errors import InputRejectedError

SUMS: Final = "SHA256SUMS"
SUFFIX: Final = ".sha256"
MAX_INFLATION: Final = 200  # text compresses 3 to 20 times; far beyond that the file is made to fill the memory
SLACK_BYTES: Final = 1 << 20  # of what is small, any inflation is let in
_DIGEST_LENGTH: Final = 64


class ReadLimits(BaseModel, frozen=True, extra="forbid"):
    """What a file must prove, and how much of it is taken in."""

    max_rows: int = Field(
        200_000_000, ge=1, description="Most rows of one input; a larger one is refused before it fills the memory."
    )
    require_checksums: bool = Field(
        False, description="Refuse a file without a checksum beside it (FILE.sha256, or SHA256SUMS in its folder)."
    )


DEFAULT_LIMITS: Final = ReadLimits()


def files_of(path: Path) -> list[Path]:
    """
    Return the file itself, or the Parquet files of a folder in the order of their names.

    Raises
    ------
    InputRejectedError
        If there is no such file, the folder holds no Parquet file, or a link leads out of the folder.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise InputRejectedError(f"{path} is a folder without a .parquet file")
    elif path.is_file():
        files = [path]
    else:
        raise InputRejectedError(f"there is no file {path}")
    folder = _folder_of(path).resolve()
    for file in files:
        if not file.resolve().is_relative_to(folder):
            raise InputRejectedError(f"{file} is a link to {file.resolve()}, out of its folder: name that file itself")
    return files


def fingerprint_of(paths: Iterable[Path]) -> str:
    """Return 16 hex digits that change whenever a file's name, size or modification time does."""
    digest = hashlib.sha256()
    for path in paths:
        for file in files_of(path):
            stat = file.stat()
            digest.update(f"{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """
    Hold that nobody writes to the files of ``path`` meanwhile.

    Raises
    ------
    InputRejectedError
        If they are not the same afterwards.
    """
    before = fingerprint_of([path])
    yield
    if fingerprint_of([path]) != before:
        raise InputRejectedError(f"{path} changed while it was read: write it elsewhere, move it here when it is whole")


def check_not_empty(path: Path) -> None:
    """
    Hold that there is something to read.

    Raises
    ------
    InputRejectedError
        If the file has no bytes.
    """
    if path.stat().st_size == 0:
        raise InputRejectedError(f"{path} is empty (0 bytes)")


def verify_file(file: Path, limits: ReadLimits, folder: Path | None = None) -> None:
    """
    Compare a file with its checksum, if it has one.

    Parameters
    ----------
    file
        The file; read some bytes at a time.
    limits
        Whether a checksum must be there.
    folder
        Folder of which the file is a part, as ``verify_listing`` takes it; the file's own by default.

    Raises
    ------
    InputRejectedError
        If it differs, or there is no checksum where one is required.
    """
    found = _expected(file, folder or file.parent)
    if found is None:
        if limits.require_checksums:
            raise InputRejectedError(
                f"{file} has no checksum, which is required here: `sha256sum {file.name} > {file.name}{SUFFIX}` where "
                "the file is made"
            )
        return
    expected, stated_in = found
    actual = sha256_of(file)
    if actual != expected:
        raise InputRejectedError(
            f"{file} ({file.stat().st_size} bytes) has sha256 {actual}, but {stated_in.name} says {expected}: it was "
            "cut short, changed or mixed up on the way; fetch both again"
        )


def verify_listing(folder: Path, files: Iterable[Path]) -> None:
    """
    Hold a folder to its ``SHA256SUMS``, if it has one: every Parquet file that is listed is there, and no other.

    Raises
    ------
    InputRejectedError
        Naming the first file that is missing or not listed.
    """
    if not (folder / SUMS).is_file():
        return
    listed = {name for name in _read_sums(folder / SUMS) if name.endswith(".parquet")}
    found = {file.relative_to(folder).as_posix() for file in files}
    if listed != found:
        missing, unlisted = sorted(listed - found), sorted(found - listed)
        what = f"lacks {missing[0]!r}" if missing else f"holds {unlisted[0]!r}"
        raise InputRejectedError(f"{folder} {what}, unlike its {SUMS}: a part was lost or left over")


def write_checksums(folder: Path) -> None:
    """Write ``SHA256SUMS`` for the Parquet files of a folder."""
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files_of(folder)]
    write_atomically(folder / SUMS, "".join(lines))


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _expected(file: Path, folder: Path) -> tuple[str, Path] | None:
    """Return the sha256 a file should have and where it says so."""
    own = file.with_name(file.name + SUFFIX)
    if own.is_file():
        digests = set(_read_sums(own).values())
        if len(digests) != 1:
            raise InputRejectedError(f"{own} holds {len(digests)} checksums, expected that of {file.name} alone")
        return digests.pop(), own
    if (folder / SUMS).is_file():
        digest = _read_sums(folder / SUMS).get(file.relative_to(folder).as_posix())
        return None if digest is None else (digest, folder / SUMS)
    return None


def _read_sums(path: Path) -> dict[str, str]:
    """Return sha256 by file name, as ``sha256sum`` writes them; a lone digest stands under the empty name."""
    sums = {}
    for line in path.read_text(errors="replace").splitlines():
        digest, _, name = line.strip().partition(" ")
        digest = digest.removeprefix("\\").lower()
        if len(digest) != _DIGEST_LENGTH or not set(digest) <= set("0123456789abcdef"):
            raise InputRejectedError(f"{path} is not a list of sha256 sums: found {line[:80]!r}")
        sums[name.lstrip(" *")] = digest
    if not sums:
        raise InputRejectedError(f"{path} is empty, expected what `sha256sum` writes")
    return sums
