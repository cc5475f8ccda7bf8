import numpy as np
import pandas as pd
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.recommenders.filters import ItemFacts
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker
from rec_pipeline.engine.recommenders.hybrid import HybridRanker
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker
from rec_pipeline_tests.engine.recommenders.planted import TableScorer

NOW = pd.Timestamp("2024-06-01", tz="UTC").timestamp()


def test_each_fact_forbids_on_its_own() -> None:
    items = pd.DataFrame(
        {
            "available": [True, False, True, True, True],
            "published_at": pd.to_datetime(["2024-01-01", None, "2024-07-01", None, None], utc=True),
            "expires_at": pd.to_datetime([None, None, None, "2024-05-31", "2024-06-02"], utc=True),
        }
    )

    assert ItemFacts.of(items).shown_at(NOW).tolist() == [True, False, False, False, True]


def test_a_catalogue_that_says_nothing_forbids_nothing() -> None:
    facts = ItemFacts.of(pd.DataFrame({"item_id": ["a", "b"]}))

    assert facts.eligible(NOW).all()
    assert facts.eligible(NOW, denied=["x"]).all()
    assert not facts.eligible(NOW, allowed=["x"]).any()


def test_an_item_expires_at_its_instant_and_not_before() -> None:
    facts = ItemFacts.of(pd.DataFrame({"expires_at": ["2024-06-01T00:00:00Z", "soon", ""]}))

    assert facts.shown_at(NOW - 1).tolist() == [True, True, True]
    assert facts.shown_at(NOW).tolist() == [False, True, True]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top_k=st.integers(1, 12), n_candidates=st.integers(1, 6))
def test_a_filtered_item_never_appears_and_lists_are_full(seed: int, top_k: int, n_candidates: int) -> None:
    rng = np.random.default_rng(seed)
    n_users, n_items, names = 4, 15, ["a", "b", "c"]
    of_item = [[name for name in names if rng.random() < 0.4] for _ in range(n_items)]
    expires = [None if rng.random() < 0.7 else "2024-05-01" for _ in range(n_items)]
    items = pd.DataFrame(
        {
            "categories": ["|".join(own) for own in of_item],
            "available": rng.random(n_items) < 0.8,
            "expires_at": pd.to_datetime(pd.Series(expires, dtype=object), utc=True),
        }
    )
    allowed = [name for name in names if rng.random() < 0.3]
    denied = [name for name in names if rng.random() < 0.2]
    excluded = rng.integers(-1, n_items, rng.integers(0, 5))
    seen = rng.random((n_users, n_items)) < 0.3

    eligible = ItemFacts.of(items).eligible(NOW, allowed=allowed, denied=denied, excluded=excluded)

    may = np.array(
        [
            items["available"][row]
            and expires[row] is None
            and (not allowed or bool(set(allowed) & set(of_item[row])))
            and not set(denied) & set(of_item[row])
            and row not in excluded
            for row in range(n_items)
        ]
    )
    assert np.array_equal(eligible, may)
    hybrid = HybridRanker(
        {
            "a": ScoreRanker("a", TableScorer(rng.random((n_users, n_items)).astype(np.float32))),
            "trending": GlobalRanker("trending", rng.random(n_items).astype(np.float32)),
        },
        GlobalRanker("popularity", rng.random(n_items).astype(np.float32)),
        HybridParams(weights={"a": 0.5, "trending": 0.5}, n_candidates=n_candidates),
    )
    users = UserBatch(np.arange(n_users), sp.csr_matrix(seen.astype(np.float32)))
    for user, row in enumerate(hybrid.recommend(users, top_k, eligible=eligible).item_idx):
        listed = row[row >= 0]
        assert (may & ~seen[user])[listed].all()
        assert len(set(listed)) == len(listed) == min(top_k, (may & ~seen[user]).sum())
