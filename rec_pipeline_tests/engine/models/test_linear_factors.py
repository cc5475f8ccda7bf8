"""Closed-form factors against the same thing computed densely."""

import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.models.linear_factors import SCALE, SHRINKAGE, linear_factors

N_USERS, N_ITEMS = 50, 12


@pytest.fixture
def train(rng: np.random.Generator) -> sp.csr_matrix:
    """Return interactions of 50 users with 11 of 12 items; user 7 has none."""
    has = rng.random((N_USERS, N_ITEMS)) < np.linspace(0.6, 0.2, N_ITEMS)
    has[7], has[:, 11] = False, False
    return sp.csr_matrix(has.astype(np.float32))


def test_scores_are_those_of_the_dense_ridge_regression_in_logits(train: sp.csr_matrix) -> None:
    history, items = linear_factors(train, N_ITEMS, seed=0)

    has = train.toarray().astype(np.float64)
    counts, popularity = np.maximum(has.sum(axis=1), 1), has.sum(axis=0)
    scale = (np.maximum(popularity, 1) / popularity.mean()) ** -0.25
    scaled = (counts / counts.mean())[:, None] ** -0.25 * has * scale
    gram = scaled.T @ scaled
    noise = SHRINKAGE * np.mean(scaled**2) * (np.sqrt(N_USERS) + np.sqrt(N_ITEMS)) ** 2
    ridge = gram @ np.linalg.inv(gram + noise * np.eye(N_ITEMS))
    expected = (has * scale) @ (ridge @ ridge) / scale
    ours = (train @ history) @ items.T
    assert (items[11] == 0).all()
    np.testing.assert_allclose(ours, SCALE * expected, rtol=1e-3, atol=1e-2)


def test_columns_beyond_the_rank_are_zero_and_the_seed_decides(train: sp.csr_matrix) -> None:
    history, items = linear_factors(train, 20, seed=1)

    assert history.shape == items.shape == (N_ITEMS, 20)
    assert not history[:, N_ITEMS:].any()
    assert not items[:, N_ITEMS:].any()
    np.testing.assert_array_equal(linear_factors(train, 20, seed=1)[1], items)
