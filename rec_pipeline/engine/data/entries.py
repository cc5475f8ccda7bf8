"""
Events as entries of a stream, and back.

An entry is a flat list of texts by name, so that anybody can write one with ``XADD`` and read one without this project.
What comes back was perhaps not written by it: entries that keep the rules become rows, the others are refused with
their reason. Whole batches are judged column by column; only the few entries that do not pass so are looked at one by
one, by ``make_event``, which has the last word.

The impressions of a list are one entry: ``item_id`` holds a line an item, best first, ``sources`` a line for each,
and the place in the list is the ``position``. No id can hold a line break, so no such entry is taken for another one.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.event_log import EVENT_SCHEMA, REFUSED_SCHEMA
from rec_pipeline.engine.data.events import (
    CONTEXT_KEYS,
    EARLIEST,
    IMPRESSION,
    MAX_CONTEXT_BYTES,
    MAX_SOURCES,
    NAME,
    Event,
    EventRules,
    Served,
    make_event,
)
from rec_pipeline.engine.data.ids import are_valid_ids
from rec_pipeline.engine.errors import InvalidEventError

SOURCE_SEPARATOR: Final = "|"
LINE: Final = "\n"
MAX_LINES: Final = 1000
MAX_REFUSED_CHARACTERS: Final = 2000
_NUMBERS: Final = (c.GENERATION, c.POSITION)
_FIELDS: Final = tuple(name for name in EVENT_SCHEMA.names if name not in (c.RECEIVED_AT, c.ENTRY))
_ARRIVAL: Final = (c.RECEIVED_AT, c.ENTRY)
_WHOLE_NUMBER: Final = "^[1-9][0-9]{0,14}$"
_FORMS: Final = {
    c.TIMESTAMP: _WHOLE_NUMBER,
    c.SOURCES: rf"^{NAME}(\|{NAME}){{0,{MAX_SOURCES - 1}}}$",
    c.GENERATION: _WHOLE_NUMBER,
    c.EXPERIMENT: f"^{NAME}$",
    c.VARIANT: f"^{NAME}$",
    c.POSITION: _WHOLE_NUMBER,
}

Entry = tuple[bytes, Sequence[bytes]]
"""Id, and names and values by turns, as Redis sends them."""


def entry_fields(event: Event) -> dict[str, str]:
    """Return the fields of an event's entry; those with nothing in them are left out."""
    served = event.served or Served()
    fields = {
        c.USER_ID: event.user_id,
        c.ITEM_ID: event.item_id,
        c.EVENT_TYPE: event.event_type,
        c.TIMESTAMP: str(event.timestamp_ms),
        c.EVENT_ID: event.event_id,
        **event.context,
        c.SOURCES: SOURCE_SEPARATOR.join(served.sources),
        c.GENERATION: str(served.generation or ""),
        c.EXPERIMENT: served.experiment,
        c.VARIANT: served.variant,
        c.POSITION: str(served.position or ""),
    }
    return {name: text for name, text in fields.items() if text}


def shown_list_fields(
    user_id: str,
    items: Sequence[tuple[str, Sequence[str]]],
    *,
    timestamp_ms: int,
    list_id: str,
    served: Served,
) -> dict[str, str]:
    r"""
    Return the fields of the one entry for the impressions of a list.

    Parameters
    ----------
    user_id
        Who was shown it.
    items
        Item ids with their sources, best first.
    timestamp_ms : int
        When, milliseconds since 1970.
    list_id
        Identifies the list; each impression's id is made of it and the position.
    served
        What all of them have in common.

    Examples
    --------
    >>> items = [("i7", ("content",)), ("i8", ())]
    >>> fields = shown_list_fields("u1", items, timestamp_ms=17, list_id="a", served=Served())
    >>> fields["item_id"], fields["sources"]
    ('i7\ni8', 'content\n')
    """
    lines = LINE.join(item_id for item_id, _ in items)
    event = Event(user_id, lines, IMPRESSION, timestamp_ms, list_id, {}, served)
    sources = LINE.join(SOURCE_SEPARATOR.join(names) for _, names in items)
    return {**entry_fields(event), c.SOURCES: sources} | ({c.POSITION: "1"} if len(items) == 1 else {})


def read_entries(entries: Sequence[Entry], rules: EventRules) -> tuple[pa.Table, pa.Table]:
    """
    Judge entries of the stream.

    Parameters
    ----------
    entries
        As Redis sends them, in the order of the stream.
    rules
        Which event types there are and how far ahead of its arrival a timestamp may be.

    Returns
    -------
    events
        Columns of ``EVENT_SCHEMA``, in the order of the stream. An entry without a timestamp happened when it arrived;
        one without an event id has that of an equal event.
    refused
        Columns of ``REFUSED_SCHEMA``: the others, with the reason and their fields as JSON.
    """
    texts = _texts(entries)
    if pc.any(pc.match_substring(texts[c.ITEM_ID], LINE)).as_py():
        entries = _one_by_item(entries)
        texts = _texts(entries)
    halves = pa.array(b"-".join([entry_id for entry_id, _ in entries]).split(b"-") if entries else [], pa.binary())
    received_ms, sequence = np.asarray(halves.cast(pa.string()).cast(pa.int64())).reshape(-1, 2).T
    passed = _plainly_right(entries, texts, received_ms, rules)

    rows: list[tuple[int, Event]] = []
    refused: dict[str, list[Any]] = {name: [] for name in REFUSED_SCHEMA.names}
    for row in np.flatnonzero(~passed).tolist():
        fields = _fields(entries[row][1])
        try:
            rows.append((row, _event_of(fields, int(received_ms[row]), rules)))
        except InvalidEventError as error:
            values = (int(received_ms[row]), int(sequence[row]), str(error), _shown(fields))
            for name, value in zip(REFUSED_SCHEMA.names, values, strict=True):
                refused[name].append(value)

    columns = {
        c.RECEIVED_AT: pa.array(received_ms).cast(EVENT_SCHEMA.field(c.RECEIVED_AT).type),
        c.ENTRY: pa.array(sequence),
        **texts,
    }
    if not passed.all():
        keep = pa.array(passed)
        columns = {name: column.filter(keep) for name, column in columns.items()}
    table = pa.table([_typed(name, columns[name]) for name in EVENT_SCHEMA.names], EVENT_SCHEMA)
    if rows:
        judged = [_row_of(event, int(received_ms[row]), int(sequence[row])) for row, event in rows]
        table = pa.concat_tables([table, pa.Table.from_pylist(judged, EVENT_SCHEMA)])
        table = table.sort_by([(c.RECEIVED_AT, "ascending"), (c.ENTRY, "ascending")])
    return table, pa.Table.from_pydict(refused, REFUSED_SCHEMA)


def _one_by_item(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return entries of lists as one entry an item; one whose lines do not match stays as it is, and is refused."""
    item_field, source_field, line = c.ITEM_ID.encode(), c.SOURCES.encode(), LINE.encode()
    single: list[Entry] = []
    for entry_id, flat in entries:
        fields = _fields(flat)
        items = fields.get(item_field, b"").split(line)
        sources = fields.get(source_field, b"").split(line)
        if len(items) == 1 or len(items) != len(sources) or len(items) > MAX_LINES:
            single.append((entry_id, flat))
            continue
        list_id = fields.get(c.EVENT_ID.encode())
        for position, (item, names) in enumerate(zip(items, sources, strict=True), start=1):
            own = {**fields, item_field: item, source_field: names, c.POSITION.encode(): str(position).encode()}
            if list_id is not None:
                own[c.EVENT_ID.encode()] = list_id + f"-{position}".encode()
            if not names:
                del own[source_field]
            single.append((entry_id, [part for field in own.items() for part in field]))
    return single


def _plainly_right(
    entries: Sequence[Entry], texts: Mapping[str, pa.Array], received_ms: npt.NDArray[np.int64], rules: EventRules
) -> npt.NDArray[np.bool_]:
    """Tell which entries certainly keep the rules, everything needed being there."""
    passed = are_valid_ids(texts[c.USER_ID]) & are_valid_ids(texts[c.ITEM_ID]) & are_valid_ids(texts[c.EVENT_ID])
    passed &= np.asarray(pc.is_in(texts[c.EVENT_TYPE], pa.array(list(rules.weights), pa.string())))
    for name, form in _FORMS.items():
        passed &= np.asarray(pc.fill_null(pc.match_substring_regex(texts[name], form), name != c.TIMESTAMP))
    for name in CONTEXT_KEYS:
        is_short = np.asarray(pc.fill_null(pc.less_equal(pc.binary_length(texts[name]), MAX_CONTEXT_BYTES), True))
        passed &= (are_valid_ids(texts[name]) & is_short) | np.asarray(pc.is_null(texts[name]))
    n_known = sum(np.asarray(pc.is_valid(texts[name]), np.int64) for name in _FIELDS)
    passed &= 2 * n_known == np.array([len(flat) for _, flat in entries], np.int64)  # none unknown, none twice
    timestamp_ms = np.zeros(len(entries), np.int64)
    timestamp_ms[passed] = np.asarray(texts[c.TIMESTAMP].filter(pa.array(passed)).cast(pa.int64()))
    latest = received_ms + round(rules.future_minutes * 60_000)
    return np.asarray(passed & (timestamp_ms >= EARLIEST.timestamp() * 1000) & (timestamp_ms <= latest))


def _event_of(fields: Mapping[bytes, bytes], received_ms: int, rules: EventRules) -> Event:
    texts = {_decoded(name, "field"): _decoded(value, repr(name)) for name, value in fields.items()}
    for name in texts:
        if name not in _FIELDS:
            raise InvalidEventError(
                f"field {name!r} is unknown, expected one of {', '.join(_FIELDS)}", name, texts[name]
            )
    timestamp_ms = _whole_number(texts, c.TIMESTAMP)
    return make_event(
        rules,
        user_id=texts.get(c.USER_ID, ""),
        item_id=texts.get(c.ITEM_ID, ""),
        event_type=texts.get(c.EVENT_TYPE, ""),
        timestamp=(received_ms if timestamp_ms is None else timestamp_ms) / 1000,
        context={name: texts[name] for name in CONTEXT_KEYS if name in texts},
        event_id=texts.get(c.EVENT_ID),
        served=Served(
            sources=tuple(texts[c.SOURCES].split(SOURCE_SEPARATOR)) if c.SOURCES in texts else (),
            generation=_whole_number(texts, c.GENERATION),
            experiment=texts.get(c.EXPERIMENT, ""),
            variant=texts.get(c.VARIANT, ""),
            position=_whole_number(texts, c.POSITION),
        ),
        now=datetime.fromtimestamp(received_ms / 1000, UTC),
    )


def _whole_number(texts: Mapping[str, str], name: str) -> int | None:
    text = texts.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidEventError(f"{name} {text[:40]!r} is not a whole number", name, text)
    return int(text)


def _decoded(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidEventError(f"{what} {value[:40]!r} is not valid UTF-8", what, value) from error


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _texts(entries: Sequence[Entry]) -> dict[str, pa.Array]:
    """
    Return each field of the entries as a string array, null where there is nothing or no valid UTF-8.

    Entries of one writer have the same fields in the same order: those are taken apart together, a column at a time.
    """
    by_names: dict[tuple[bytes, ...], list[int]] = {}
    for row, (_, flat) in enumerate(entries):
        by_names.setdefault(tuple(flat[::2]), []).append(row)
    parts: dict[str, list[pa.Array]] = {name: [pa.array([], pa.string())] for name in _FIELDS}
    for names, rows in by_names.items():
        columns = list(zip(*[entries[row][1] for row in rows], strict=True))[1::2]
        found = dict(zip(names, columns, strict=True))
        for name, chunks in parts.items():
            values = found.get(name.encode())
            chunks.append(pa.nulls(len(rows), pa.string()) if values is None else _text(values))
    texts = {name: pa.concat_arrays(chunks) for name, chunks in parts.items()}
    if len(by_names) > 1:
        place = pa.array(np.argsort(np.concatenate(list(by_names.values()))))
        texts = {name: column.take(place) for name, column in texts.items()}
    return texts


def _text(values: Sequence[bytes]) -> pa.Array:
    try:
        return pa.array(values, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([value.decode() if _is_text(value) else None for value in values], pa.string())


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _typed(name: str, column: pa.Array) -> pa.Array:
    kind = EVENT_SCHEMA.field(name).type
    if name == c.TIMESTAMP:
        return column.cast(pa.int64()).cast(kind)
    return column.cast(kind) if name in (*_ARRIVAL, *_NUMBERS) else pc.fill_null(column, "")


def _row_of(event: Event, received_ms: int, sequence: int) -> dict[str, Any]:
    served = event.served or Served()
    return {
        c.RECEIVED_AT: received_ms,
        c.ENTRY: sequence,
        **{name: "" for name in _FIELDS if name not in _NUMBERS},
        **{name: text for name, text in entry_fields(event).items() if name not in _NUMBERS},
        c.TIMESTAMP: event.timestamp_ms,
        c.GENERATION: served.generation,
        c.POSITION: served.position,
    }


def _shown(fields: Mapping[bytes, bytes]) -> str:
    texts = {
        name.decode(errors="backslashreplace"): value.decode(errors="backslashreplace")
        for name, value in fields.items()
    }
    return json.dumps(texts)[:MAX_REFUSED_CHARACTERS]
