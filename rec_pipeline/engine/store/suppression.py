"""
Users who asked to be forgotten: nothing is published for them, by no later generation and by no rollback.

The list is kept in the store and, as a store may lose its memory, beside the sealed generations. It holds digests and
not ids: it can tell whether somebody is on it, and does not itself keep their names.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import redis

from rec_pipeline.engine import mirrors
from rec_pipeline.engine.artifacts import write_atomically
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.engine.store import keys

FILE: Final = "forgotten.json"


def digest_of(user_id: str) -> str:
    """Return the digest by which a user is on the list: 128 bits of blake2b, hex."""
    return hashlib.blake2b(user_id.encode(), digest_size=16).hexdigest()


def suppressed(client: "redis.Redis", root: Path) -> frozenset[str]:
    """
    Return the digests of everybody who is to be left out, from both copies; a copy that lacks some is completed.

    Raises
    ------
    ArtifactIntegrityError
        If the file beside the generations cannot be read: nothing may be published without it.
    """
    stored: Any = client.smembers(keys.SUPPRESSED)
    in_store = {entry.decode() if isinstance(entry, bytes) else entry for entry in stored}
    on_disk = _read(root)
    if in_store - on_disk:
        _write(root, in_store | on_disk)
    if missing := on_disk - in_store:
        client.sadd(keys.SUPPRESSED, *missing)
    return frozenset(in_store | on_disk)


def suppressed_on_disk(root: Path) -> frozenset[str]:
    """
    Return the digests of the copy beside the generations: all there is to ask while the store does not answer.

    Raises
    ------
    ArtifactIntegrityError
        If the file cannot be read.
    """
    return frozenset(_read(root))


def suppress(client: "redis.Redis", root: Path, user_id: str) -> bool:
    """Put a user on the list, on disk first; returns whether they were not on it yet."""
    known = _read(root)
    digest = digest_of(user_id)
    _write(root, known | {digest})
    return bool(client.sadd(keys.SUPPRESSED, digest)) and digest not in known


def readmit(client: "redis.Redis", root: Path, user_id: str) -> bool:
    """
    Take a user off the list, e.g. after they signed up again; they wait for the next generation to have a list.

    Returns
    -------
    Whether they were on it.
    """
    known = _read(root)
    digest = digest_of(user_id)
    was_there = bool(client.srem(keys.SUPPRESSED, digest)) or digest in known
    if was_there:
        client.sadd(keys.READMITTED, digest)
    _write(root, known - {digest})
    return was_there


def readmitted(client: "redis.Redis") -> frozenset[str]:
    """Return the digests of users who were taken off the list and were in no publication since."""
    stored: Any = client.smembers(keys.READMITTED)
    return frozenset(entry.decode() if isinstance(entry, bytes) else entry for entry in stored)


def wait_no_longer(client: "redis.Redis", left_out: frozenset[str]) -> None:
    """Let those wait no longer who have a list by now: all but the ``left_out`` of what goes live."""
    if settled := readmitted(client) - left_out:
        client.srem(keys.READMITTED, *settled)


def without_suppressed(batch: pa.RecordBatch, digests: frozenset[str], user_column: str) -> pa.RecordBatch:
    """Return the rows of ``batch`` whose user is not among ``digests``."""
    if not digests:
        return batch
    kept = np.fromiter(
        (digest_of(user_id) not in digests for user_id in batch[user_column].to_pylist()), np.bool_, len(batch)
    )
    return batch if kept.all() else batch.filter(pa.array(kept))


def _read(root: Path) -> set[str]:
    path = root / FILE
    there = mirrors.mirrored(path)
    if there and FILE not in mirrors.names(root):
        return set()
    try:
        digests = orjson.loads(there.remote.read(there.name) if there else path.read_bytes())
    except FileNotFoundError:
        return set()
    except orjson.JSONDecodeError as error:
        raise ArtifactIntegrityError(
            f"{path} cannot be read, so nothing is published or served from: {error}"
        ) from error
    if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
        raise ArtifactIntegrityError(
            f"{path} holds something else than a list of digests, so nothing is published or served from"
        )
    return set(digests)


def _write(root: Path, digests: Iterable[str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / FILE, json.dumps(sorted(digests)))
    mirrors.send(root / FILE)
