import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rec_pipeline.engine.data.batches import Ranking, UserBatch, iterate_users
from rec_pipeline.engine.data.sequences import UserSequences


def test_ties_are_ordered_by_item_row_even_at_the_cut() -> None:
    scores = np.array([[1, 3, 2, 2, 2]], dtype=np.float32)

    assert Ranking.from_scores(scores, top_k=3).item_idx.tolist() == [[1, 2, 3]]


def test_excluded_items_and_minus_infinity_never_appear_and_lists_are_padded() -> None:
    scores = np.array([[5, 4, -np.inf, 1]], dtype=np.float32)
    excluded = sp.csr_matrix(np.array([[1, 0, 0, 0]], dtype=np.float32))

    ranking = Ranking.from_scores(scores, top_k=4, excluded=excluded)

    assert ranking.item_idx.tolist() == [[1, 3, -1, -1]]
    assert ranking.score.tolist() == [[4, 1, -np.inf, -np.inf]]


def test_scores_are_not_modified() -> None:
    scores = np.array([[5, 4]], dtype=np.float32)

    Ranking.from_scores(scores, top_k=1, excluded=sp.csr_matrix(np.eye(1, 2, dtype=np.float32)))

    assert scores.tolist() == [[5, 4]]


def test_a_list_longer_than_the_catalogue_is_padded() -> None:
    assert Ranking.from_scores(np.array([[1, 2]], dtype=np.float32), top_k=3).item_idx.tolist() == [[1, 0, -1]]


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.sampled_from([0.0, 1.0, 2.5, -1.0])
    ),
    st.integers(1, 14),
)
def test_a_ranking_equals_a_stable_sort(scores: np.ndarray, top_k: int) -> None:
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]

    ranking = Ranking.from_scores(scores, top_k)

    np.testing.assert_array_equal(ranking.item_idx[:, : expected.shape[1]], expected)
    assert (ranking.item_idx[:, expected.shape[1] :] == -1).all()


@pytest.mark.parametrize("n_different", [2, 30, 10_000])
@pytest.mark.parametrize("n_left", [3, 900])
def test_a_long_row_is_ranked_as_a_stable_sort_ranks_it(
    n_different: int, n_left: int, rng: np.random.Generator
) -> None:
    scores = rng.integers(n_different, size=(5, 1003)).astype(np.float32)
    scores[1] = 1
    excluded = np.ones(scores.shape, dtype=np.float32)
    excluded[:, rng.permutation(1003)[:n_left]] = 0

    ranking = Ranking.from_scores(scores, 20, sp.csr_matrix(excluded))

    left = np.where(excluded > 0, -np.inf, scores)
    expected = np.argsort(-left, axis=1, kind="stable")[:, :20]
    expected[np.isneginf(np.take_along_axis(left, expected, axis=1))] = -1
    np.testing.assert_array_equal(ranking.item_idx, expected)


def test_users_come_in_order_with_their_own_history() -> None:
    history = sp.csr_matrix(np.diag([1, 2, 3]).astype(np.float32))

    batches = list(iterate_users(history, np.array([2, 0, 1]), batch_size=2))

    assert [batch.user_idx.tolist() for batch in batches] == [[2, 0], [1]]
    assert batches[0].history.toarray().tolist() == [[0, 0, 3], [1, 0, 0]]


def test_history_must_have_a_row_for_each_user() -> None:
    with pytest.raises(ValueError, match="2 users but 1 history rows"):
        UserBatch(user_idx=np.array([0, 1]), history=sp.csr_matrix((1, 3), dtype=np.float32))


def test_an_unknown_user_has_no_history() -> None:
    history = sp.csr_matrix(np.diag([1, 2]).astype(np.float32))

    (batch,) = iterate_users(history, np.array([-1, 1]), batch_size=2)

    assert batch.user_idx.tolist() == [-1, 1]
    assert batch.history.toarray().tolist() == [[0, 0], [0, 2]]
    assert batch.has_history.tolist() == [False, True]


def test_users_come_with_their_last_events_in_order() -> None:
    history = sp.csr_matrix(np.ones((2, 4), dtype=np.float32))
    sequences = UserSequences(np.array([0, 1, 4]), np.array([3, 2, 0, 1]))

    batches = list(iterate_users(history, np.array([1, -1, 0]), batch_size=2, sequences=sequences))

    assert [batch.recent.tolist() for batch in batches] == [[[2, 0, 1], [-1, -1, -1]], [[3]]]


def test_without_sequences_there_are_no_events() -> None:
    (batch,) = iterate_users(sp.csr_matrix((3, 4), dtype=np.float32), np.array([1, 2]), batch_size=2)

    assert batch.recent.shape == (2, 0)


@pytest.mark.parametrize(
    ("recent", "message"),
    [
        ([[0, 1]], "1 rows of recent events"),
        ([[0, -1], [1, 2]], "at their left alone"),
        ([[0, 1], [-1, 4]], "4 of 4 items"),
        ([[0, 1], [-2, 3]], "from row -2"),
    ],
)
def test_recent_events_must_fit_the_batch(recent: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UserBatch(np.array([0, 1]), sp.csr_matrix((2, 4), dtype=np.float32), np.array(recent))
