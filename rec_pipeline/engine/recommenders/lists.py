"""Every user's list, as a stream of Arrow batches ready to be sealed and published."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX, IdMap
from rec_pipeline.engine.data.pairs import by_users
from rec_pipeline.engine.data.space import Space
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.tally import Tally
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.fusion import NO_RANK, Explained
from rec_pipeline.engine.recommenders.list_schema import LIST_SCHEMA, PERSONAL, POPULAR, POPULAR_USER_ID, SOURCE_TYPE
from rec_pipeline.engine.recommenders.reasons import reason_rows, reason_texts


def recommend_all(
    bundle: ServingBundle,
    *,
    top_k: int = 10,
    batch_size: int = 1024,
    now: float | None = None,
    compute: Compute = LOCAL,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[pa.RecordBatch]:
    """
    Recommend to every user of the bundle.

    Memory is bounded by the batch: about 20 bytes for each of its users and each item of the catalogue.

    Parameters
    ----------
    bundle
        Models and histories.
    top_k : int
        List length; shorter only for a user who has seen nearly everything.
    batch_size : int
        Users at a time.
    now : float, optional
        When the lists are to be shown, in seconds since 1970; the present by default. What has expired by then, or is
        not yet published, is in no list.
    compute
        Where it is done, a batch of users at a time; changes no list.
    on_progress : callable, optional
        Called after each batch with the number of users done and of all users.

    Yields
    ------
    RecordBatch
        Of ``LIST_SCHEMA``, in the order of ``bundle.users``. A user for whom no item is left has no row.
    """
    writer = _ListWriter(bundle, time.time() if now is None else now)
    n_users = len(bundle.users)
    shards = [range(start, min(start + batch_size, n_users)) for start in range(0, n_users, batch_size)]
    for shard, lists in zip(shards, compute.map(_lists_of, shards, (bundle, writer, top_k)), strict=True):
        yield lists
        if on_progress is not None:
            on_progress(shard.stop, n_users)


def popular_list(bundle: ServingBundle, *, top_k: int = 10) -> pa.RecordBatch:
    """Return the list for anybody without one: one row of ``LIST_SCHEMA``, its user id ``POPULAR_USER_ID``."""
    nobody = UserBatch(np.array([NO_IDX]), sp.csr_matrix(np.zeros((1, len(bundle.items)), dtype=np.float32)))
    return _ListWriter(bundle, time.time()).lists(np.array([POPULAR_USER_ID], dtype=object), nobody, top_k)


def count_seen(lists: Iterable[pa.RecordBatch], interactions: Table, scratch: Path | None = None) -> int:
    """
    Count the listed items that their user has interacted with.

    Memory: the ids once, and of the interactions that of ``by_users``.

    Parameters
    ----------
    lists
        Batches with the columns ``user_id`` and ``item_id`` of ``LIST_SCHEMA``.
    interactions
        Columns ``user_id`` and ``item_id``.
    scratch
        Folder for what does not fit in memory, 16 bytes an interaction; without it they are held.
    """
    space = Space.for_rows(len(interactions), scratch)
    users, items = (IdMap.from_ids(Tally.of(interactions, name).ids) for name in (c.USER_ID, c.ITEM_ID))
    rows = (
        pd.DataFrame(
            {c.USER_IDX: users.to_idx(part[c.USER_ID]), c.ITEM_IDX: items.to_idx(part[c.ITEM_ID])}, dtype=np.int32
        )
        for part in interactions.iterate([c.USER_ID, c.ITEM_ID])
    )
    seen = space.array(len(interactions), np.int64)  # a number a pair, ascending
    end = 0
    for of_users in by_users(space.table(rows, len(interactions)), space):
        start, end = end, end + len(of_users)
        seen[start:end] = np.sort(of_users[c.USER_IDX].to_numpy(np.int64) * len(items) + of_users[c.ITEM_IDX])
    n_seen = 0
    for batch in lists:
        n_listed = pc.list_value_length(batch[c.ITEM_ID]).to_numpy()
        user = np.repeat(users.to_idx(batch[c.USER_ID].cast(pa.large_string())), n_listed)
        item = items.to_idx(batch[c.ITEM_ID].flatten().cast(pa.large_string()))
        pair = np.where((user == NO_IDX) | (item == NO_IDX), NO_IDX, user * len(items) + item)
        place = np.minimum(np.searchsorted(seen, pair), len(seen) - 1)
        n_seen += int(np.count_nonzero(seen[place] == pair)) if len(seen) else 0
    return n_seen


def _lists_of(shared: "tuple[ServingBundle, _ListWriter, int]", rows: range) -> pa.RecordBatch:
    bundle, writer, top_k = shared
    (users,) = bundle.batches(np.arange(rows.start, rows.stop), len(rows))
    return writer.lists(bundle.users.to_ids(users.user_idx), users, top_k)


class _ListWriter:
    """Turns batches of users into rows; holds what is the same for every batch."""

    def __init__(self, bundle: ServingBundle, now: float) -> None:
        self.eligible = bundle.facts.shown_at(now)
        self.recommender = bundle.recommender()
        self.spaces = bundle.spaces
        self.item_ids = pa.array(bundle.items.ids, pa.string())
        self.reasons = pa.array(reason_texts(bundle.titles), pa.string())

    def lists(self, user_ids: npt.NDArray[np.object_], users: UserBatch, top_k: int) -> pa.RecordBatch:
        explained = self.recommender.recommend_explained(users, top_k, eligible=self.eligible)
        reason = reason_rows(explained, users.history, self.spaces)
        present = explained.is_present
        n_listed = present.sum(axis=1)
        has_list = n_listed > 0
        offsets = _offsets(n_listed[has_list])
        origin = np.where(explained.is_personal[has_list], PERSONAL, POPULAR)
        columns = [
            pa.array(user_ids[has_list], pa.string()),
            pa.ListArray.from_arrays(offsets, self.item_ids.take(pa.array(explained.ranking.item_idx[present]))),
            pa.ListArray.from_arrays(offsets, pa.array(explained.ranking.score[present], pa.float32())),
            pa.ListArray.from_arrays(offsets, _sources(explained)),
            pa.ListArray.from_arrays(offsets, self.reasons.take(pa.array(reason[present]))),
            pa.array(origin, pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=LIST_SCHEMA)


def _sources(explained: Explained) -> pa.ListArray:
    """Return one list of structs for each item present, in row order."""
    share = explained.share[explained.is_present]  # (n_present, n_sources)
    rank = explained.rank[explained.is_present]
    order = np.argsort(-share, axis=1, kind="stable")
    share, rank = np.take_along_axis(share, order, axis=1), np.take_along_axis(rank, order, axis=1)
    is_source = rank != NO_RANK
    names = pa.array(explained.sources, pa.string()).take(pa.array(order[is_source]))
    structs = pa.StructArray.from_arrays(
        [names, pa.array(rank[is_source], pa.int32()), pa.array(share[is_source], pa.float32())],
        fields=list(SOURCE_TYPE),
    )
    return pa.ListArray.from_arrays(_offsets(is_source.sum(axis=1)), structs)


def _offsets(lengths: npt.NDArray[Any]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
