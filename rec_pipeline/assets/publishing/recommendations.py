"""Everybody's list."""

from typing import Any

import dagster as dg
from pydantic import Field

from rec_pipeline.engine.compute import Compute
from rec_pipeline.resources.artifacts import Artifacts, SealedArtifact
from rec_pipeline.resources.champion import EVALUATED_BUNDLE
from rec_pipeline.resources.metadata import lists_metadata
from rec_pipeline.resources.progress_log import progress_log
from rec_pipeline.resources.redis_store import RedisStore


class RecommendationsConfig(dg.Config):
    """How the lists are made."""

    top_k: int = Field(default=50, ge=1, le=1000, description="Items in a list.")
    accept_variance: bool = Field(
        default=False, description="Seal although the number of users differs by over a fifth from what is live."
    )
    batch_size: int = Field(default=1024, ge=1, description="Users at a time; bounds memory, changes no result.")


@dg.asset(kinds={"numpy", "parquet"})
def recommendations(
    context: dg.AssetExecutionContext,
    config: RecommendationsConfig,
    serving_bundle: SealedArtifact,
    artifacts: dg.ResourceParam[Artifacts],
    redis_store: RedisStore,
    compute: dg.ResourceParam[Compute],
) -> dg.MaterializeResult[Any]:
    """
    Every user's top-K as a sealed generation on disk: one row a user, each item with score, sources and reason.

    Nothing seen and nothing unavailable is in a list; users without history get the popular one, marked so. Consumed by
    `published_recommendations`, and by a rollback later.
    """
    from rec_pipeline.engine.recommenders.bundle import ServingBundle
    from rec_pipeline.engine.recommenders.lists import popular_list, recommend_all
    from rec_pipeline.engine.store.gates import require_plausible
    from rec_pipeline.engine.store.generation import GenerationWriter

    bundle = serving_bundle.open(ServingBundle)
    with GenerationWriter(redis_store.generations, after=redis_store.last_number()) as writer:
        for lists in recommend_all(
            bundle,
            top_k=config.top_k,
            batch_size=config.batch_size,
            compute=compute,
            on_progress=progress_log(context, "ranked for {done:,} of {of:,} users"),
        ):
            writer.add(lists)
        require_plausible(
            writer.n_users,
            writer.n_popular_users,
            redis_store.live(),
            origin=bundle.metadata["data"]["origin"],
            accept_variance=config.accept_variance,
        )
        facts = {
            "bundle": artifacts.version("serving_bundle"),
            EVALUATED_BUNDLE: bundle.metadata["versions"][EVALUATED_BUNDLE],
            "dagster_run_id": context.run.run_id,
            "top_k": config.top_k,
            "lineage": bundle.metadata,
            "bundle_files": artifacts.digests("serving_bundle"),
        }
        generation = writer.seal(facts, popular=popular_list(bundle, top_k=config.top_k))
    return artifacts.keep(
        context,
        generation,
        lists_metadata(generation) | {"generation": generation.number, "n_popular_users": generation.n_popular_users},
    )
