"""
Weights and method of the merge, found on validation data by segments of user activity.

The lists of all sources become one table of (user, item) candidates with what each source gives an item. Trying weights
is then one product and one partial sort, so that thousands of trials take seconds. Few users stand behind a segment:
its weights are drawn towards those of everybody by ``PRIOR_USERS``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_json, read_table, write_json, write_table
from rec_pipeline.engine.data.batches import BoolVector, IdxVector, Ranking
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.trending import HALF_LIVES, TrendingModel, newcomer_half_life
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.context_gain import user_gains
from rec_pipeline.engine.recommenders.fusion import fuse, reciprocal_rank, score_gain
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker
from rec_pipeline.engine.recommenders.params import (
    CONTENT,
    TRENDING,
    WELL_KNOWN_USERS,
    FusionMethod,
    HybridParams,
    segment_names,
)
from rec_pipeline.engine.recommenders.reranking import with_new_items
from rec_pipeline.engine.recommenders.validation import ValidationRanking

GRID: Final = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.95)
RANK_CONSTANTS: Final = (20, 60)
MAX_ROUNDS: Final = 3
CUTOFF: Final = 10
PRIOR_USERS: Final = 100
MIN_USERS: Final = 20  # fewer users say nothing about a segment
EVERYBODY: Final = "everybody"
IN_CONTEXT: Final = "in context"
WITH_NEW_ITEMS: Final = "with new items"
NO_CONTEXT: Final = 0.0
CONTEXT_STRENGTHS: Final = (NO_CONTEXT, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
NEW_ITEM_RANKS: Final = (1, 2, 3, 5, 10, 20, 50, 100)
MAX_LOSS: Final = 0.01  # of ndcg@10, for the sake of new items
SURE: Final = 2.0

Weights = Mapping[str, float]


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
        Lists of each source, of models fitted on ``split.train`` only, all for the same users.
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
    user_idx = next(iter(sources.values())).user_idx
    if any(not np.array_equal(source.user_idx, user_idx) for source in sources.values()):
        raise ConfigurationError(f"the sources {sorted(sources)} ranked for different users")
    relevant = split.user_item(split.validation)[user_idx]
    n_history = np.diff(split.user_item(split.train).indptr)[user_idx]
    segments = np.searchsorted(start.segment_bounds, n_history, side="right")
    rankings = {name: source.ranking for name, source in sources.items()}
    first = {name: start.weights[name] for name in rankings}

    methods = [(FusionMethod.RECIPROCAL_RANK, constant) for constant in sorted({*RANK_CONSTANTS, start.rank_constant})]
    methods.append((FusionMethod.SCORE, start.rank_constant))
    trials: list[dict[str, object]] = []
    best: tuple[float, Weights, FusionMethod, int, MergeTable] | None = None
    for method, constant in methods:
        table = MergeTable.of(rankings, relevant, method, constant, start.n_candidates)
        weights, worth = tune_weights(first, table.ndcg)
        what = str(method) if method is FusionMethod.SCORE else f"{method} {constant}"
        trials.append(_trial(EVERYBODY, what, len(user_idx), table.ndcg(first), worth, weights))
        if best is None or worth > best[0]:
            best = worth, weights, method, constant, table
    assert best is not None  # noqa: S101 # there is always a method
    _, everybody, method, constant, table = best
    what = str(trials[int(np.argmax([float(str(trial["after"])) for trial in trials]))]["method"])

    by_segment: dict[str, dict[str, float]] = {}
    for number, name in enumerate(segment_names(start.segment_bounds)):
        inside = segments == number
        if inside.sum() < MIN_USERS:
            continue
        part = table.only(inside)
        own, worth = tune_weights(everybody, part.ndcg)
        trust = part.n_users / (part.n_users + PRIOR_USERS)
        drawn = {source: trust * own[source] + (1 - trust) * everybody[source] for source in everybody}
        # Half of the way to better weights can be a worse place than either end.
        by_segment[name] = max((dict(everybody), drawn), key=part.ndcg)
        after = part.ndcg(by_segment[name])
        trials.append(_trial(name, what, part.n_users, part.ndcg(everybody), after, by_segment[name]))
    found = {"weights": everybody, "segment_weights": by_segment, "method": method, "rank_constant": constant}
    params = HybridParams(**start.model_dump() | found)
    if CONTENT in rankings and n_history.any():
        params, row = _tune_new_items(rankings, relevant, n_history, split, params)
        trials.append(row)
    if in_category is not None:
        params, row = _tune_context(rankings, user_idx, n_history, split, params, in_category)
        trials.append(row)
    return FusionWeights(params, pd.DataFrame(trials))


def _tune_new_items(
    rankings: Mapping[str, Ranking],
    relevant: sp.csr_matrix,
    n_history: npt.NDArray[np.integer],
    split: InteractionSplit,
    params: HybridParams,
) -> tuple[HybridParams, dict[str, object]]:
    """
    Find how far from a user's taste a new item may be and still get a place: as far as validation lets it.

    The lists may lose ``MAX_LOSS`` of their ndcg, and nothing that is beyond doubt; otherwise no places are kept. Users
    without history do not count: their lists cannot change.
    """
    offered = {name: _shortened(ranking, params.n_candidates) for name, ranking in rankings.items()}
    n_pooled = sum(ranking.item_idx.shape[1] for ranking in offered.values())
    merged = fuse(
        offered,
        params.user_weights(n_history),
        rank_constant=params.rank_constant,
        top_k=n_pooled,
        method=params.method,
    )
    is_new = PopularityModel.fit(split.user_item(split.train)).n_interactions < WELL_KNOWN_USERS

    def user_ndcg(rank: int) -> npt.NDArray[np.float64]:
        tried = params.model_copy(update={"new_item_rank": rank})
        lists = {WITH_NEW_ITEMS: with_new_items(merged, is_new, CUTOFF, tried).ranking}
        table = MergeTable.of(lists, relevant, FusionMethod.RECIPROCAL_RANK, params.rank_constant, CUTOFF)
        return table.user_ndcg({WITH_NEW_ITEMS: 1.0})[n_history > 0]

    without = user_ndcg(0)
    chosen, after = 0, without
    for rank in NEW_ITEM_RANKS:
        found = user_ndcg(rank)
        change = found - without
        is_sure = change.mean() < -SURE * change.std() / np.sqrt(len(change))
        if not is_sure and change.mean() >= -MAX_LOSS * without.mean():
            chosen, after = rank, found
    what = f"among {chosen} nearest" if chosen else "none"
    tried = _trial(WITH_NEW_ITEMS, what, len(without), float(without.mean()), float(after.mean()), params.weights)
    return params.model_copy(update={"new_item_rank": chosen}), tried


def _shortened(ranking: Ranking, n_kept: int) -> Ranking:
    return Ranking(ranking.item_idx[:, :n_kept], ranking.score[:, :n_kept])


def _tune_context(
    rankings: Mapping[str, Ranking],
    user_idx: IdxVector,
    n_history: npt.NDArray[np.integer],
    split: InteractionSplit,
    params: HybridParams,
    in_category: sp.csr_matrix,
) -> tuple[HybridParams, dict[str, object]]:
    """
    Find the strength under which validation events are foreseen best, each in its own context.

    It stays 0 unless the mean gain of a user is ``SURE`` standard errors above zero: the best of several is above it by
    chance alone.
    """
    lists = fuse(
        rankings,
        params.user_weights(n_history),
        rank_constant=params.rank_constant,
        top_k=params.n_candidates,
        method=params.method,
    ).ranking
    lifts = ContextLifts.fit(split.train, split.train[c.ITEM_IDX].to_numpy(), in_category)
    row = np.full(len(split.users), NO_IDX)
    row[user_idx] = np.arange(len(user_idx))
    events = split.validation[row[split.validation[c.USER_IDX]] != NO_IDX]
    of_event = row[events[c.USER_IDX]]
    of_strengths = user_gains(lists, of_event, events, lifts, CONTEXT_STRENGTHS)
    gains = dict(zip(CONTEXT_STRENGTHS, of_strengths, strict=True))
    best = max(gains, key=lambda strength: gains[strength].mean())
    gained = gains[best] - gains[NO_CONTEXT]
    if gained.mean() <= SURE * gained.std() / np.sqrt(len(gained)):
        best = NO_CONTEXT
    before, after = (float(gains[strength].mean()) for strength in (NO_CONTEXT, best))
    tried = _trial(IN_CONTEXT, f"strength {best:g}", len(user_idx), before, after, params.weights)
    return params.model_copy(update={"context_strength": best}), tried


def tune_weights(
    start: Weights, worth_of: Callable[[Weights], float], *, grid: Sequence[float] = GRID
) -> tuple[dict[str, float], float]:
    """
    Climb from ``start`` to weights under which ``worth_of`` is largest.

    One source after the other is given each share of ``grid``, the others keeping their proportions, until a round over
    all sources brings nothing. Shares stay above 0, so that every source serves the users whom no other knows.

    Parameters
    ----------
    start
        Weights to begin with, by source, each > 0; kept where nothing is better.
    worth_of
        Worth of weights, higher is better, e.g. the mean ndcg of the merged lists.
    grid
        Shares to try, each in (0, 1).

    Returns
    -------
    dict
        Weights by source, summing to 1.
    float
        Their worth. On the data they were tuned on, so an optimistic one.
    """
    best = {name: start[name] / sum(start.values()) for name in sorted(start)}
    best_worth = worth_of(best)
    for _ in range(MAX_ROUNDS if len(best) > 1 else 0):
        worth_before = best_worth
        for name in best:
            centre = best
            for share in grid:
                rest = (1 - share) / (1 - centre[name])
                weights = {other: share if other == name else weight * rest for other, weight in centre.items()}
                if (found := worth_of(weights)) > best_worth:
                    best, best_worth = weights, found
        if best_worth == worth_before:
            break
    return best, best_worth


@dataclass(frozen=True)
class MergeTable:
    """
    The candidates of every user with what each source gives them; unlike ``fuse`` it knows what is relevant.

    Attributes
    ----------
    names
        Sources, in the order of the first axis of ``gain``.
    gain
        float32 of shape (n_sources, n_users, n_candidates): 0 where the source does not offer the item.
    is_relevant
        Bool of shape (n_users, n_candidates): held-out items.
    ideal
        float64 of shape (n_users,): discounted gain of a perfect list.
    """

    names: tuple[str, ...]
    gain: npt.NDArray[np.float32]
    is_relevant: npt.NDArray[np.bool_]
    ideal: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        rankings: Mapping[str, Ranking],
        relevant: sp.csr_matrix,
        method: FusionMethod,
        rank_constant: int,
        n_candidates: int,
    ) -> Self:
        """
        Lay the lists side by side.

        Parameters
        ----------
        rankings
            Lists of each source over the same users; the first ``n_candidates`` items count.
        relevant : CSR of shape (n_users, n_items)
            Stored entries are held-out items; every user has one.
        method, rank_constant
            What an item gains in a list.
        """
        names = tuple(sorted(rankings))
        n_users, n_items = relevant.shape
        users: list[IdxVector] = []
        items: list[IdxVector] = []
        gains: list[npt.NDArray[np.float64]] = []
        for name in names:
            item_idx = rankings[name].item_idx[:, :n_candidates]
            present = item_idx != NO_IDX
            rows, places = np.nonzero(present)
            if method is FusionMethod.SCORE:
                gains.append(score_gain(rankings[name].score[:, :n_candidates], present)[present])
            else:
                gains.append(reciprocal_rank(places + 1, rank_constant))
            users.append(rows)
            items.append(item_idx[present])
        source = np.repeat(np.arange(len(names)), [len(rows) for rows in users])
        pairs, row = np.unique(np.concatenate(users) * n_items + np.concatenate(items), return_inverse=True)
        pool_user = pairs // n_items
        n_pooled = np.bincount(pool_user, minlength=n_users)
        place = np.arange(len(pairs)) - (np.cumsum(n_pooled) - n_pooled)[pool_user]
        width = max(CUTOFF, int(n_pooled.max(initial=0)))
        gain = np.zeros((len(names), n_users, width), dtype=np.float32)
        gain[source, pool_user[row], place[row]] = np.concatenate(gains)
        held_out = np.repeat(np.arange(n_users), np.diff(relevant.indptr)) * n_items + relevant.indices
        is_relevant = np.zeros((n_users, width), dtype=np.bool_)
        is_relevant[pool_user, place] = np.isin(pairs, held_out)
        discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(CUTOFF) + 2))])
        return cls(names, gain, is_relevant, discounts[np.minimum(np.diff(relevant.indptr), CUTOFF)])

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.ideal)

    def only(self, users: BoolVector) -> Self:
        """Return the table of some users."""
        return type(self)(self.names, self.gain[:, users], self.is_relevant[users], self.ideal[users])

    def ndcg(self, weights: Weights) -> float:
        """Return the mean of ``user_ndcg``."""
        return float(self.user_ndcg(weights).mean())

    def user_ndcg(self, weights: Weights) -> npt.NDArray[np.float64]:
        """
        Return the ndcg@10 of each user's list merged under ``weights``, float64 of shape (n_users,).

        As ``evaluation.metrics`` defines it, over what the sources offer: the fallback's items are not in the table.
        Within a user normalising the weights over the sources that answer changes no order.
        """
        score = np.tensordot(np.array([weights[name] for name in self.names], dtype=np.float32), self.gain, axes=1)
        top = np.argpartition(-score, CUTOFF - 1, axis=1)[:, :CUTOFF]
        values = np.take_along_axis(score, top, axis=1)
        top = np.take_along_axis(top, np.lexsort((top, -values), axis=1), axis=1)
        hits = np.take_along_axis(self.is_relevant, top, axis=1)
        return np.asarray(hits @ (1 / np.log2(np.arange(CUTOFF) + 2)) / self.ideal)


def fit_trending(split: InteractionSplit) -> tuple[TrendingModel, ValidationRanking]:
    """
    Fit what is trending on train and validation, with the half-lives that foresee validation and newcomers best.

    Returns
    -------
    TrendingModel
        Fitted on ``split.fitting``.
    ValidationRanking
        Lists of the same half-life fitted on ``split.train``.
    """
    best: tuple[float, float, ValidationRanking] | None = None
    for half_life in HALF_LIVES:
        model = TrendingModel.fit(split.train, len(split.items), half_life, half_life)
        lists = ValidationRanking.of(GlobalRanker(TRENDING, model.weight), split)
        relevant = split.user_item(split.validation)[lists.user_idx]
        table = MergeTable.of({TRENDING: lists.ranking}, relevant, FusionMethod.RECIPROCAL_RANK, 60, CUTOFF)
        worth = table.ndcg({TRENDING: 1.0})
        if best is None or worth > best[0]:
            best = worth, half_life, lists
    assert best is not None  # noqa: S101 # there is always a half-life
    for_newcomers = newcomer_half_life(split.fitting, len(split.items))
    return TrendingModel.fit(split.fitting, len(split.items), best[1], for_newcomers), best[2]


def _trial(segment: str, method: str, n_users: int, before: float, after: float, weights: Weights) -> dict[str, object]:
    return {c.SEGMENT: segment, c.METHOD: method, c.N_USERS: n_users, c.BEFORE: before, c.AFTER: after, **weights}
