import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.recommenders.fusion import fuse
from rec_pipeline_tests.engine.recommenders.planted import ranking


def test_scores_are_weighted_reciprocal_ranks_scaled_to_one() -> None:
    fused = fuse(
        {"a": ranking([[7, 3, 5]]), "b": ranking([[3, 9, -1]])}, {"a": 3.0, "b": 1.0}, rank_constant=60, top_k=5
    )

    assert fused.ranking.item_idx.tolist() == [[3, 7, 5, 9, -1]]
    expected = [0.75 * 61 / 62 + 0.25 * 61 / 61, 0.75 * 61 / 61, 0.75 * 61 / 63, 0.25 * 61 / 62, -np.inf]
    np.testing.assert_allclose(fused.ranking.score[0], expected, rtol=1e-6)


def test_ranks_and_shares_tell_what_each_source_gave() -> None:
    fused = fuse({"a": ranking([[7, 3]]), "b": ranking([[3, 9]])}, {"a": 3.0, "b": 1.0}, rank_constant=60, top_k=4)

    assert fused.sources == ("a", "b")
    assert fused.ranking.item_idx.tolist() == [[3, 7, 9, -1]]
    assert fused.rank.tolist() == [[[2, 1], [1, 0], [0, 2], [0, 0]]]
    share_of_a = (3 / 62) / (3 / 62 + 1 / 61)
    np.testing.assert_allclose(fused.share[0], [[share_of_a, 1 - share_of_a], [1, 0], [0, 1], [0, 0]], rtol=1e-6)
    assert not fused.is_fallback.any()


def test_an_item_first_everywhere_scores_one_whatever_the_weights() -> None:
    fused = fuse({"a": ranking([[4]]), "b": ranking([[4]])}, {"a": 0.4, "b": 0.3}, rank_constant=60, top_k=1)

    assert fused.ranking.score.tolist() == [[1.0]]


def test_weights_are_normalised_over_the_sources_that_answer_for_the_user() -> None:
    fused = fuse(
        {"a": ranking([[1, 2], [-1, -1]]), "b": ranking([[2, 3], [2, 3]])},
        {"a": 1.0, "b": 1.0},
        rank_constant=60,
        top_k=2,
    )

    np.testing.assert_allclose(fused.ranking.score[1], [1.0, 61 / 62], rtol=1e-6)


def test_equal_scores_are_ordered_by_item_row() -> None:
    fused = fuse({"a": ranking([[9, 2]]), "b": ranking([[2, 9]])}, {"a": 1.0, "b": 1.0}, rank_constant=60, top_k=2)

    assert fused.ranking.item_idx.tolist() == [[2, 9]]


def test_a_source_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight for each ranking"):
        fuse({"a": ranking([[1]])}, {"b": 1.0}, rank_constant=60, top_k=1)


def test_users_whom_no_source_knows_get_an_empty_list() -> None:
    fused = fuse({"a": ranking([[-1, -1], [0, -1]])}, {"a": 1.0}, rank_constant=60, top_k=2)

    assert fused.ranking.item_idx.tolist() == [[-1, -1], [0, -1]]
    assert fused.is_personal.tolist() == [False, True]


def test_an_empty_batch_gives_an_empty_result() -> None:
    fused = fuse(
        {"a": Ranking(np.empty((0, 3), np.int64), np.empty((0, 3), np.float32))}, {"a": 1.0}, rank_constant=60, top_k=2
    )

    assert fused.ranking.item_idx.shape == (0, 2)
    assert fused.share.shape == (0, 2, 1)


def rankings_of(n_users: int, n_items: int, width: int) -> st.SearchStrategy[Ranking]:
    def one_list(order: list[int], length: int) -> list[int]:
        return (order[:length] + [-1] * width)[:width]

    row = st.builds(one_list, st.permutations(range(n_items)), st.integers(0, min(n_items, width)))
    return st.lists(row, min_size=n_users, max_size=n_users).map(ranking)


@given(
    first=rankings_of(4, 6, 5),
    second=rankings_of(4, 6, 3),
    weights=st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)),
    users=st.permutations(range(4)),
)
def test_fusion_is_what_the_definition_says(
    first: Ranking, second: Ranking, weights: tuple[float, float], users: list[int]
) -> None:
    named = dict(zip("ab", weights, strict=True))
    fused = fuse({"a": first, "b": second}, named, rank_constant=60, top_k=6)

    for user in range(4):
        lists = {
            name: [item for item in given_.item_idx[user].tolist() if item >= 0]
            for name, given_ in (("a", first), ("b", second))
        }
        answering = sum(named[name] for name in "ab" if lists[name])
        expected = {
            item: sum(named[n] / answering * 61 / (61 + lists[n].index(item)) for n in "ab" if item in lists[n])
            for item in {*lists["a"], *lists["b"]}
        }
        found = [item for item in fused.ranking.item_idx[user].tolist() if item >= 0]
        assert sorted(found) == sorted(expected)
        np.testing.assert_allclose(fused.ranking.score[user, : len(found)], [expected[i] for i in found], rtol=1e-5)
        np.testing.assert_allclose(fused.share[user, : len(found)].sum(axis=1), 1, rtol=1e-5)
    assert (fused.ranking.score[:, :-1] >= fused.ranking.score[:, 1:]).all()

    # Weights go by name and not by position, and users do not influence each other.
    swapped = fuse({"b": second, "a": first}, dict(reversed(named.items())), rank_constant=60, top_k=6)
    assert np.array_equal(swapped.ranking.item_idx, fused.ranking.item_idx)
    moved = {
        name: Ranking(given_.item_idx[users], given_.score[users]) for name, given_ in (("a", first), ("b", second))
    }
    permuted = fuse(moved, named, rank_constant=60, top_k=6)
    assert np.array_equal(permuted.ranking.item_idx, fused.ranking.item_idx[users])
    assert np.array_equal(permuted.share, fused.share[users])
