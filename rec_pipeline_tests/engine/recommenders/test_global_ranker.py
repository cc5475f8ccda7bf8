import numpy as np
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_pipeline.engine.data.batches import Ranking, UserBatch
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top_k=st.integers(1, 12))
def test_it_ranks_as_scoring_everything_does(seed: int, top_k: int) -> None:
    rng = np.random.default_rng(seed)
    n_users, n_items = 5, 9
    weight = rng.integers(0, 4, n_items).astype(np.float32)
    eligible = rng.random(n_items) < 0.8
    history = sp.csr_matrix((rng.random((n_users, n_items)) < rng.random()).astype(np.float32))

    found = GlobalRanker("x", weight).recommend(UserBatch(np.arange(n_users), history), top_k, eligible=eligible)

    score = np.where(eligible, weight, np.float32(-np.inf))[None, :].repeat(n_users, axis=0)
    expected = Ranking.from_scores(score, top_k, excluded=history)
    assert np.array_equal(found.item_idx, expected.item_idx)
    assert np.array_equal(found.score, expected.score)
