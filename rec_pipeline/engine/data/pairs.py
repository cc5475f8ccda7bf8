"""Pairs of a user and an item among interactions, of which the first counts."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c


def is_first_of_pair(interactions: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """
    Tell which rows are the first with their ``user_idx`` and ``item_idx``.

    Memory beside the rows: up to 30 bytes each.

    Examples
    --------
    >>> is_first_of_pair(pd.DataFrame({"user_idx": [1, 0, 1], "item_idx": [2, 2, 2]}))
    array([ True,  True, False])
    """
    item_idx: npt.NDArray[Any] = interactions[c.ITEM_IDX].to_numpy()
    pair = interactions[c.USER_IDX].to_numpy().astype(np.int64)
    pair *= item_idx.max(initial=0) + 1
    pair += item_idx
    order = np.argsort(pair, kind="stable")
    in_order = pair[order]
    is_first = np.ones(len(pair), dtype=np.bool_)
    is_first[order[1:][in_order[1:] == in_order[:-1]]] = False
    return is_first
