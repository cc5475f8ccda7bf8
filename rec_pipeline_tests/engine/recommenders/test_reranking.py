import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from rec_pipeline.engine.data.batches import IdxMatrix, Ranking, UserBatch
from rec_pipeline.engine.recommenders.reranking import cap_categories, diversify, explore, keep_places

VECTORS = np.array([[1, 0], [1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)


def taken(given: Ranking, places: IdxMatrix) -> list[list[int]]:
    return np.where(places < 0, -1, np.take_along_axis(given.item_idx, np.maximum(places, 0), axis=1)).tolist()


def scored(items: list[int], scores: list[float]) -> Ranking:
    return Ranking(np.array([items]), np.array([scores], dtype=np.float32))


def test_mmr_passes_over_the_twin_of_what_it_has() -> None:
    given = scored([0, 1, 2, 3], [1.0, 0.9, 0.8, 0.5])

    assert taken(given, diversify(given, VECTORS, 3, trade_off=1.0)) == [[0, 1, 2]]
    # After item 0: item 1 is worth 0.45 - 0.5, item 2 0.4 - 0.3, item 3 0.25 - 0.
    assert taken(given, diversify(given, VECTORS, 3, trade_off=0.5)) == [[0, 3, 2]]


def test_mmr_keeps_short_and_empty_lists() -> None:
    given = Ranking(np.array([[2, -1, -1], [-1, -1, -1]]), np.float32([[0.4, -np.inf, -np.inf], [-np.inf] * 3]))

    assert taken(given, diversify(given, VECTORS, 3, trade_off=0.3)) == [[2, -1, -1], [-1, -1, -1]]


@pytest.mark.parametrize("trade_off", [0.0, 0.3, 0.7])
def test_more_variety_never_means_more_alike(rng: np.random.Generator, trade_off: float) -> None:
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = np.array([rng.permutation(60)[:30] for _ in range(20)])
    given = Ranking(items, np.sort(rng.random(items.shape), axis=1)[:, ::-1].astype(np.float32))

    def alike(places: IdxMatrix) -> float:
        own = vectors[taken(given, places)]
        return float(np.mean(own @ own.transpose(0, 2, 1)))

    assert alike(diversify(given, vectors, 10, trade_off)) < alike(diversify(given, vectors, 10, 1.0))


def test_a_kept_place_is_taken_once_by_who_is_next_and_not_by_who_stands_there_anyway() -> None:
    given = scored([0, 1, 2, 3, 4, 5, 6], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])

    places, score = keep_places(given, np.array([[False] * 5 + [True] * 2]), 4, every=2)
    assert taken(given, places) == [[0, 5, 1, 6]]
    assert score[0, places[0]].tolist() == pytest.approx([0.9, 0.8, 0.8, 0.6])
    # The first candidate has the first place already; the second still has to come forward.
    assert taken(given, keep_places(given, np.array([[True] + [False] * 5 + [True]]), 4, every=2)[0]) == [[0, 1, 2, 6]]


@settings(max_examples=60)
@examples(seed=st.integers(0, 2**32 - 1), top_k=st.integers(1, 12), every=st.integers(2, 5))
def test_kept_places_move_candidates_forward_and_nobody_else_out_of_order(seed: int, top_k: int, every: int) -> None:
    rng = np.random.default_rng(seed)
    items = np.array([rng.permutation(20)[:14] for _ in range(5)])
    score = -np.sort(-rng.random(items.shape), axis=1).astype(np.float32)
    items[np.arange(14) >= rng.integers(0, 15, 5)[:, None]] = -1
    score[items == -1] = -np.inf
    is_candidate = rng.random(items.shape) < rng.random()
    given = Ranking(items, score)

    places, raised = keep_places(given, is_candidate, top_k, every)

    for row, chosen in enumerate(places):
        kept = chosen[chosen >= 0]
        n_present, candidates = int((items[row] >= 0).sum()), np.flatnonzero(is_candidate[row] & (items[row] >= 0))
        assert len(set(kept)) == len(kept) == min(top_k, n_present)
        for number in range(1, min(len(kept) // every, len(candidates)) + 1):
            assert candidates[number - 1] in kept[: number * every]
        others = [place for place in kept.tolist() if place not in candidates[: top_k // every]]
        assert others == sorted(others)
        assert (np.diff(raised[row, kept]) <= 0).all()
        assert (raised[row] >= score[row]).all()


def test_a_category_keeps_to_its_cap_while_others_can_fill_the_list() -> None:
    in_category = sp.csr_matrix(np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], dtype=np.int8))
    given = scored([0, 1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6, 0.5])

    assert taken(given, cap_categories(given, in_category, 3, cap=1)) == [[0, 3, 4]]
    assert taken(given, cap_categories(given, in_category, 4, cap=1)) == [[0, 3, 4, 1]]
    assert taken(given, cap_categories(given, in_category, 3, cap=3)) == [[0, 1, 2]]


def test_exploration_is_seeded_marked_and_keeps_the_first_place() -> None:
    items = np.tile(np.arange(10), (50, 1))
    given = Ranking(items, np.tile(np.linspace(1, 0.1, 10, dtype=np.float32), (50, 1)))
    seen = sp.csr_matrix((np.arange(40) == 39).astype(np.float32)[None, :].repeat(50, axis=0))
    eligible = np.arange(40) != 38

    users = UserBatch(np.arange(50), seen)

    drawn, marked = explore(given, users, 0.3, 5, eligible=eligible)
    again, _ = explore(given, users, 0.3, 5, eligible=eligible)
    other, _ = explore(given, users, 0.3, 6, eligible=eligible)

    assert np.array_equal(drawn.item_idx, again.item_idx)
    assert not np.array_equal(drawn.item_idx, other.item_idx)
    assert np.array_equal(drawn.item_idx != items, marked)
    assert not marked[:, 0].any()
    assert 0.2 < marked[:, 1:].mean() < 0.4
    assert not np.isin(drawn.item_idx, [38, 39]).any()
    assert all(len(set(row)) == 10 for row in drawn.item_idx.tolist())


def test_exploration_draws_no_more_than_there_is() -> None:
    given = scored([0, 1, 2], [0.9, 0.8, 0.7])

    drawn, marked = explore(given, UserBatch(np.zeros(1, dtype=np.int64), sp.csr_matrix((1, 4))), 1.0, 0)

    assert sorted(drawn.item_idx[0].tolist())[-1] == 3
    assert marked.sum() == 1
