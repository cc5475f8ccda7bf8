"""
Folders of this machine whose files are on object storage as well: sealed generations, checkpoints, caches.

Which they are is said once, where the process starts. What is written here is sent, and read back there; what was
written elsewhere is fetched when it is asked for. Under any other path every function does nothing.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rec_pipeline.engine.artifacts import sha256_of
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.engine.remote import RemoteFolder

_mirrors: dict[Path, RemoteFolder] = {}


def use_mirrors(urls: Mapping[Path, str]) -> None:
    """Keep what is under each folder under its URL, an fsspec one, too."""
    _mirrors.update({folder: RemoteFolder(url) for folder, url in urls.items()})


@dataclass(frozen=True)
class Mirrored:
    """
    Where a file or folder of this machine is on object storage.

    Attributes
    ----------
    remote, name
        The folder that mirrors, and the name in it.
    """

    remote: RemoteFolder
    name: str

    def fetch(self, path: Path, sha256: str | None = None) -> None:
        """
        Download it to ``path``, unless that exists; nothing is there afterwards if nothing is here.

        Raises
        ------
        ArtifactIntegrityError
            If it has another digest than ``sha256``.
        """
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            fetched = Path(folder) / path.name
            try:
                self.remote.get(self.name, fetched)
            except FileNotFoundError:
                return
            if sha256 is not None and (found := sha256_of(fetched)) != sha256:
                raise ArtifactIntegrityError(
                    f"{self.remote.url}/{self.name} has sha256 {found}, expected {sha256}; it is not used"
                )
            fetched.replace(path)


def mirrored(path: Path) -> Mirrored | None:
    """Return where ``path`` is mirrored, if it is."""
    for folder, remote in _mirrors.items():
        if path.is_relative_to(folder):
            name = path.relative_to(folder).as_posix()
            return Mirrored(remote, "" if name == "." else name)
    return None


def send(path: Path) -> None:
    """
    Upload a file that was written here.

    Raises
    ------
    ArtifactIntegrityError
        If it does not read back as it was sent.
    """
    if there := mirrored(path):
        there.remote.put(path, there.name, sha256_of(path))


def fetch(path: Path, sha256: str | None = None) -> None:
    """Download a file that was written elsewhere, as ``Mirrored.fetch`` does."""
    if there := mirrored(path):
        there.fetch(path, sha256)


def names(folder: Path) -> list[str]:
    """Return what lies in the mirror of ``folder``, in order; nothing where it has none."""
    there = mirrored(folder)
    return there.remote.names(there.name) if there else []


def delete(folder: Path) -> None:
    """Delete the mirror of ``folder``, a manifest in it first."""
    if there := mirrored(folder):
        there.remote.delete_folder(there.name)
