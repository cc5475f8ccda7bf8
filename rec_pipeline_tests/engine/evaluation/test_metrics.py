import math
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_pipeline.engine.data.batches import Ranking, is_member
from rec_pipeline.engine.evaluation import metrics

CUTOFFS = [1, 3, 5, 10]
TREC_NAMES = {"precision": "P", "recall": "recall", "ndcg": "ndcg_cut", "hit_rate": "success", "map": "map_cut"}


def relevant_of(rows: list[set[int]], n_items: int) -> sp.csr_matrix:
    dense = np.zeros((len(rows), n_items), dtype=np.float32)
    for row, items in enumerate(rows):
        dense[row, sorted(items)] = 1
    return sp.csr_matrix(dense)


def dcg(*ranks: int) -> float:
    return sum(1 / math.log2(rank + 1) for rank in ranks)


def test_every_metric_of_a_list_worked_out_by_hand() -> None:
    ranking = np.array([[4, 0, 2, 1]])  # hits at ranks 2 and 4 of three held-out items

    values = metrics.accuracy_metrics(ranking, relevant_of([{0, 1, 5}], 6), [1, 2, 4])

    expected = {
        "precision": [0, 1 / 2, 2 / 4],
        "recall": [0, 1 / 3, 2 / 3],
        "ndcg": [0, dcg(2) / dcg(1, 2), dcg(2, 4) / dcg(1, 2, 3)],
        "hit_rate": [0, 1, 1],
        "mrr": [0, 1 / 2, 1 / 2],
        "map": [0, (1 / 2) / 3, (1 / 2 + 2 / 4) / 3],
    }
    for metric, by_cutoff in expected.items():
        assert [values[f"{metric}@{k}"][0] for k in (1, 2, 4)] == pytest.approx(by_cutoff)


def test_all_metrics_are_nan_when_a_user_has_no_heldout_items() -> None:
    values = metrics.accuracy_metrics(np.array([[0, 1], [0, 1]]), relevant_of([set(), {0}], 3), [1, 2])

    assert all(np.isnan(value[0]) and np.isfinite(value[1]) for value in values.values())


def test_an_empty_list_scores_zero_and_a_short_one_is_not_excused() -> None:
    ranking = np.array([[-1, -1, -1, -1], [2, -1, -1, -1]])

    values = metrics.accuracy_metrics(ranking, relevant_of([{0}, {2, 3}], 4), [4])

    assert all(value[0] == 0 for value in values.values())
    assert values["precision@4"][1] == 1 / 4
    assert values["ndcg@4"][1] == pytest.approx(dcg(1) / dcg(1, 2))


def test_padding_is_no_hit_whatever_the_neighbouring_user_holds_out() -> None:
    last_item_everywhere = relevant_of([{4}, {4}, {4}], 5)

    values = metrics.accuracy_metrics(np.full((3, 2), -1), last_item_everywhere, [2])

    assert values["hit_rate@2"].tolist() == [0, 0, 0]


def test_unsorted_and_repeated_entries_of_relevant_count_once() -> None:
    messy = sp.csr_matrix((np.ones(3), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))

    values = metrics.accuracy_metrics(np.array([[2, 1]]), messy, [2])

    assert values["recall@2"][0] == 1 / 2
    assert messy.nnz == 3


@pytest.mark.parametrize("cutoffs", [[], [0], [3]])
def test_cutoffs_outside_the_list_are_refused(cutoffs: list[int]) -> None:
    with pytest.raises(ValueError, match="cutoffs"):
        metrics.accuracy_metrics(np.array([[0, 1]]), relevant_of([{0}], 2), cutoffs)


@pytest.mark.parametrize("item", [-2, 2])
def test_item_rows_outside_the_catalogue_are_refused(item: int) -> None:
    with pytest.raises(ValueError, match="item rows"):
        is_member(np.array([[item]]), relevant_of([{0}], 2))


def test_a_ranking_of_other_users_is_refused() -> None:
    with pytest.raises(ValueError, match="lists"):
        is_member(np.array([[0]]), relevant_of([{0}, {1}], 2))


def test_membership_agrees_with_sets_when_users_do_not_fit_one_block() -> None:
    rng = np.random.default_rng(3)
    n_items = 400_000  # two users a block
    held_out = sp.random(7, n_items, density=2e-4, format="csr", random_state=5)
    ranking = rng.integers(-1, n_items, size=(7, 50))
    ranking[:, :5] = [held_out[user].indices[:5] for user in range(7)]
    ranking[:, 5:10] = [held_out[user - 2].indices[:5] for user in range(7)]  # held out in the block before

    found = is_member(ranking, held_out)

    sets = [set(held_out[user].indices.tolist()) for user in range(7)]
    assert found.tolist() == [[int(item) in sets[user] for item in ranking[user]] for user in range(7)]


# --- against trec_eval --------------------------------------------------------------------------------------------


def trec(
    score: Any, listed: Any, relevant: sp.csr_matrix, measures: set[str], name: Any
) -> dict[str, dict[str, float]]:
    run = {str(u): {name(i): float(score[u, i]) for i in np.flatnonzero(listed[u]).tolist()} for u in range(len(score))}
    truth = {str(u): {name(int(i)): 1 for i in relevant[u].indices} for u in range(len(score))}
    result: dict[str, dict[str, float]] = pytrec_eval.RelevanceEvaluator(truth, measures).evaluate(run)
    return result


def test_metrics_agree_with_trec_eval_on_thousands_of_rankings_with_ties_short_lists_and_empty_users() -> None:
    rng = np.random.default_rng(11)
    n_users, n_items = 4000, 40
    score = rng.integers(0, 12, size=(n_users, n_items)).astype(np.float32)  # about three items a score
    score[rng.random((n_users, n_items)) < rng.random((n_users, 1))] = -np.inf  # lists of 0 to 40 items
    relevant = sp.csr_matrix((rng.random((n_users, n_items)) < rng.random((n_users, 1)) * 0.4).astype(np.float32))
    measures = {f"{trec_name}.{','.join(map(str, CUTOFFS))}" for trec_name in TREC_NAMES.values()} | {"recip_rank"}

    ours = metrics.accuracy_metrics(Ranking.from_scores(score, n_items).item_idx, relevant, [*CUTOFFS, n_items])
    # trec_eval puts the greater document name first among ties; ours is the lower row.
    theirs = trec(score, np.isfinite(score), relevant, measures, lambda item: f"{n_items - item:03d}")

    n_relevant, n_listed = np.diff(relevant.indptr), np.isfinite(score).sum(axis=1)
    assert (n_relevant == 0).sum() > 10
    assert (n_listed == 0).sum() > 10
    for user in range(n_users):
        if n_relevant[user] == 0:  # trec_eval leaves the user out
            assert str(user) not in theirs
            assert all(np.isnan(value[user]) for value in ours.values())
        else:
            expected = theirs[str(user)]
            for metric, trec_name in TREC_NAMES.items():
                for cutoff in CUTOFFS:
                    assert abs(ours[f"{metric}@{cutoff}"][user] - expected[f"{trec_name}_{cutoff}"]) < 1e-9
            assert abs(ours[f"mrr@{n_items}"][user] - expected["recip_rank"]) < 1e-9


def test_ties_follow_the_ranking_where_trec_eval_reorders_them_by_name() -> None:
    score = np.array([[1, 1, 0]], dtype=np.float32)
    relevant = relevant_of([{0}], 3)

    ours = metrics.accuracy_metrics(Ranking.from_scores(score, 3).item_idx, relevant, [3])
    theirs = trec(score, np.isfinite(score), relevant, {"recip_rank"}, lambda item: f"d{item}")

    assert ours["mrr@3"][0] == 1
    assert theirs["0"]["recip_rank"] == 1 / 2  # "d1" sorts after "d0", so trec_eval ranks it first


def test_mrr_stops_at_the_cutoff_where_trec_eval_reads_on() -> None:
    score = np.array([[3, 2, 1]], dtype=np.float32)
    relevant = relevant_of([{2}], 3)

    ours = metrics.accuracy_metrics(Ranking.from_scores(score, 3).item_idx, relevant, [2, 3])
    theirs = trec(score, np.isfinite(score), relevant, {"recip_rank"}, lambda item: f"d{item}")

    assert (ours["mrr@2"][0], ours["mrr@3"][0]) == (0, 1 / 3)
    assert theirs["0"]["recip_rank"] == pytest.approx(1 / 3)


def test_users_without_recommendations_stay_in_our_mean_where_trec_eval_drops_those_missing_from_a_run() -> None:
    ours = metrics.accuracy_metrics(np.array([[0], [-1]]), relevant_of([{0}, {0}], 2), [1])
    evaluator = pytrec_eval.RelevanceEvaluator({"a": {"0": 1}, "b": {"0": 1}}, {"P.1"})
    theirs = evaluator.evaluate({"a": {"0": 1.0}})

    assert ours["precision@1"].mean() == 1 / 2
    assert np.mean([user["P_1"] for user in theirs.values()]) == 1


# --- properties ---------------------------------------------------------------------------------------------------


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, sp.csr_matrix]:
    n_items = draw(st.integers(2, 12))
    n_users = draw(st.integers(1, 5))
    top_k = draw(st.integers(1, n_items))
    lists, held_out = [], []
    for _ in range(n_users):
        items = draw(st.permutations(range(n_items)))[: draw(st.integers(0, top_k))]
        lists.append([*items, *[-1] * (top_k - len(items))])
        held_out.append(draw(st.sets(st.integers(0, n_items - 1))))
    return np.array(lists, dtype=np.int64), relevant_of(held_out, n_items)


@given(rankings())
@settings(max_examples=150, deadline=None)
def test_accuracy_lies_between_zero_and_one_and_grows_with_the_cutoff(case: tuple[np.ndarray, sp.csr_matrix]) -> None:
    ranking, relevant = case
    cutoffs = list(range(1, ranking.shape[1] + 1))

    values = metrics.accuracy_metrics(ranking, relevant, cutoffs)

    has_held_out = np.diff(relevant.indptr) > 0
    for value in values.values():
        assert (np.isnan(value) == ~has_held_out).all()
        assert ((value[has_held_out] >= 0) & (value[has_held_out] <= 1 + 1e-12)).all()
    for metric in ("recall", "hit_rate", "mrr", "map"):
        by_cutoff = np.array([values[f"{metric}@{cutoff}"][has_held_out] for cutoff in cutoffs])
        assert (np.diff(by_cutoff, axis=0) >= 0).all()


@given(rankings(), st.data())
@settings(max_examples=150, deadline=None)
def test_moving_a_held_out_item_up_never_lowers_a_metric(
    case: tuple[np.ndarray, sp.csr_matrix], data: st.DataObject
) -> None:
    ranking, relevant = case
    hits = is_member(ranking, relevant)
    movable = np.argwhere(hits[:, 1:] & ~hits[:, :-1])
    if not len(movable):
        return
    user, position = data.draw(st.sampled_from(movable.tolist()))
    better = ranking.copy()
    better[user, [position, position + 1]] = ranking[user, [position + 1, position]]

    before = metrics.accuracy_metrics(ranking, relevant, list(range(1, ranking.shape[1] + 1)))
    after = metrics.accuracy_metrics(better, relevant, list(range(1, ranking.shape[1] + 1)))

    assert all(after[name][user] >= before[name][user] - 1e-12 for name in before)
    assert after[f"ndcg@{position + 1}"][user] > before[f"ndcg@{position + 1}"][user]


@given(rankings(), st.randoms())
@settings(max_examples=80, deadline=None)
def test_permuting_the_users_permutes_the_values_and_nothing_else(
    case: tuple[np.ndarray, sp.csr_matrix], random: Any
) -> None:
    ranking, relevant = case
    order = list(range(len(ranking)))
    random.shuffle(order)
    cutoffs, vectors = [ranking.shape[1]], np.eye(relevant.shape[1], 3, dtype=np.float32)

    values = metrics.accuracy_metrics(ranking, relevant, cutoffs) | metrics.list_diversity(ranking, vectors, cutoffs)
    shuffled = metrics.accuracy_metrics(ranking[order], relevant[order], cutoffs)
    shuffled |= metrics.list_diversity(ranking[order], vectors, cutoffs)

    for name, value in values.items():
        np.testing.assert_array_equal(value[order], shuffled[name])
    np.testing.assert_array_equal(
        metrics.exposure(ranking, relevant.shape[1], cutoffs),
        metrics.exposure(ranking[order], relevant.shape[1], cutoffs),
    )


# --- beyond accuracy ----------------------------------------------------------------------------------------------


def test_diversity_is_one_minus_the_mean_cosine_over_pairs() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ranking = np.array([[3, 1, 7, 0], [8, 2, -1, -1]])

    values = metrics.list_diversity(ranking, vectors, [2, 4])

    def by_pairs(items: list[int]) -> float:
        return float(np.mean([1 - unit[a] @ unit[b] for n, a in enumerate(items) for b in items[:n]]))

    assert values["diversity@2"] == pytest.approx([by_pairs([3, 1]), by_pairs([8, 2])], abs=1e-6)
    assert values["diversity@4"] == pytest.approx([by_pairs([3, 1, 7, 0]), by_pairs([8, 2])], abs=1e-6)


def test_diversity_leaves_out_items_without_a_vector_and_is_nan_below_two() -> None:
    vectors = np.array([[1, 0], [0, 3], [0, 0]], dtype=np.float32)

    values = metrics.list_diversity(np.array([[2, 0, 1], [2, 0, -1], [-1, -1, -1]]), vectors, [3])

    np.testing.assert_allclose(values["diversity@3"], [1, np.nan, np.nan], atol=1e-6)


def test_list_mean_divides_by_the_length_of_a_short_list() -> None:
    ranking = np.array([[0, 2, -1], [1, -1, -1], [-1, -1, -1]])

    values = metrics.list_mean("novelty", ranking, np.array([1.0, 2.0, 5.0]), [1, 3])

    np.testing.assert_array_equal(values["novelty@1"], [1, 2, np.nan])
    np.testing.assert_array_equal(values["novelty@3"], [(1 + 5) / 2, 2, np.nan])


def test_popularity_percentile_of_a_random_item_is_one_half() -> None:
    counts = np.random.default_rng(0).poisson(2, size=500)

    assert metrics.popularity_percentile(counts).mean() == pytest.approx(1 / 2)


def test_exposure_counts_lists_by_cutoff_and_feeds_coverage_and_gini() -> None:
    ranking = np.array([[0, 1], [0, 2], [0, -1]])
    eligible = np.array([True, True, True, True, False])

    shown = metrics.exposure(ranking, 5, [1, 2])

    assert shown.tolist() == [[3, 0, 0, 0, 0], [3, 1, 1, 0, 0]]
    assert [metrics.coverage(row, eligible) for row in shown] == [1 / 4, 3 / 4]
    # Sum of |a - b| over ordered pairs of 3, 1, 1, 0 is 2 * (2 + 2 + 3 + 0 + 1 + 1) = 18; 2 * 4 items * 5 shown = 40.
    assert metrics.exposure_gini(shown[1], eligible) == pytest.approx(18 / 40)


def test_gini_is_zero_for_equal_exposure_and_nan_without_any() -> None:
    everything = np.ones(3, dtype=bool)

    assert metrics.exposure_gini(np.array([2, 2, 2]), everything) == pytest.approx(0)
    assert math.isnan(metrics.exposure_gini(np.zeros(3, dtype=np.int64), everything))
    assert math.isnan(metrics.coverage(np.ones(3, dtype=np.int64), ~everything))


def test_every_metric_has_a_definition() -> None:
    assert set(metrics.DEFINITIONS) == {
        *metrics.ACCURACY_METRICS, *metrics.LIST_METRICS, *metrics.AGGREGATE_METRICS
    }  # fmt: skip


# --- one list -----------------------------------------------------------------------------------------------------


def test_recommender_metrics_of_one_list_worked_out_by_hand() -> None:
    scores = metrics.RecommenderMetrics().evaluate(["a", "b", "c"], ["c", "a", "x"])

    assert scores == pytest.approx(
        {
            "precision": 2 / 3,
            "recall": 2 / 3,
            "ndcg": dcg(1, 3) / dcg(1, 2, 3),
            "hit_rate": 1,
            "mrr": 1,
            "map": (1 + 2 / 3) / 3,
            "diversity": 1,
        }
    )


def test_a_repeated_id_hits_once_and_lowers_diversity() -> None:
    scores = metrics.RecommenderMetrics().evaluate(["a", "a"], ["a"])

    assert (scores["precision"], scores["recall"], scores["diversity"]) == (1 / 2, 1, 1 / 2)


def test_diversity_of_one_list_compares_vectors_or_categories() -> None:
    by_vector = metrics.RecommenderMetrics(item_vectors={"a": [1, 0], "b": [0, 2]})
    by_category = metrics.RecommenderMetrics(categories={"a": ["x"], "b": ["x", "y"], "c": ["z"]})

    assert by_vector.evaluate(["a", "b", "unknown"], ["a"])["diversity"] == pytest.approx(1)
    assert by_category.evaluate(["a", "b"], ["a"])["diversity"] == pytest.approx(1 - 1 / math.sqrt(2))
    assert math.isnan(by_vector.evaluate(["a", "unknown"], ["a"])["diversity"])


def test_no_recommendations_score_zero_and_no_ground_truth_is_undefined() -> None:
    nothing = metrics.RecommenderMetrics().evaluate([], ["a"])
    no_truth = metrics.RecommenderMetrics().evaluate(["a"], [])

    assert all(nothing[metric] == 0 for metric in metrics.ACCURACY_METRICS)
    assert math.isnan(nothing["diversity"])
    assert all(math.isnan(no_truth[metric]) for metric in metrics.ACCURACY_METRICS)


def test_vectors_and_categories_together_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        metrics.RecommenderMetrics({"a": [1.0]}, {"a": ["x"]})
