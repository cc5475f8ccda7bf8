from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.models.popularity import PopularityModel

TRAIN = sp.csr_matrix(np.array([[9, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 0]], dtype=np.float32))


def batch(n_users: int, n_items: int) -> UserBatch:
    history = sp.csr_matrix((n_users, n_items), dtype=np.float32)
    return UserBatch(user_idx=np.arange(n_users), history=history)


def test_counts_users_and_not_weights() -> None:
    model = PopularityModel.fit(TRAIN)

    assert model.n_interactions.tolist() == [3, 0, 2, 0]


def test_a_stored_zero_is_no_interaction() -> None:
    train = TRAIN.copy()
    train.data[0] = 0

    assert PopularityModel.fit(train).n_interactions.tolist() == [2, 0, 2, 0]


def test_interactions_in_blocks_count_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_pipeline.engine.data.space.PART_ROWS", 2)

    assert PopularityModel.fit(TRAIN).n_interactions.tolist() == [3, 0, 2, 0]


def test_scores_everybody_the_same() -> None:
    score = PopularityModel.fit(TRAIN).score(batch(2, 4))

    assert score.dtype == np.float32
    assert score.tolist() == [[3, 0, 2, 0]] * 2


def test_survives_save_and_load(tmp_path: Path) -> None:
    PopularityModel.fit(TRAIN).save(tmp_path)

    assert PopularityModel.load(tmp_path).n_interactions.tolist() == [3, 0, 2, 0]
