"""Inputs on object storage, copied here before they are read."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from rec_pipeline.engine.artifacts import read_json, write_json
from rec_pipeline.engine.data.files import SUFFIX, SUMS
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.remote import RemoteFolder

TAGS: Final = ".tags.json"


def local_path(location: str, folder: Path) -> Path:
    """
    Return where a file, or a folder of Parquet, can be read on this machine.

    A path is returned as it is. What an fsspec URL names is copied under ``folder`` with the checksums beside it, once
    for each state of it; a file that keeps name and tag is not fetched again.

    Raises
    ------
    ConfigurationError
        If the URL names nothing, holds a password, or cannot be opened.
    """
    if "://" not in location:
        return Path(location)
    parent, _, name = location.rstrip("/").rpartition("/")
    remote = RemoteFolder(parent)
    beside = [found for found in remote.names() if found in {name + SUFFIX, SUMS}]
    tags = remote.tags(name)
    if not tags:
        raise ConfigurationError(f"there is no file or folder {location}")
    tags |= {file: tag for found in beside for file, tag in remote.tags(found).items()}
    copies = folder / hashlib.sha256(location.encode()).hexdigest()[:16]
    state = hashlib.sha256(repr(sorted(tags.items())).encode()).hexdigest()[:16]
    if not (copies / state).is_dir():
        copies.mkdir(parents=True, exist_ok=True)
        before = max(copies.glob("[!.]*"), key=lambda path: path.stat().st_mtime, default=copies)
        known = read_json(before / TAGS) if (before / TAGS).is_file() else {}
        staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=copies))
        try:
            for file, tag in tags.items():
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
                if known.get(file) == tag:
                    (staging / file).hardlink_to(before / file)
                else:
                    remote.get(file, staging / file)
                    os.utime(staging / file, ns=_time_of(tag))
            write_json(staging / TAGS, tags)
            # The one before stays: somebody may be reading it.
            for old in sorted(copies.glob("[!.]*"), key=lambda path: path.stat().st_mtime)[:-1]:
                shutil.rmtree(old, ignore_errors=True)
            staging.rename(copies / state)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return copies / state / name


def _time_of(tag: str) -> tuple[int, int]:
    """Return times of access and change that stand for a version of a file, the same on every machine."""
    digits = int(hashlib.sha256(tag.encode()).hexdigest()[:14], 16)
    return digits, digits
