"""
Sealed artefacts on object storage, whole or absent as on disk.

What is stored under an fsspec URL (``s3://bucket/artifacts``, ``gs://...``) has the layout of ``ArtifactStore``. A
version is uploaded file by file and each file is read back and compared with its sha256; its manifest is uploaded
last, and after it ``current``, one small object. An upload that is killed at any point leaves what was current. Reading
goes through a local copy, verified like any artefact. Credentials come from the environment or the machine's role, as
the filesystem's own library finds them; none is read, kept or written here.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from rec_pipeline.engine import crash_points
from rec_pipeline.engine.artifacts import (
    CURRENT,
    MANIFEST,
    VERSIONS_KEPT,
    ArtifactStore,
    Manifest,
    is_whole,
    read_manifest,
    verify_directory,
)
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError


@dataclass(frozen=True)
class RemoteFolder:
    """
    A folder under an fsspec URL.

    Attributes
    ----------
    url
        Without credentials.

    Raises
    ------
    ConfigurationError
        If it holds a password, or nothing installed can open it.
    """

    url: str

    def __post_init__(self) -> None:
        if urlsplit(self.url).password is not None:
            raise ConfigurationError(
                f"the URL of {urlsplit(self.url).hostname} holds a password: put it where the storage's own library "
                "looks (for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role), which no log shows"
            )

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        try:
            fs, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"{self.url!r} cannot be opened: {error}") from error
        fs.auto_mkdir = True  # a shared folder, file://, is the only storage that wants its folders made
        return fs, path.rstrip("/")

    def push(self, directory: Path, name: str) -> None:
        """
        Upload a sealed directory as ``name``, its manifest last; files that are there already stay.

        Raises
        ------
        ArtifactIntegrityError
            If a file does not read back as it was sent.
        """
        for file, entry in read_manifest(directory).files.items():
            self.put(directory / file, f"{name}/{file}", entry["sha256"])
            crash_points.reach(f"uploaded-{name.partition('/')[0]}")
        self.write(f"{name}/{MANIFEST}", (directory / MANIFEST).read_bytes())

    def put(self, file: Path, name: str, sha256: str) -> None:
        """
        Upload one file, unless it is there already, and compare what is stored with its digest.

        Raises
        ------
        ArtifactIntegrityError
            If it does not read back as it was sent.
        """
        fs, root = self._opened
        target = f"{root}/{name}"
        if self._sha256(target) == sha256:
            return
        fs.put_file(str(file), target)
        if (found := self._sha256(target)) != sha256:
            raise ArtifactIntegrityError(
                f"{self.url}/{name} reads back with sha256 {found or 'of nothing'}, expected {sha256}; it is not used"
            )

    def pull(self, name: str, directory: Path) -> None:
        """
        Download a sealed directory, verify it, and put it in place of ``directory``.

        Raises
        ------
        ArtifactIntegrityError
            If it is not there or does not match its manifest.
        """
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=directory.parent))
        try:
            (staging / MANIFEST).write_bytes(self.read(f"{name}/{MANIFEST}"))
            for file in read_manifest(staging).files:
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
                self.get(f"{name}/{file}", staging / file)
            verify_directory(staging)
            shutil.rmtree(directory, ignore_errors=True)
            staging.rename(directory)
        except FileNotFoundError as error:
            raise ArtifactIntegrityError(f"{self.url}/{name} lacks a file its manifest names: {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def read(self, name: str) -> bytes:
        """
        Return one object.

        Raises
        ------
        ArtifactIntegrityError
            If there is none.
        """
        fs, root = self._opened
        try:
            content: bytes = fs.cat_file(f"{root}/{name}")
        except FileNotFoundError as error:
            raise ArtifactIntegrityError(f"there is no {self.url}/{name}") from error
        return content

    def write(self, name: str, content: bytes) -> None:
        """Replace one small object; readers find the old content or the new."""
        fs, root = self._opened
        fs.pipe_file(f"{root}/{name}", content)

    def names(self, name: str = "") -> list[str]:
        """Return what lies directly under ``name``, in order; nothing where it does not exist."""
        fs, root = self._opened
        try:
            return sorted(path.rstrip("/").rpartition("/")[2] for path in fs.ls(f"{root}/{name}", detail=False))
        except FileNotFoundError:
            return []

    def get(self, name: str, file: Path) -> None:
        """Download one object."""
        fs, root = self._opened
        fs.get_file(f"{root}/{name}", str(file))

    def tags(self, name: str) -> dict[str, str]:
        """Return, for ``name`` or every file under it, what changes when its content does."""
        fs, root = self._opened
        return {path.removeprefix(f"{root}/"): str(fs.ukey(path)) for path in fs.find(f"{root}/{name}")}

    def delete(self, name: str) -> None:
        """Delete one object, if it is there."""
        fs, root = self._opened
        try:
            fs.rm_file(f"{root}/{name}")
        except FileNotFoundError:
            return

    def delete_folder(self, name: str) -> None:
        """Delete everything under ``name``, its manifest first."""
        fs, root = self._opened
        self.delete(f"{name}/{MANIFEST}")
        if fs.exists(f"{root}/{name}"):
            fs.rm(f"{root}/{name}", recursive=True)

    def delete_versions(self, key: str, keep: Collection[str]) -> None:
        """Delete the versions of ``key`` beyond the last few, those of ``keep`` excepted; manifests first."""
        fs, root = self._opened
        manifests = [f"{root}/{key}/{name}/{MANIFEST}" for name in self.names(key) if name not in {*keep, CURRENT}]
        sealed = sorted((path for path in manifests if fs.exists(path)), key=fs.modified)
        for path in sealed[: max(0, len(sealed) - VERSIONS_KEPT + 1)]:
            fs.rm_file(path)
            fs.rm(path.rpartition("/")[0], recursive=True)

    def _sha256(self, path: str) -> str:
        """Return the digest of an object as it is stored, "" where there is none."""
        fs, _ = self._opened
        try:
            with fs.open(path, "rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 22):
                    digest.update(block)
        except FileNotFoundError:
            return ""
        return digest.hexdigest()


@dataclass(frozen=True)
class RemoteArtifactStore(ArtifactStore):
    """
    An ``ArtifactStore`` whose truth is remote; ``root`` holds copies, each of which can be fetched again.

    Attributes
    ----------
    remote
        Where the artefacts are.
    """

    remote: RemoteFolder

    def write(
        self,
        key: str,
        save: Callable[[Path], None],
        *,
        kind: str,
        metadata: Mapping[str, Any] | None = None,
        protected: Collection[str] = (),
    ) -> Manifest:
        """Seal as on disk, upload and verify, then move the remote ``current``."""
        manifest = super().write(key, save, kind=kind, metadata=metadata, protected=protected)
        self.remote.push(self.root / key / manifest.version, f"{key}/{manifest.version}")
        crash_points.reach(f"pushed-{key}")
        self.remote.write(f"{key}/{CURRENT}", manifest.version.encode())
        self.remote.delete_versions(key, {manifest.version, *protected})
        return manifest

    def manifest(self, key: str, version: str | None = None) -> Manifest:
        """Return the remote manifest of ``key`` without fetching its files."""
        name = f"{key}/{version or self._current(key)}/{MANIFEST}"
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST).write_bytes(self.remote.read(name))
            return read_manifest(Path(folder))

    def uri(self, key: str, version: str) -> str:
        """Return where a version lies, for people."""
        return f"{self.remote.url}/{key}/{version}"

    def path(self, key: str, version: str | None = None) -> Path:
        """Return a verified local copy of a version, the current one unless one is named."""
        version = version or self._current(key)
        directory = self.root / key / version
        if not is_whole(directory):
            self.remote.pull(f"{key}/{version}", directory)
        return directory

    def names(self, key: str) -> list[str]:
        """Return what lies directly under ``key`` remotely."""
        return self.remote.names(key)

    def delete(self, key: str, keep: Collection[str] = ()) -> None:
        """Delete the remote versions of ``key``, manifests first, and then the copies."""
        for name in self.remote.names(key):
            if name not in {*keep, CURRENT}:
                self.remote.delete_folder(f"{key}/{name}")
        if not keep:
            self.remote.delete(f"{key}/{CURRENT}")
        super().delete(key, keep)

    def _current(self, key: str) -> str:
        try:
            return self.remote.read(f"{key}/{CURRENT}").decode().strip()
        except ArtifactIntegrityError as error:
            raise ArtifactIntegrityError(
                f"no artefact {key!r} under {self.remote.url}: materialise {key!r} first"
            ) from error


def open_store(root: Path, url: str | None) -> ArtifactStore:
    """Return the artefacts under ``root``, or those at ``url`` with their copies under ``root``."""
    return ArtifactStore(root) if url is None else RemoteArtifactStore(root, RemoteFolder(url))
