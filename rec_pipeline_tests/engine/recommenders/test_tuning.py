import numpy as np
import pytest

from rec_pipeline.engine.data.batches import IdxMatrix
from rec_pipeline.engine.recommenders.fusion import fuse
from rec_pipeline.engine.recommenders.tuning import GRID, tune_weights
from rec_pipeline_tests.engine.recommenders.planted import ranking

GOOD, BAD = ranking([[0, 1, 2, 3]] * 3), ranking([[6, 7, 8, 0]] * 3)
RELEVANT = {0, 1, 2}


def quality(item_idx: IdxMatrix) -> float:
    return float(np.isin(item_idx, list(RELEVANT)).mean())


def test_a_source_that_finds_nothing_gets_a_small_weight_but_not_none() -> None:
    weights, worth = tune_weights(
        {"good": GOOD, "bad": BAD}, {"good": 0.1, "bad": 0.9}, quality, rank_constant=60, top_k=3
    )

    assert worth == 1.0
    assert weights["good"] > weights["bad"] >= min(GRID)
    assert sum(weights.values()) == pytest.approx(1)


def test_the_start_is_kept_where_nothing_is_better() -> None:
    weights, _ = tune_weights({"x": GOOD, "y": GOOD}, {"x": 0.4, "y": 0.3}, quality, rank_constant=60, top_k=3)

    assert weights == pytest.approx({"x": 0.4 / 0.7, "y": 0.3 / 0.7})


def test_no_weights_of_the_grid_are_better_for_two_sources(rng: np.random.Generator) -> None:
    rankings = {name: ranking([rng.permutation(12)[:6].tolist() for _ in range(9)]) for name in "ab"}
    start = {"a": 0.4, "b": 0.3}

    weights, worth = tune_weights(rankings, start, quality, rank_constant=10, top_k=3)

    def worth_of(share: float) -> float:
        named = {"a": share, "b": 1 - share}
        return quality(fuse(rankings, named, rank_constant=10, top_k=3).ranking.item_idx)

    assert worth == worth_of(weights["a"])
    assert worth >= max(worth_of(share) for share in (*GRID, 4 / 7))


def test_a_single_source_needs_no_tuning() -> None:
    assert tune_weights({"x": GOOD}, {"x": 0.4}, quality, rank_constant=60, top_k=3) == ({"x": 1.0}, 1.0)
