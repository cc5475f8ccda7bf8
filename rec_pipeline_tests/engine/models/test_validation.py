import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.models import validation


def test_a_draw_of_the_users_who_can_be_looked_at_is_repeated_by_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    is_known = np.arange(100) % 2 == 0
    held_out = sp.csr_matrix(np.outer(np.arange(100) % 3 == 0, [1, 0]).astype(np.float32))
    candidates = np.flatnonzero(is_known & (np.arange(100) % 3 == 0))

    everybody = validation.users_looked_at(is_known, held_out, seed=0)
    monkeypatch.setattr(validation, "MAX_USERS", 8)
    drawn = [validation.users_looked_at(is_known, held_out, seed) for seed in (0, 0, 1)]

    np.testing.assert_array_equal(everybody, candidates)
    assert len(set(drawn[0])) == 8
    assert set(drawn[0]) < set(candidates)
    assert np.all(np.diff(drawn[0]) > 0)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
