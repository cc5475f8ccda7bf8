"""
Signatures of manifests: what a checksum cannot do, because whoever can change a file can change the checksum beside it.

A key of this installation, kept outside the artefacts, signs every manifest that is written and is asked for at every
one that is read. Without a key nothing is signed; a signature is then neither needed nor looked at.
"""

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError

MIN_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class Signer:
    """
    Signs with HMAC-SHA256 and checks signatures.

    Attributes
    ----------
    key
        Secret bytes; None signs nothing.
    required
        Whether what is not signed is refused.
    """

    key: bytes | None = None
    required: bool = False

    def __repr__(self) -> str:
        return f"Signer(key={'***' if self.key else None}, required={self.required})"

    def sign(self, content: bytes) -> str | None:
        """Return the signature of ``content`` in hex; None without a key."""
        return None if self.key is None else hmac.new(self.key, content, hashlib.sha256).hexdigest()

    def check(self, content: bytes, signature: str | None, origin: Path) -> None:
        """
        Check what ``origin`` says its signature is.

        Raises
        ------
        ArtifactIntegrityError
            If it is signed by another key or was changed, or is not signed where that is required.
        """
        expected = self.sign(content)
        if signature is None and self.required:
            raise ArtifactIntegrityError(f"{origin} is not signed, which is required here: make it again with the key")
        if expected is not None and signature is not None and not hmac.compare_digest(expected, signature):
            raise ArtifactIntegrityError(f"{origin} is not signed by this installation's key, or was changed since")


def read_signer(key_file: Path | None, *, required: bool) -> Signer:
    """
    Return a signer with the key in a file that only its owner may read.

    Raises
    ------
    ConfigurationError
        If the file is missing, open to others or too short, or a signature is required without a key.
    """
    if key_file is None:
        if required:
            raise ConfigurationError("signatures are required but REC_SIGNING_KEY_FILE names no key")
        return Signer()
    try:
        key, mode = key_file.read_bytes().strip(), key_file.stat().st_mode
    except OSError as error:
        raise ConfigurationError(f"the signing key {key_file} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigurationError(f"the signing key {key_file} is open to others: chmod 600 {key_file}")
    if len(key) < MIN_KEY_BYTES:
        raise ConfigurationError(
            f"the signing key {key_file} has {len(key)} bytes, expected at least {MIN_KEY_BYTES}: "
            f"openssl rand -hex 32 > {key_file}"
        )
    return Signer(key, required)
