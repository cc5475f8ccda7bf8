"""What context is worth: each held-out event ranked in its own context, with and without the lifts."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.batches import IdxVector, Ranking
from rec_pipeline.engine.recommenders.context import HOURS_PER_BUCKET, TIME, ContextLifts

CUTOFF = 10


def event_gains(
    lists: Ranking, of_event: IdxVector, events: pd.DataFrame, lifts: ContextLifts, strengths: Sequence[float]
) -> npt.NDArray[np.float64]:
    """
    Return ``1 / log2(1 + rank)`` of each event's item in its user's list, 0 where it is not among the first ten.

    One row a strength, float64 of shape (n_strengths, n_events).

    Parameters
    ----------
    lists
        Merged candidates of users, with scores >= 0.
    of_event : int64 of shape (n_events,)
        Row of ``lists`` that belongs to the event's user.
    events : pd.DataFrame
        ``item_idx``, ``timestamp``, and ``device`` and ``location`` where there are any.
    lifts, strengths
        How the event's context changes the list; strength 0 leaves it as it is.
    """
    hours = events[c.TIMESTAMP].dt.hour // HOURS_PER_BUCKET
    names = [name for name in (c.DEVICE, c.LOCATION) if name in events]
    gains = np.zeros((len(strengths), len(events)))
    said = (events[name].astype("str").fillna("").to_numpy() for name in names)
    by_context = events.groupby([hours.to_numpy(), *said], sort=True)
    for places in by_context.indices.values():
        first = events.iloc[places[0]]
        context = {TIME: first[c.TIMESTAMP].isoformat(), **{name: str(first[name]) for name in names}}
        asked = Ranking(lists.item_idx[of_event[places]], lists.score[of_event[places]])
        for row, strength in enumerate(strengths):
            order = np.argsort(-lifts.lifted(asked, context, strength), axis=1, kind="stable")[:, :CUTOFF]
            ranked = np.take_along_axis(asked.item_idx, order, axis=1)
            hits = ranked == events[c.ITEM_IDX].to_numpy()[places, None]
            gains[row, places] = hits @ (1 / np.log2(np.arange(hits.shape[1]) + 2))
    return gains


def user_gains(
    lists: Ranking, of_event: IdxVector, events: pd.DataFrame, lifts: ContextLifts, strengths: Sequence[float]
) -> npt.NDArray[np.float64]:
    """
    Return the mean of ``event_gains`` of each row of ``lists`` that an event belongs to, in their order.

    One row a strength, float64 of shape (n_strengths, n_users).
    """
    n_users = len(lists.item_idx)
    n_events = np.bincount(of_event, minlength=n_users)
    gains = event_gains(lists, of_event, events, lifts, strengths)
    total = np.stack([np.bincount(of_event, weights=row, minlength=n_users) for row in gains])
    return np.asarray(total[:, n_events > 0] / n_events[n_events > 0])
