"""Events recorded online as interactions, beside those of the source."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.deduplication import instants_of
from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.table import Table, put_aside
from rec_pipeline.engine.data.validation import ValidatedTable

COLUMNS = (c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.EVENT_TYPE, c.EVENT_ID, c.DEVICE, c.LOCATION)
NOT_IN_CATALOGUE = "event with an item_id that is not in the catalogue"


def interactions_of(log: EventLog, weights: Mapping[str, float]) -> pd.DataFrame:
    """
    Return the events that are interactions.

    Parameters
    ----------
    log
        The whole log.
    weights
        Weight of each event type; those of weight 0, and types not named, are left out.

    Returns
    -------
    pd.DataFrame
        ``user_id``, ``item_id``, ``timestamp`` (datetime64[us, UTC]), ``weight`` (float32), ``event_type``,
        ``event_id``, ``device``, ``location``; by day.
    """
    counted = {name: weight for name, weight in weights.items() if weight > 0}
    events = log.read(COLUMNS, event_types=list(counted))
    events[c.TIMESTAMP] = events[c.TIMESTAMP].dt.as_unit("us")
    events[c.WEIGHT] = events[c.EVENT_TYPE].map(counted).astype(np.float32)
    return events


def add_events(
    validated: ValidatedTable, events: pd.DataFrame, items: pd.DataFrame, scratch: Path | None = None
) -> ValidatedTable:
    """
    Add events to validated interactions.

    Events of items that are not in the catalogue are set aside, and do not count towards the share of refused rows
    that stops a run: otherwise whoever sends events could stop it. So rows keep adding up, and the profile stays that
    of the source.

    Parameters
    ----------
    validated
        The interactions of the source.
    events
        As ``interactions_of`` returns them.
    items
        The valid catalogue, column ``item_id``.
    scratch
        Folder of its own for the result, a part of which is held at a time beside all events; None: it is in memory.

    Returns
    -------
    ValidatedTable
        An event that equals an interaction of the source, by event id or by user, item, type and time, is a duplicate.
    """
    if events.empty:
        return validated
    is_known = events[c.ITEM_ID].isin(items[c.ITEM_ID])
    known, unknown = events[is_known], events[~is_known]
    kept = put_aside(_merged(validated.kept, known), scratch if len(validated.kept.parts) > 1 else None)
    aside = pd.DataFrame(
        {
            c.ROW_NUMBER: np.flatnonzero(~is_known) + validated.n_rows_in,
            c.REASON: pd.Series(NOT_IN_CATALOGUE, index=range(len(unknown)), dtype="str"),
            **{name: unknown[name].astype("str").to_numpy() for name in events.columns},
        }
    )
    return replace(
        validated,
        kept=kept,
        refused=Table((*validated.refused.parts, aside)) if len(aside) else validated.refused,
        n_rows_in=validated.n_rows_in + len(events),
        n_duplicates=validated.n_duplicates + len(validated.kept) + len(known) - len(kept),
    )


def _merged(rows: Table, events: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the parts of ``rows`` with the events that happened until the next part begins and are not there yet."""
    has_id = events[c.EVENT_ID].fillna("") != ""
    is_repeated = has_id & events[c.EVENT_ID].duplicated()
    if c.EVENT_ID in rows.part(0):
        for part in rows.iterate([c.EVENT_ID]):
            is_repeated |= has_id & events[c.EVENT_ID].isin(part[c.EVENT_ID])
    begins = np.concatenate([instants_of(part)[:1] for part in rows.iterate([c.TIMESTAMP])])
    place = np.searchsorted(begins[1:], instants_of(events), side="right")
    for number, part in enumerate(rows.iterate()):
        is_here = place == number
        both = pd.concat([part, events[is_here]], ignore_index=True)
        for name in (c.EVENT_TYPE, c.EVENT_ID, c.DEVICE, c.LOCATION):
            both[name] = both[name].fillna("")
        is_there = both.duplicated([c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.EVENT_TYPE])
        is_there |= np.concatenate([np.zeros(len(part), dtype=np.bool_), is_repeated[is_here]])
        merged = both[~is_there].sort_values([c.TIMESTAMP, c.USER_ID, c.ITEM_ID], kind="stable", ignore_index=True)
        yield merged.astype({c.WEIGHT: np.float32})
