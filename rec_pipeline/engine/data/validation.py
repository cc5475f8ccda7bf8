"""
What is let in: raw tables become typed tables, and every row that may not enter stands in quarantine with its reason.

``n_rows_in == kept + duplicates + quarantined`` holds for every validated table. Ids are compared byte by byte: nothing
is normalised, because merging two spellings could show one person another's list. A whole input is refused when too
many of its rows are, when too few are left, or when it is unlike the one accepted before it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_json, write_json
from rec_pipeline.engine.data.deduplication import Deduplicator, counts_by_run
from rec_pipeline.engine.data.delimited import UNREADABLE
from rec_pipeline.engine.data.drift import DriftParams, Profile, check_drift, rating_range
from rec_pipeline.engine.data.ids import are_valid_ids, look_alikes
from rec_pipeline.engine.data.quarantine import write_quarantine
from rec_pipeline.engine.data.reading import ids_as_text, require_columns
from rec_pipeline.engine.data.table import MOST_BUCKETS, PART_ROWS, Table, put_aside
from rec_pipeline.engine.data.tally import Tally
from rec_pipeline.engine.errors import InputRejectedError

if TYPE_CHECKING:
    import pandera.pandas as pandera

MAX_TEXT_CHARACTERS: Final = 16_384  # at most 64 KiB of UTF-8; encoders read far less
MAX_QUARANTINED_CHARACTERS: Final = 300
REASONS_NAMED: Final = 3
MIN_ROWS_FOR_SHARES: Final = 10_000  # among fewer rows one busy user is nothing to wonder about
MANGLED: Final = "a column holds bytes that are no UTF-8"
UNKNOWN_ITEM: Final = "item_id is not in the catalogue"
BY_DAY: Final = "by_day.json"
_NO_ID: Final = "\x7f"
_CONTEXT: Final = (c.EVENT_TYPE, c.EVENT_ID, c.DEVICE, c.LOCATION)
_TRUE, _FALSE = ("true", "1", "1.0", "yes", "y", "t"), ("false", "0", "0.0", "no", "n", "f")


class TimestampUnit(StrEnum):
    """What a timestamp given as a number counts since 1970."""

    auto = "auto"
    s = "s"
    ms = "ms"
    us = "us"
    ns = "ns"


MICROSECONDS: Final = {TimestampUnit.s: 1e6, TimestampUnit.ms: 1e3, TimestampUnit.us: 1.0, TimestampUnit.ns: 1e-3}


class ValidationParams(DriftParams):
    """What is let in, and how much may be refused before the whole input is."""

    max_quarantined_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of rows that may be refused; above it the run stops and what is live stays live.",
    )
    max_unreadable_share: float = Field(
        0.001,
        ge=0,
        le=1,
        description="Share of rows that may be refused for one reason of form (an id, number or time that is none).",
    )
    min_interactions: int = Field(1000, ge=1, description="Fewest valid interactions worth a run.")
    min_users: int = Field(25, ge=0, description="Fewest users with at least two interactions worth a run.")
    min_items: int = Field(2, ge=1, description="Fewest items worth a run: in the catalogue, and interacted with.")
    max_user_interactions: int = Field(
        100_000, ge=1, description="Most interactions of one user, a bot beyond it: only the latest are kept."
    )
    min_rating: float | None = Field(None, description="Lowest rating there is; lower ones are refused. Unset: any.")
    max_rating: float | None = Field(None, description="Highest rating there is; higher ones are refused. Unset: any.")
    event_types: list[str] | None = Field(
        None, description="Event types there are; rows of others are refused. Unset: any."
    )
    timestamp_unit: TimestampUnit = Field(
        TimestampUnit.auto, description="Unit of numeric timestamps; auto: told by the size of a column's median."
    )
    earliest: str = Field(
        "1990-01-01",
        description="Earliest date there is (ISO 8601, UTC): MovieLens begins in 1995, a wrong unit lands in 1970.",
    )
    future_minutes: float = Field(5, ge=0, description="How far ahead of now a timestamp may be: clocks differ.")
    max_age_hours: float | None = Field(
        None, gt=0, description="Oldest the latest interaction may be; an older feed stands still. Unset: any age."
    )

    @field_validator("earliest")
    @classmethod
    def _is_a_date(cls, text: str) -> str:
        pd.Timestamp(text)
        return text

    @model_validator(mode="after")
    def _ratings_have_a_range(self) -> Self:
        if self.min_rating is not None and self.max_rating is not None and self.min_rating > self.max_rating:
            raise ValueError(f"min_rating {self.min_rating} is above max_rating {self.max_rating}")
        return self


@dataclass(frozen=True)
class Counts:
    """
    What became of rows.

    Raises
    ------
    ValueError
        If they do not add up.
    """

    n_rows_in: int
    n_kept: int
    n_duplicates: int
    n_quarantined: int

    def __post_init__(self) -> None:
        if self.n_rows_in != self.n_kept + self.n_duplicates + self.n_quarantined:
            raise ValueError(
                f"{self.n_rows_in} rows came in, but {self.n_kept} were kept, {self.n_duplicates} were duplicates "
                f"and {self.n_quarantined} were quarantined"
            )


@dataclass(frozen=True)
class ValidatedTable:
    """
    A typed table and what was kept out of it.

    Attributes
    ----------
    kept
        The valid rows.
    refused
        The others: ``row_number`` (0-based, of the raw table), ``reason``, then the raw columns as escaped text.
    n_rows_in
        Rows of the raw table.
    n_duplicates
        Rows left out because an equal one is in the table.
    warnings
        What is let in and still worth a look, a sentence each; they name no user.
    profile
        What the next table of the same origin is compared with.
    by_day
        What became of the raw rows of each day, where they came in days; what was added to them is in no day.

    Raises
    ------
    ValueError
        If the rows do not add up.
    """

    kept: Table
    refused: Table
    n_rows_in: int
    n_duplicates: int
    warnings: tuple[str, ...] = ()
    profile: Profile | None = None
    by_day: Mapping[str, Counts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Counts(self.n_rows_in, len(self.kept), self.n_duplicates, len(self.refused))

    @cached_property
    def table(self) -> pd.DataFrame:
        """All valid rows in memory: for a catalogue, and for interactions that are known to be few."""
        return self.kept.read()

    @property
    def quarantine(self) -> pd.DataFrame:
        """All refused rows in memory."""
        return self.refused.read()

    def save(self, directory: Path) -> None:
        """Write folders ``table`` and ``quarantine`` (for this user's eyes only), ``counts.json``, a profile."""
        for name, rows in (("table", self.kept), ("quarantine", self.refused)):
            (directory / name).mkdir()
            rows.save(directory / name)
        for path in (directory / "quarantine").iterdir():
            path.chmod(0o600)
        counts = {"n_rows_in": self.n_rows_in, "n_duplicates": self.n_duplicates, "warnings": list(self.warnings)}
        write_json(directory / "counts.json", counts)
        if self.by_day:
            write_json(directory / BY_DAY, {day: asdict(counted) for day, counted in self.by_day.items()})
        if self.profile is not None:
            self.profile.save(directory)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        counts = read_json(directory / "counts.json")
        by_day = read_json(directory / BY_DAY) if (directory / BY_DAY).is_file() else {}
        return cls(
            kept=Table.load(directory / "table"),
            refused=Table.load(directory / "quarantine"),
            n_rows_in=counts["n_rows_in"],
            n_duplicates=counts["n_duplicates"],
            warnings=tuple(counts["warnings"]),
            profile=Profile.load(directory),
            by_day={day: Counts(**counted) for day, counted in by_day.items()},
        )


@dataclass(frozen=True)
class Circumstances:
    """
    What is known about a raw table beside its rows.

    Attributes
    ----------
    origin
        Where it came from.
    last
        Profile of the table accepted before it.
    quarantine
        Folder of this run for refused rows; they are written even when the whole input is refused. None: nowhere.
    """

    origin: str = ""
    last: Profile | None = None
    quarantine: Path | None = None


UNKNOWN: Final = Circumstances()


def validate_items(
    raw: pd.DataFrame, params: ValidationParams, circumstances: Circumstances = UNKNOWN
) -> ValidatedTable:
    """
    Validate a catalogue.

    Parameters
    ----------
    raw
        As a source gave it; ``item_id`` must be there. Not modified.
    params
        Rules and bounds.
    circumstances
        Origin, the last accepted table, where refused rows go.

    Returns
    -------
    ValidatedTable
        ``item_id``, ``title``, ``description``, ``categories`` (text, empty where there is none), ``available`` (bool,
        true unless denied), ``published_at`` (datetime64[us, UTC] or NaT) and every other column as it came; by
        ``item_id``. Rows equal in everything count once; rows of one id that differ are all refused.

    Raises
    ------
    InputRejectedError
        If the id column is missing, more rows are refused than allowed, fewer are left than are worth a run, or the
        table is too unlike the last one.
    """
    import pandera.pandas as pandera

    require_columns(raw, (c.ITEM_ID,), "items")
    table = ids_as_text(raw.reset_index(drop=True), "items")
    is_mangled = _mangled(table)
    table[c.ITEM_ID] = _storable_ids(table[c.ITEM_ID])
    is_cut = _filled(False, table)
    for name in (c.TITLE, c.DESCRIPTION, c.CATEGORIES):
        text = _as_text(table[name]) if name in table else _filled("", table)
        is_cut |= text.str.len() > MAX_TEXT_CHARACTERS
        table[name] = text.str.slice(0, MAX_TEXT_CHARACTERS)
    for name in table.columns.difference([c.ITEM_ID, c.AVAILABLE, c.PUBLISHED_AT]):
        table[name] = _as_text(table[name]) if table[name].dtype == object else table[name]
    given_published = table[c.PUBLISHED_AT] if c.PUBLISHED_AT in table else _filled("", table)
    table[c.PUBLISHED_AT] = parse_timestamps(given_published, params.timestamp_unit)
    is_unreadable = table[c.PUBLISHED_AT].isna() & (_as_text(given_published) != "")
    table[c.AVAILABLE] = _parse_truth(table[c.AVAILABLE]) if c.AVAILABLE in table else _filled(1.0, table)
    is_repeated = table.duplicated()
    distinct_ids = table.loc[~is_repeated, c.ITEM_ID]
    is_conflicting = table[c.ITEM_ID].isin(distinct_ids[distinct_ids.duplicated()])

    def column(*checks: "pandera.Check") -> "pandera.Column":
        return pandera.Column(nullable=True, checks=list(checks))

    schema = pandera.DataFrameSchema(
        {
            c.ITEM_ID: column(
                _check(MANGLED, lambda ids: ~is_mangled[ids.index]),
                *_id_checks(c.ITEM_ID),
                _check("item_id has rows that differ", lambda ids: ~is_conflicting[ids.index]),
            ),
            c.AVAILABLE: column(_check("available is neither true nor false", lambda values: values.notna())),
            c.PUBLISHED_AT: column(_check("published_at is unreadable", lambda values: ~is_unreadable[values.index])),
        }
    )
    reasons = _failures(schema, table)
    is_refused = table.index.isin(reasons.index)
    kept = table[~is_refused & ~is_repeated].astype({c.AVAILABLE: bool})
    valid = kept.sort_values(c.ITEM_ID, ignore_index=True)
    warnings = []
    if is_cut.any():
        warnings.append(f"{is_cut.sum()} items have a text that was cut at {MAX_TEXT_CHARACTERS} characters")
    if alike := look_alikes(valid[c.ITEM_ID]):
        shown = ", ".join(repr(group) for group in alike[:5])
        warnings.append(f"{len(alike)} groups of item ids differ only in case or composition and stay apart: {shown}")
    validated = ValidatedTable(
        kept=Table((valid,)),
        refused=Table((_quarantine(raw, reasons),)),
        n_rows_in=len(raw),
        n_duplicates=int((is_repeated & ~is_refused).sum()),
        warnings=tuple(warnings),
        profile=Profile.of(valid, circumstances.origin),
    )
    return _accepted("items", validated, params, circumstances, {"items": (len(valid), params.min_items)})


def validate_interactions(
    raw: Table | pd.DataFrame,
    items: pd.DataFrame,
    params: ValidationParams,
    now: pd.Timestamp,
    circumstances: Circumstances = UNKNOWN,
    scratch: Path | None = None,
) -> ValidatedTable:
    """
    Validate interactions against a valid catalogue.

    Parameters
    ----------
    raw
        As a source gave it; ``user_id``, ``item_id`` and ``timestamp`` must be there. Not modified.
    items
        The valid items; ``item_id`` only is read.
    params
        Rules and bounds.
    now
        The present, with a timezone; later rows are refused.
    circumstances
        Origin, the last accepted table, where refused rows go.
    scratch
        Empty folder for what does not fit in memory; the result lies in it. With it, memory is that of ``PART_ROWS``
        rows, of the distinct ids, of 4 bytes a rating and of the reasons of refused rows. What happened at one instant
        is held whole, and so is one in ``MOST_BUCKETS`` rows. None: everything is held. The rows are the same.

    Returns
    -------
    ValidatedTable
        ``user_id``, ``item_id`` (str), ``timestamp`` (datetime64[us, UTC]), ``weight`` (float32, 1 unless given) and,
        where given, ``rating`` (float32), ``event_type``, ``event_id``, ``device``, ``location`` (str, empty where
        there is none); by time, then user, then item, no instant in two parts. A row with the ``event_id`` of an
        earlier row, or with the same user, item, event type and time, is a duplicate. Other columns are left out with a
        warning.

    Raises
    ------
    InputRejectedError
        If a column is missing, more rows are refused than allowed, fewer are left than are worth a run, the latest is
        too old, or the table is too unlike the last one.
    """
    given = raw if isinstance(raw, Table) else Table((raw,))
    if len(given.parts) == 1:  # read once, although it is gone through several times
        given = Table((given.part(0),))
    require_columns(given.part(0), (c.USER_ID, c.ITEM_ID, c.TIMESTAMP), "interactions")
    told = with_told_unit(given, params)
    return let_in(given, examine_interactions(given, told, now), items, told, now, circumstances, scratch)


def with_told_unit(raw: Table, params: ValidationParams) -> ValidationParams:
    """Return the rules with the unit of the numeric timestamps of all rows."""
    unit = told_unit((part[c.TIMESTAMP] for part in raw.iterate([c.TIMESTAMP])), params.timestamp_unit)
    return params.model_copy(update={"timestamp_unit": unit})


def examine_interactions(raw: Table, params: ValidationParams, now: pd.Timestamp) -> Iterator[pd.DataFrame]:
    """
    Look at each row by itself: the first step of validation, whatever other rows and the catalogue hold.

    Parameters
    ----------
    raw
        As for ``validate_interactions``.
    params
        Rules, with the unit of timestamps.
    now
        The present, with a timezone.

    Yields
    ------
    pd.DataFrame
        As many rows as each part has, in their order, typed as ``validate_interactions`` says, with a column
        ``reason`` (str): the first rule that a row breaks by itself, empty where it breaks none.
    """
    return (_examined(part, params, now) for part in raw.iterate())


def let_in(
    raw: Table,
    examined: Iterable[pd.DataFrame],
    items: pd.DataFrame,
    params: ValidationParams,
    now: pd.Timestamp,
    circumstances: Circumstances = UNKNOWN,
    scratch: Path | None = None,
    days: Mapping[str, int] = MappingProxyType({}),
) -> ValidatedTable:
    """
    Hold rows to each other, to the catalogue and to what was accepted last: the second step of validation.

    Parameters
    ----------
    raw, examined
        The rows as they came, and as ``examine_interactions`` yields them.
    items, params, now, circumstances, scratch
        As for ``validate_interactions``; the unit of timestamps is stated.
    days
        Rows of each day, in their order, where they come in days: what becomes of each is counted.

    Returns
    -------
    ValidatedTable
        As ``validate_interactions`` does.

    Raises
    ------
    InputRejectedError
        As ``validate_interactions`` does, a missing column excepted.
    """
    n_buckets = 1 if scratch is None else min(MOST_BUCKETS, -(-len(raw) // PART_ROWS))
    folder = scratch if n_buckets > 1 else None
    sound, refusals, starts = Deduplicator(_edges(raw, n_buckets, params.timestamp_unit), folder), [], [0]
    catalogue = pa.array(items[c.ITEM_ID], pa.string(), from_pandas=True)
    for part in examined:
        part.index = pd.RangeIndex(starts[-1], starts[-1] + len(part))
        reasons = _with_unknown_items(part, catalogue)
        is_sound = reasons == ""
        sound.add(part[is_sound].drop(columns=c.REASON))
        refusals.append(reasons[~is_sound])
        starts.append(starts[-1] + len(part))
    newest_first = sound.newest_first(params.max_user_interactions, list(days.values()))
    kept = Table(put_aside(newest_first, folder and folder / "kept").parts[::-1])
    over = pd.Index(np.concatenate(sound.beyond_cap))
    beyond = f"user is beyond the cap of {params.max_user_interactions} interactions"
    reasons = pd.concat([*refusals, pd.Series(beyond, index=over, dtype="str")]).sort_index()
    refused = put_aside(_quarantined(raw, starts, reasons), folder and folder / "refused")
    users, met = (Tally.of(kept, name).counts for name in (c.USER_ID, c.ITEM_ID))
    columns, latest = kept.part(0).columns, kept.part(-1, [c.TIMESTAMP])[c.TIMESTAMP].max()
    ignored = sorted(set(raw.columns) - set(columns))
    ratings = rating_range(kept.read([c.RATING])[c.RATING]) if c.RATING in columns else None
    validated = ValidatedTable(
        kept=kept,
        refused=refused,
        n_rows_in=len(raw),
        n_duplicates=sound.n_duplicates,
        by_day=_by_day(days, sound, reasons),
        warnings=tuple(_interaction_warnings(users, met, ignored, len(over))),
        profile=Profile(circumstances.origin, {"rows": len(kept), c.USER_ID: len(users), c.ITEM_ID: len(met)}, ratings),
    )
    needed = {
        "interactions": (len(kept), params.min_interactions),
        "users with at least 2 interactions": (int((users >= 2).sum()), params.min_users),
        "items interacted with": (len(met), params.min_items),
    }
    accepted = _accepted("interactions", validated, params, circumstances, needed, n_capped=len(over))
    if params.max_age_hours and now - latest > pd.Timedelta(hours=params.max_age_hours):
        raise InputRejectedError(
            f"the latest interaction is of {latest:%Y-%m-%d %H:%M} UTC, older than the {params.max_age_hours:g} hours "
            "allowed (max_age_hours): the feed stands still"
        )
    return accepted


def _examined(raw: pd.DataFrame, params: ValidationParams, now: pd.Timestamp) -> pd.DataFrame:
    """Return the rows of a part, typed, and the first rule that each breaks by itself."""
    import pandera.pandas as pandera

    given = ids_as_text(raw.reset_index(drop=True), "interactions")
    is_mangled = _mangled(given)
    table = pd.DataFrame({name: _storable_ids(given[name]) for name in (c.USER_ID, c.ITEM_ID)})
    table[c.TIMESTAMP] = parse_timestamps(given[c.TIMESTAMP], params.timestamp_unit)
    table[c.WEIGHT] = _parse_numbers(given[c.WEIGHT]) if c.WEIGHT in given else _filled(1.0, given)
    if c.RATING in given:
        table[c.RATING] = _parse_numbers(given[c.RATING])
    for name in _CONTEXT:
        if name in given:
            table[name] = _as_text(given[name])

    earliest = pd.to_datetime(params.earliest, utc=True)
    latest = now + pd.Timedelta(minutes=params.future_minutes)
    lowest = -np.inf if params.min_rating is None else params.min_rating
    highest = np.inf if params.max_rating is None else params.max_rating

    def column(*checks: "pandera.Check", required: bool = True) -> "pandera.Column":
        return pandera.Column(nullable=True, required=required, checks=list(checks))

    # A comparison with NaT is false: what is missing is refused once, not as being before or after something too.
    schema = pandera.DataFrameSchema(
        {
            c.USER_ID: column(_check(MANGLED, lambda ids: ~is_mangled[ids.index]), *_id_checks(c.USER_ID)),
            c.ITEM_ID: column(*_id_checks(c.ITEM_ID)),
            c.TIMESTAMP: column(
                _check("timestamp is missing or unreadable", lambda times: times.notna()),
                _check(f"timestamp is before {params.earliest}", lambda times: ~(times < earliest)),
                _check("timestamp is in the future", lambda times: ~(times > latest)),
            ),
            c.WEIGHT: column(_check("weight is not a number above 0", lambda weights: weights > 0)),
            c.RATING: column(
                _check("rating is not a number", lambda ratings: ratings.notna()),
                _check("rating is out of range", lambda ratings: ratings.between(lowest, highest)),
                required=False,
            ),
            c.EVENT_TYPE: column(
                _check(
                    "event_type is unknown",
                    lambda types: types.isin(params.event_types) if params.event_types else types.notna(),
                ),
                required=False,
            ),
        }
    )
    table[c.REASON] = _failures(schema, table).reindex(table.index, fill_value="")
    return table.astype({name: np.float32 for name in (c.WEIGHT, c.RATING) if name in table})


def _with_unknown_items(examined: pd.DataFrame, catalogue: pa.Array) -> "pd.Series[str]":
    """Return the reasons of a part: an item that is not in the catalogue comes after the ids and before all else."""
    ids = pa.array(examined[c.ITEM_ID], pa.string(), from_pandas=True)
    is_unknown = ~np.asarray(pc.is_in(ids, catalogue)) & ~examined[c.REASON].isin(_OF_IDS)
    reasons: pd.Series[str] = examined[c.REASON].mask(is_unknown, UNKNOWN_ITEM)
    return reasons


def _by_day(days: Mapping[str, int], sound: Deduplicator, reasons: "pd.Series[str]") -> dict[str, Counts]:
    """Count what became of the rows of each day; ``reasons`` are of the refused ones, by row."""
    refused = counts_by_run(reasons.index, list(days.values()))
    of_days = zip(days, days.values(), sound.n_kept_by_run, sound.n_duplicates_by_run, refused, strict=True)
    return {day: Counts(*map(int, counted)) for day, *counted in of_days} if days else {}


def _edges(given: Table, n_buckets: int, unit: TimestampUnit) -> npt.NDArray[np.datetime64]:
    """Return the times that cut the rows into about equal buckets; which rows these are told by changes no result."""
    sampled = (parse_timestamps(part[c.TIMESTAMP].iloc[::n_buckets], unit) for part in given.iterate([c.TIMESTAMP]))
    if n_buckets == 1 or not len(times := pd.concat(sampled).dropna().sort_values()):
        return np.empty(0, dtype="datetime64[us]")
    cuts = times.iloc[[len(times) * number // n_buckets for number in range(1, n_buckets)]]
    return np.unique(cuts.dt.tz_convert(None).to_numpy(dtype="datetime64[us]"))


def _quarantined(raw: Table, starts: list[int], reasons: "pd.Series[str]") -> Iterator[pd.DataFrame]:
    """Yield the refused rows of each part that has any; at least one frame, if an empty one."""
    for number, (start, end) in enumerate(pairwise(starts)):
        of_part = reasons[(reasons.index >= start) & (reasons.index < end)]
        if len(of_part) or number == 0:
            yield _quarantine(raw.part(number), of_part, start)


def parse_timestamps(given: "pd.Series[Any]", unit: TimestampUnit = TimestampUnit.auto) -> "pd.Series[Any]":
    """
    Read instants given as datetimes, as numbers since 1970 or as ISO-8601 texts.

    Parameters
    ----------
    given
        Any of these, the latter two also mixed; without a timezone UTC is meant.
    unit
        Of numbers. ``auto`` takes the one that puts the median between 1973 and 5138, or NaT where nothing fits.

    Returns
    -------
    datetime64[us, UTC] of the same length and index
        NaT where there is nothing or nothing readable.

    Examples
    --------
    >>> parse_timestamps(pd.Series(["964982703000", "2024-02-10T15:30:00+01:00", "soon"])).to_list()
    [Timestamp('2000-07-30 18:45:03+0000', tz='UTC'), Timestamp('2024-02-10 14:30:00+0000', tz='UTC'), NaT]
    """
    if pd.api.types.is_datetime64_any_dtype(given):
        return pd.to_datetime(given, utc=True).dt.as_unit("us")
    numbers, unit = _as_numbers(given), told_unit([given], unit)
    instants = (numbers.where(np.isfinite(numbers)) * MICROSECONDS[unit]).clip(*_MICROSECONDS_RANGE)
    times = pd.Series(pd.NaT, index=given.index, dtype="datetime64[us, UTC]")
    is_number = instants.notna()
    times[is_number] = pd.to_datetime(instants[is_number].round().astype(np.int64), unit="us", utc=True).dt.as_unit(
        "us"
    )
    rest = numbers.isna() & given.notna()
    if rest.any():
        parsed = pd.to_datetime(_as_text(given[rest]), format="ISO8601", utc=True, errors="coerce")
        times[rest] = parsed.dt.as_unit("us")
    return times


def told_unit(parts: "Iterable[pd.Series[Any]]", unit: TimestampUnit = TimestampUnit.auto) -> TimestampUnit:
    """
    Return ``unit``, or in place of ``auto`` the one that puts the median of all numbers between 1973 and 5138.

    Parameters
    ----------
    parts
        Timestamps as for ``parse_timestamps``, gone through once, one held at a time.
    unit
        Of numbers.
    """
    if unit is not TimestampUnit.auto:
        return unit
    n_numbers, n_below = 0, dict.fromkeys(_MAGNITUDES, 0)
    largest_below, smallest_above = dict.fromkeys(_MAGNITUDES, -np.inf), dict.fromkeys(_MAGNITUDES, np.inf)
    for given in parts:
        if pd.api.types.is_datetime64_any_dtype(given):
            break
        numbers = _as_numbers(given)
        sizes = numbers[np.isfinite(numbers)].abs().to_numpy()
        n_numbers += len(sizes)
        for known in _MAGNITUDES:
            is_below = sizes < known[1]
            n_below[known] += int(np.count_nonzero(is_below))
            largest_below[known] = max(largest_below[known], sizes[is_below].max(initial=-np.inf))
            smallest_above[known] = min(smallest_above[known], sizes[~is_below].min(initial=np.inf))
    for known in _MAGNITUDES:
        excess = 2 * n_below[known] - n_numbers
        middle = (largest_below[known] + smallest_above[known]) / 2  # the median, if as many are below as above
        if excess > 0 or (excess == 0 and n_numbers and middle < known[1]):
            return known[0]
    return TimestampUnit.ns


# 1e11 seconds is the year 5138; the same bound in milliseconds is 1973. Each next unit is a thousand times finer.
_MAGNITUDES: Final = ((TimestampUnit.s, 1e11), (TimestampUnit.ms, 1e14), (TimestampUnit.us, 1e17))
# The years 68 and 9892: what lies beyond cannot be printed, and is as far past or future there.
_MICROSECONDS_RANGE: Final = (-6e16, 2.5e17)


def _as_numbers(given: "pd.Series[Any]") -> "pd.Series[float]":
    """Return float64, NaN where there is no number."""
    if pd.api.types.is_numeric_dtype(given):
        return given.astype(float)
    return pd.to_numeric(_as_text(given), "coerce").astype(float)


def _parse_numbers(given: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return float64, NaN where there is no finite float32."""
    numbers = _as_numbers(given)
    return numbers.where(numbers.abs() <= np.finfo(np.float32).max)


def _parse_truth(given: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return 1.0, 0.0, or NaN for neither; nothing means true."""
    texts = _as_text(given).str.lower().str.strip()
    truth = {**dict.fromkeys(("", *_TRUE), 1.0), **dict.fromkeys(_FALSE, 0.0)}
    return texts.map(truth).astype(float)


def _as_text(given: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return str, empty where there is nothing; lists are joined by "|", lone surrogates written as escapes."""
    if isinstance(given.dtype, pd.StringDtype):
        return given.fillna("")
    if given.dtype != object:
        return given.astype("str").where(given.notna(), "")
    return pd.Series([_text_of(value) for value in given], index=given.index, dtype="str")


def _text_of(value: Any) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):
        return "|".join(_text_of(part) for part in value)
    text = "" if value is None or value is pd.NA or value is pd.NaT or value != value else str(value)
    return text.encode(errors="backslashreplace").decode()


def _filled(value: Any, table: pd.DataFrame) -> "pd.Series[Any]":
    return pd.Series(value, index=table.index, dtype="str" if isinstance(value, str) else None)


def _check(reason: str, holds: "Callable[[pd.Series[Any]], pd.Series[bool]]") -> "pandera.Check":
    import pandera.pandas as pandera

    return pandera.Check(holds, error=reason, ignore_na=False)


def _id_checks(name: str) -> list["pandera.Check"]:
    def is_missing(ids: "pd.Series[Any]") -> "pd.Series[bool]":
        return ids.isna() | (ids == "")

    return [
        _check(f"{name} is missing", lambda ids: ~is_missing(ids)),
        _check(
            f"{name} holds what ids may not",
            lambda ids: is_missing(ids) | are_valid_ids(pa.array(ids, from_pandas=True)),
        ),
    ]


def _mangled(given: pd.DataFrame) -> "pd.Series[bool]":
    """Tell in which rows a text was read with ``UNREADABLE``."""
    found = _filled(False, given)
    for name in given:
        if isinstance(given[name].dtype, pd.StringDtype):
            found |= given[name].str.contains(UNREADABLE, regex=False).fillna(False)
    return found.astype(bool)


def _storable_ids(ids: "pd.Series[Any]") -> "pd.Series[str]":
    """Return str; a text with a lone surrogate, which Arrow cannot hold, stands as DEL, which is refused as well."""
    try:
        return ids.astype("str")
    except UnicodeEncodeError:
        broken = ids.map(lambda text: isinstance(text, str) and text != text.encode(errors="ignore").decode())
        return ids.mask(broken, _NO_ID).astype("str")


def _failures(schema: "pandera.DataFrameSchema", table: pd.DataFrame) -> "pd.Series[str]":
    """Return the first broken rule of each refused row, by row."""
    import pandera.pandas as pandera

    reasons = pd.Series([], index=pd.Index([], dtype=np.int64), dtype="str")
    try:
        schema.validate(table, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        cases = errors.failure_cases.drop_duplicates("index")
        reasons = pd.Series(cases["check"].to_numpy(), index=cases["index"].to_numpy(dtype=np.int64), dtype="str")
    return reasons.sort_index()


def _quarantine(raw: pd.DataFrame, reasons: "pd.Series[str]", start: int = 0) -> pd.DataFrame:
    """Return the refused rows of a part that begins at row ``start``: number, reason, every value as printable text."""
    refused = raw.iloc[reasons.index - start]
    texts = {name: pd.Series(refused[name].map(_printable).to_numpy(), dtype="str") for name in refused.columns}
    return pd.DataFrame(
        {
            c.ROW_NUMBER: reasons.index.to_numpy(dtype=np.int64),
            c.REASON: pd.Series(reasons.to_numpy(), dtype="str"),
            **{name: text for name, text in texts.items() if name not in (c.ROW_NUMBER, c.REASON)},
        }
    )


def _printable(value: Any) -> str:
    text = repr(value)[1:-1] if isinstance(value, str) else str(value)
    return text[:MAX_QUARANTINED_CHARACTERS]


def _interaction_warnings(
    users: "pd.Series[int]", items: "pd.Series[int]", ignored: list[str], n_capped: int
) -> list[str]:
    warnings = []
    if ignored:
        warnings.append(f"columns that are not read: {', '.join(map(repr, ignored[:10]))}")
    if n_capped:
        warnings.append(f"{n_capped} interactions of users beyond the cap were left out, the oldest of each")
    if users.sum() >= MIN_ROWS_FOR_SHARES:
        for name, counts, limit in ((c.USER_ID, users, 0.05), (c.ITEM_ID, items, 0.3)):
            share = float(counts.max() / counts.sum())
            if share > limit:
                warnings.append(f"one {name} has {share:.0%} of all interactions, more than {limit:.0%}: a bot?")
    if alike := look_alikes(users.index):
        warnings.append(f"{len(alike)} groups of user ids differ only in case or composition and stay apart")
    return warnings


_OF_IDS: Final = (
    MANGLED, "user_id is missing", "user_id holds what ids may not", "item_id is missing",
    "item_id holds what ids may not",
)  # fmt: skip
# Reasons of form, not of value: a wrong delimiter, encoding or type shows in these.
_UNREADABLE: Final = (
    MANGLED, "user_id holds what ids may not", "item_id holds what ids may not", "timestamp is missing or unreadable",
    "weight is not a number above 0", "rating is not a number", "available is neither true nor false",
    "published_at is unreadable",
)  # fmt: skip


def _accepted(
    what: str,
    validated: ValidatedTable,
    params: ValidationParams,
    circumstances: Circumstances,
    needed: dict[str, tuple[int, int]],
    n_capped: int = 0,
) -> ValidatedTable:
    """Return the table, or refuse the whole input; refused rows are on disk either way."""
    n_rows_in, reasons = validated.n_rows_in, validated.refused.read([c.REASON])[c.REASON]
    where = ""
    if circumstances.quarantine is not None and len(reasons):
        report = {
            "n_rows_in": n_rows_in,
            "n_kept": len(validated.kept),
            "n_duplicates": validated.n_duplicates,
            "n_quarantined": len(reasons),
        }
        folder = write_quarantine(circumstances.quarantine, what, validated.refused, report)
        where = f" The refused rows are in {folder}."
    counts = reasons.value_counts()
    named = ", ".join(f"{reason} ({count} rows)" for reason, count in counts.head(REASONS_NAMED).items())
    advice = f"Mend the input, or raise %s; if the times are wrong, set timestamp_unit.{where}"
    n_refused = len(reasons) - n_capped  # those beyond a cap are sound
    if n_refused > params.max_quarantined_share * n_rows_in:
        raise InputRejectedError(
            f"{n_refused} of {n_rows_in} {what} are refused, a share of {n_refused / n_rows_in:.2%} where "
            f"{params.max_quarantined_share:.2%} is allowed: {named}. {advice % 'max_quarantined_share'}"
        )
    for reason, count in counts[counts.index.isin(_UNREADABLE)].items():
        if count > params.max_unreadable_share * n_rows_in:
            raise InputRejectedError(
                f"{count} of {n_rows_in} {what} are refused because {reason}, a share of {count / n_rows_in:.2%} where "
                f"{params.max_unreadable_share:.2%} is allowed for one reason of form. "
                f"{advice % 'max_unreadable_share'}"
            )
    _require_enough(needed, f"{n_rows_in} {what} to learn from", f"{named or 'no row was refused'}.{where}")
    if validated.profile is not None:
        check_drift(what, validated.profile, circumstances.last, params)
    return validated


def _require_enough(needed: dict[str, tuple[int, int]], whole: str, refused: str) -> None:
    """Refuse what is less than its minimum; ``needed`` gives what was found and the least of each thing."""
    if any(found < least for found, least in needed.values()):
        found = ", ".join(f"{found} {name} of at least {least}" for name, (found, least) in needed.items())
        raise InputRejectedError(f"too little is left of {whole}: {found}; {refused}")
