"""
Names under which users stand in messages, so that logs and histories hold no ids.

A name is a keyed digest: the same for a user everywhere in an installation, and of no use to who does not have its key.
Whoever looks for a fault can have the ids themselves written.
"""

import hashlib
import os
import secrets
from functools import cache
from pathlib import Path
from typing import Final

KEY_BYTES: Final = 32

_path: Path | None = None
_ids_are_shown = False


def use_key_file(path: Path, *, show_ids: bool = False) -> None:
    """
    Take the key of this file, made when first needed and for its owner alone; until then a process has its own.

    With ``show_ids`` no digest is made: users stand in messages with their ids.
    """
    global _path, _ids_are_shown
    _path, _ids_are_shown = path, show_ids


def pseudonym(user_id: str) -> str:
    """Return a user's name in messages, e.g. ``user#3f0c9a1b2d4e``, or ``user 'ann'`` where ids are shown."""
    if _ids_are_shown:
        return f"user {user_id!r}"
    digest = hashlib.blake2b(user_id.encode(errors="surrogatepass"), key=_key(_path), digest_size=6)
    return f"user#{digest.hexdigest()}"


@cache
def _key(path: Path | None) -> bytes:
    if path is None:
        return secrets.token_bytes(KEY_BYTES)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        written.touch(0o600)
        written.write_bytes(secrets.token_bytes(KEY_BYTES))
        try:
            os.link(written, path)
        except FileExistsError:  # another process was first
            pass
        finally:
            written.unlink()
    return path.read_bytes()
