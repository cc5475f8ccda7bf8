from typing import TypeAlias

import numpy as np
import pytest

from rec_pipeline.engine.index.vector_index import IndexParams, VectorIndex, build_index
from rec_pipeline.engine.recommenders.collaborative import CollaborativeRanker, rank_candidates
from rec_pipeline_tests.engine.recommenders.planted import InnerProductModel, batch, embeddings

N_USERS, N_ITEMS = 12, 50
Parts: TypeAlias = tuple[InnerProductModel, VectorIndex]


@pytest.fixture
def parts(rng: np.random.Generator) -> Parts:
    items = embeddings(rng.standard_normal((N_ITEMS, 6), dtype=np.float32))
    users = rng.standard_normal((N_USERS, 6), dtype=np.float32)
    hidden = rng.standard_normal((1, N_ITEMS), dtype=np.float32)
    return InnerProductModel(users, items.vectors, hidden), build_index(items, IndexParams())


def test_two_stages_that_retrieve_everything_equal_exact_scoring(parts: Parts, rng: np.random.Generator) -> None:
    model, index = parts
    users = batch((rng.random((N_USERS, N_ITEMS)) < 0.2).astype(float).tolist())
    eligible = rng.random(N_ITEMS) < 0.8

    exact = CollaborativeRanker(model).recommend(users, 10, eligible=eligible)
    staged = CollaborativeRanker(model, index, n_candidates=N_ITEMS, exact_up_to=0).recommend(
        users, 10, eligible=eligible
    )

    assert np.array_equal(staged.item_idx, exact.item_idx)
    np.testing.assert_allclose(staged.score, exact.score, rtol=1e-5)


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,SQ8"])
def test_scores_are_those_of_the_model_whatever_the_index_knows(parts: Parts, factory: str) -> None:
    model, _ = parts
    index = build_index(embeddings(model.items), IndexParams(factory=factory))
    users = batch(np.zeros((N_USERS, N_ITEMS)).tolist())

    staged = CollaborativeRanker(model, index, n_candidates=N_ITEMS, exact_up_to=0).recommend(users, 10)

    np.testing.assert_allclose(staged.score, CollaborativeRanker(model).recommend(users, 10).score, rtol=1e-5)


def test_the_second_stage_orders_only_what_the_first_retrieved(parts: Parts) -> None:
    model, index = parts
    users = batch(np.zeros((N_USERS, N_ITEMS)).tolist())

    staged = CollaborativeRanker(model, index, n_candidates=10, exact_up_to=0).recommend(users, 10)

    retrieved = np.argsort(-(model.users @ model.items.T), axis=1)[:, :10]
    assert np.array_equal(np.sort(staged.item_idx, axis=1), np.sort(retrieved, axis=1))
    score = np.take_along_axis(model.score(users), staged.item_idx, axis=1)
    assert (score[:, :-1] >= score[:, 1:]).all()


def test_without_an_index_the_same_candidates_are_found(parts: Parts, rng: np.random.Generator) -> None:
    model, index = parts
    users = batch((rng.random((N_USERS, N_ITEMS)) < 0.2).astype(float).tolist())
    eligible = rng.random(N_ITEMS) < 0.8

    lists = [
        CollaborativeRanker(model, given, n_candidates=10, exact_up_to=0).recommend(users, 10, eligible=eligible)
        for given in (index, None)
    ]

    assert np.array_equal(lists[0].item_idx, lists[1].item_idx)
    assert not np.array_equal(lists[1].item_idx, CollaborativeRanker(model).recommend(users, 10).item_idx)


def test_a_catalogue_up_to_the_bound_is_scored_exactly(parts: Parts) -> None:
    model, index = parts
    users = batch(np.zeros((N_USERS, N_ITEMS)).tolist())

    bounded = CollaborativeRanker(model, index, n_candidates=10, exact_up_to=N_ITEMS).recommend(users, 10)

    assert np.array_equal(bounded.item_idx, CollaborativeRanker(model).recommend(users, 10).item_idx)


@pytest.mark.parametrize("exact_up_to", [0, N_ITEMS])
def test_an_unknown_user_gets_no_list(parts: Parts, exact_up_to: int) -> None:
    model, index = parts
    users = batch(np.zeros((2, N_ITEMS)).tolist(), user_idx=[-1, 3])

    ranking = CollaborativeRanker(model, index, exact_up_to=exact_up_to).recommend(users, 5)

    assert (ranking.item_idx[0] == -1).all()
    assert (ranking.item_idx[1] >= 0).all()


def test_candidates_with_equal_scores_are_ordered_by_item_row() -> None:
    ranked = rank_candidates(np.array([[9, 4, 6]]), np.array([[0.5, 0.5, 0.7]], dtype=np.float32), top_k=3)

    assert ranked.item_idx.tolist() == [[6, 4, 9]]


def test_one_candidate_left_is_still_recommended() -> None:
    ranked = rank_candidates(np.array([[9, -1], [3, 4]]), np.array([[0.5, -np.inf], [0, 0]], dtype=np.float32), top_k=2)

    assert ranked.item_idx.tolist() == [[9, -1], [-1, -1]]
