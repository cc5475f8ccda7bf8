"""Interactions by user, as models learn from them and recommenders look them up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import map_array, read_json, write_array, write_json
from rec_pipeline.engine.data.batches import IdxVector
from rec_pipeline.engine.data.pairs import by_users, pair_numbers
from rec_pipeline.engine.data.sequences import UserSequences, in_order
from rec_pipeline.engine.data.space import MEMORY, Space

USERS_AT_ONCE: Final = 1 << 14
_ARRAYS: Final = ("starts", "by_item", "weight", "by_time")


@dataclass(frozen=True)
class Histories:
    """
    The items of every user, each once, one user after the other.

    Attributes
    ----------
    starts
        int64 of shape (n_users + 1,), non-decreasing from 0: the items of user row ``u`` are at
        ``starts[u] : starts[u + 1]`` of what follows.
    by_item
        int32 of shape (n,), ascending within a user.
    weight
        float32 of shape (n,): of ``by_item``, summed over all interactions of the user and the item.
    by_time
        int32 of shape (n,): the same items, oldest first; one with several interactions stands at the first.
    n_items
        Size of the catalogue.
    """

    starts: IdxVector
    by_item: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    by_time: npt.NDArray[np.int32]
    n_items: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def user_item(self) -> sp.csr_matrix:
        """The weights, float32 CSR of shape (n_users, n_items); its arrays are these."""
        matrix = sp.csr_matrix((self.weight, self.by_item, self.starts), (len(self), self.n_items))
        matrix.has_canonical_format = True
        return matrix

    @property
    def sequences(self) -> UserSequences:
        """The items in order of time."""
        return UserSequences(self.starts, self.by_time)

    def beside(self, known: "Histories", user_idx: IdxVector | None = None) -> Iterator[sp.csr_matrix]:
        """
        Yield the items that ``known`` does not have, as ones in float32 CSR of ``USERS_AT_ONCE`` users a time.

        Of all users, or of ``user_idx`` in its order.
        """
        n_users = len(self) if user_idx is None else len(user_idx)
        for start in range(0, max(1, n_users), USERS_AT_ONCE):
            users = slice(start, start + USERS_AT_ONCE) if user_idx is None else user_idx[start : start + USERS_AT_ONCE]
            own, others = (histories.user_item[users] for histories in (self, known))  # copies
            own.data[:] = others.data[:] = 1  # a weight of 0 is an interaction all the same
            new = sp.csr_matrix(own - own.multiply(others))
            new.eliminate_zeros()
            yield new

    def save(self, directory: Path) -> None:
        """Write four arrays and ``n_items.json``."""
        for name in _ARRAYS:
            write_array(directory / f"{name}.npy", getattr(self, name))
        write_json(directory / "n_items.json", self.n_items)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Find what ``save`` wrote; the system reads of it what is used and can drop it again."""
        arrays = {name: map_array(directory / f"{name}.npy") for name in _ARRAYS}
        return cls(**arrays, n_items=read_json(directory / "n_items.json"))


def histories_of(
    rows: pd.DataFrame, n_users: int, n_items: int, parts: Sequence[range] | None = None, space: Space = MEMORY
) -> list[Histories]:
    """
    Put interactions in order by user, of each of some parts of them.

    Parameters
    ----------
    rows
        ``user_idx``, ``item_idx``, ``timestamp``, ``weight``; what is of one instant stays in this order.
    n_users, n_items
        Rows of the id maps; a user without interactions has no items.
    parts
        Numbers of the rows of each; by default all rows are the only one.
    space
        Where the histories are made. With a folder memory is that of ``by_users`` and a few numbers a user.
    """
    columns = {name: rows[name].to_numpy() for name in (c.USER_IDX, c.ITEM_IDX, c.WEIGHT)}
    if not rows[c.TIMESTAMP].is_monotonic_increasing:
        columns[c.TIMESTAMP] = rows[c.TIMESTAMP].array.asi8
    numbered = pd.DataFrame(columns, copy=False)
    made = [_Made(part, n_users, space) for part in parts or [range(len(rows))]]
    for bucket in by_users(numbered, space):
        if len(bucket):
            bucket = in_order(bucket) if c.TIMESTAMP in bucket else bucket
            pair = pair_numbers(bucket)
            order = np.argsort(pair, kind="stable")
            for of_part in made:
                of_part.add(bucket, pair, order)
    return [of_part.histories(n_items) for of_part in made]


class _Made:
    """Histories of a part, while users are added one after the other."""

    def __init__(self, part: range, n_users: int, space: Space) -> None:
        self.part, self.n = part, 0
        self.counts = np.zeros(n_users + 1, dtype=np.int64)  # of the user before, so that the sums are the starts
        self.by_item, self.by_time = (space.array(len(part), np.int32) for _ in range(2))
        self.weight = space.array(len(part), np.float32)

    def add(self, bucket: pd.DataFrame, pair: IdxVector, order: IdxVector) -> None:
        """Add rows of users, whose ``order`` is that of their ``pair``, then of time, if they are in the part."""
        number = bucket.index.to_numpy()
        user, item, weight = (bucket[name].to_numpy() for name in (c.USER_IDX, c.ITEM_IDX, c.WEIGHT))
        is_in = (number >= self.part.start) & (number < self.part.stop)
        order = order[is_in[order]]
        if not len(order):
            return
        begins = np.flatnonzero(np.append(True, pair[order[1:]] != pair[order[:-1]]))
        first = order[begins]
        at = slice(self.n, self.n + len(first))
        self.by_item[at], self.weight[at] = item[first], np.add.reduceat(weight[order], begins)
        in_time = np.sort(first)
        user_within = user[in_time] - user.min()
        of_few_bytes: npt.NDArray[Any] = user_within.astype(np.min_scalar_type(user_within.max()))  # which sorts faster
        self.by_time[at] = item[in_time[np.argsort(of_few_bytes, kind="stable")]]
        counts = np.bincount(user_within)
        self.counts[user.min() + 1 :][: len(counts)] += counts
        self.n = at.stop

    def histories(self, n_items: int) -> Histories:
        """Return them."""
        by_item, weight, by_time = (array[: self.n] for array in (self.by_item, self.weight, self.by_time))
        return Histories(np.cumsum(self.counts), by_item, weight, by_time, n_items)
