"""
Interactions that come in days: each day is read, and each of its rows looked at, once; all days are held to each other.

A day is a sealed artefact of its own, ``<key>/days/<day>/<version>``. ``Days`` says which version of each is meant: one
small file, so that all days change at once, whatever is killed when. Under ``raw_interactions`` are the rows as they
came, under ``interactions`` the same rows as ``examine_interactions`` sees them. What an event id on another day, the
cap of a user, the catalogue and the share of refused rows decide is decided over all days, by ``let_in``, as for a set
that is read as one.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import ArtifactStore, Manifest, locked, read_json, sha256_of, write_json
from rec_pipeline.engine.data import ids, validation
from rec_pipeline.engine.data.drift import DriftParams
from rec_pipeline.engine.data.source import DailyFiles
from rec_pipeline.engine.data.table import Table, in_parts, put_aside
from rec_pipeline.engine.data.validation import (
    UNKNOWN,
    Circumstances,
    ValidatedTable,
    ValidationParams,
    examine_interactions,
    let_in,
    with_told_unit,
)
from rec_pipeline.engine.errors import ArtifactIntegrityError, InputRejectedError

DAYS: Final = "days"
FILE: Final = "days.json"
ROWS: Final = "rows"
FINGERPRINT: Final = "fingerprint"
RAW: Final = "raw"
RULES: Final = "rules"
_SHOWN: Final = 5
# What a change of these decides is decided over all days; any other means another look at every row.
_RULES_OF_ALL_DAYS: Final = {
    *DriftParams.model_fields,
    "max_quarantined_share", "max_unreadable_share", "min_interactions", "min_users", "min_items",
    "max_user_interactions", "max_age_hours",
}  # fmt: skip


@dataclass(frozen=True)
class Days:
    """
    Which version of each day is meant.

    Attributes
    ----------
    versions
        By day, ISO dates in order.
    """

    versions: Mapping[str, str]

    def save(self, directory: Path) -> None:
        """Write ``days.json``."""
        write_json(directory / FILE, dict(self.versions))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(read_json(directory / FILE))


@dataclass(frozen=True)
class TableOfDays(Table):
    """
    A table whose parts are those of its days, one day after the other.

    Attributes
    ----------
    tables, versions
        The rows of each day, and their version.
    """

    tables: Mapping[str, Table]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class DailyTable:
    """
    The days of one table in a store.

    Attributes
    ----------
    store
        Where they are.
    key
        Whose days: an artefact of ``store``.
    """

    store: ArtifactStore
    key: str

    def days(self) -> list[str]:
        """Return the days that are stored, meant or not, in order."""
        return self.store.names(f"{self.key}/{DAYS}")

    def meant(self) -> Days:
        """Return which version of each day is meant; none before any was sealed as ``key``."""
        try:
            is_daily = self.store.manifest(self.key).kind == Days.__name__
        except ArtifactIntegrityError:  # nothing yet
            is_daily = False
        return Days.load(self.store.path(self.key)) if is_daily else Days({})

    def newest(self, day: str) -> Manifest | None:
        """Return the manifest of what was stored last of a day, if it is whole."""
        try:
            self.store.path(self._key(day))
            return self.store.manifest(self._key(day))
        except ArtifactIntegrityError:  # never stored, or damaged: it is to be made again
            return None

    def write(self, day: str, frames: Iterable[pd.DataFrame], metadata: Mapping[str, Any]) -> Manifest:
        """Store a day, a part for each frame; what is meant stays what it was, and is kept."""

        def save(directory: Path) -> None:
            put_aside(frames, directory / ROWS)

        return self.store.write(
            self._key(day),
            save,
            kind=Table.__name__,
            metadata=metadata,
            protected={self.meant().versions.get(day, "")},
        )

    def read(self, days: Days) -> TableOfDays:
        """
        Return the rows of days, verified.

        Raises
        ------
        ArtifactIntegrityError
            If a day is damaged.
        """
        tables = {
            day: Table.load(self.store.path(self._key(day), version) / ROWS) for day, version in days.versions.items()
        }
        return TableOfDays(tuple(part for table in tables.values() for part in table.parts), tables, days.versions)

    def metadata(self, day: str, version: str) -> Mapping[str, Any]:
        """Return what was written beside a version of a day."""
        return self.store.manifest(self._key(day), version).metadata

    def delete(self, day: str, keep: Collection[str] = ()) -> None:
        """Delete the versions of a day but those to ``keep``."""
        self.store.delete(self._key(day), keep)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process of this machine from changing what is meant."""
        folder = self.store.root / self.key / DAYS
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            yield

    def _key(self, day: str) -> str:
        return f"{self.key}/{DAYS}/{day}"


@dataclass(frozen=True)
class TakenDays:
    """
    Days as their files are now.

    Attributes
    ----------
    versions
        Version by day, of those read and of others that a killed run had read.
    read
        Days whose files were read.
    gone
        Days that are kept and have no files any more.
    """

    versions: Mapping[str, str]
    read: tuple[str, ...]
    gone: tuple[str, ...]

    def applied_to(self, meant: Days) -> Days:
        """Return which versions are meant with these."""
        kept = {day: version for day, version in meant.versions.items() if day not in self.gone}
        return Days(dict(sorted({**kept, **self.versions}.items())))


def take_days(raw: DailyTable, files: DailyFiles, asked: Collection[str], *, others: bool) -> TakenDays:
    """
    Read days into ``raw``; what is meant there does not change.

    Parameters
    ----------
    raw
        Where they are kept.
    files
        The days that there are.
    asked
        Days to read whatever is known of them.
    others
        Whether to read also those that are new, whose files have changed, or that are damaged, and to drop those whose
        files are gone.

    Raises
    ------
    InputRejectedError
        If a day that is asked for has no files, before anything is read; or if files cannot be read.
    """
    if missing := sorted(set(asked) - files.days.keys()):
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        raise InputRejectedError(
            f"{files.source.interactions} holds nothing of {shown}, which was asked for; it holds {len(files.days)} "
            f"days from {min(files.days)} to {max(files.days)}. Nothing was read: leave that day out, or send its files"
        )
    versions, read = {}, []
    for day, fingerprint in files.days.items():
        if day not in asked and not others:
            continue
        stored = None if day in asked else raw.newest(day)
        if stored is None or stored.metadata.get(FINGERPRINT) != fingerprint:
            stored = raw.write(day, in_parts(files.iterate(day)), {FINGERPRINT: fingerprint})
            read.append(day)
        versions[day] = stored.version
    gone = sorted(set(raw.days()) - files.days.keys()) if others else []
    return TakenDays(versions, tuple(read), tuple(gone))


def validate_days(
    raw: TableOfDays,
    items: pd.DataFrame,
    params: ValidationParams,
    now: pd.Timestamp,
    circumstances: Circumstances = UNKNOWN,
    scratch: Path | None = None,
    *,
    examined: DailyTable,
    asked: Collection[str] = (),
) -> tuple[ValidatedTable, tuple[str, ...]]:
    """
    Validate days as ``validate_interactions`` does the same rows in one table.

    Rows are looked at one by one where that was not done yet: of days that are new, were read again or are damaged, and
    of all where rules have changed. Only a row that was refused for being in the future stays refused until then.

    Parameters
    ----------
    raw
        The days.
    items, params, now, circumstances, scratch
        As for ``validate_interactions``.
    examined
        Where rows are kept as they were seen.
    asked
        Days whose rows to look at whatever is known of them.

    Returns
    -------
    validated
        What became of each day stands in ``by_day``.
    days
        Those whose rows were looked at.

    Raises
    ------
    InputRejectedError
        As ``validate_interactions`` does; or if days have different columns.
    """
    told = with_told_unit(raw, params)
    rules = _rules(told)
    versions, looked_at = {}, []
    for day, table in raw.tables.items():
        stored = None if day in asked else examined.newest(day)
        made_of = {RAW: raw.versions[day], RULES: rules}
        if stored is None or {name: stored.metadata.get(name) for name in made_of} != made_of:
            stored = examined.write(day, examine_interactions(table, told, now), made_of)
            looked_at.append(day)
        versions[day] = stored.version
    for day in set(examined.days()) - raw.tables.keys():
        examined.delete(day)
    seen = examined.read(Days(versions))
    (first, rows), *others = seen.tables.items()
    for day, of_day in others:
        if of_day.columns != rows.columns:
            raise InputRejectedError(
                f"interactions of {day} have the columns {', '.join(of_day.columns[:-1])}, those of {first} "
                f"{', '.join(rows.columns[:-1])}: what files hold has changed since; a run of the latest day reads all "
                "days again"
            )
    n_rows = {day: len(table) for day, table in raw.tables.items()}
    validated = let_in(raw, seen.iterate(), items, told, now, circumstances, scratch, n_rows)
    return validated, tuple(looked_at)


def forget_in_days(raw: DailyTable, examined: DailyTable, user_id: str) -> int:
    """
    Remove every row of a user from every day, and every version of a day in which they were.

    Days are looked at anew by the next validation; a day whose files are read again holds what those hold.

    Returns
    -------
    Rows removed.
    """
    if not raw.days():
        return 0
    n_removed = 0
    with raw.locked():
        meant = raw.meant()
        versions = dict(meant.versions)
        for day, table in raw.read(meant).tables.items():
            n_rows = sum(int((ids[c.USER_ID] == user_id).sum()) for ids in table.iterate([c.USER_ID]))
            if n_rows:
                others = in_parts(part[(part[c.USER_ID] != user_id).to_numpy()] for part in table.iterate())
                versions[day] = raw.write(day, others, raw.metadata(day, versions[day])).version
                n_removed += n_rows
        if versions != meant.versions:
            metadata = raw.store.manifest(raw.key).metadata
            raw.store.write(raw.key, Days(versions).save, kind=Days.__name__, metadata=metadata)
        for day in raw.days():
            raw.delete(day, keep={versions[day]} if day in versions else ())
        for day in examined.days():
            stored = examined.newest(day)
            is_of_now = stored is not None and stored.metadata.get(RAW) == versions.get(day)
            examined.delete(day, keep={stored.version} if stored and is_of_now else ())
    return n_removed


def _rules(params: ValidationParams) -> str:
    """Return what changes when a row could be judged otherwise: the rules stated, and those written down in code."""
    code = [sha256_of(Path(str(module.__file__))) for module in (validation, ids)]
    stated = params.model_dump_json(exclude=_RULES_OF_ALL_DAYS)
    return hashlib.sha256(f"{stated} {code}".encode()).hexdigest()[:16]
