"""What an event is and which ones are let in: one user did one thing with one item at one time."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pydantic import BaseModel, Field, field_validator

from rec_pipeline.engine.columns import DEVICE, LOCATION
from rec_pipeline.engine.data.ids import check_id
from rec_pipeline.engine.errors import InvalidEventError, InvalidIdError

IMPRESSION: Final = "impression"
CLICK: Final = "click"
CONTEXT_KEYS: Final = (DEVICE, LOCATION)
MAX_CONTEXT_BYTES: Final = 64
MAX_SOURCES: Final = 16
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
NAME: Final = "[a-z0-9][a-z0-9_.-]{0,39}"
_NAME: Final = re.compile(NAME)


class EventRules(BaseModel, frozen=True, extra="forbid"):
    """Which events are let in and how long the store remembers them."""

    weights: dict[str, float] = Field(
        {IMPRESSION: 0, CLICK: 1, "play": 1, "finish": 2, "like": 3, "purchase": 3},
        description="Weight of each event type as an interaction, on the scale of the sample (started 1, finished 2, "
        "loved 3). A type of weight 0 is recorded but is no interaction: nothing is learnt from it and recommendations "
        "do not change by it. Other types are refused.",
    )
    max_recent: int = Field(200, ge=1, le=10_000, description="Items kept in a user's recent list, the newest ones.")
    recent_ttl_seconds: int = Field(7 * 86_400, ge=60, description="Life of a recent list after its last change.")
    max_event_ids: int = Field(
        1000, ge=1, le=100_000, description="Event ids a user's replays are recognised by, the last ones to arrive."
    )
    event_ids_ttl_seconds: int = Field(
        86_400, ge=60, description="Life of these ids after the user's last event; later replays the log leaves out."
    )
    max_backlog: int = Field(
        10_000_000,
        ge=1,
        description="Events waiting to be drained above which new ones are refused, so that a drain that stands still "
        "does not take the memory of what is served (about 200 bytes an event).",
    )
    future_minutes: float = Field(5, ge=0, description="How far ahead of now a timestamp may be: clocks differ.")

    @field_validator("weights")
    @classmethod
    def _are_names_and_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            check_name(name)
            if not 0 <= weight < math.inf:
                raise ValueError(f"event type {name!r} has weight {weight}, expected a number of at least 0")
        return weights


@dataclass(frozen=True, slots=True)
class Served:
    """
    Where an item that a user saw or clicked came from.

    Attributes
    ----------
    sources
        Names of the sources that proposed it, e.g. ``("collaborative", "content")``.
    generation
        Number of the published generation that was live.
    experiment, variant
        The experiment that runs and the variant of it the user is in, see ``Experiment``.
    position
        1-based place in the list.
    """

    sources: tuple[str, ...] = ()
    generation: int | None = None
    experiment: str = ""
    variant: str = ""
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """
    One valid event, as ``make_event`` makes it.

    Attributes
    ----------
    user_id, item_id, event_id
        Ids by the rules of ``ids``.
    event_type
        One of the configured types.
    timestamp_ms : int
        When it happened, milliseconds since 1970, UTC.
    context
        Value by context key (``device``, ``location``).
    served
        Where the item came from, for events about recommended items.
    """

    user_id: str
    item_id: str
    event_type: str
    timestamp_ms: int
    event_id: str
    context: Mapping[str, str]
    served: Served | None


def make_event(
    rules: EventRules,
    *,
    user_id: str,
    item_id: str,
    event_type: str,
    timestamp: datetime | str | float | None = None,
    context: Mapping[str, str] | None = None,
    event_id: str | None = None,
    served: Served | None = None,
    now: datetime | None = None,
) -> Event:
    """
    Return an event that keeps the rules.

    Parameters
    ----------
    rules
        Which types there are and how far clocks may differ.
    user_id, item_id
        Who and what.
    event_type
        One of ``rules.weights``.
    timestamp
        A datetime with a zone, an ISO 8601 text with a zone, or seconds since 1970; now by default.
    context
        ``device`` and ``location`` where known.
    event_id
        Identifies the event however often it is sent; by default the same for the same user, item, type and timestamp.
    served
        Where the item came from, if it had been recommended.
    now
        The present, with a zone; read from the clock by default.

    Raises
    ------
    InvalidEventError
        Naming the field and its value.

    Examples
    --------
    >>> make_event(EventRules(), user_id="u1", item_id="i7", event_type="click", timestamp=1.7e9).timestamp_ms
    1700000000000
    >>> make_event(EventRules(), user_id="u1", item_id="i7", event_type="stare")
    Traceback (most recent call last):
        ...
    rec_pipeline.engine.errors.InvalidEventError: event_type 'stare' is unknown, expected one of click, finish, \
impression, like, play, purchase
    """
    _check_id("user_id", user_id)
    _check_id("item_id", item_id)
    if not isinstance(event_type, str) or event_type not in rules.weights:
        known = ", ".join(sorted(rules.weights))
        raise _refusal("event_type", event_type, f"is unknown, expected one of {known}")
    now = now or datetime.now(UTC)
    timestamp_ms = _milliseconds(now if timestamp is None else timestamp, now, rules.future_minutes)
    if event_id is None:
        event_id = default_event_id(user_id, item_id, event_type, timestamp_ms)
    else:
        _check_id("event_id", event_id)
    _check_context(context or {})
    if served is not None:
        _check_served(served)
    return Event(user_id, item_id, event_type, timestamp_ms, event_id, dict(context or {}), served)


def check_name(name: str) -> None:
    """
    Refuse what cannot name an event type, a source or a variant.

    Raises
    ------
    ValueError
        If it is not 1 to 40 lower-case letters, digits, ``_``, ``.`` or ``-``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name, expected 1 to 40 of a-z, 0-9, '_', '.' and '-'")


def default_event_id(user_id: str, item_id: str, event_type: str, timestamp_ms: int) -> str:
    """
    Return the id of an event that came without one, equal for equal events.

    Examples
    --------
    >>> default_event_id("u1", "i7", "click", 1700000000000)
    'f8f4e97ed5aeb16dd4ca930f1a2ebd2f'
    """
    text = "\n".join((user_id, item_id, event_type, str(timestamp_ms)))  # ids hold no newline
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _refusal(field: str, value: object, why: str) -> InvalidEventError:
    shown = repr(value)
    return InvalidEventError(f"{field} {shown if len(shown) <= 80 else shown[:77] + '...'} {why}", field, value)


def _check_id(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise _refusal(field, value, f"is {type(value).__name__}, expected text")
    try:
        check_id(value, field)
    except InvalidIdError as error:
        raise InvalidEventError(str(error), field, value) from None


def _milliseconds(given: datetime | str | float, now: datetime, future_minutes: float) -> int:
    def refused(why: str) -> InvalidEventError:
        return _refusal("timestamp", given, why)

    if isinstance(given, bool) or not isinstance(given, datetime | str | int | float):
        raise refused(f"is {type(given).__name__}, expected ISO 8601 with a zone, or seconds since 1970")
    try:
        if isinstance(given, int | float):
            when = datetime.fromtimestamp(given, UTC)
        else:
            when = datetime.fromisoformat(given) if isinstance(given, str) else given
    except (ValueError, OverflowError, OSError):
        raise refused("cannot be read, expected ISO 8601 with a zone, or seconds since 1970") from None
    if when.tzinfo is None:
        raise refused("has no zone, expected e.g. 2024-02-10T15:30:00+00:00")
    if when < EARLIEST:
        raise refused(f"is before {EARLIEST.date()}")
    ahead = (when - now).total_seconds() / 60
    if ahead > future_minutes:
        raise refused(f"is {ahead:.0f} minutes ahead of now, expected at most {future_minutes:g}")
    return round(when.timestamp() * 1000)


def _check_context(context: Mapping[str, str]) -> None:
    if not isinstance(context, Mapping):
        raise _refusal("context", context, f"is {type(context).__name__}, expected an object")
    for key, value in context.items():
        if key not in CONTEXT_KEYS:
            raise _refusal(
                "context", key, f"is not a key of it, expected {' or '.join(CONTEXT_KEYS)} (the time is the timestamp)"
            )
        _check_id(f"context.{key}", value)
        if len(value.encode()) > MAX_CONTEXT_BYTES:
            raise _refusal(f"context.{key}", value, f"is longer than {MAX_CONTEXT_BYTES} bytes")


def _check_served(served: Served) -> None:
    if len(served.sources) > MAX_SOURCES:
        raise _refusal("served.sources", served.sources, f"names more than {MAX_SOURCES}")
    for name in served.sources:
        _check_served_name("served.sources", name)
    for field in ("experiment", "variant"):
        if name := getattr(served, field):
            _check_served_name(f"served.{field}", name)
    for field in ("generation", "position"):
        number = getattr(served, field)
        if number is not None and (type(number) is not int or not 1 <= number < 2**53):
            raise _refusal(f"served.{field}", number, "is not a whole number of at least 1")


def _check_served_name(field: str, name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise InvalidEventError(f"{field} {error}", field, name) from None
