"""Events recorded online as interactions, beside those of the source."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.event_log import EventLog
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


def add_events(validated: ValidatedTable, events: pd.DataFrame, items: pd.DataFrame) -> ValidatedTable:
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

    Returns
    -------
    ValidatedTable
        An event that equals an interaction of the source, by event id or by user, item, type and time, is a duplicate.
    """
    if events.empty:
        return validated
    is_known = events[c.ITEM_ID].isin(items[c.ITEM_ID])
    both = pd.concat([validated.table, events[is_known]], ignore_index=True)
    for name in (c.EVENT_TYPE, c.EVENT_ID, c.DEVICE, c.LOCATION):
        both[name] = both[name].fillna("")
    is_repeated = both.duplicated([c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.EVENT_TYPE])
    is_repeated |= (both[c.EVENT_ID] != "") & both[c.EVENT_ID].duplicated()
    unknown = events[~is_known]
    aside = pd.DataFrame(
        {
            c.ROW_NUMBER: np.flatnonzero(~is_known) + validated.n_rows_in,
            c.REASON: pd.Series(NOT_IN_CATALOGUE, index=range(len(unknown)), dtype="str"),
            **{name: unknown[name].astype("str").to_numpy() for name in events.columns},
        }
    )
    kept = both[~is_repeated].sort_values([c.TIMESTAMP, c.USER_ID, c.ITEM_ID], kind="stable", ignore_index=True)
    return replace(
        validated,
        table=kept.astype({c.WEIGHT: np.float32}),
        quarantine=pd.concat([validated.quarantine, aside], ignore_index=True) if len(aside) else validated.quarantine,
        n_rows_in=validated.n_rows_in + len(events),
        n_duplicates=validated.n_duplicates + int(is_repeated.sum()),
    )
