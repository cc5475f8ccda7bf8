"""The recommender that is published: several sources merged into one list, which is always as long as asked for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import BoolVector, Ranking, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.fusion import NO_RANK, Explained, fuse
from rec_pipeline.engine.recommenders.params import CONTENT, EXPLORATION, TRENDING, HybridParams
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.recommenders.reranking import cap_categories, diversify, explore, with_new_items


@dataclass(frozen=True)
class HybridRanker:
    """
    Merges its sources by weight, which the user's activity decides, and fills up with the fallback.

    Items that a source offers come first. The fallback's items follow, in its order, until the list is full or
    the catalogue is exhausted; a user whom no personal source knows gets the fallback's list.

    Attributes
    ----------
    sources
        The recommenders that are merged, by name.
    fallback
        A recommender that serves everyone: what newcomers take.
    params
        Weights by source name, how they merge, pool size. Weights of sources that are not there have no effect.
    name
        Name in reports.
    eligible
        Bool of shape (n_items,): items that may ever be recommended, all by default. A request can only narrow it.
    impersonal
        Names of sources that say the same to everybody. They count where a personal source knows the user; an item of
        theirs alone makes no list personal.
    lifts
        How context changes what is taken; without them it changes nothing.
    vectors
        Unit item vectors for variety, float32 of shape (n_items, dim).
    in_category
        Categories of the items to be capped, CSR of shape (n_items, n_categories).
    is_new
        Bool of shape (n_items,): items for which places are kept; without it none are.

    Raises
    ------
    ConfigurationError
        If a source has no weight, the fallback has the name of a source, or the params ask for variety or a cap and
        there are no vectors or categories.
    """

    sources: Mapping[str, Ranker]
    fallback: Ranker
    params: HybridParams = field(default_factory=HybridParams)
    name: str = "hybrid"
    eligible: BoolVector | None = None
    impersonal: Collection[str] = (TRENDING,)
    lifts: ContextLifts | None = None
    vectors: npt.NDArray[np.float32] | None = None
    in_category: sp.csr_matrix | None = None
    is_new: BoolVector | None = None

    def __post_init__(self) -> None:
        if set(self.sources) - set(self.params.weights):
            raise ConfigurationError(
                f"hybrid weights are for {sorted(self.params.weights)} but the sources are {sorted(self.sources)}"
            )
        if self.fallback.name in self.sources:
            raise ConfigurationError(f"the fallback {self.fallback.name!r} must not be a source as well")
        if self.params.mmr_trade_off < 1 and self.vectors is None:
            raise ConfigurationError("mmr_trade_off is below 1 but there are no item vectors to compare")
        if self.params.category_cap is not None and self.in_category is None:
            raise ConfigurationError("category_cap is set but the items have no categories")

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """Return the merged list alone; scores never increase along it."""
        return self.recommend_explained(users, top_k, eligible=eligible).ranking

    def recommend_explained(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Explained:
        """Return the merged list with the rank and share of every source; the fallback is the last of the sources."""
        rankings = {name: self.rank_source(name, users, top_k, eligible=eligible) for name in self.active_sources}
        return self.merge(rankings, users, top_k, eligible=eligible)

    @property
    def active_sources(self) -> list[str]:
        """Names of the sources whose weight is above zero for somebody."""
        return [name for name in self.sources if self.params.is_active(name)]

    def rank_source(self, name: str, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """Return what one source hands to the merge for lists of ``top_k``; sources may be asked side by side."""
        n_candidates = max(top_k, self.params.n_candidates)
        return self.sources[name].recommend(users, n_candidates, eligible=self._narrowed(eligible))

    def merge(
        self,
        rankings: Mapping[str, Ranking],
        users: UserBatch,
        top_k: int,
        *,
        eligible: BoolVector | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Explained:
        """
        Merge what ``rank_source`` returned, keep places for new items, re-rank, fill up from the fallback, explore.

        Re-ranking looks at ``n_candidates`` merged items: lifts of ``context`` first, then variety, then caps.

        A source that is not in ``rankings``, because it failed or was late, is left out: the weights of the others
        stand in for its own. With none at all the list is the fallback's.
        """
        params, context = self.params, context or {}
        is_lifted = bool(self.context_bucket(context))
        is_reranked = is_lifted or params.mmr_trade_off < 1 or params.category_cap is not None
        nothing = Ranking(np.full((len(users), 1), NO_IDX), np.full((len(users), 1), -np.inf, dtype=np.float32))
        given = {name: rankings.get(name, nothing) for name in self.active_sources}
        n_kept = max(top_k, params.n_candidates) if is_reranked else top_k
        keeps_places = self.is_new is not None and params.new_item_rank > 0 and CONTENT in given
        merged = fuse(
            given,
            self._weights(given, users),
            rank_constant=params.rank_constant,
            top_k=max(n_kept, sum(found.item_idx.shape[1] for found in given.values())) if keeps_places else n_kept,
            method=params.method,
        )
        if self.is_new is not None and keeps_places:
            merged = with_new_items(merged, self.is_new, n_kept, params)
        personal = [name not in self.impersonal for name in merged.sources]
        is_impersonal = merged.is_present & ~(merged.rank[:, :, personal] != NO_RANK).any(axis=2)
        merged = replace(merged, is_fallback=is_impersonal)
        if is_lifted and self.lifts is not None:
            score = self.lifts.lifted(merged.ranking, context, params.context_strength)
            merged = merged.at(np.argsort(-score, axis=1, kind="stable"), score)
        if params.mmr_trade_off < 1 and self.vectors is not None:
            n_varied = merged.ranking.item_idx.shape[1] if params.category_cap is not None else top_k
            places = diversify(merged.ranking, self.vectors, n_varied, params.mmr_trade_off)
            merged = merged.at(places, merged.ranking.score)
        if params.category_cap is not None and self.in_category is not None:
            places = cap_categories(merged.ranking, self.in_category, top_k, params.category_cap)
            merged = merged.at(places, merged.ranking.score)
        if is_reranked:
            merged = merged.first(top_k)
        allowed = self._narrowed(eligible)
        if merged.is_present.all():
            filled = merged.with_silent(self.fallback.name)
        else:
            filled = self._fill(merged, self.fallback.recommend(users, top_k, eligible=allowed))
        if not params.exploration_share:
            return filled
        drawn = explore(filled.ranking, users, params.exploration_share, params.exploration_seed, eligible=allowed)
        return filled.with_drawn(*drawn, source=EXPLORATION)

    def context_bucket(self, context: Mapping[str, str]) -> str:
        """Return what a context comes down to, equal for contexts of equal answers; empty if it changes nothing."""
        if self.lifts is None or not self.params.context_strength:
            return ""
        return self.lifts.bucket(context)

    def _weights(self, rankings: Mapping[str, Ranking], users: UserBatch) -> dict[str, npt.NDArray[np.float64]]:
        """Return the weights of each user; without a personal answer all is left to the fallback."""
        weights = self.params.user_weights(np.diff(users.history.indptr))
        is_known = np.zeros(len(users), dtype=np.bool_)
        for name in set(rankings) - set(self.impersonal):
            is_known |= (rankings[name].item_idx != NO_IDX).any(axis=1) & (weights[name] > 0)
        silenced = {name: np.where(is_known, weights[name], 0.0) for name in self.impersonal if name in weights}
        return weights | silenced

    def _narrowed(self, eligible: BoolVector | None) -> BoolVector | None:
        if self.eligible is None or eligible is None:
            return self.eligible if eligible is None else eligible
        return self.eligible & eligible

    def _fill(self, merged: Explained, fallback: Ranking) -> Explained:
        """
        Put the items of ``fallback`` (n_users, top_k) behind those of ``merged`` (n_users, top_k).

        ``top_k`` fallback items are enough: no more of them can be in the merged list already than it has items.
        """
        top_k = fallback.item_idx.shape[1]
        new_items = fallback.item_idx.copy()
        for place in range(top_k):  # a comparison a place keeps memory at (n_users, top_k)
            new_items[fallback.item_idx == merged.ranking.item_idx[:, place, None]] = NO_IDX
        added = fuse(
            {self.fallback.name: Ranking(new_items, fallback.score)},
            {self.fallback.name: 1.0},
            rank_constant=self.params.rank_constant,
            top_k=top_k,
        )
        is_present = np.concatenate([merged.is_present, added.is_present], axis=1)  # (n_users, 2 * top_k)
        order = np.argsort(~is_present, axis=1, kind="stable")[:, :top_k]

        def joined(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([first, second], axis=1)[np.arange(len(order))[:, None], order]

        fallback_column = ((0, 0), (0, 0), (len(merged.sources), 0))
        merged = merged.with_silent(self.fallback.name)
        score = joined(merged.ranking.score, added.ranking.score)
        return Explained(
            # No fallback item scores above one of a source.
            ranking=Ranking(
                joined(merged.ranking.item_idx, added.ranking.item_idx), np.minimum.accumulate(score, axis=1)
            ),
            sources=merged.sources,
            rank=joined(merged.rank, np.pad(added.rank, fallback_column)),
            share=joined(merged.share, np.pad(added.share, fallback_column)),
            is_fallback=joined(merged.is_fallback, added.is_present),
        )
