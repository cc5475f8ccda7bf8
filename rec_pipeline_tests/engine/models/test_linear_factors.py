"""Closed-form factors against the same thing computed densely."""

import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.models.linear_factors import SCALE, linear_factors, linear_settings

N_USERS, N_ITEMS = 50, 12
SETTINGS = {"item_exponent": 0.25, "shrinkage": 0.8}
CHOICES = {"item_exponents": (0.25, 0.45), "shrinkages": (0.8, 6.4)}


@pytest.fixture
def train(rng: np.random.Generator) -> sp.csr_matrix:
    """Return interactions of 50 users with 11 of 12 items; user 7 has none."""
    has = rng.random((N_USERS, N_ITEMS)) < np.linspace(0.6, 0.2, N_ITEMS)
    has[7], has[:, 11] = False, False
    return sp.csr_matrix(has.astype(np.float32))


def test_scores_are_those_of_the_dense_ridge_regression_in_logits(train: sp.csr_matrix) -> None:
    history, items = linear_factors(train, N_ITEMS, seed=0, **SETTINGS)

    has = train.toarray().astype(np.float64)
    counts, popularity = np.maximum(has.sum(axis=1), 1), has.sum(axis=0)
    scale = (np.maximum(popularity, 1) / popularity.mean()) ** -0.25
    scaled = (counts / counts.mean())[:, None] ** -0.25 * has * scale
    gram = scaled.T @ scaled
    noise = 0.8 * np.mean(scaled**2) * (np.sqrt(N_USERS) + np.sqrt(N_ITEMS)) ** 2
    ridge = gram @ np.linalg.inv(gram + noise * np.eye(N_ITEMS))
    expected = (has * scale) @ (ridge @ ridge) / scale
    ours = (train @ history) @ items.T
    assert (items[11] == 0).all()
    np.testing.assert_allclose(ours, SCALE * expected, rtol=1e-3, atol=1e-2)


def test_columns_beyond_the_rank_are_zero_and_the_seed_decides(train: sp.csr_matrix) -> None:
    history, items = linear_factors(train, 20, seed=1, **SETTINGS)

    assert history.shape == items.shape == (N_ITEMS, 20)
    assert not history[:, N_ITEMS:].any()
    assert not items[:, N_ITEMS:].any()
    np.testing.assert_array_equal(linear_factors(train, 20, seed=1, **SETTINGS)[1], items)


def test_a_larger_shrinkage_makes_weak_directions_weaker_and_scores_larger(train: sp.csr_matrix) -> None:
    history, weak = linear_factors(train, 4, seed=0, item_exponent=0.25, shrinkage=3.2)
    same, items = linear_factors(train, 4, seed=0, **SETTINGS)

    np.testing.assert_array_equal(history, same)
    strengths = [np.linalg.norm(vectors, axis=0) for vectors in (weak, items)]
    assert (np.diff(strengths[0] / strengths[1]) < 0).all()
    assert strengths[0][0] > strengths[1][0]


def test_users_in_blocks_give_what_all_at_once_do(train: sp.csr_matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = linear_factors(train, 4, seed=0, **SETTINGS)
    chosen = linear_settings(train, 4, seed=0, **CHOICES)
    monkeypatch.setattr("rec_pipeline.engine.models.linear_factors.USERS_AT_ONCE", 7)

    in_blocks = linear_factors(train, 4, seed=0, **SETTINGS)

    for found, expected in zip(in_blocks, at_once, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert linear_settings(train, 4, seed=0, **CHOICES) == chosen


def taste(rng: np.random.Generator, per_user: int) -> sp.csr_matrix:
    """Draw interactions of 400 users with 60 items, of which each user likes one of four quarters best."""
    liked = np.arange(400)[:, None] % 4 == np.arange(60) % 4
    score = rng.gumbel(size=liked.shape) + 2.0 * liked - 0.05 * np.arange(60)
    return sp.csr_matrix(score >= np.sort(score, axis=1)[:, [-per_user]], dtype=np.float32)


def test_settings_follow_the_density_of_the_data(rng: np.random.Generator) -> None:
    sparse, dense = (linear_settings(taste(rng, n), 32, seed=0, **CHOICES) for n in (3, 20))

    assert sparse[1] == 6.4
    assert dense[1] == 0.8


def test_what_is_given_is_kept_and_without_two_interactions_of_anybody_the_first_is_taken() -> None:
    alone = sp.csr_matrix(np.eye(5, dtype=np.float32))

    assert linear_settings(alone, 3, seed=0, item_exponents=[0.3], shrinkages=[5.0]) == (0.3, 5.0)
    assert linear_settings(alone, 3, seed=0, **CHOICES) == (0.25, 0.8)
