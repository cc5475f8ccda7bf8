"""Checks of the models."""

import dagster as dg
import numpy as np

from rec_pipeline.checks.verdict import verdict
from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.item_knn import ItemKNNModel
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.resources.artifacts import SealedArtifact

USERS_LOOKED_AT = 64
EVENTS_LOOKED_AT = 10


@dg.asset_check(asset="popularity_model", additional_ins={"interaction_split": dg.AssetIn()})
def counts_are_those_of_the_interactions(
    popularity_model: PopularityModel, interaction_split: InteractionSplit
) -> dg.AssetCheckResult:
    """The counts add up to the (user, item) pairs before the test part, each of which is there once."""
    n_pairs = len(interaction_split.fitting)
    n_counted = popularity_model.n_interactions.sum()
    return verdict(n_counted == n_pairs, n_counted=n_counted, n_pairs=n_pairs)


@dg.asset_check(asset="popularity_model")
def some_items_are_more_popular_than_others(popularity_model: PopularityModel) -> dg.AssetCheckResult:
    """Without differences the baseline would be arbitrary."""
    counts = popularity_model.n_interactions
    return verdict(counts.max() > counts.min(), highest=counts.max(), lowest=counts.min())


@dg.asset_check(asset="trending_model", additional_ins={"popularity_model": dg.AssetIn()})
def recent_counts_stay_below_the_counts_of_all_time(
    trending_model: TrendingModel, popularity_model: PopularityModel
) -> dg.AssetCheckResult:
    """No user counts more than once an item: what is trending is at most what is popular."""
    weights = np.maximum(trending_model.weight, trending_model.newcomer_weight)
    excess = (weights - popularity_model.n_interactions).max()
    return verdict(excess <= 1e-3 * popularity_model.n_interactions.max(), highest_excess=excess)


@dg.asset_check(asset="trending_model")
def something_is_trending(trending_model: TrendingModel) -> dg.AssetCheckResult:
    """Without differences everybody new would get an arbitrary list."""
    weight = np.stack([trending_model.weight, trending_model.newcomer_weight])
    differs = (weight.max(axis=1) > weight.min(axis=1)).all()
    return verdict(differs and np.isfinite(weight).all(), highest=weight.max(), lowest=weight.min())


@dg.asset_check(asset="item_knn_model")
def similarities_are_cosines(item_knn_model: ItemKNNModel) -> dg.AssetCheckResult:
    """Every stored similarity lies in (0, 1]."""
    values = item_knn_model.similarity.data
    lowest, highest = values.min(initial=1.0), values.max(initial=0.0)
    return verdict(lowest > 0 and highest <= 1 + 1e-6, lowest=lowest, highest=highest, n_similarities=len(values))


@dg.asset_check(asset="item_knn_model")
def no_item_is_its_own_neighbour(item_knn_model: ItemKNNModel) -> dg.AssetCheckResult:
    """Else every item would recommend itself."""
    n_own = np.count_nonzero(item_knn_model.similarity.diagonal())
    return verdict(n_own == 0, n_own_neighbours=n_own)


@dg.asset_check(asset="ncf_model", blocking=True, additional_ins={"interaction_split": dg.AssetIn()})
def scores_are_finite(ncf_model: SealedArtifact, interaction_split: InteractionSplit) -> dg.AssetCheckResult:
    """No score of a sample of users is NaN or infinite."""
    score = _sample_scores(ncf_model, interaction_split)
    n_bad = np.count_nonzero(~np.isfinite(score))
    return verdict(n_bad == 0, n_not_finite=n_bad, n_scores=score.size)


@dg.asset_check(asset="ncf_model", additional_ins={"interaction_split": dg.AssetIn()})
def users_get_different_scores(ncf_model: SealedArtifact, interaction_split: InteractionSplit) -> dg.AssetCheckResult:
    """A model that ranks the same item first for every user has learnt popularity and nothing else."""
    best = _sample_scores(ncf_model, interaction_split).argmax(axis=1)
    n_different = len(np.unique(best))
    return verdict(n_different > 1, n_different_first_items=n_different, n_users=len(best))


def _sample_scores(ncf_model: SealedArtifact, split: InteractionSplit) -> np.ndarray:
    from rec_pipeline.engine.models.ncf import NCFModel

    history = split.by_user.fitting.user_item
    users = np.flatnonzero(np.diff(history.indptr))[:USERS_LOOKED_AT]
    return ncf_model.open(NCFModel).score(UserBatch(users, history[users]))


@dg.asset_check(asset="sequence_model", blocking=True, additional_ins={"interaction_split": dg.AssetIn()})
def sequence_scores_are_finite(
    sequence_model: SealedArtifact, interaction_split: InteractionSplit
) -> dg.AssetCheckResult:
    """No score of a sample of users is NaN or infinite."""
    from rec_pipeline.engine.models.sequence import SequenceModel

    score = sequence_model.open(SequenceModel).score(_sample_of_sequences(interaction_split))
    n_bad = np.count_nonzero(~np.isfinite(score))
    return verdict(n_bad == 0, n_not_finite=n_bad, n_scores=score.size)


@dg.asset_check(asset="sequence_model", additional_ins={"interaction_split": dg.AssetIn()})
def order_changes_what_comes_next(
    sequence_model: SealedArtifact, interaction_split: InteractionSplit
) -> dg.AssetCheckResult:
    """A model that expects the same after the same events in reverse has learnt taste and no sequence."""
    from rec_pipeline.engine.models.sequence import SequenceModel

    model, users = sequence_model.open(SequenceModel), _sample_of_sequences(interaction_split)
    in_reverse = UserBatch(users.user_idx, users.history, np.ascontiguousarray(users.recent[:, ::-1]))
    n_different = np.count_nonzero(model.score(users).argmax(axis=1) != model.score(in_reverse).argmax(axis=1))
    return verdict(n_different > 0, n_different_first_items=n_different, n_users=len(users))


def _sample_of_sequences(split: InteractionSplit) -> UserBatch:
    """Return the last events of some users, as many of each."""
    history, sequences = split.by_user.fitting.user_item, split.by_user.fitting.sequences
    n_events = min(EVENTS_LOOKED_AT, int(sequences.lengths.max()))
    users = np.flatnonzero(sequences.lengths >= n_events)[:USERS_LOOKED_AT]
    return UserBatch(users, history[users], sequences.recent(users, n_events))
