"""
Weights and method of the merge, found on what came after training, by segments of user activity.

Few users stand behind a segment: its weights are drawn towards those of everybody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_json, read_table, write_json, write_table
from rec_pipeline.engine.data.batches import IdxVector, Ranking
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.trending import HALF_LIVES, TrendingModel, decayed_counts, newcomer_half_life
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.context_gain import user_gains
from rec_pipeline.engine.recommenders.fusion import Explained, fuse
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker
from rec_pipeline.engine.recommenders.merge_table import CUTOFF, MergeTable, Weights, fit_weights, weights_of
from rec_pipeline.engine.recommenders.params import (
    CONTENT,
    TRENDING,
    WELL_KNOWN_USERS,
    FusionMethod,
    HybridParams,
    segment_names,
)
from rec_pipeline.engine.recommenders.reranking import with_new_items
from rec_pipeline.engine.recommenders.validation import (
    ENOUGH_USERS,
    ValidationRanking,
    WindowRanking,
    tuning_windows,
)

RANK_CONSTANTS: Final = (20, 60)
SEGMENT_PRIOR_USERS: Final = 5.0
MIN_USERS: Final = 20  # fewer users say nothing about a segment
EVERYBODY: Final = "everybody"
IN_CONTEXT: Final = "in context"
WITH_NEW_ITEMS: Final = "with new items"
NO_CONTEXT: Final = 0.0
CONTEXT_STRENGTHS: Final = (NO_CONTEXT, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
NEW_ITEM_RANKS: Final = (1, 2, 3, 5, 10, 20, 50, 100)
MAX_LOSS: Final = 0.01  # of ndcg@10, for the sake of new items
SURE: Final = 2.0


@dataclass(frozen=True)
class FusionWeights:
    """
    How the hybrid merges, as tuned.

    Attributes
    ----------
    params
        Weights for everybody and by segment, method and rank constant.
    trials
        One row a segment and method that was tuned: ``segment``, ``method``, ``n_users``, ``before`` and ``after``
        (mean ndcg@10 on the users tuned on, so ``after`` is an optimistic one), and a column of weight a source. Of the
        segment ``in context`` it is the mean worth of single events.
    """

    params: HybridParams
    trials: pd.DataFrame

    def save(self, directory: Path) -> None:
        """Write ``params.json`` and ``trials.parquet``."""
        write_json(directory / "params.json", self.params.model_dump(mode="json"))
        write_table(directory / "trials.parquet", self.trials)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(HybridParams(**read_json(directory / "params.json")), read_table(directory / "trials.parquet"))


def tune_fusion(
    sources: Mapping[str, ValidationRanking],
    split: InteractionSplit,
    start: HybridParams | None = None,
    *,
    in_category: sp.csr_matrix | None = None,
) -> FusionWeights:
    """
    Find how to merge so that the lists of the validation users are best: method, rank constant, weights, context.

    Of what is done for new items it is how much the lists can afford.

    Parameters
    ----------
    sources
        Lists of each source in the tuning windows of ``split``, of models that know nothing later, for the same users.
    split
        What the users have (train) and what is held out here (validation).
    start
        Begins the search; pool size, segment bounds and what is done after the merge are kept.
    in_category : CSR of shape (n_items, n_categories), optional
        Categories of the items, whose lifts by context are learnt from the train part; without them the strength of
        context stays as it is.

    Raises
    ------
    ConfigurationError
        If a source has no weight to start from, or the sources ranked for different users.
    """
    start = start or HybridParams()
    if missing := set(sources) - set(start.weights):
        raise ConfigurationError(f"no weight to start from for {sorted(missing)}, only for {sorted(start.weights)}")
    windows = _windows(sources, split)
    rankings = {name: Ranking.joined([window.rankings[name] for window in windows]) for name in sources}
    relevant = sp.vstack([window.relevant for window in windows], format="csr")
    n_history = np.concatenate([window.n_history for window in windows])
    segments = np.searchsorted(start.segment_bounds, n_history, side="right")
    first = weights_of(sorted(rankings), np.array([start.weights[name] for name in sorted(rankings)]))
    is_known = n_history > 0  # the list of a newcomer is the fallback's, whatever the weights

    trials: list[dict[str, object]] = []
    chosen: _Merge | None = None
    for method, constant in _methods(start):
        table = MergeTable.of(rankings, relevant, method, constant, start.n_candidates).only(is_known)
        merge = _Merge.fit(method, constant, table, first)
        trials.append(_trial(EVERYBODY, str(merge), table, first, merge.weights))
        if chosen is None or _is_gain(merge.user_ndcg - chosen.user_ndcg):
            chosen = merge
    assert chosen is not None  # noqa: S101 # there is always a method

    by_segment: dict[str, dict[str, float]] = {}
    for number, name in enumerate(segment_names(start.segment_bounds)):
        inside = segments[is_known] == number
        if inside.sum() < MIN_USERS:
            continue
        part = chosen.table.only(inside)
        own = weights_of(part.names, fit_weights(part, chosen.coefficients, SEGMENT_PRIOR_USERS))
        by_segment[name] = max(chosen.weights, own, key=part.ndcg)
        trials.append(_trial(name, str(chosen), part, chosen.weights, by_segment[name]))
    found = {
        "weights": chosen.weights,
        "segment_weights": by_segment,
        "method": chosen.method,
        "rank_constant": chosen.rank_constant,
    }
    params = HybridParams(**start.model_dump() | found)
    if CONTENT in rankings and n_history.any():
        params, row = _tune_new_items(windows, params)
        trials.append(row)
    if in_category is not None:
        params, row = _tune_context(windows, params, in_category)
        trials.append(row)
    return FusionWeights(params, pd.DataFrame(trials))


@dataclass(frozen=True)
class _Window:
    """A window of time with the lists of every source for its users, in their order."""

    split: InteractionSplit
    user_idx: IdxVector
    rankings: dict[str, Ranking]

    @cached_property
    def relevant(self) -> sp.csr_matrix:
        """Held-out items, CSR of shape (n_users, n_items)."""
        return self.split.by_user.validation.user_item[self.user_idx]

    @cached_property
    def n_history(self) -> npt.NDArray[np.integer]:
        """Distinct items known of each user."""
        return np.diff(self.split.by_user.train.starts)[self.user_idx]

    def merged(self, params: HybridParams, top_k: int) -> Explained:
        """Merge the candidates of all sources as the hybrid does."""
        offered = {name: ranking.first(params.n_candidates) for name, ranking in self.rankings.items()}
        weights = params.user_weights(self.n_history)
        return fuse(offered, weights, rank_constant=params.rank_constant, top_k=top_k, method=params.method)


def _windows(sources: Mapping[str, ValidationRanking], split: InteractionSplit) -> list[_Window]:
    windows = []
    by_window = zip(*(source.windows for source in sources.values()), strict=True)
    for part, lists in zip(tuning_windows(split), by_window, strict=True):
        user_idx = lists[0].user_idx
        if any(not np.array_equal(found.user_idx, user_idx) for found in lists):
            raise ConfigurationError(f"the sources {sorted(sources)} ranked for different users")
        rankings = {name: found.ranking for name, found in zip(sources, lists, strict=True)}
        windows.append(_Window(part, user_idx, rankings))
    return windows


def _tune_new_items(windows: Sequence[_Window], params: HybridParams) -> tuple[HybridParams, dict[str, object]]:
    """
    Find how far from a user's taste a new item may be and still get a place: as far as validation lets it.

    The lists may lose ``MAX_LOSS`` of their ndcg, and nothing that is beyond doubt; otherwise no places are kept. Users
    without history do not count: their lists cannot change.
    """
    n_pooled = len(windows[0].rankings) * params.n_candidates
    merged = [window.merged(params, n_pooled) for window in windows]
    is_new = [
        PopularityModel.fit(window.split.by_user.train.user_item).n_interactions < WELL_KNOWN_USERS
        for window in windows
    ]
    relevant = sp.vstack([window.relevant for window in windows], format="csr")
    is_known = np.concatenate([window.n_history for window in windows]) > 0

    def user_ndcg(rank: int) -> npt.NDArray[np.float64]:
        tried = params.model_copy(update={"new_item_rank": rank})
        lists = [with_new_items(*of_window, CUTOFF, tried).ranking for of_window in zip(merged, is_new, strict=True)]
        table = MergeTable.of(
            {WITH_NEW_ITEMS: Ranking.joined(lists)},
            relevant,
            FusionMethod.RECIPROCAL_RANK,
            params.rank_constant,
            CUTOFF,
        )
        return table.only(is_known).user_ndcg({WITH_NEW_ITEMS: 1.0})

    without = user_ndcg(0)
    chosen, after = 0, without
    for rank in NEW_ITEM_RANKS:
        found = user_ndcg(rank)
        change = found - without
        if not _is_gain(-change) and change.mean() >= -MAX_LOSS * without.mean():
            chosen, after = rank, found
    what = f"among {chosen} nearest" if chosen else "none"
    tried = _row(WITH_NEW_ITEMS, what, len(without), float(without.mean()), float(after.mean()), params.weights)
    return params.model_copy(update={"new_item_rank": chosen}), tried


def _tune_context(
    windows: Sequence[_Window], params: HybridParams, in_category: sp.csr_matrix
) -> tuple[HybridParams, dict[str, object]]:
    """
    Find the strength under which held-out events are foreseen best, each in its own context.

    It stays 0 unless the mean gain of a user is ``SURE`` standard errors above zero: the best of several is above it by
    chance alone.
    """
    of_windows = []
    for window in windows:
        train, held_out = window.split.train, window.split.validation
        lifts = ContextLifts.fit(train, train[c.ITEM_IDX].to_numpy(), in_category)
        row = np.full(len(window.split.users), NO_IDX)
        row[window.user_idx] = np.arange(len(window.user_idx))
        events = held_out[row[held_out[c.USER_IDX]] != NO_IDX]
        lists = window.merged(params, params.n_candidates).ranking
        of_windows.append(user_gains(lists, row[events[c.USER_IDX]], events, lifts, CONTEXT_STRENGTHS))
    gains = dict(zip(CONTEXT_STRENGTHS, np.concatenate(of_windows, axis=1), strict=True))
    best = max(gains, key=lambda strength: gains[strength].mean())
    gained = gains[best] - gains[NO_CONTEXT]
    if not _is_gain(gained):
        best = NO_CONTEXT
    before, after = (float(gains[strength].mean()) for strength in (NO_CONTEXT, best))
    tried = _row(IN_CONTEXT, f"strength {best:g}", len(gained), before, after, params.weights)
    return params.model_copy(update={"context_strength": best}), tried


@dataclass(frozen=True)
class _Merge:
    """A way to merge, with the weights that were fitted for it."""

    method: FusionMethod
    rank_constant: int
    table: MergeTable
    coefficients: npt.NDArray[np.float64]
    weights: dict[str, float]

    @classmethod
    def fit(cls, method: FusionMethod, rank_constant: int, table: MergeTable, first: dict[str, float]) -> Self:
        coefficients = fit_weights(table)
        # What is most likely among all candidates may lose to the first ten of one source, which many users show.
        alone = np.eye(len(table.names)) if table.n_users >= ENOUGH_USERS else ()
        fitted = (weights_of(table.names, found) for found in (coefficients, *alone))
        return cls(method, rank_constant, table, coefficients, max((first, *fitted), key=table.ndcg))

    @property
    def user_ndcg(self) -> npt.NDArray[np.float64]:
        return self.table.user_ndcg(self.weights)

    def __str__(self) -> str:
        return str(self.method) if self.method is FusionMethod.SCORE else f"{self.method} {self.rank_constant}"


def _methods(start: HybridParams) -> list[tuple[FusionMethod, int]]:
    """Return the ways to merge, the one to be preferred first."""
    constants = sorted({*RANK_CONSTANTS, start.rank_constant})
    by_rank = [(FusionMethod.RECIPROCAL_RANK, constant) for constant in constants]
    return [(FusionMethod.SCORE, start.rank_constant), *by_rank]


def _is_gain(change: npt.NDArray[np.float64]) -> bool:
    """Tell whether the mean change of a user is ``SURE`` standard errors above zero."""
    return len(change) > 0 and bool(change.mean() > SURE * change.std() / np.sqrt(len(change)))


def fit_trending(split: InteractionSplit) -> tuple[TrendingModel, ValidationRanking]:
    """
    Fit what is trending on train and validation, with the half-lives that foresee validation and newcomers best.

    Returns
    -------
    TrendingModel
        Fitted on ``split.fitting``.
    ValidationRanking
        Lists of the same half-life fitted on what each tuning window knows.
    """
    windows = tuning_windows(split)
    weights = [decayed_counts(window.train, len(window.items), HALF_LIVES) for window in windows]
    best: tuple[float, float, ValidationRanking] | None = None
    for number, half_life in enumerate(HALF_LIVES):
        rankers = [GlobalRanker(TRENDING, of_window[number]) for of_window in weights]
        lists = ValidationRanking(tuple(map(WindowRanking.of, rankers, windows)))
        worth = np.concatenate([_user_ndcg(*found) for found in zip(lists.windows, windows, strict=True)]).mean()
        if best is None or worth > best[0]:
            best = worth, half_life, lists
    assert best is not None  # noqa: S101 # there is always a half-life
    for_newcomers = newcomer_half_life(split.fitting, len(split.items))
    return TrendingModel.fit(split.fitting, len(split.items), best[1], for_newcomers), best[2]


def _user_ndcg(lists: WindowRanking, window: InteractionSplit) -> npt.NDArray[np.float64]:
    relevant = window.by_user.validation.user_item[lists.user_idx]
    table = MergeTable.of({TRENDING: lists.ranking}, relevant, FusionMethod.RECIPROCAL_RANK, 1, CUTOFF)
    return table.user_ndcg({TRENDING: 1.0})


def _trial(segment: str, method: str, table: MergeTable, before: Weights, after: Weights) -> dict[str, object]:
    return _row(segment, method, table.n_users, table.ndcg(before), table.ndcg(after), after)


def _row(segment: str, method: str, n_users: int, before: float, after: float, weights: Weights) -> dict[str, object]:
    return {c.SEGMENT: segment, c.METHOD: method, c.N_USERS: n_users, c.BEFORE: before, c.AFTER: after, **weights}
