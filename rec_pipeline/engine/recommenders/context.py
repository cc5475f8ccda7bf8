"""
How much more a category is taken in one context than in general, learnt from events and shrunken.

For a value v of a context (an hour bucket, a device, a location) and a category g the lift is
``log((n(v, g) + s * p(g)) / (n(v) + s)) - log p(g)`` with the category's general share p(g) and ``s`` pseudo-events: a
value seen seldom changes little, one never seen nothing. An item's lift is the sum over the context's values of the
mean lift of its categories, and multiplies its score by ``exp``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_array, read_json, write_array, write_json
from rec_pipeline.engine.data.batches import Ranking, ScoreMatrix
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.data.table import PART_ROWS

HOURS_PER_BUCKET: Final = 6
PRIOR_EVENTS: Final = 200.0
TIME: Final = "time"
UNKNOWN: Final = "-"


@dataclass(frozen=True)
class ContextLifts:
    """
    Learnt lifts of categories by context value.

    Attributes
    ----------
    known
        Known values of each context, in the order of its rows in ``lift``: first ``time`` (hour buckets such as
        ``06-11``), then ``device`` and ``location`` where events carry them.
    lift
        float32 of shape (n_values of all contexts, n_categories), in logarithms.
    in_category
        CSR of shape (n_items, n_categories).
    """

    known: Mapping[str, tuple[str, ...]]
    lift: npt.NDArray[np.float32]
    in_category: sp.csr_matrix

    @classmethod
    def fit(
        cls,
        interactions: pd.DataFrame,
        item_idx: npt.NDArray[np.int64],
        in_category: sp.csr_matrix,
        *,
        prior_events: float = PRIOR_EVENTS,
    ) -> Self:
        """
        Learn the lifts, of ``PART_ROWS`` events at a time.

        Parameters
        ----------
        interactions : pd.DataFrame
            ``timestamp``, ``device`` and ``location`` where events carry them; an empty text says nothing.
        item_idx : int64 of the same length
            The item of each event.
        in_category : CSR of shape (n_items, n_categories)
            Categories of the items.
        prior_events : float
            Pseudo-events that draw a lift towards none.
        """
        weight = in_category.astype(np.float64)
        per_item = np.asarray(weight.sum(axis=1)).ravel()
        weight = sp.csr_matrix(sp.diags_array(1 / np.maximum(per_item, 1)) @ weight)  # an event counts once
        n_of_category, counted = np.zeros(weight.shape[1]), dict[str, pd.DataFrame]()
        for start in range(0, len(item_idx), PART_ROWS):
            part = slice(start, start + PART_ROWS)
            taken = weight[item_idx[part]]  # (n_events, n_categories)
            n_of_category += np.asarray(taken.sum(axis=0)).ravel()
            for name in (TIME, c.DEVICE, c.LOCATION):
                if (found := _event_values(interactions.iloc[part], name)) is not None:
                    counts = _counts_by_value(found, taken)
                    counted[name] = counted[name].add(counts, fill_value=0) if name in counted else counts
        share = np.maximum(n_of_category / max(1, len(item_idx)), 1e-9)
        values: dict[str, tuple[str, ...]] = {}
        lifts = []
        for name, counts in counted.items():
            in_order = counts.sort_index()
            values[name] = tuple(map(str, in_order.index))
            n_taken, n_events = in_order.to_numpy()[:, :-1], in_order.to_numpy()[:, -1:]  # (n_values, n_categories), 1
            lifts.append(np.log((n_taken + prior_events * share) / (n_events + prior_events)) - np.log(share))
        lift = np.concatenate(lifts) if lifts else np.zeros((0, in_category.shape[1]))
        return cls(values, lift.astype(np.float32), in_category)

    def bucket(self, context: Mapping[str, str]) -> str:
        """
        Return what a context comes down to, as a part of a cache key: equal buckets change rankings equally.

        A value that was not learnt, or cannot be read, is ``-``, whatever it is. A context of which nothing is known is
        empty, like no context at all.
        """
        known = list(self._known(context).values())
        return "/".join(value or UNKNOWN for value in known) if any(known) else ""

    def item_lifts(self, context: Mapping[str, str]) -> npt.NDArray[np.float32]:
        """Return the lift of each item in ``context``, float32 of shape (n_items,), in logarithms; 0 where unknown."""
        total = np.zeros(self.lift.shape[1], dtype=np.float64)
        start = 0
        for name, known in self._known(context).items():
            if known is not None:
                total += self.lift[start + self.known[name].index(known)]
            start += len(self.known[name])
        n_categories = np.maximum(np.diff(self.in_category.indptr), 1)
        return np.asarray((self.in_category.astype(np.float64) @ total) / n_categories, dtype=np.float32)

    def lifted(self, ranking: Ranking, context: Mapping[str, str], strength: float = 1.0) -> ScoreMatrix:
        """
        Return the scores of lists in ``context``, float32 of the shape of ``ranking``, no longer in order.

        Parameters
        ----------
        ranking
            Lists of a batch of users in one context, with scores >= 0.
        context
            ``time`` (ISO 8601), ``device``, ``location``; any may be missing. What is not known changes no score.
        strength : float
            Multiplies the lifts; 0 changes nothing.
        """
        absent = ranking.item_idx == NO_IDX
        factor = np.exp(strength * self.item_lifts(context))[np.where(absent, 0, ranking.item_idx)]
        return np.where(absent, np.float32(-np.inf), ranking.score * factor).astype(np.float32)

    def save(self, directory: Path) -> None:
        """Write ``known.json``, ``lift.npy`` and ``in_category.npz``."""
        write_json(directory / "known.json", {name: list(values) for name, values in self.known.items()})
        write_array(directory / "lift.npy", self.lift)
        sp.save_npz(directory / "in_category.npz", self.in_category.astype(np.int8), compressed=False)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        stored = read_json(directory / "known.json")
        values = {name: tuple(stored[name]) for name in (TIME, c.DEVICE, c.LOCATION) if name in stored}
        return cls(
            values, read_array(directory / "lift.npy"), sp.csr_matrix(sp.load_npz(directory / "in_category.npz"))
        )

    def _known(self, context: Mapping[str, str]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for name, known in self.known.items():
            given = context.get(name)
            value = hour_bucket(given) if name == TIME and given is not None else given
            found[name] = value if value in known else None
        return found


def hour_bucket(time: str) -> str | None:
    """
    Return the hours of the day that an ISO 8601 instant falls into, in UTC as those learnt from; None if unreadable.

    Examples
    --------
    >>> hour_bucket("2024-02-10T15:30:00"), hour_bucket("2024-02-10T15:30:00-05:00"), hour_bucket("soon")
    ('12-17', '18-23', None)
    """
    try:
        instant = pd.Timestamp(time)
        hour = int((instant if instant.tzinfo is None else instant.tz_convert("UTC")).hour)
    except (ValueError, TypeError, OverflowError):
        return None
    start = hour // HOURS_PER_BUCKET * HOURS_PER_BUCKET
    return f"{start:02}-{start + HOURS_PER_BUCKET - 1:02}"


def _counts_by_value(found: npt.NDArray[np.object_], taken: sp.csr_matrix) -> pd.DataFrame:
    """Return, by value, the sum of the rows of ``taken`` of its events, and in a last column their number."""
    codes, known = pd.factorize(found)
    inside = np.flatnonzero(codes >= 0)
    of_value = sp.csr_matrix((np.ones(len(inside)), (codes[inside], inside)), shape=(len(known), len(codes)))
    n_events = np.bincount(codes[inside], minlength=len(known))
    return pd.DataFrame(np.column_stack([(of_value @ taken).toarray(), n_events]), index=known)


def _event_values(interactions: pd.DataFrame, name: str) -> npt.NDArray[np.object_] | None:
    """Return each event's value of a context as str objects, None where it has none; None if no event has one."""
    if name == TIME and c.TIMESTAMP in interactions:
        start = interactions[c.TIMESTAMP].dt.hour // HOURS_PER_BUCKET * HOURS_PER_BUCKET
        names = {hour: f"{hour:02}-{hour + HOURS_PER_BUCKET - 1:02}" for hour in range(0, 24, HOURS_PER_BUCKET)}
        of_events: npt.NDArray[np.object_] = start.map(names).to_numpy(dtype=object)
        return of_events
    if name not in interactions:
        return None
    values = interactions[name].astype(object)
    return values.where(values.notna() & (values != ""), None).to_numpy(dtype=object)
