import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rec_pipeline.engine.data.batches import BoolVector, UserBatch
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.recommenders.hybrid import HybridRanker
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker
from rec_pipeline_tests.engine.recommenders.planted import ListRecommender, TableScorer, batch, ranking

NOTHING = [0.0, 0.0, 0.0, 0.0]


def hybrid(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    popularity: npt.ArrayLike,
    *,
    n_candidates: int = 100,
    eligible: BoolVector | None = None,
) -> HybridRanker:
    tables = {
        name: np.array(table, dtype=np.float32) for name, table in (("a", a), ("b", b), ("popularity", popularity))
    }
    return HybridRanker(
        sources={name: ScoreRanker(name, TableScorer(tables[name])) for name in "ab"},
        fallback=ScoreRanker("popularity", TableScorer(tables["popularity"]), serves_everyone=True),
        params=HybridParams(weights={"a": 0.4, "b": 0.3}, n_candidates=n_candidates),
        eligible=eligible,
    )


def test_sources_are_merged_by_weight() -> None:
    explained = hybrid([[4, 3, 2, 1]], [[1, 2, 3, 4]], [[0, 0, 0, 0]]).recommend_explained(batch([NOTHING]), 2)

    assert explained.ranking.item_idx.tolist() == [[0, 1]]
    assert explained.sources == ("a", "b", "popularity")
    assert explained.rank[0].tolist() == [[1, 4, 0], [2, 3, 0]]
    assert explained.ranking.score[0, 0] == pytest.approx((0.4 * 61 / 61 + 0.3 * 61 / 64) / 0.7)


def test_a_user_whom_no_source_knows_gets_the_popular_list_and_is_marked() -> None:
    recommender = hybrid([NOTHING], [NOTHING], [[1, 4, 3, 2]])

    explained = recommender.recommend_explained(batch([NOTHING]), 3)

    assert explained.ranking.item_idx.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(explained.ranking.score[0], [1, 61 / 62, 61 / 63], rtol=1e-6)
    assert explained.is_fallback.all()
    assert explained.is_personal.tolist() == [False]
    assert explained.rank[0].tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 3]]
    assert explained.share[0].tolist() == [[0, 0, 1]] * 3


def test_the_fallback_fills_up_behind_the_personal_items() -> None:
    popularity = TableScorer(np.array([[9, 5, 4, 1]], dtype=np.float32))
    recommender = HybridRanker(
        sources={"a": ListRecommender("a", ranking([[2, 0, -1, -1]]))},
        fallback=ScoreRanker("popularity", popularity, serves_everyone=True),
        params=HybridParams(weights={"a": 1.0}),
    )

    explained = recommender.recommend_explained(batch([NOTHING]), 4)

    assert explained.ranking.item_idx.tolist() == [[2, 0, 1, 3]]
    # Item 1 is second in popularity, but stands behind a personal item of the same worth; item 3 is fourth.
    np.testing.assert_allclose(explained.ranking.score[0], [1, 61 / 62, 61 / 62, 61 / 64], rtol=1e-6)
    assert explained.is_fallback.tolist() == [[False, False, True, True]]
    assert explained.is_personal.tolist() == [True]
    assert explained.rank[0].tolist() == [[1, 0], [2, 0], [0, 2], [0, 4]]
    assert explained.share[0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_a_fallback_item_never_scores_above_a_personal_one() -> None:
    recommender = HybridRanker(
        sources={"a": ListRecommender("a", ranking([[2]])), "b": ListRecommender("b", ranking([[3]]))},
        fallback=ScoreRanker("popularity", TableScorer(np.array([[9, 5, 4, 1]], np.float32)), serves_everyone=True),
        params=HybridParams(weights={"a": 0.4, "b": 0.3}),
    )

    score = recommender.recommend(batch([NOTHING]), 4).score[0]

    np.testing.assert_allclose(score, [4 / 7, 3 / 7, 3 / 7, 3 / 7], rtol=1e-6)


def test_without_a_personal_answer_what_is_the_same_for_everybody_leaves_it_to_the_fallback() -> None:
    recommender = HybridRanker(
        sources={
            "a": ListRecommender("a", ranking([[2, 0], [-1, -1]])),
            "trending": ListRecommender("trending", ranking([[3, 2], [3, 2]])),
        },
        fallback=ListRecommender("popularity", ranking([[1, 0, 2], [1, 0, 2]])),
        params=HybridParams(weights={"a": 0.5, "trending": 0.5}),
    )

    explained = recommender.recommend_explained(batch([NOTHING, NOTHING]), 3)

    assert explained.ranking.item_idx.tolist() == [[2, 3, 0], [1, 0, 2]]
    assert explained.is_personal.tolist() == [True, False]
    assert explained.share[1, :, explained.sources.index("popularity")].tolist() == [1, 1, 1]


def test_a_weight_of_zero_switches_a_source_off() -> None:
    recommender = HybridRanker(
        sources={
            "a": ScoreRanker("a", TableScorer(np.array([NOTHING], dtype=np.float32))),
            "b": ScoreRanker("b", TableScorer(np.array([[4, 3, 2, 1]], dtype=np.float32))),
        },
        fallback=ScoreRanker("popularity", TableScorer(np.array([[1, 2, 3, 4]], np.float32)), serves_everyone=True),
        params=HybridParams(weights={"a": 1.0, "b": 0.0}),
    )

    explained = recommender.recommend_explained(batch([NOTHING]), 2)

    assert explained.sources == ("a", "popularity")
    assert explained.ranking.item_idx.tolist() == [[3, 2]]


def test_every_source_needs_a_weight() -> None:
    with pytest.raises(ConfigurationError, match=r"\['a', 'c'\].*\['a', 'b'\]"):
        HybridRanker(
            sources={name: ScoreRanker(name, TableScorer(np.zeros((1, 4), np.float32))) for name in "ab"},
            fallback=ScoreRanker("popularity", TableScorer(np.zeros((1, 4), np.float32)), serves_everyone=True),
            params=HybridParams(weights={"a": 1.0, "c": 1.0}),
        )


def test_the_fallback_is_not_a_source() -> None:
    source = ScoreRanker("a", TableScorer(np.zeros((1, 4), np.float32)), serves_everyone=True)

    with pytest.raises(ConfigurationError, match="fallback 'a'"):
        HybridRanker({"a": source}, source, HybridParams(weights={"a": 1.0}))


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}, {"a": float("inf")}])
def test_weights_that_cannot_be_normalised_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="weight"):
        HybridParams(weights=weights)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top_k=st.integers(1, 9), n_candidates=st.integers(1, 9))
def test_lists_are_full_without_repeats_seen_or_ineligible_items(seed: int, top_k: int, n_candidates: int) -> None:
    rng = np.random.default_rng(seed)
    n_users, n_items = 6, 8
    a, b = (rng.integers(0, 4, (n_users, n_items)) * (rng.random((n_users, 1)) < 0.7) for _ in range(2))
    popularity = np.tile(rng.integers(0, 3, n_items), (n_users, 1))
    always = rng.random(n_items) < 0.9
    eligible = rng.random(n_items) < 0.7
    seen = rng.random((n_users, n_items)) < rng.random()
    recommender = hybrid(a, b, popularity, n_candidates=n_candidates, eligible=always)
    users = UserBatch(np.arange(n_users), sp.csr_matrix(seen.astype(np.float32)))

    explained = recommender.recommend_explained(users, top_k, eligible=eligible)

    items, score = explained.ranking.item_idx, explained.ranking.score
    allowed = eligible & always & ~seen
    for row, may in zip(items, allowed, strict=True):
        listed = row[row >= 0]
        assert len(set(listed)) == len(listed) == min(top_k, may.sum())
        assert may[listed].all()
        assert (row[len(listed) :] == -1).all()
    assert (score[:, :-1] >= score[:, 1:]).all()
    assert np.array_equal(np.isneginf(score), items == -1)
    np.testing.assert_allclose(explained.share.sum(axis=2), explained.is_present, atol=1e-6)
    assert np.array_equal(explained.rank > 0, explained.share > 0)
    assert np.array_equal(explained.is_fallback, explained.rank[:, :, 2] > 0)
    # No personal item stands behind a fallback item.
    assert not (explained.is_fallback[:, :-1] & explained.is_present[:, 1:] & ~explained.is_fallback[:, 1:]).any()

    order = rng.permutation(n_users)
    permuted = recommender.recommend(UserBatch(order, users.history[order]), top_k, eligible=eligible)
    assert np.array_equal(permuted.item_idx, items[order])


def test_a_source_that_did_not_answer_is_left_out_of_the_merge() -> None:
    recommender = hybrid([[4, 3, 2, 1]], [[1, 2, 3, 4]], [[0, 0, 0, 0]])
    users = batch([NOTHING])

    without_a = recommender.merge({"b": recommender.rank_source("b", users, 4)}, users, 4)
    with_none = recommender.merge({}, users, 4)

    assert without_a.ranking.item_idx.tolist() == [[3, 2, 1, 0]]
    assert without_a.ranking.score[0, 0] == 1
    assert with_none.is_fallback.all()
