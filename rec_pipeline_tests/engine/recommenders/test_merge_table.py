import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.evaluation.metrics import accuracy_metrics
from rec_pipeline.engine.recommenders.fusion import fuse
from rec_pipeline.engine.recommenders.merge_table import MIN_SHARE, MergeTable, fit_weights, weights_of
from rec_pipeline.engine.recommenders.params import FusionMethod


@pytest.mark.parametrize("method", list(FusionMethod))
def test_the_table_scores_what_fuse_merges_as_the_evaluation_does(
    rng: np.random.Generator, method: FusionMethod
) -> None:
    lists = {name: random_lists(rng, 25, 60, 20) for name in ("a", "b", "c")}
    relevant = sp.csr_matrix((rng.random((25, 60)) < 0.1).astype(np.float32))
    relevant = sp.csr_matrix(relevant.maximum(sp.eye(25, 60, format="csr")))
    weights = {"a": 0.5, "b": 0.2, "c": 0.3}

    found = MergeTable.of(lists, relevant, method, 60, 20).ndcg(weights)

    merged = fuse(lists, weights, rank_constant=60, top_k=10, method=method).ranking.item_idx
    assert found == pytest.approx(accuracy_metrics(merged, relevant, [10])["ndcg@10"].mean(), abs=1e-6)


def random_lists(rng: np.random.Generator, n_users: int, n_items: int, length: int) -> Ranking:
    item_idx = np.array([rng.permutation(n_items)[:length] for _ in range(n_users)])
    score = -np.sort(-rng.normal(size=item_idx.shape), axis=1).astype(np.float32)
    return Ranking(item_idx, score)


@pytest.fixture
def table(rng: np.random.Generator) -> MergeTable:
    """1,500 users choose one of 20 candidates by 3 a + 1 b, whatever c says of it."""
    gain = rng.random((3, 1500, 20), dtype=np.float32)
    odds = np.exp(np.tensordot(np.array([3.0, 1.0, 0.0]), gain, axes=1))
    taken = (odds.cumsum(axis=1) > rng.random((1500, 1)) * odds.sum(axis=1, keepdims=True)).argmax(axis=1)
    is_relevant = np.arange(20) == taken[:, None]
    return MergeTable(("a", "b", "c"), gain, np.ones_like(is_relevant), is_relevant, np.ones(1500))


def test_the_weights_behind_choices_are_found(table: MergeTable) -> None:
    found = fit_weights(table)

    assert found == pytest.approx([3.0, 1.0, 0.0], abs=0.25)  # some three standard errors


def test_no_weights_make_what_was_taken_likelier(table: MergeTable) -> None:
    def worth(coefficients: np.ndarray) -> float:
        odds = np.exp(np.tensordot(coefficients, table.gain.astype(np.float64), axes=1))
        chance = (odds * table.is_relevant).sum(axis=1) / odds.sum(axis=1)
        return float(np.log(chance).sum() - coefficients @ coefficients)

    found = fit_weights(table)

    for source in range(3):
        for step in (-0.02, 0.02):
            moved = np.maximum(found + step * np.eye(3)[source], 0)
            assert worth(found) >= worth(moved)


def test_few_users_stay_near_what_they_are_drawn_to(table: MergeTable) -> None:
    towards = np.array([0.0, 0.0, 3.0])
    moved = [
        np.abs(fit_weights(table.only(np.arange(1500) < n_users), towards, prior_users=5) - towards).sum()
        for n_users in (5, 50, 500)
    ]

    assert moved == sorted(moved)
    assert moved[0] < 0.5 < 4 < moved[-1]


def test_candidates_that_nobody_offers_change_nothing(table: MergeTable) -> None:
    def wider(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.zeros_like(values)], axis=-1)

    padded = MergeTable(table.names, wider(table.gain), wider(table.is_offered), wider(table.is_relevant), table.ideal)

    assert fit_weights(padded) == pytest.approx(fit_weights(table), abs=1e-3)


def test_users_who_took_nothing_offered_leave_weights_where_they_are(table: MergeTable) -> None:
    silent = MergeTable(table.names, table.gain, table.is_offered, np.zeros_like(table.is_relevant), table.ideal)

    assert fit_weights(silent, np.array([1.0, 2.0, 3.0])).tolist() == [1.0, 2.0, 3.0]
    assert fit_weights(silent).tolist() == [0.0, 0.0, 0.0]
    assert fit_weights(table.only(np.zeros(1500, dtype=bool))).tolist() == [0.0, 0.0, 0.0]


def test_every_source_keeps_a_share() -> None:
    assert weights_of(["a", "b"], np.array([3.0, 1.0])) == {"a": 0.75, "b": 0.25}
    assert weights_of(["a", "b"], np.array([1.0, 0.0]))["b"] == pytest.approx(MIN_SHARE / (1 + MIN_SHARE))
    assert weights_of(["a", "b"], np.zeros(2)) == {"a": 0.5, "b": 0.5}
    assert weights_of(["a"], np.array([0.4])) == {"a": 1.0}
