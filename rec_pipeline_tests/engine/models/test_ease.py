"""EASE against its definition, and on planted data."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import Ranking, UserBatch
from rec_pipeline.engine.models import ease
from rec_pipeline.engine.models.ease import EASEModel, EASEParams


def random_history(rng: np.random.Generator, n_users: int = 50, n_items: int = 23) -> sp.csr_matrix:
    return sp.csr_matrix((rng.random((n_users, n_items)) < 0.2).astype(np.float32) * 3)


@pytest.mark.parametrize("block_rows", [4, 1024])
def test_weights_solve_the_ridge_regression_of_each_item_on_all_others(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(ease, "BLOCK_ROWS", block_rows)
    history = random_history(rng)
    rated = (history.toarray() > 0).astype(np.float64)

    weights = EASEModel.fit(history, EASEParams(l2=7)).weights

    for item in (0, 9, 22):
        others = np.delete(rated, item, axis=1)
        expected = np.linalg.solve(others.T @ others + 7 * np.eye(22), others.T @ rated[:, item])
        np.testing.assert_allclose(np.delete(weights[:, item], item), expected, atol=1e-5)
    assert (np.diag(weights) == 0).all()


def test_withheld_items_of_the_users_parity_come_first() -> None:
    liked = (np.arange(30)[:, None] + np.arange(20)) % 2 == 0
    liked[0, 4] = False
    history = sp.csr_matrix(liked.astype(np.float32))

    score = EASEModel.fit(history, EASEParams(l2=5)).score(UserBatch(np.arange(30), history))

    assert Ranking.from_scores(score, 1, excluded=history).item_idx[0, 0] == 4


def test_saving_and_loading_keeps_scores_and_no_history_scores_zero(rng: np.random.Generator, tmp_path: Path) -> None:
    history = random_history(rng)
    users = UserBatch(np.array([3, -1]), sp.csr_matrix(np.vstack([history[[3]].toarray(), np.zeros(23)])))
    model = EASEModel.fit(history, EASEParams())

    model.save(tmp_path)
    loaded = EASEModel.load(tmp_path)

    np.testing.assert_array_equal(loaded.score(users), model.score(users))
    assert (model.score(users)[1] == 0).all()
    assert loaded.params == model.params


def test_a_catalogue_above_the_limit_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="23 items, at most 22"):
        EASEModel.fit(random_history(rng), EASEParams(max_items=22))
