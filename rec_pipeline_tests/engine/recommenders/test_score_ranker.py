import numpy as np

from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker
from rec_pipeline_tests.engine.recommenders.planted import TableScorer, batch

SCORES = np.array([[0.1, 0.4, 0.3, 0.2], [0.5, 0.5, 0.5, 0.5]], dtype=np.float32)


def test_the_best_unseen_eligible_items_come_first() -> None:
    recommender = ScoreRanker("table", TableScorer(SCORES))
    users = batch([[0, 1, 0, 0], [0, 0, 0, 0]])

    ranking = recommender.recommend(users, 3, eligible=np.array([True, True, True, False]))

    assert ranking.item_idx[0].tolist() == [2, 0, -1]
    assert recommender.name == "table"


def test_a_user_with_equal_scores_gets_no_list() -> None:
    ranking = ScoreRanker("table", TableScorer(SCORES)).recommend(batch([[0] * 4, [0] * 4]), 2)

    assert ranking.item_idx[1].tolist() == [-1, -1]


def test_equal_scores_are_an_answer_where_everyone_is_served() -> None:
    recommender = ScoreRanker("popularity", TableScorer(SCORES), serves_everyone=True)

    ranking = recommender.recommend(batch([[0] * 4, [1, 0, 0, 0]]), 2)

    assert ranking.item_idx[1].tolist() == [1, 2]


def test_the_models_scores_are_left_alone() -> None:
    scores = SCORES.copy()

    ScoreRanker("table", TableScorer(scores)).recommend(batch([[1, 1, 0, 0]] * 2), 2)

    assert np.array_equal(scores, SCORES)
