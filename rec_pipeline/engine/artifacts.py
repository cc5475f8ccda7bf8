"""
Artefacts on disk: whole or absent, checked before they are read.

An artefact is a directory of files sealed by ``manifest.json``, which is written last and names the size and sha256 of
every other file. Its version is the digest of those digests, so equal content has an equal version and is stored once.
``ArtifactStore`` keeps the versions of one key side by side and moves the key's ``current`` file to a new version
atomically; whatever is killed when, readers find the old version or the new one. Files are open to the group at most.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rec_pipeline.engine import crash_points
from rec_pipeline.engine.errors import ArtifactIntegrityError, StorageFullError
from rec_pipeline.engine.signing import Signer

MANIFEST = "manifest.json"
CURRENT = "current"
VERSIONS_KEPT = 3
ABANDONED_SECONDS = 24 * 3600  # what a killed writer left; no artefact takes a day to write
FILE_MODE, FOLDER_MODE = 0o640, 0o750
SPACE_FACTOR = 2  # of the last version's size: the new one, and room for what grew
UNFINISHED = ".writing-"  # what a folder's name begins with that its writer removes
_SIGNATURE = "signature"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FILES_SHOWN = 8

Loaded = TypeVar("Loaded")

_signer = Signer()


def use_signer(signer: Signer) -> None:
    """Sign and check every manifest of this process with ``signer``; decided once, where the process starts."""
    global _signer
    _signer = signer


@runtime_checkable
class Storable(Protocol):
    """An object that lays itself out as files in a directory and comes back from them, never through pickle."""

    def save(self, directory: Path) -> None:
        """Write every file of this object into an existing, empty ``directory``."""

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the object back from a verified ``directory``."""


@dataclass(frozen=True)
class Manifest:
    """
    What a sealed directory holds.

    Attributes
    ----------
    kind
        What the artefact is, e.g. the class that wrote it.
    version
        First 16 hex digits of the sha256 over kind, file names and file digests.
    files
        Relative path to ``{"sha256": hex, "bytes": size}``.
    metadata
        Facts about its making (run id, parameters); not part of the version.
    """

    kind: str
    version: str
    files: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, Any]

    @property
    def n_bytes(self) -> int:
        """Total size of the files, in bytes."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_directory(directory: Path, kind: str, metadata: Mapping[str, Any] | None = None) -> Manifest:
    """
    Flush every file of ``directory`` to disk, take it from others, and write the manifest last.

    Raises
    ------
    ArtifactIntegrityError
        If the directory holds no files.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    if not paths:
        raise ArtifactIntegrityError(f"nothing to seal: {directory} holds no files")
    files: dict[str, dict[str, Any]] = {}
    for folder in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        folder.chmod(FOLDER_MODE)
    for path in paths:
        path.chmod(path.stat().st_mode & FILE_MODE)
        _fsync(path)
        files[path.relative_to(directory).as_posix()] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    lines = [kind, *(f"{name} {entry['sha256']}" for name, entry in files.items())]
    version = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    content: dict[str, Any] = {"kind": kind, "version": version, "files": files, "metadata": dict(metadata or {})}
    text = json.dumps(content, indent=2, sort_keys=True, default=str)
    if (signature := _signer.sign(_canonical(json.loads(text)))) is not None:
        text = json.dumps(json.loads(text) | {_SIGNATURE: signature}, indent=2, sort_keys=True)
    write_atomically(directory / MANIFEST, text)
    return Manifest(**content)


def read_manifest(directory: Path) -> Manifest:
    """
    Read the manifest of a sealed directory, checking its signature but not the files.

    Raises
    ------
    ArtifactIntegrityError
        If there is none, it is not a manifest, or its signature is not what this installation asks for.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        signature = content.pop(_SIGNATURE, None)
        manifest = _parsed(content)
    except FileNotFoundError as error:
        raise ArtifactIntegrityError(f"no sealed artefact at {directory}: {MANIFEST} is missing") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ArtifactIntegrityError(f"{path} is not a manifest: {error}") from error
    _signer.check(_canonical(content), signature, path)
    return manifest


def verify_directory(directory: Path) -> Manifest:
    """
    Check every file of a sealed directory against its manifest, before anything parses them.

    Raises
    ------
    ArtifactIntegrityError
        If the manifest is absent, a file is missing, a file's size or sha256 differs, or there is one it does not name.
    """
    manifest = read_manifest(directory)
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    if unknown := sorted(found - manifest.files.keys() - {MANIFEST}):
        raise ArtifactIntegrityError(f"{directory / unknown[0]} is not named in its manifest")
    for name in manifest.files:
        verify_file(directory, name, manifest)
    return manifest


@contextmanager
def locked(folder: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock on a folder, by default against everybody else on this machine; it ends with its process at last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def verify_file(directory: Path, name: str, manifest: Manifest) -> None:
    """
    Check one file of a sealed directory against its manifest.

    Raises
    ------
    ArtifactIntegrityError
        If it is missing, or its size or sha256 differs.
    """
    path, entry = directory / name, manifest.files[name]
    if not path.is_file():
        raise ArtifactIntegrityError(f"{path} is named in its manifest but missing")
    if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
        raise ArtifactIntegrityError(
            f"{path} does not match its manifest: found {path.stat().st_size} bytes with sha256 {sha256_of(path)}, "
            f"expected {entry['bytes']} bytes with sha256 {entry['sha256']}"
        )


def load_sealed(directory: Path, load: Callable[[Path], Loaded]) -> Loaded:
    """
    Load a verified directory; what ``load`` cannot read of it was laid out by another version of this project.

    Parameters
    ----------
    directory
        Its files match its manifest, as ``ArtifactStore.path`` and ``verify_directory`` see to.
    load
        Reads it, e.g. ``InteractionSplit.load``.

    Raises
    ------
    ArtifactIntegrityError
        If a file, a column or a member that ``load`` reads is not there, or is of another kind.
    """
    try:
        return load(directory)
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        manifest = read_manifest(directory)
        names = sorted(manifest.files)
        more = f" and {len(names) - _FILES_SHOWN} more" if len(names) > _FILES_SHOWN else ""
        raise ArtifactIntegrityError(
            f"{directory} is whole, but laid out by another version of rec-pipeline: found {manifest.kind} of "
            f"{', '.join(names[:_FILES_SHOWN])}{more}, expected what this version reads ({type(error).__name__}: "
            f"{error}); `rec-pipeline run` makes it again"
        ) from error


def is_whole(directory: Path) -> bool:
    """Tell whether ``directory`` is sealed and every file of it matches."""
    try:
        verify_directory(directory)
    except ArtifactIntegrityError:
        return False
    return True


@dataclass(frozen=True)
class ArtifactStore:
    """
    Sealed artefacts under one root, ``<root>/<key>/<version>/``, and the current version of each key.

    Attributes
    ----------
    root
        Directory that holds one folder a key; made on the first write.
    """

    root: Path

    def write(
        self,
        key: str,
        save: Callable[[Path], None],
        *,
        kind: str,
        metadata: Mapping[str, Any] | None = None,
        protected: Collection[str] = (),
    ) -> Manifest:
        """
        Seal what ``save`` writes as a version of ``key`` and make it current.

        Old versions beyond the last few are deleted, those ``protected`` excepted. Cost: one write and one read of the
        content.

        Raises
        ------
        StorageFullError
            If the disk has no room; what was current stays current.
        OSError
            If the disk refuses for another reason; the same.
        """
        folder = self.root / key
        folder.mkdir(parents=True, exist_ok=True)
        self._check_space(key, folder)
        staging = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            try:
                save(staging)
                crash_points.reach(f"saved-{key}")
                manifest = seal_directory(staging, kind, metadata)
                crash_points.reach(f"sealed-{key}")
            except Exception as error:
                if not _is_full(error):
                    raise
                written = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
                free = shutil.disk_usage(folder).free
                raise StorageFullError(
                    f"the disk of {folder} is full: {written} bytes of {key!r} were written, {free} are free; what was "
                    f"current stays current ({error})"
                ) from error
            target = folder / manifest.version
            if is_whole(target):
                (staging / MANIFEST).replace(target / MANIFEST)
            else:
                shutil.rmtree(target, ignore_errors=True)
                staging.rename(target)
            _fsync(folder)
            crash_points.reach(f"renamed-{key}")
            write_atomically(folder / CURRENT, manifest.version)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._delete_old(folder, keep={manifest.version, *protected})
        return manifest

    def path(self, key: str, version: str | None = None) -> Path:
        """
        Return the verified directory of ``key``, the current version unless one is named.

        Raises
        ------
        ArtifactIntegrityError
            If the key or version does not exist or its files do not match the manifest.
        """
        directory = self._directory(key, version)
        verify_directory(directory)
        return directory

    def manifest(self, key: str, version: str | None = None) -> Manifest:
        """Return the manifest of ``key`` without reading its files."""
        return read_manifest(self._directory(key, version))

    def uri(self, key: str, version: str) -> str:
        """Return where a version lies, for people."""
        return str(self.root / key / version)

    def names(self, key: str) -> list[str]:
        """Return what lies directly under ``key``, in order; nothing where it does not exist."""
        folder = self.root / key
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def delete(self, key: str, keep: Collection[str] = ()) -> None:
        """Delete every version of ``key`` but those to ``keep``, and the key with them if that is none."""
        for path in (self.root / key).glob("*"):
            if path.name not in {*keep, CURRENT}:
                shutil.rmtree(path, ignore_errors=True)
        if not keep:
            shutil.rmtree(self.root / key, ignore_errors=True)

    def _check_space(self, key: str, folder: Path) -> None:
        try:
            needed = SPACE_FACTOR * self.manifest(key).n_bytes
        except ArtifactIntegrityError:  # the first one, or one that is to be replaced
            return
        if (free := shutil.disk_usage(folder).free) < needed:
            raise StorageFullError(
                f"the disk of {folder} has {free} bytes free, {key!r} needs about {needed}; what was current stays"
            )

    def _directory(self, key: str, version: str | None) -> Path:
        pointer = self.root / key / CURRENT
        if version is None:
            if not pointer.is_file():
                raise ArtifactIntegrityError(f"no artefact {key!r} under {self.root}: materialise {key!r} first")
            version = pointer.read_text().strip()
        return self.root / key / version

    @staticmethod
    def _delete_old(folder: Path, keep: Collection[str]) -> None:
        versions = sorted(
            (path for path in folder.iterdir() if (path / MANIFEST).is_file() and path.name not in keep),
            key=lambda path: path.stat().st_mtime,
        )
        abandoned = [
            path for path in folder.glob(f"{UNFINISHED}*") if time.time() - path.stat().st_mtime > ABANDONED_SECONDS
        ]
        for path in versions[: max(0, len(versions) - VERSIONS_KEPT + 1)] + abandoned:
            shutil.rmtree(path, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` with ``content`` so that a reader finds the old content or the new, never a part."""
    with replacing(path) as written:
        written.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a file beside ``path`` that takes its place, flushed, once it is written; after an error it is gone."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    written = Path(name)
    try:
        yield written
        written.chmod(FILE_MODE)
        _fsync(written)
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as sorted, indented JSON; NaN and infinity are refused."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_bytes())


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a frame without its index as Parquet (zstd, page checksums)."""
    pq.write_table(
        pa.Table.from_pandas(table, preserve_index=False), path, compression="zstd", write_page_checksum=True
    )


def read_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a frame that ``write_table`` wrote, or ``columns`` of it, checking its page checksums."""
    names = None if columns is None else list(columns)
    frame: pd.DataFrame = pq.read_table(path, columns=names, page_checksum_verification=True).to_pandas()
    return frame


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write one array as ``.npy``, refusing objects."""
    with path.open("wb") as file:
        np.save(_PlainWriter(file.write), array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """Read one ``.npy`` array, refusing objects."""
    array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    return array


def map_array(path: Path) -> np.ndarray[Any, Any]:
    """Return an array that is the file ``write_array`` wrote, of which the system reads what is used."""
    mapped: np.ndarray[Any, Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return np.asarray(mapped)


@dataclass(frozen=True)
class _PlainWriter:
    """
    Hides from numpy that it writes to a file of the system.

    What numpy hands to the system itself, it reports as written even where a full disk took up to 4 KB less.
    """

    write: Callable[[Any], int]


def _parsed(content: Any) -> Manifest:
    manifest = Manifest(**content)
    texts_are_texts = isinstance(manifest.kind, str) and isinstance(manifest.version, str)
    if not (texts_are_texts and isinstance(manifest.files, dict) and isinstance(manifest.metadata, dict)):
        raise TypeError("its members have other types")
    for name, entry in manifest.files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} leads out of its directory")
        if not (isinstance(entry["sha256"], str) and type(entry["bytes"]) is int):
            raise TypeError(f"the entry of {name!r} is no digest and size")
    return manifest


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _is_full(error: BaseException) -> bool:
    """Tell whether an error says that there is no room; libraries that are not Python say it in words only."""
    words = ("No space left", "Disk quota exceeded", "File too large")
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in words)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
