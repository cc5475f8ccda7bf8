from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.checks.fusion import (
    tuning_loses_nothing_on_what_it_was_tuned_on,
    weights_are_positive_and_sum_to_one,
)
from rec_pipeline.checks.training import recent_counts_stay_below_the_counts_of_all_time, something_is_trending
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.recommenders.tuning import EVERYBODY, FusionWeights
from rec_pipeline.resources.artifacts import SealedArtifact


def kept(folder: Path, weights: dict[str, float], after: float = 0.2) -> SealedArtifact:
    trials = pd.DataFrame({"segment": [EVERYBODY], "method": ["score"], "before": [0.1], "after": [after]})
    FusionWeights(HybridParams(weights=weights), trials).save(folder)
    return SealedArtifact(folder)


@pytest.mark.parametrize(
    ("weights", "passes"), [({"a": 0.7, "b": 0.3}, True), ({"a": 1.0, "b": 0.0}, False), ({"a": 7, "b": 3}, False)]
)
def test_weights_that_leave_a_source_out_or_do_not_sum_to_one_fail(
    tmp_path: Path, weights: dict[str, float], passes: bool
) -> None:
    assert weights_are_positive_and_sum_to_one(kept(tmp_path, weights)).passed is passes


@pytest.mark.parametrize(("after", "passes"), [(0.1, True), (0.09, False)])
def test_tuning_that_loses_fails(tmp_path: Path, after: float, passes: bool) -> None:
    assert tuning_loses_nothing_on_what_it_was_tuned_on(kept(tmp_path, {"a": 1.0}, after)).passed is passes


def test_trending_is_bounded_by_popularity_and_not_flat() -> None:
    popular = PopularityModel(np.array([3, 2]))
    fine, high, flat = np.float32([1.5, 0.5]), np.float32([1.5, 2.5]), np.float32([1, 1])
    good = TrendingModel(fine, 7, fine, 30)

    assert recent_counts_stay_below_the_counts_of_all_time(good, popular).passed
    assert not recent_counts_stay_below_the_counts_of_all_time(TrendingModel(high, 7, fine, 30), popular).passed
    assert not recent_counts_stay_below_the_counts_of_all_time(TrendingModel(fine, 7, high, 30), popular).passed
    assert something_is_trending(good).passed
    assert not something_is_trending(TrendingModel(flat, 7, fine, 30)).passed
    assert not something_is_trending(TrendingModel(fine, 7, flat, 30)).passed
