"""
Whether a table is still the kind of thing that was accepted last: as many rows, users and items, on the same scale.

A feed that lost half its rows, or whose ratings turned from stars into percent, is valid row by row. Only the
comparison with the last accepted table of the same origin shows it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import pandas as pd
from pydantic import BaseModel, Field

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_json, write_json
from rec_pipeline.engine.errors import InputRejectedError

PROFILE: Final = "profile.json"


class DriftParams(BaseModel, frozen=True, extra="forbid"):
    """How far a table may be from the one accepted before it."""

    accept_variance: bool = Field(
        False, description="Take the table whatever the last one was like; for the run after a real change of the data."
    )
    max_rows_change: float = Field(
        0.5, gt=0, description="Most growth or loss of rows against the last accepted table, as a share of it."
    )
    max_ids_change: float = Field(
        0.2, gt=0, description="Most growth or loss of users and of items against the last accepted table, as a share."
    )


@dataclass(frozen=True)
class Profile:
    """
    What there is to compare of an accepted table.

    Attributes
    ----------
    origin
        Where it came from; tables of different origins are not compared.
    counts
        Number of ``rows``, and of distinct ``user_id`` and ``item_id`` where there are such columns.
    rating
        Lowest, median and highest rating; None without ratings.
    """

    origin: str
    counts: dict[str, int]
    rating: tuple[float, float, float] | None

    @classmethod
    def of(cls, table: pd.DataFrame, origin: str) -> Self:
        """Describe a valid table."""
        counts = {"rows": len(table)}
        counts |= {name: int(table[name].nunique()) for name in (c.USER_ID, c.ITEM_ID) if name in table}
        return cls(origin, counts, rating_range(table[c.RATING]) if c.RATING in table else None)

    def save(self, directory: Path) -> None:
        """Write ``profile.json``."""
        write_json(directory / PROFILE, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """Read what ``save`` wrote; None where there is nothing."""
        if not (directory / PROFILE).is_file():
            return None
        stored = read_json(directory / PROFILE)
        return cls(stored["origin"], stored["counts"], None if stored["rating"] is None else tuple(stored["rating"]))


def rating_range(ratings: "pd.Series[float]") -> tuple[float, float, float] | None:
    """Return the lowest, the median and the highest rating; None if there is none."""
    if ratings.empty:
        return None
    low, median, high = (float(value) for value in ratings.quantile([0, 0.5, 1]))
    return low, median, high


def check_drift(what: str, new: Profile, last: Profile | None, params: DriftParams) -> None:
    """
    Refuse a table too unlike the last accepted one of its origin.

    Raises
    ------
    InputRejectedError
        With both numbers and how to accept the change.
    """
    if last is None or last.origin != new.origin or params.accept_variance:
        return
    accept = "if that is meant, run again with --accept-variance"
    for name, before in last.counts.items():
        now, allowed = new.counts.get(name, 0), params.max_rows_change if name == "rows" else params.max_ids_change
        if before and abs(now - before) > allowed * before:
            raise InputRejectedError(
                f"{what}: {now} {'rows' if name == 'rows' else f'distinct {name}'} where the last accepted run had "
                f"{before}, a change of {now / before - 1:+.0%} where {allowed:.0%} is allowed; {accept}"
            )
    if new.rating and last.rating:
        (low, median, high), (last_low, last_median, last_high) = new.rating, last.rating
        if not (last_low <= median <= last_high and low <= last_median <= high):
            raise InputRejectedError(
                f"{what}: ratings from {low:g} to {high:g} with median {median:g}, where the last accepted run had "
                f"{last_low:g} to {last_high:g} with median {last_median:g}: the scale has changed; {accept}"
            )
