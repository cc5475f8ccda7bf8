"""Pairs of a user and an item among interactions, of which the first counts."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c

_CLASSES: Final = 16  # of users, looked at one after the other: what sorts them is held for one


def is_first_of_pair(interactions: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """
    Tell which rows are the first with their ``user_idx`` and ``item_idx``.

    Memory beside the rows: 7 bytes each, if no user has most of them.

    Examples
    --------
    >>> is_first_of_pair(pd.DataFrame({"user_idx": [1, 0, 1], "item_idx": [2, 2, 2]}))
    array([ True,  True, False])
    """
    user_idx: npt.NDArray[Any] = interactions[c.USER_IDX].to_numpy()
    item_idx: npt.NDArray[Any] = interactions[c.ITEM_IDX].to_numpy()
    n_items = int(item_idx.max(initial=0)) + 1
    class_of_row = (user_idx % _CLASSES).astype(np.uint8)
    is_first = np.ones(len(user_idx), dtype=np.bool_)
    for number in range(_CLASSES):
        rows = np.flatnonzero(class_of_row == number)
        pair = user_idx[rows].astype(np.int64) * n_items + item_idx[rows]
        order = np.argsort(pair, kind="stable")
        in_order = pair[order]
        is_first[rows[order[1:][in_order[1:] == in_order[:-1]]]] = False
    return is_first


def count_repeated_pairs(*parts: pd.DataFrame) -> int:
    """
    Count the rows of all parts together that are not the first with their ``user_idx`` and ``item_idx``.

    Examples
    --------
    >>> part = pd.DataFrame({"user_idx": [1, 0], "item_idx": [2, 2]})
    >>> count_repeated_pairs(part, part.head(1))
    1
    """
    pairs = pd.concat([part[[c.USER_IDX, c.ITEM_IDX]] for part in parts], ignore_index=True)
    return int(np.count_nonzero(~is_first_of_pair(pairs)))
