"""Checks of the merge."""

import dagster as dg
import numpy as np

from rec_pipeline.checks.verdict import verdict
from rec_pipeline.engine import columns as c
from rec_pipeline.resources.artifacts import SealedArtifact


@dg.asset_check(asset="fusion_weights")
def weights_are_positive_and_sum_to_one(fusion_weights: SealedArtifact) -> dg.AssetCheckResult:
    """Every source has a say for everybody and in every segment: some users only one source can answer."""
    from rec_pipeline.engine.recommenders.tuning import FusionWeights

    params = fusion_weights.open(FusionWeights).params
    every = [params.weights, *params.segment_weights.values()]
    lowest = min(min(weights.values()) for weights in every)
    sums = [sum(weights.values()) for weights in every]
    return verdict(lowest > 0 and np.allclose(sums, 1), lowest=lowest, furthest_sum=max(sums, key=lambda x: abs(x - 1)))


@dg.asset_check(asset="fusion_weights")
def tuning_loses_nothing_on_what_it_was_tuned_on(fusion_weights: SealedArtifact) -> dg.AssetCheckResult:
    """The merge is at least as good as the one it started from, in each segment too; new items may cost little."""
    from rec_pipeline.engine.recommenders.tuning import MAX_LOSS, WITH_NEW_ITEMS, FusionWeights

    trials = fusion_weights.open(FusionWeights).trials
    gains = trials[c.AFTER] - trials[c.BEFORE]
    may_lose = np.where(trials[c.SEGMENT] == WITH_NEW_ITEMS, MAX_LOSS * trials[c.BEFORE], 0.0)
    return verdict((gains >= -may_lose).all(), lowest_gain=gains.min(), highest_gain=gains.max())
