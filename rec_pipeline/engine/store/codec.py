"""
The published form of a list: one JSON array of objects, best first.

``[{"gen":17,"u":"9f3a1c02","id":"i5","score":0.9132,"sources":["collaborative"],"reason":"..."},{"id":"i9",...}]``.
Only the first object carries ``gen``, the generation, and ``u``, the crc32 of the user id; readers in other languages
ignore both. The flip script finds ``gen`` in the first bytes, so the order of the first two members is part of the
format.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from rec_pipeline.engine.errors import StoredValueError
from rec_pipeline.engine.pseudonyms import pseudonym

MAX_VALUE_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class PublishedItem:
    """
    One recommended item as published.

    Attributes
    ----------
    item_id, score
        The item, and its score; higher is better within one list.
    sources, reason
        The recommenders that proposed it and one sentence for people; empty where published without reasons.
    """

    item_id: str
    score: float
    sources: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class PublishedList:
    """
    A user's items, best first.

    Attributes
    ----------
    user_id
        Whom it is for; ``POPULAR_USER_ID`` for the popular list.
    generation
        The generation it was published with; 0 for a list that no publication wrote.
    items
        At least one.
    """

    user_id: str
    generation: int
    items: tuple[PublishedItem, ...]


def user_checksum(user_id: str) -> str:
    """
    Return the crc32 of a user id as 8 hex digits.

    Examples
    --------
    >>> user_checksum("u1")
    '424f9f76'
    """
    return f"{zlib.crc32(user_id.encode()):08x}"


def encode_lists(batch: pa.RecordBatch, generation: int, *, include_reasons: bool, score_decimals: int = 4) -> pa.Array:
    """
    Encode each row of a sealed generation as it is published.

    Scores are rounded to the nearest decimal, which keeps a non-increasing list non-increasing.

    Parameters
    ----------
    batch
        Rows that passed the gates of ``GenerationWriter``.
    generation : int
        Number to write into ``gen``.
    include_reasons : bool
        Whether objects carry ``sources`` and ``reason``.
    score_decimals : int
        Decimals of ``score``.

    Returns
    -------
    string array of shape (n_users,)
        JSON values.
    """
    bounds = _offsets(batch["item_id"]).to_numpy()
    is_last = np.zeros(bounds[-1], dtype=np.int32)
    is_last[bounds[1:] - 1] = 1
    scores, rows = _rounded(batch["score"], score_decimals)
    pieces: list[Any] = [_escaped(batch["item_id"].flatten())]
    if include_reasons:
        sources = batch["sources"].flatten()
        names = pa.ListArray.from_arrays(_offsets(sources), _escaped(sources.flatten().field("name")))
        pieces += [
            pc.binary_join_element_wise('","score":', scores, ',"sources":["', "").take(pa.array(rows)),
            pc.binary_join(names, '","'),
            '"],"reason":"',
            _escaped(batch["reason"].flatten()),
            _closed(pa.array(['"']), np.zeros_like(rows), is_last),
        ]
    else:
        pieces.append(_closed(pc.binary_join_element_wise('","score":', scores, ""), rows, is_last))
    _, starts, data = pc.binary_join_element_wise(*pieces, "").buffers()
    # What lies side by side is one text without a copy.
    lists = pa.StringArray.from_buffers(len(batch), pa.py_buffer(np.frombuffer(starts, np.int32)[bounds]), data)
    head = f'[{{"gen":{generation},"u":"'
    return pc.binary_join_element_wise(head, _checksums(batch["user_id"]), '","id":"', lists, "")


def decode_list(value: bytes, user_id: str) -> PublishedList:
    """
    Decode a published value, whatever bytes stand in the store.

    Parameters
    ----------
    value
        What ``GET`` returned.
    user_id
        Whose list was asked for; a ``u`` that names somebody else is an error.

    Raises
    ------
    StoredValueError
        If the value is anything but a list for this user. No other error is raised.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise StoredValueError(
            f"list of {pseudonym(user_id)} has {len(value)} bytes, expected at most {MAX_VALUE_BYTES}"
        )
    try:
        objects = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise StoredValueError(f"list of {pseudonym(user_id)} is not JSON: {error}") from error
    if not isinstance(objects, list) or not objects or not all(isinstance(entry, dict) for entry in objects):
        raise StoredValueError(f"list of {pseudonym(user_id)} is not a non-empty JSON array of objects")
    generation, checksum = objects[0].get("gen", 0), objects[0].get("u", user_checksum(user_id))
    if type(generation) is not int or generation < 0:
        raise StoredValueError(f"list of {pseudonym(user_id)} has generation {generation!r}")
    if checksum != user_checksum(user_id):
        raise StoredValueError(f"list stored for {pseudonym(user_id)} was made for another user: u is {checksum!r}")
    return PublishedList(user_id, generation, tuple(_item(entry, user_id) for entry in objects))


def _item(entry: dict[str, Any], user_id: str) -> PublishedItem:
    item_id: Any = entry.get("id")
    score: Any = entry.get("score")
    sources, reason = entry.get("sources", []), entry.get("reason", "")
    if not isinstance(item_id, str) or not item_id:
        raise StoredValueError(f"list of {pseudonym(user_id)} holds an object whose id is {item_id!r}")
    if type(score) not in {int, float} or not math.isfinite(score):
        raise StoredValueError(f"list of {pseudonym(user_id)} gives {item_id!r} the score {score!r}")
    if (
        not isinstance(sources, list)
        or not all(isinstance(name, str) for name in sources)
        or not isinstance(reason, str)
    ):
        raise StoredValueError(f"list of {pseudonym(user_id)} gives {item_id!r} malformed sources or reason")
    return PublishedItem(item_id, float(score), tuple(sources), reason)


def _rounded(scores: pa.ListArray, decimals: int) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Return the distinct scores as texts, each formatted once: that is what takes long; and the row of every score."""
    distinct = pa.array(np.round(scores.flatten().to_numpy().astype(np.float64), decimals)).dictionary_encode()
    texts = distinct.dictionary.cast(pa.decimal128(38, decimals)).cast(pa.string())
    return texts, distinct.indices.to_numpy()


def _closed(texts: pa.Array, rows: npt.NDArray[np.int32], is_last: npt.NDArray[np.int32]) -> pa.Array:
    """Return ``texts[rows]``, each with what lies between its object and the next one's id or, at the last, the end."""
    ends = [pc.binary_join_element_wise(texts, end, "") for end in ('},{"id":"', "}]")]
    return pa.concat_arrays(ends).take(pa.array(rows + len(texts) * is_last))


def _checksums(user_ids: pa.Array) -> pa.Array:
    """Return ``user_checksum`` of each of them."""
    checksums = np.fromiter(map(zlib.crc32, user_ids.cast(pa.binary()).to_pylist()), ">u4", len(user_ids))
    starts = np.arange(0, 8 * len(user_ids) + 1, 8, dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(user_ids), pa.py_buffer(starts), pa.py_buffer(checksums.tobytes().hex().encode())
    )


def _escaped(texts: pa.Array) -> pa.Array:
    r"""Escape strings for the inside of JSON quotes; free when no byte of them needs it."""
    _, starts, data = texts.buffers()
    first, last = np.frombuffer(starts or b"\0" * 4, np.int32)[[texts.offset, texts.offset + len(texts)]]
    characters = np.frombuffer(data or b"", np.uint8)[first:last]
    if not ((characters < 0x20) | (characters == ord('"')) | (characters == ord("\\"))).any():
        return texts
    distinct = texts.dictionary_encode()
    escaped = [orjson.dumps(text)[1:-1].decode() for text in distinct.dictionary.to_pylist()]
    return pa.array(escaped, pa.string()).take(distinct.indices)


def _offsets(lists: pa.ListArray) -> pa.Array:
    """Return the offsets of ``lists`` counted from its own first element, as ``flatten`` lays them out."""
    return pc.subtract(lists.offsets, lists.offsets[0])
