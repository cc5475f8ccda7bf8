"""
Which texts can be the id of a user or an item.

Ids are opaque: 1 to 256 bytes of UTF-8 in any script, never normalised and never read as numbers. Refused are texts
that would break a log line, a CSV, or a store key: control characters, line and paragraph separators, braces (they move
a key to another slot of a Redis Cluster) and white space at either end; and U+FDD0, as which bytes are read that were
no UTF-8.
"""

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_pipeline.engine.errors import InvalidIdError

MAX_BYTES = 256
_REFUSED = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ufdd0{}]"
_REFUSED_CHARACTER = re.compile(_REFUSED)


def check_id(text: str, kind: str = "id") -> None:
    r"""
    Refuse a text that cannot be an id.

    Parameters
    ----------
    text
        The candidate.
    kind
        What it would identify, for the message, e.g. ``user_id``.

    Raises
    ------
    InvalidIdError
        Saying which rule it breaks.

    Examples
    --------
    >>> check_id("007")
    >>> check_id("a\nb", "user_id")
    Traceback (most recent call last):
        ...
    rec_pipeline.engine.errors.InvalidIdError: user_id 'a\nb' holds '\n', which ids may not
    """
    try:
        n_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidIdError(f"{kind} {text!r} is not valid UTF-8: {error.reason}") from error
    if not 1 <= n_bytes <= MAX_BYTES:
        raise InvalidIdError(f"{kind} {text[:40]!r} has {n_bytes} bytes, expected 1 to {MAX_BYTES}")
    if found := _REFUSED_CHARACTER.search(text):
        raise InvalidIdError(f"{kind} {text!r} holds {found[0]!r}, which ids may not")
    if text != text.strip():
        raise InvalidIdError(f"{kind} {text!r} begins or ends with white space")


def is_valid_id(text: str) -> bool:
    """Tell whether ``check_id`` accepts ``text``."""
    try:
        check_id(text)
    except InvalidIdError:
        return False
    return True


def are_valid_ids(ids: pa.Array) -> npt.NDArray[np.bool_]:
    """
    Apply the rule of ``check_id`` to a string array.

    Returns
    -------
    bool of shape (len(ids),)
        False where an id is refused or null.
    """
    n_bytes = pc.binary_length(ids)
    valid = pc.and_(
        pc.and_(pc.greater_equal(n_bytes, 1), pc.less_equal(n_bytes, MAX_BYTES)),
        pc.and_(pc.invert(pc.match_substring_regex(ids, _REFUSED)), pc.equal(pc.utf8_trim_whitespace(ids), ids)),
    )
    return np.asarray(pc.fill_null(valid, False))


def look_alikes(ids: Iterable[str]) -> list[tuple[str, ...]]:
    """
    Return the groups of distinct ids that are equal but for case or Unicode composition (NFC, then case folding).

    Examples
    --------
    >>> look_alikes(["Bob", "bob", "7", "007"])
    [('Bob', 'bob')]
    """
    groups: dict[str, list[str]] = {}
    for text in ids:
        groups.setdefault(unicodedata.normalize("NFC", text).casefold(), []).append(text)
    return [tuple(group) for group in groups.values() if len(group) > 1]
