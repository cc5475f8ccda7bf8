"""Pairs of a user and an item among interactions, of which the first counts."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.space import MEMORY, Space, count, in_blocks
from rec_pipeline.engine.data.table import MOST_BUCKETS, PART_ROWS, Buckets

_FEW: Final = 16


def by_users(rows: pd.DataFrame, space: Space = MEMORY) -> Iterator[pd.DataFrame]:
    """
    Yield the rows of the first users by row, then of those after them, about ``PART_ROWS`` at a time.

    Parameters
    ----------
    rows
        ``user_idx`` and other columns that can be told by their numbers; the index is kept, and the order.
    space
        With a folder the rows are dealt out on disk; beyond ``MOST_BUCKETS`` times ``PART_ROWS`` rows one in so many is
        held, and in any case a user's. In memory one in ``_FEW`` is copied, and a byte is needed for each.
    """
    if len(rows) <= PART_ROWS:
        yield rows
        return
    user_idx = rows[c.USER_IDX].to_numpy()
    ends = np.cumsum(count(user_idx, int(user_idx.max()) + 1))
    n_buckets = min(MOST_BUCKETS if space.folder else _FEW, -(-len(rows) // PART_ROWS))
    bucket_of_user = (np.maximum(ends - 1, 0) * n_buckets // len(rows)).astype(np.uint8)
    if space.folder is None:
        bucket = bucket_of_user[user_idx]
        yield from (rows[bucket == number] for number in range(n_buckets))
        return
    with tempfile.TemporaryDirectory(dir=space.folder) as folder:
        buckets = Buckets(Path(folder, "buckets"))
        for block in in_blocks(len(rows)):
            buckets.add(rows.iloc[block], bucket_of_user[user_idx[block]])
        for number in np.unique(bucket_of_user):
            yield buckets.take(number)


def is_first_of_pair(
    interactions: pd.DataFrame, space: Space = MEMORY, *, from_end: bool = False
) -> npt.NDArray[np.bool_]:
    """
    Tell which rows are the first with their ``user_idx`` and ``item_idx``, or ``from_end`` the last.

    Examples
    --------
    >>> is_first_of_pair(pd.DataFrame({"user_idx": [1, 0, 1], "item_idx": [2, 2, 2]}))
    array([ True,  True, False])
    """
    is_first = space.array(len(interactions), np.bool_)
    is_first[:] = True
    for rows in by_users(interactions[[c.USER_IDX, c.ITEM_IDX]].reset_index(drop=True), space):
        pair = pair_numbers(rows)
        order = np.argsort(pair, kind="stable")
        is_repeated = pair[order[1:]] == pair[order[:-1]]
        is_first[rows.index.to_numpy()[order[:-1][is_repeated] if from_end else order[1:][is_repeated]]] = False
    return is_first


def pair_numbers(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return a number for each row, equal for the same user and item, in the order of users, then items."""
    item_idx: npt.NDArray[np.integer] = rows[c.ITEM_IDX].to_numpy()
    user_idx: npt.NDArray[np.int64] = rows[c.USER_IDX].to_numpy(dtype=np.int64)
    return user_idx * (int(item_idx.max(initial=0)) + 1) + item_idx
