"""Train, validation and test parts of the interactions, by a named strategy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, Field, model_validator

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_json, write_json
from rec_pipeline.engine.data.histories import Histories, histories_of
from rec_pipeline.engine.data.id_map import NO_IDX, IdMap
from rec_pipeline.engine.data.pairs import is_first_of_pair
from rec_pipeline.engine.data.sequences import in_order
from rec_pipeline.engine.data.space import MEMORY, Space, count, in_blocks, map_table, write_mapped
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.tally import Tally
from rec_pipeline.engine.errors import ConfigurationError, InputRejectedError, LeakageError

# The number of each row's part, or where the parts after the first begin, and what was decided.
Decided: TypeAlias = tuple[npt.NDArray[np.int8] | list[int], dict[str, Any]]


_PARTS_BY_USER: Final = ("train", "validation", "fitting", "test")


class SplitStrategy(StrEnum):
    """What decides the part an interaction falls into."""

    time = "time"
    leave_last_out = "leave_last_out"
    random = "random"


class SplitParams(BaseModel, frozen=True, extra="forbid"):
    """How interactions are split."""

    strategy: SplitStrategy = Field(
        SplitStrategy.time,
        description="time: two instants cut all interactions, as in use. leave_last_out: each user's last item is "
        "tested and the one before validated. random: shares of all interactions. The latter two are for comparing "
        "with papers.",
    )
    validation_share: float = Field(
        0.1, gt=0, lt=0.5, description="Share of interactions in the validation part (time, random)."
    )
    test_share: float = Field(0.1, gt=0, lt=0.5, description="Share of interactions in the test part (time, random).")
    min_user_interactions: int = Field(
        0,
        ge=0,
        description="Users with fewer interactions are left out, together with the items' bound (k-core); 0: none.",
    )
    min_item_interactions: int = Field(
        0,
        ge=0,
        description="Items with fewer interactions are left out, together with the users' bound (k-core); 0: none.",
    )
    seed: int = Field(0, ge=0, description="Decides the random split.")

    @model_validator(mode="after")
    def _shares_leave_something_to_train_on(self) -> Self:
        if self.validation_share + self.test_share > 0.9:
            raise ValueError("validation_share and test_share together must leave at least 0.1 to train on")
        return self


@dataclass(frozen=True)
class PartsByUser:
    """Histories of the parts of a split; ``fitting`` is train and validation."""

    train: Histories
    validation: Histories
    fitting: Histories
    test: Histories

    @classmethod
    def of(
        cls, fitting: pd.DataFrame, n_train: int, test: pd.DataFrame, n_users: int, n_items: int, space: Space = MEMORY
    ) -> Self:
        """Make them in ``space``."""
        parts = [range(n_train), range(n_train, len(fitting)), range(len(fitting))]
        known = histories_of(fitting, n_users, n_items, parts, space)
        return cls(*known, *histories_of(test, n_users, n_items, space=space))


@dataclass(frozen=True)
class InteractionSplit:
    """
    Three disjoint parts of the interactions, on one pair of id maps.

    Attributes
    ----------
    fitting, test
        One row an interaction: ``user_idx``, ``item_idx`` (int32), ``timestamp`` (datetime64[us, UTC]), ``weight``
        (float32), ``device`` and ``location`` (categories) where there are any. A (user, item) pair occurs once.
        ``fitting`` is what is known when the test part begins: the train part, then the validation part.
        Of a loaded split they are files that the system reads when, and drops from memory unless, they are used.
    n_train
        Rows of ``fitting`` that are the train part.
    users
        Every user of the interactions, those of the test part included.
    items
        Every item of the catalogue, those without interactions included.
    strategy
        ``time``, ``leave_last_out`` or ``random``.
    boundaries
        What the strategy decided (ISO instants of the cuts, or counts), JSON-serialisable.
    made
        ``by_user``, if it is made already; files as well.
    """

    fitting: pd.DataFrame
    n_train: int
    test: pd.DataFrame
    users: IdMap
    items: IdMap
    strategy: str
    boundaries: dict[str, Any]
    made: PartsByUser | None = None

    @cached_property
    def by_user(self) -> PartsByUser:
        """The interactions of each part by user."""
        return self.made or PartsByUser.of(self.fitting, self.n_train, self.test, len(self.users), len(self.items))

    @property
    def train(self) -> pd.DataFrame:
        """What models learn from while the validation part is held out; a view of ``fitting``."""
        return self.fitting.iloc[: self.n_train]

    @property
    def validation(self) -> pd.DataFrame:
        """What decides between models; a view of ``fitting``."""
        return self.fitting.iloc[self.n_train :].reset_index(drop=True)

    def with_known(self, train: pd.DataFrame, validation: pd.DataFrame) -> Self:
        """Return the split with other parts before the test part."""
        fitting = pd.concat([train, validation], ignore_index=True)
        return replace(self, fitting=fitting, n_train=len(train), made=None)

    def save(self, directory: Path) -> None:
        """Write two tables, the histories of four parts, the id maps and ``split.json``."""
        for name in ("fitting", "test"):
            write_mapped(directory / name, getattr(self, name))
        for name in ("users", "items"):
            (directory / name).mkdir()
            getattr(self, name).save(directory / name)
        for name in _PARTS_BY_USER:
            (directory / "by_user" / name).mkdir(parents=True)
            getattr(self.by_user, name).save(directory / "by_user" / name)
        facts = {"n_train": self.n_train, "strategy": self.strategy, "boundaries": self.boundaries}
        write_json(directory / "split.json", facts)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(
            fitting=map_table(directory / "fitting"),
            test=map_table(directory / "test"),
            users=IdMap.load(directory / "users"),
            items=IdMap.load(directory / "items"),
            made=PartsByUser(*(Histories.load(directory / "by_user" / name) for name in _PARTS_BY_USER)),
            **read_json(directory / "split.json"),
        )


def split_interactions(
    interactions: Table | pd.DataFrame, items: pd.DataFrame, params: SplitParams, scratch: Path | None = None
) -> InteractionSplit:
    """
    Split interactions into train, validation and test parts.

    Of a (user, item) pair that occurs more than once only the first interaction is kept: what is tested is whether an
    item new to the user was foreseen.

    Parameters
    ----------
    interactions
        Columns ``user_id``, ``item_id``, ``timestamp`` (datetime64[us, UTC]) and ``weight``, valid; not modified.
    items : pd.DataFrame
        The catalogue, column ``item_id``; holds every item of the interactions.
    params : SplitParams
        Strategy, shares and k-core bounds. With bounds the catalogue is cut to the items that meet theirs.
    scratch
        Folder for what does not fit in memory; the result lies in files there that have no name. With it, memory is
        that of ``PART_ROWS`` rows, of the ids and of a few numbers a user and an item, if the interactions are in order
        of time. None, or interactions that are few: everything is held. The split is the same.

    Raises
    ------
    InputRejectedError
        If a part would be empty.
    LeakageError
        If a part knows what it may not; a defect of this function, not of the data.
    """
    space = Space.for_rows(len(interactions), scratch)
    rows, users, catalogue = _encoded(interactions, items, space)
    return _split(
        rows, users, catalogue, params, lambda encoded: _PARTS[params.strategy](encoded, params, space), space
    )


def _encoded(
    interactions: Table | pd.DataFrame, items: pd.DataFrame, space: Space = MEMORY
) -> tuple[pd.DataFrame, IdMap, IdMap]:
    """Return the first interaction of each user and item, in order of time, on id maps of all of them."""
    table = interactions if isinstance(interactions, Table) else Table((interactions,))
    users, catalogue = IdMap.from_ids(Tally.of(table, c.USER_ID).ids), IdMap.from_ids(items[c.ITEM_ID])
    rows = in_order(encode_interactions(table, users, catalogue, space)).reset_index(drop=True)
    return space.chosen(rows, is_first_of_pair(rows, space)), users, catalogue


def _split(
    rows: pd.DataFrame,
    users: IdMap,
    items: IdMap,
    params: SplitParams,
    parts: Callable[[pd.DataFrame], Decided],
    space: Space = MEMORY,
) -> InteractionSplit:
    core = k_core(rows, params.min_user_interactions, params.min_item_interactions, space)
    if core.empty:
        raise InputRejectedError(
            f"none of {len(rows)} interactions is left by the k-core of min_user_interactions "
            f"{params.min_user_interactions} and min_item_interactions {params.min_item_interactions}; lower them"
        )
    encoded, users = _on_present(core, c.USER_IDX, users, space)
    if params.min_user_interactions or params.min_item_interactions:
        encoded, items = _on_present(encoded, c.ITEM_IDX, items, space)
    part, boundaries = parts(encoded)
    if isinstance(part, list):
        sizes = np.diff([0, *part, len(encoded)]).tolist()
    else:
        sizes = count(part, 3).tolist()
        blocks = list(in_blocks(len(encoded)))
        by_part = (encoded.iloc[block][part[block] == number] for number in range(3) for block in blocks)
        encoded = space.table(by_part, len(encoded))
    for name, n_rows in zip(("train", "validation", "test"), sizes, strict=True):
        if not n_rows:
            raise InputRejectedError(
                f"the {name} part of the {params.strategy} split is empty: {len(core)} interactions of {len(users)} "
                "users are too few, or all at one instant; give more data or another strategy"
            )
    fitting, test = encoded.iloc[: -sizes[2]], encoded.iloc[-sizes[2] :].reset_index(drop=True)
    split = InteractionSplit(
        fitting=fitting,
        n_train=sizes[0],
        test=test,
        users=users,
        items=items,
        strategy=str(params.strategy),
        boundaries=boundaries,
        made=PartsByUser.of(fitting, sizes[0], test, len(users), len(items), space),
    )
    check_leakage(split)
    return split


def _on_present(rows: pd.DataFrame, name: str, ids: IdMap, space: Space) -> tuple[pd.DataFrame, IdMap]:
    """Return ``rows`` on a map of the ids that occur in their column ``name``, and that map."""
    idx = rows[name].to_numpy()
    is_present = count(idx, len(ids)) > 0
    if is_present.all():
        return rows, ids
    place = (np.cumsum(is_present) - 1).astype(idx.dtype)
    moved = space.array(len(idx), idx.dtype)
    for block in in_blocks(len(idx)):
        moved[block] = place[idx[block]]
    columns = {column: moved if column == name else rows[column] for column in rows}
    return pd.DataFrame(columns, copy=False), ids.subset(np.flatnonzero(is_present))


def walk_forward(
    interactions: Table | pd.DataFrame,
    items: pd.DataFrame,
    params: SplitParams,
    n_periods: int,
    scratch: Path | None = None,
) -> Iterator[InteractionSplit]:
    """
    Split at successive points in time: each period is tested once, by what came before it.

    The last ``n_periods * test_share`` of the interactions are cut into periods of equally many interactions. A split
    knows nothing later than its period, and what was tested in one period is learnt from in the next.

    Parameters
    ----------
    interactions, items, params
        As for ``split_interactions``; the strategy must be ``time``. ``validation_share`` is that of the interactions
        before the period.
    n_periods : int
        Splits, >= 1.
    scratch
        As for ``split_interactions``.

    Yields
    ------
    InteractionSplit
        From the earliest period to the latest, each with id maps of its own.

    Raises
    ------
    ConfigurationError
        If the strategy is not ``time`` or the periods leave less than a tenth of the interactions before them.
    InputRejectedError
        If a part would be empty.
    """
    if params.strategy is not SplitStrategy.time:
        raise ConfigurationError(f"only a split by time has periods, found strategy {params.strategy}")
    if n_periods * params.test_share > 0.9:
        raise ConfigurationError(
            f"{n_periods} periods of test_share {params.test_share} leave less than a tenth to begin with: lower either"
        )
    space = Space.for_rows(len(interactions), scratch)
    rows, users, catalogue = _encoded(interactions, items, space)
    instants, n_rows = rows[c.TIMESTAMP], len(rows)
    begins = [instants.iloc[n_rows - round(params.test_share * back * n_rows)] for back in range(n_periods, 0, -1)]
    for begin, end in zip(begins, [*begins[1:], None], strict=True):
        known = rows if end is None else rows.iloc[: int(instants.searchsorted(end))]
        before = instants.iloc[: int(instants.searchsorted(begin))]
        if before.empty:
            raise InputRejectedError(f"no interaction is before the period that begins {begin}: all are at one instant")
        cuts = (before.iloc[int((1 - params.validation_share) * len(before))], begin)
        at_cuts = partial(_cut_at, validation_from=cuts[0], test_from=cuts[1])
        yield _split(known, users, catalogue, params, at_cuts, space)


def encode_interactions(interactions: Table, users: IdMap, items: IdMap, space: Space = MEMORY) -> pd.DataFrame:
    """
    Replace ids by rows, keeping time, weight and context; interactions with an id outside the maps are left out.

    A part is read at a time; what is made in ``space`` takes 20 bytes a row, and 4 where there is a context.

    Returns
    -------
    pd.DataFrame
        Columns ``user_idx``, ``item_idx`` (int32), ``timestamp``, ``weight`` (float32), and ``device`` and ``location``
        (categories) where there are any, in the order of ``interactions``.
    """
    kept = [name for name in (c.TIMESTAMP, c.WEIGHT, c.DEVICE, c.LOCATION) if name in interactions.columns]

    def encoded() -> Iterator[pd.DataFrame]:
        for part in interactions.iterate([c.USER_ID, c.ITEM_ID, *kept]):
            user_idx, item_idx = users.to_idx(part[c.USER_ID]), items.to_idx(part[c.ITEM_ID])
            idx = pd.DataFrame({c.USER_IDX: user_idx, c.ITEM_IDX: item_idx}, index=part.index, dtype=np.int32)
            rows = pd.concat([idx, part[kept]], axis=1).astype({c.WEIGHT: np.float32})
            yield rows[(user_idx != NO_IDX) & (item_idx != NO_IDX)]

    return space.table(encoded(), len(interactions))


def k_core(
    rows: pd.DataFrame, min_user_interactions: int, min_item_interactions: int, space: Space = MEMORY
) -> pd.DataFrame:
    """Return the largest part of ``rows`` in which every ``user_idx`` and every ``item_idx`` meets its bound."""
    if not (min_user_interactions or min_item_interactions):
        return rows
    while len(rows):
        enough = {}
        for name, least in ((c.USER_IDX, min_user_interactions), (c.ITEM_IDX, min_item_interactions)):
            idx = rows[name].to_numpy()
            enough[name] = count(idx, int(idx.max()) + 1) >= least
        blocks = (rows.iloc[block] for block in in_blocks(len(rows)))
        kept = space.table(
            (part[enough[c.USER_IDX][part[c.USER_IDX]] & enough[c.ITEM_IDX][part[c.ITEM_IDX]]] for part in blocks),
            len(rows),
        )
        if len(kept) == len(rows):
            break
        rows = kept
    return rows


def count_repeated_pairs(split: InteractionSplit) -> int:
    """Count the rows of all parts together that are not the first with their ``user_idx`` and ``item_idx``."""
    known, tested = split.by_user.fitting, split.by_user.test
    n_new = sum(new.nnz for new in tested.beside(known))
    return len(split.fitting) + len(split.test) - len(known.by_item) - n_new


def check_leakage(split: InteractionSplit) -> None:
    """
    Refuse a split in which something tested could have been learnt.

    Raises
    ------
    LeakageError
        If a (user, item) pair is there twice, or, where time decides, a part reaches into the time of the next.
    """
    if n_repeated := count_repeated_pairs(split):
        raise LeakageError(f"{n_repeated} (user, item) pairs are in the split more than once")
    for (earlier, before), (later, after) in (
        (("train", split.train), ("validation", split.validation)),
        (("validation", split.validation), ("test", split.test)),
    ):
        if split.strategy == SplitStrategy.time and before[c.TIMESTAMP].max() >= after[c.TIMESTAMP].min():
            raise LeakageError(f"the {earlier} part reaches into the time of the {later} part")
        if split.strategy == SplitStrategy.leave_last_out:
            last = _furthest_instants(before, len(split.users), np.maximum)
            first = _furthest_instants(after, len(split.users), np.minimum)
            if (last > first).any():
                raise LeakageError(f"some users' {earlier} part is later than their {later} part")


def _furthest_instants(rows: pd.DataFrame, n_users: int, latest_or_earliest: np.ufunc) -> npt.NDArray[np.int64]:
    """Return the ``maximum`` or ``minimum`` of each user's instants; where there are none, less or more than any."""
    ends = np.iinfo(np.int64)
    furthest = np.full(n_users, ends.min if latest_or_earliest is np.maximum else ends.max)
    for block in in_blocks(len(rows)):
        part = rows.iloc[block]
        latest_or_earliest.at(furthest, part[c.USER_IDX].to_numpy(), part[c.TIMESTAMP].astype(np.int64).to_numpy())
    return furthest


def _parts_by_time(encoded: pd.DataFrame, params: SplitParams, _: Space) -> Decided:
    instants = encoded[c.TIMESTAMP]  # in order
    shares = (1 - params.test_share - params.validation_share, 1 - params.test_share)
    validation_from, test_from = (instants.iloc[int(share * len(instants))] for share in shares)
    return _cut_at(encoded, validation_from, test_from)


def _cut_at(encoded: pd.DataFrame, validation_from: pd.Timestamp, test_from: pd.Timestamp) -> Decided:
    # An instant belongs to one part as a whole: what happens at the cut is the later part's.
    begins = [int(encoded[c.TIMESTAMP].searchsorted(cut)) for cut in (validation_from, test_from)]
    return begins, {"validation_from": validation_from.isoformat(), "test_from": test_from.isoformat()}


def _parts_by_last(encoded: pd.DataFrame, _: SplitParams, space: Space) -> Decided:
    user_idx = encoded[c.USER_IDX].to_numpy()
    left = count(user_idx, int(user_idx.max()) + 1)
    has_three = left >= 3
    part = space.array(len(user_idx), np.int8)
    for block in in_blocks(len(user_idx)):
        users = encoded[c.USER_IDX].iloc[block]
        from_end = left[users] - 1 - users.groupby(users).cumcount().to_numpy()
        part[block] = np.where(has_three[users], np.maximum(2 - from_end, 0), 0)
        left -= np.bincount(users, minlength=len(left))
    return part, {"n_users_held_out": int(has_three.sum())}


def _parts_at_random(encoded: pd.DataFrame, params: SplitParams, space: Space) -> Decided:
    rng = np.random.default_rng(params.seed)
    cuts = [1 - params.test_share - params.validation_share, 1 - params.test_share]
    part = space.array(len(encoded), np.int8)
    for block in in_blocks(len(encoded)):
        part[block] = np.searchsorted(cuts, rng.random(len(part[block])), side="right")
    return part, {"seed": params.seed}


_PARTS: Final[dict[SplitStrategy, Callable[[pd.DataFrame, SplitParams, Space], Decided]]] = {
    SplitStrategy.time: _parts_by_time,
    SplitStrategy.leave_last_out: _parts_by_last,
    SplitStrategy.random: _parts_at_random,
}
