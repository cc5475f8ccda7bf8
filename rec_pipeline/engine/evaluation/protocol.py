"""
The one way recommenders are evaluated: full ranking of the catalogue for every user with held-out items.

What is known when the test part begins (train and validation rows) is a user's history. Test items that are not in it
are held out. Every recommender ranks the whole catalogue minus the history; nothing is sampled. A user for whom a
recommender returns nothing scores 0 and stays in the mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.data.batches import (
    BoolVector,
    IdxMatrix,
    IdxVector,
    Ranking,
    UserBatch,
    at_most,
    is_member,
    iterate_users,
)
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.data.space import count
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.evaluation import metrics
from rec_pipeline.engine.evaluation.metrics import FloatMatrix, FloatVector, ItemVectors, label
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.report import HELD_OUT, EvaluationReport
from rec_pipeline.engine.evaluation.significance import Interval, bootstrap_intervals, compare_pairs
from rec_pipeline.engine.recommenders.params import segment_names
from rec_pipeline.engine.recommenders.ranker import Ranker

TOP_PERCENTS: Final = (1, 2, 5, 10, 20, 50, 100)


def evaluate_recommenders(
    recommenders: Sequence[Ranker],
    split: InteractionSplit,
    *,
    eligible: BoolVector | None = None,
    item_vectors: ItemVectors | None = None,
    retrieval: pd.DataFrame | None = None,
    variety: pd.DataFrame | None = None,
    context: pd.DataFrame | None = None,
    params: EvaluationParams | None = None,
    notes: Mapping[str, Any] | None = None,
    compute: Compute = LOCAL,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> EvaluationReport:
    """
    Rank the catalogue for every user with held-out items, by every recommender, and report how good the lists are.

    Parameters
    ----------
    recommenders
        Fitted on nothing later than the validation part; names are unique and include ``params.baseline``.
    split
        History is ``split.fitting``, held out is ``split.test``.
    eligible : bool of shape (n_items,), optional
        Items that may be recommended; all by default. A held-out item that is not eligible stays held out, where no
        recommender can reach it.
    item_vectors : float32 of shape (n_items, dim), optional
        Content vectors that diversity compares, zero where unknown; without any there is no diversity in the report.
    retrieval
        Table of retrieval quality that the report shows on its own, one row an index.
    variety, context
        Tables of ``reranked``, which the report shows on their own.
    params
        What is measured; the defaults if omitted.
    notes
        Further facts for ``report.data``, JSON-serialisable; ``champion`` is a sentence that the report shows.
    compute
        Where lists are made and measured, a batch of users at a time; changes no number.
    on_progress
        Called after each batch with the recommender's name, users done and users in all.

    Returns
    -------
    EvaluationReport

    Raises
    ------
    ValueError
        If nobody has a held-out item, the baseline is missing, names repeat, a time split overlaps, or a recommender
        returns a list of the wrong length, a repeated item, a seen item or one that is not eligible.

    Notes
    -----
    Memory: one ranking and one history of ``batch_size`` users, and the metric values of all users, 8 bytes each.
    """
    params = params or EvaluationParams()
    names = [recommender.name for recommender in recommenders]
    if len(set(names)) < len(names) or params.baseline not in names:
        raise ValueError(f"recommenders must have different names, {params.baseline!r} among them; found {names}")
    _check_time_order(split)
    held_out = HeldOut.of(split, params)
    history, user_idx, relevant = split.by_user.fitting.user_item, held_out.user_idx, held_out.relevant
    if not len(user_idx):
        raise ValueError(f"no user has a held-out item among {len(split.test)} test rows")
    item_n_users = count(history.indices, history.shape[1])
    may_show = np.ones(history.shape[1], dtype=np.bool_) if eligible is None else eligible
    user_n_items = np.diff(history.indptr)

    frames: list[pd.DataFrame] = []
    exposures: dict[str, npt.NDArray[np.int64]] = {}
    item_slices: dict[str, list[FloatMatrix]] = {}
    measurement = _Measurement(
        recommenders=recommenders,
        user_idx=user_idx,
        history=history,
        sequences=split.by_user.fitting.sequences,
        relevant=relevant,
        by_bucket=_relevant_by_bucket(
            relevant, _bucket(item_n_users, params.item_segments), len(params.item_segments) + 1
        ),
        lists=_ListMetrics(item_n_users, int((user_n_items > 0).sum()), item_vectors, params.cutoffs),
        eligible=eligible,
        may_show=may_show,
        params=params,
    )
    starts = range(0, len(user_idx), params.batch_size)
    shards = [(position, start) for position in range(len(recommenders)) for start in starts]
    measured = compute.map(_measured, shards, measurement)
    for recommender in recommenders:
        shown = np.zeros((len(params.cutoffs), history.shape[1]), dtype=np.int64)
        values: dict[str, list[FloatVector]] = {}
        sliced: list[list[FloatMatrix]] = [[] for _ in measurement.by_bucket]
        done = 0
        for batch in islice(measured, len(starts)):
            done += len(batch.item_idx)
            for name, value in batch.by_user.items():
                values.setdefault(name, []).append(value)
            for pieces, piece in zip(sliced, batch.sliced, strict=True):
                pieces.append(piece)
            shown += metrics.exposure(batch.item_idx, history.shape[1], params.cutoffs)
            if on_progress is not None:
                on_progress(recommender.name, done, len(user_idx))
        who = {
            c.USER_ID: split.users.to_ids(user_idx),
            c.N_HISTORY: user_n_items[user_idx].astype(np.int64),
            c.RECOMMENDER: recommender.name,
        }
        frames.append(pd.DataFrame({**who, **{name: np.concatenate(pieces) for name, pieces in values.items()}}))
        item_slices[recommender.name] = [np.concatenate(pieces) for pieces in sliced]
        exposures[recommender.name] = shown

    headline = params.cutoffs.index(params.headline_cutoff)
    held_out_counts = np.bincount(relevant.indices, minlength=len(may_show))
    return EvaluationReport(
        summary=pd.concat([_summary(frame, exposures, may_show, params) for frame in frames], ignore_index=True),
        slices=_slices(frames, item_slices, params),
        comparisons=_comparisons(frames, params),
        exposure=pd.concat(
            [
                _exposure_share(name, counts, item_n_users, may_show)
                for name, counts in {
                    HELD_OUT: held_out_counts,
                    **{name: shown[headline] for name, shown in exposures.items()},
                }.items()
            ],
            ignore_index=True,
        ),
        per_user=pd.concat(frames, ignore_index=True),
        retrieval=retrieval,
        variety=variety,
        context=context,
        item_exposure=_item_exposure(
            {HELD_OUT: held_out_counts, **{name: shown[headline] for name, shown in exposures.items()}},
            _bucket(item_n_users, params.item_segments)[may_show],
            may_show,
            params,
        ),
        params=params,
        data={
            "strategy": split.strategy,
            "boundaries": split.boundaries,
            "n_train": len(split.train),
            "n_validation": len(split.validation),
            "n_test": len(split.test),
            "n_users": len(split.users),
            "n_items": len(split.items),
            "n_eligible_items": int(may_show.sum()),
            "n_users_evaluated": len(user_idx),
            "n_users_with_held_out": held_out.n_users,
            "n_users_without_history": int((user_n_items[user_idx] == 0).sum()),
            "n_held_out": int(relevant.nnz),
            "n_held_out_new_items": int((item_n_users[relevant.indices] == 0).sum()),
            "n_held_out_not_eligible": int((~may_show[relevant.indices]).sum()),
            "n_test_already_known": held_out.n_known_again,
            **(notes or {}),
        },
    )


@dataclass(frozen=True)
class HeldOut:
    """
    What recommenders are to foresee: of each user evaluated, the test items that are not in the history already.

    Attributes
    ----------
    user_idx
        int64 of shape (n_users_evaluated,), ascending: of the users with held-out items all, or a draw.
    relevant
        Ones where an item is held out, float32 CSR of shape (n_users_evaluated, n_items), in the rows of ``user_idx``.
    n_users
        Users with held-out items.
    n_known_again
        Pairs of the test part that are in the history.
    """

    user_idx: IdxVector
    relevant: sp.csr_matrix
    n_users: int
    n_known_again: int

    @classmethod
    def of(cls, split: InteractionSplit, params: EvaluationParams, limit: int | None = None) -> Self:
        """Draw ``params.max_users`` and ``limit`` users at most; held are numbers of all and items of these."""
        known, tested = split.by_user.fitting, split.by_user.test
        n_new = np.concatenate([np.diff(new.indptr) for new in tested.beside(known)])
        n_users = params.max_users if limit is None else min(limit, params.max_users)
        user_idx = at_most(np.flatnonzero(n_new), n_users, params.seed)
        return cls(
            user_idx=user_idx,
            relevant=sp.csr_matrix(sp.vstack(list(tested.beside(known, user_idx)), format="csr")),
            n_users=int(np.count_nonzero(n_new)),
            n_known_again=len(tested.by_item) - int(n_new.sum()),
        )


@dataclass(frozen=True)
class _Measurement:
    """What the measurement of any batch of users needs; ``relevant`` and ``by_bucket`` in the rows of ``user_idx``."""

    recommenders: Sequence[Ranker]
    user_idx: IdxVector
    history: sp.csr_matrix
    sequences: UserSequences
    relevant: sp.csr_matrix
    by_bucket: list[sp.csr_matrix]
    lists: "_ListMetrics"
    eligible: BoolVector | None
    may_show: BoolVector
    params: EvaluationParams


@dataclass(frozen=True)
class _BatchMeasured:
    """The lists of a batch, and of each user every metric, and those compared for each bucket of held-out items."""

    item_idx: IdxMatrix
    by_user: dict[str, FloatVector]
    sliced: list[FloatMatrix]


def _measured(shared: _Measurement, shard: tuple[int, int]) -> _BatchMeasured:
    position, start = shard
    recommender, params, top_k = shared.recommenders[position], shared.params, max(shared.params.cutoffs)
    rows = slice(start, start + params.batch_size)
    (users,) = iterate_users(shared.history, shared.user_idx[rows], params.batch_size, sequences=shared.sequences)
    ranking = recommender.recommend(users, top_k, eligible=shared.eligible)
    _check_ranking(ranking, users, recommender.name, top_k, shared.may_show)
    accuracy = metrics.accuracy_metrics(ranking.item_idx, shared.relevant[rows], params.cutoffs)
    inside = [metrics.accuracy_metrics(ranking.item_idx, part[rows], params.cutoffs) for part in shared.by_bucket]
    return _BatchMeasured(
        item_idx=ranking.item_idx,
        by_user={**accuracy, **shared.lists.of(ranking)},
        sliced=[np.column_stack([values[name] for name in params.compared_metrics]) for values in inside],
    )


def _check_time_order(split: InteractionSplit) -> None:
    if split.strategy == "time" and len(split.fitting) and len(split.test):
        last_known, first_test = split.fitting[c.TIMESTAMP].max(), split.test[c.TIMESTAMP].min()
        if last_known >= first_test:
            raise ValueError(f"leak: history reaches {last_known} but the test part begins at {first_test}")


def _bucket(counts: npt.NDArray[np.int64], bounds: Sequence[int]) -> IdxVector:
    return np.searchsorted(bounds, counts, side="right").astype(np.int64)


def _relevant_by_bucket(relevant: sp.csr_matrix, item_bucket: IdxVector, n_buckets: int) -> list[sp.csr_matrix]:
    parts = []
    for bucket in range(n_buckets):
        part = relevant.copy()
        part.data = (item_bucket[part.indices] == bucket).astype(np.float32)
        part.eliminate_zeros()
        parts.append(part)
    return parts


class _ListMetrics:
    """Metrics that look at the items of a list, not at what was held out."""

    def __init__(
        self,
        item_n_users: npt.NDArray[np.int64],
        n_users: int,
        item_vectors: ItemVectors | None,
        cutoffs: Sequence[int],
    ) -> None:
        self._novelty = metrics.self_information(item_n_users, n_users)
        self._popularity = metrics.popularity_percentile(item_n_users)
        self._item_vectors = item_vectors if item_vectors is not None and item_vectors.any() else None
        self._cutoffs = cutoffs

    def of(self, ranking: Ranking) -> dict[str, FloatVector]:
        idx, cutoffs = ranking.item_idx, self._cutoffs
        vectors = self._item_vectors
        diversity = {} if vectors is None else metrics.list_diversity(idx, vectors, cutoffs)
        novelty = metrics.list_mean("novelty", idx, self._novelty, cutoffs)
        return {**diversity, **novelty, **metrics.list_mean("popularity_percentile", idx, self._popularity, cutoffs)}


def _check_ranking(ranking: Ranking, users: UserBatch, name: str, top_k: int, may_show: BoolVector) -> None:
    idx = ranking.item_idx
    if idx.shape != (len(users), top_k):
        raise ValueError(f"{name}: rankings have shape {idx.shape}, expected {(len(users), top_k)}")
    in_order = np.sort(idx, axis=1)
    faults = {
        "an item the user has seen": is_member(idx, users.history).any(axis=1),
        "an item that is not eligible": ~np.append(may_show, True)[idx].all(axis=1),
        "an item twice": ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != NO_IDX)).any(axis=1),
        "an item after the end of the list": ((idx[:, :-1] == NO_IDX) & (idx[:, 1:] != NO_IDX)).any(axis=1),
    }
    for fault, users_with_it in faults.items():
        if users_with_it.any():
            row = int(np.argmax(users_with_it))
            raise ValueError(f"{name} returned {fault}, e.g. to user_idx {users.user_idx[row]}: {idx[row].tolist()}")


def _metric_names(frame: pd.DataFrame) -> list[str]:
    return [str(column) for column in frame.columns if column not in (c.USER_ID, c.N_HISTORY, c.RECOMMENDER)]


def _resampling(params: EvaluationParams) -> dict[str, Any]:
    return params.model_dump(include={"n_resamples", "confidence", "seed"})


def _summary(
    frame: pd.DataFrame,
    exposures: dict[str, npt.NDArray[np.int64]],
    may_show: BoolVector,
    params: EvaluationParams,
) -> pd.DataFrame:
    names, recommender = _metric_names(frame), frame[c.RECOMMENDER].iloc[0]
    intervals = bootstrap_intervals(frame[names].to_numpy(), **_resampling(params))
    rows = [
        {c.RECOMMENDER: recommender, c.METRIC: name, **asdict(interval)}
        for name, interval in zip(names, intervals, strict=True)
    ]
    # These describe all lists together; a resample shows fewer items than the lists do, so an interval would mislead.
    rows += [
        {c.RECOMMENDER: recommender, c.METRIC: label(aggregate.__name__, cutoff)}
        | asdict(Interval(aggregate(shown, may_show), np.nan, np.nan, len(frame)))
        for aggregate in (metrics.coverage, metrics.exposure_gini)
        for cutoff, shown in zip(params.cutoffs, exposures[recommender], strict=True)
    ]
    return pd.DataFrame(rows)


def _slices(
    frames: list[pd.DataFrame], item_slices: dict[str, list[FloatMatrix]], params: EvaluationParams
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for frame in frames:
        recommender = frame[c.RECOMMENDER].iloc[0]
        values = frame[params.compared_metrics].to_numpy()
        bucket = _bucket(frame[c.N_HISTORY].to_numpy(), params.user_segments)
        by_slice = {
            "user_activity": (
                params.user_segments,
                [values[bucket == i] for i in range(len(params.user_segments) + 1)],
            ),
            "item_popularity": (params.item_segments, item_slices[recommender]),
        }
        for slice_name, (bounds, groups) in by_slice.items():
            for bucket_name, group in zip(segment_names(bounds), groups, strict=True):
                intervals = bootstrap_intervals(group, **_resampling(params))
                rows += [
                    {c.SLICE: slice_name, c.BUCKET: bucket_name, c.RECOMMENDER: recommender, c.METRIC: metric}
                    | asdict(interval)
                    for metric, interval in zip(params.compared_metrics, intervals, strict=True)
                ]
    return pd.DataFrame(rows)


def _comparisons(frames: list[pd.DataFrame], params: EvaluationParams) -> pd.DataFrame:
    by_name = {frame[c.RECOMMENDER].iloc[0]: frame for frame in frames}
    ordered = sorted(by_name, key=lambda name: name != params.challenger)
    rows = [
        {c.METRIC: metric, **asdict(pair), c.SIGNIFICANT: pair.p_holm < 1 - params.confidence}
        for metric in params.compared_metrics
        for pair in compare_pairs({name: by_name[name][metric].to_numpy() for name in ordered}, **_resampling(params))
    ]
    fields = [c.FIRST, c.SECOND, c.DIFFERENCE, c.LOW, c.HIGH, c.P, c.P_HOLM]
    return pd.DataFrame(rows, columns=[c.METRIC, *fields, c.SIGNIFICANT])


def _exposure_share(
    name: str, shown: npt.NDArray[np.int64], item_n_users: npt.NDArray[np.int64], may_show: BoolVector
) -> pd.DataFrame:
    order = np.argsort(-item_n_users[may_show], kind="stable")
    cumulative = np.append(0, np.cumsum(shown[may_show][order]))
    n_top = [int(np.ceil(len(order) * percent / 100)) for percent in TOP_PERCENTS]
    share = cumulative[n_top] / max(1, cumulative[-1])
    return pd.DataFrame({c.RECOMMENDER: name, c.TOP_PERCENT: TOP_PERCENTS, c.SHARE: share})


def _item_exposure(
    shown: Mapping[str, npt.NDArray[np.int64]], bucket: IdxVector, may_show: BoolVector, params: EvaluationParams
) -> pd.DataFrame:
    names = segment_names(params.item_segments)
    n_items = np.bincount(bucket, minlength=len(names))
    rows = []
    for recommender, counts in shown.items():
        n_shown = np.bincount(bucket, weights=counts[may_show], minlength=len(names))
        share, of_items = n_shown / max(1, n_shown.sum()), n_items / max(1, n_items.sum())
        rows += list(zip([recommender] * len(names), names, of_items.tolist(), share.tolist(), strict=True))
    return pd.DataFrame(rows, columns=[c.RECOMMENDER, c.BUCKET, c.CATALOGUE_SHARE, c.SHARE])
