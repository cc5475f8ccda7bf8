"""
Artefacts on disk: whole or absent, checked before they are read.

An artefact is a directory of files sealed by ``manifest.json``, which is written last and names the size and sha256 of
every other file. Its version is the digest of those digests, so equal content has an equal version and is stored once.
``ArtifactStore`` keeps the versions of one key side by side and moves the key's ``current`` file to a new version
atomically; whatever is killed when, readers find the old version or the new one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rec_pipeline.engine.errors import ArtifactIntegrityError

MANIFEST = "manifest.json"
CURRENT = "current"
VERSIONS_KEPT = 3


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
    Flush every file of ``directory`` to disk and write its manifest last.

    Raises
    ------
    ArtifactIntegrityError
        If the directory holds no files.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    if not paths:
        raise ArtifactIntegrityError(f"nothing to seal: {directory} holds no files")
    files: dict[str, dict[str, Any]] = {}
    for path in paths:
        _fsync(path)
        files[path.relative_to(directory).as_posix()] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    lines = [kind, *(f"{name} {entry['sha256']}" for name, entry in files.items())]
    version = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    manifest = Manifest(kind=kind, version=version, files=files, metadata=dict(metadata or {}))
    write_atomically(directory / MANIFEST, json.dumps(manifest.__dict__, indent=2, sort_keys=True, default=str))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """
    Read the manifest of a sealed directory without checking the files.

    Raises
    ------
    ArtifactIntegrityError
        If there is none or it is not a manifest.
    """
    try:
        return Manifest(**json.loads((directory / MANIFEST).read_bytes()))
    except FileNotFoundError as error:
        raise ArtifactIntegrityError(f"no sealed artefact at {directory}: {MANIFEST} is missing") from error
    except (ValueError, TypeError) as error:
        raise ArtifactIntegrityError(f"{directory / MANIFEST} is not a manifest: {error}") from error


def verify_directory(directory: Path) -> Manifest:
    """
    Check every file of a sealed directory against its manifest, before anything parses them.

    Raises
    ------
    ArtifactIntegrityError
        If the manifest is absent, a file is missing, or a file's size or sha256 differs.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactIntegrityError(f"{path} is named in its manifest but missing")
        if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
            raise ArtifactIntegrityError(
                f"{path} does not match its manifest: found {path.stat().st_size} bytes with sha256 {sha256_of(path)}, "
                f"expected {entry['bytes']} bytes with sha256 {entry['sha256']}"
            )
    return manifest


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
        OSError
            If the disk refuses; what was current stays current.
        """
        folder = self.root / key
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        try:
            save(staging)
            manifest = seal_directory(staging, kind, metadata)
            target = folder / manifest.version
            if _is_whole(target):
                (staging / MANIFEST).replace(target / MANIFEST)
            else:
                shutil.rmtree(target, ignore_errors=True)
                staging.rename(target)
            _fsync(folder)
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
        for path in versions[: max(0, len(versions) - VERSIONS_KEPT + 1)]:
            shutil.rmtree(path, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` with ``content`` so that a reader finds the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
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


def read_table(path: Path) -> pd.DataFrame:
    """Read a frame that ``write_table`` wrote, checking its page checksums."""
    frame: pd.DataFrame = pq.read_table(path, page_checksum_verification=True).to_pandas()
    return frame


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write one array as ``.npy``, refusing objects."""
    np.save(path, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """Read one ``.npy`` array, refusing objects."""
    array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    return array


def _is_whole(directory: Path) -> bool:
    try:
        verify_directory(directory)
    except ArtifactIntegrityError:
        return False
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
