import numpy as np

from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.engine.recommenders.content import ContentRanker, unit_rows
from rec_pipeline_tests.engine.recommenders.planted import batch, embeddings

SPACE, SEA, UNKNOWN = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
ITEMS = embeddings([SPACE, SPACE, [0.9, 0.1], SEA, [0.1, 0.9], UNKNOWN])
RECOMMENDER = ContentRanker(ITEMS, build_index(ITEMS, IndexParams()))


def test_items_like_the_history_come_first() -> None:
    ranking = RECOMMENDER.recommend(batch([[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]), 2)

    assert ranking.item_idx.tolist() == [[1, 2], [4, 2]]
    taste = SPACE - ITEMS.vectors[:5].mean(axis=0)
    expected = ITEMS.vectors[[1, 2]] @ (taste / np.linalg.norm(taste))
    np.testing.assert_allclose(ranking.score[0], expected, rtol=1e-6)


def test_the_taste_is_the_weighted_mean_of_the_history_less_the_catalogues() -> None:
    taste = RECOMMENDER.taste(batch([[1, 0, 0, 3, 0, 5]]))

    expected = (1 * ITEMS.vectors[0] + 3 * ITEMS.vectors[3]) / 4 - ITEMS.vectors[:5].mean(axis=0)
    np.testing.assert_allclose(taste, [expected / np.linalg.norm(expected)], rtol=1e-5)


def test_a_history_just_like_the_catalogue_shows_no_taste(rng: np.random.Generator) -> None:
    items = embeddings(rng.standard_normal((300, 16), dtype=np.float32))
    recommender = ContentRanker(items, build_index(items, IndexParams()))

    # Without the bound, rounding would be taken for a taste.
    assert not recommender.taste(batch([[1 / 3] * 300])).any()


def test_a_catalogue_without_vectors_recommends_nothing() -> None:
    nothing = embeddings([UNKNOWN, UNKNOWN])

    ranking = ContentRanker(nothing, build_index(nothing, IndexParams())).recommend(batch([[1, 0]]), 2)

    assert ranking.item_idx.tolist() == [[-1, -1]]


def test_items_without_a_vector_are_never_recommended() -> None:
    ranking = RECOMMENDER.recommend(batch([[1, 0, 0, 0, 0, 0]]), 6)

    assert ranking.item_idx.tolist() == [[1, 2, 4, 3, -1, -1]]


def test_a_user_whose_history_has_no_vector_gets_no_list() -> None:
    ranking = RECOMMENDER.recommend(batch([[0, 0, 0, 0, 0, 1], [0] * 6]), 2)

    assert (ranking.item_idx == -1).all()
    assert np.isneginf(ranking.score).all()


def test_ineligible_and_seen_items_are_left_out() -> None:
    ranking = RECOMMENDER.recommend(
        batch([[1, 0, 0, 0, 0, 0]]), 3, eligible=np.array([True, False, True, True, True, True])
    )

    assert ranking.item_idx.tolist() == [[2, 4, 3]]


def test_unit_rows_leaves_zero_rows_and_the_argument_alone() -> None:
    vectors = np.array([[3, 4], [0, 0]], dtype=np.float32)

    assert unit_rows(vectors).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]
    assert vectors.tolist() == [[3, 4], [0, 0]]
