"""Checks of what goes live and of what is live."""

import time

import dagster as dg
import numpy as np

from rec_pipeline.checks.verdict import verdict
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.tally import Tally
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.resources.artifacts import Artifacts, SealedArtifact
from rec_pipeline.resources.redis_store import RedisStore

USERS_READ_BACK = 100
MIN_SHARE_PERSONAL = 0.5  # below it the popular list goes to most users, and a model is not worth its keep


@dg.asset_check(
    asset="serving_bundle", blocking=True, additional_ins={"interactions": dg.AssetIn(), "items": dg.AssetIn()}
)
def bundle_knows_every_user_and_item(
    serving_bundle: SealedArtifact, interactions: ValidatedTable, items: ValidatedTable
) -> dg.AssetCheckResult:
    """Nobody who interacted and nothing in the catalogue is missing."""
    from rec_pipeline.engine.recommenders.bundle import ServingBundle

    bundle = serving_bundle.open(ServingBundle)
    n_users, n_items = len(Tally.of(interactions.kept, c.USER_ID).counts), len(items.kept)
    return verdict(
        (len(bundle.users), len(bundle.items)) == (n_users, n_items),
        n_users=len(bundle.users),
        n_items=len(bundle.items),
    )


@dg.asset_check(asset="serving_bundle", blocking=True)
def bundle_recommends_after_loading(serving_bundle: SealedArtifact) -> dg.AssetCheckResult:
    """The stored parts, loaded again, make a full list for somebody with history."""
    from rec_pipeline.engine.recommenders.bundle import ServingBundle

    bundle = serving_bundle.open(ServingBundle)
    user = np.flatnonzero(np.diff(bundle.history.indptr))[:1]
    recommender, eligible = bundle.recommender(), bundle.facts.shown_at(time.time())
    n_listed = sum(
        int(recommender.recommend_explained(users, 10, eligible=eligible).is_present.sum())
        for users in bundle.batches(user, 1)
    )
    return verdict(n_listed == min(10, eligible.sum()), n_listed=n_listed)


@dg.asset_check(asset="recommendations", blocking=True, additional_ins={"interactions": dg.AssetIn()})
def no_seen_item_is_recommended(
    recommendations: Generation, interactions: ValidatedTable, artifacts: dg.ResourceParam[Artifacts]
) -> dg.AssetCheckResult:
    """No list holds what its user already has."""
    from rec_pipeline.engine.recommenders.lists import count_seen

    with artifacts.scratch("recommendations") as scratch:
        n_seen = count_seen(recommendations.iterate(), interactions.kept, scratch)
    return verdict(n_seen == 0, n_seen=n_seen)


@dg.asset_check(asset="recommendations", blocking=True, additional_ins={"items": dg.AssetIn()})
def no_unavailable_item_is_recommended(recommendations: Generation, items: ValidatedTable) -> dg.AssetCheckResult:
    """Every recommended item is in the catalogue and available."""
    from rec_pipeline.engine.recommenders.filters import ItemFacts

    table = items.table.set_index(c.ITEM_ID)
    allowed = set(table.index[ItemFacts.of(table).shown_at(time.time())])
    found = set().union(*(batch[c.ITEM_ID].flatten().unique().to_pylist() for batch in recommendations.iterate()))
    return verdict(found <= allowed, n_not_allowed=len(found - allowed), n_items=len(found))


@dg.asset_check(asset="recommendations")
def most_lists_are_personal(recommendations: Generation) -> dg.AssetCheckResult:
    """The popular list is for the few about whom nothing is known."""
    share = 1 - recommendations.n_popular_users / recommendations.n_users
    return verdict(share >= MIN_SHARE_PERSONAL, share_personal=share, bound=MIN_SHARE_PERSONAL)


@dg.asset_check(asset="published_recommendations")
def the_live_generation_is_the_sealed_one(
    published_recommendations: Generation, redis_store: RedisStore
) -> dg.AssetCheckResult:
    """The store says that the generation just sealed is live."""
    from rec_pipeline.engine.store.bookkeeping import live_number

    live = live_number(redis_store.publisher())
    return verdict(live == published_recommendations.number, live=live, sealed=published_recommendations.number)


@dg.asset_check(asset="published_recommendations")
def lists_read_back_as_sealed(published_recommendations: Generation, redis_store: RedisStore) -> dg.AssetCheckResult:
    """A reader gets the sealed items in the sealed order, for the first users of the generation not forgotten."""
    from rec_pipeline.engine.store.reader import RecommendationReader
    from rec_pipeline.engine.store.suppression import suppressed, without_suppressed

    client = redis_store.publisher()
    reader, forgotten = RecommendationReader(client), suppressed(client, redis_store.generations)
    batch = next(published_recommendations.iterate(USERS_READ_BACK))
    sealed = without_suppressed(batch, forgotten, c.USER_ID).to_pylist()
    n_equal = 0
    for row in sealed:
        found = reader.get(row[c.USER_ID])
        n_equal += found is not None and [item.item_id for item in found.items] == row[c.ITEM_ID]
    return verdict(n_equal == len(sealed), n_equal=n_equal, n_read=len(sealed))
