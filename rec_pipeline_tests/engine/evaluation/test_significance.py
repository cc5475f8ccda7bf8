import numpy as np
import pytest
import scipy.stats

from rec_pipeline.engine.evaluation import significance
from rec_pipeline.engine.evaluation.significance import (
    bootstrap_intervals,
    bootstrap_means,
    compare_pairs,
    holm,
    sign_flip_p_values,
)

RESAMPLING = {"n_resamples": 2000, "confidence": 0.95, "seed": 7}


def test_interval_of_a_large_sample_is_the_normal_one() -> None:
    values = np.random.default_rng(0).exponential(size=(3000, 1))

    (interval,) = bootstrap_intervals(values, n_resamples=4000, confidence=0.95, seed=1)

    half_width = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_intervals_cover_the_truth_about_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(2)
    samples = rng.normal(size=(120, 400))  # 400 columns with true mean 0, resampled together

    intervals = bootstrap_intervals(samples, n_resamples=1000, confidence=0.9, seed=3)

    assert np.mean([interval.low <= 0 <= interval.high for interval in intervals]) == pytest.approx(0.9, abs=0.05)


def test_same_seed_draws_the_same_users_so_that_differences_are_paired() -> None:
    first, second = np.random.default_rng(0).random((2, 50, 3))

    paired = bootstrap_means(first - second, 200, seed=4)

    np.testing.assert_allclose(bootstrap_means(first, 200, seed=4) - bootstrap_means(second, 200, seed=4), paired)
    assert not np.allclose(bootstrap_means(first - second, 200, seed=5), paired)


def test_memory_chunks_change_no_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((40, 2))
    whole = bootstrap_means(values, 101, seed=4)

    monkeypatch.setattr(significance, "CHUNK_CELLS", 7 * 40)

    np.testing.assert_allclose(bootstrap_means(values, 101, seed=4), whole)


def test_undefined_users_do_not_count() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan], [1.0, np.nan]])

    some, none = bootstrap_intervals(values, **RESAMPLING)

    assert (some.mean, some.n_users) == (pytest.approx(5 / 3), 3)
    assert 1 <= some.low < some.high <= 3
    assert none.n_users == 0
    assert np.isnan([none.mean, none.low, none.high]).all()


def test_resampled_means_leave_undefined_users_out_of_numerator_and_denominator() -> None:
    values = np.array([[2.0], [np.nan], [2.0]])

    means = bootstrap_means(values, 500, seed=0)

    assert np.isnan(means).any()  # the undefined user drawn three times
    assert np.nanmin(means) == pytest.approx(2)
    assert np.nanmax(means) == pytest.approx(2)


def test_sign_flip_p_values_match_the_exact_permutation_test() -> None:
    differences = np.array([[0.5, 1.0], [0.2, 1.0], [-0.1, 1.0], [0.4, 1.0], [0.3, 1.0], [0.6, 1.0]])

    p_values = sign_flip_p_values(differences, n_resamples=20_000, seed=0)

    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    exact = (np.abs(signs @ differences) >= np.abs(differences.sum(axis=0)) - 1e-9).mean(axis=0)
    assert exact[1] == 2 / 64
    np.testing.assert_allclose(p_values, exact, atol=0.01)


def test_p_values_of_equal_recommenders_are_one_and_never_zero_otherwise() -> None:
    differences = np.column_stack([np.zeros(300), np.ones(300)])

    p_values = sign_flip_p_values(differences, n_resamples=99, seed=0)

    np.testing.assert_allclose(p_values, [1, 1 / 100])


def test_p_values_are_uniform_when_nothing_differs() -> None:
    differences = np.random.default_rng(9).normal(size=(60, 300))

    p_values = sign_flip_p_values(differences, n_resamples=999, seed=0)

    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


def test_holm_multiplies_step_by_step_and_keeps_order() -> None:
    corrected = holm(np.array([0.01, 0.04, 0.03, 0.005]))

    np.testing.assert_allclose(corrected, [3 * 0.01, 2 * 0.03, 2 * 0.03, 4 * 0.005])
    assert holm(np.array([0.6, 0.9])).tolist() == [1, 1]


def test_pairs_are_compared_on_the_same_users() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(400)  # users differ far more than recommenders do
    values = {"better": base + 0.01, "base": base, "noise": rng.permutation(base)}

    by_pair = {(pair.first, pair.second): pair for pair in compare_pairs(values, **RESAMPLING)}

    better = by_pair["better", "base"]
    assert better.difference == pytest.approx(0.01)
    assert better.low == pytest.approx(0.01)
    assert better.p_holm == pytest.approx(3 / 2001)
    noise = by_pair["base", "noise"]
    assert noise.low < 0 < noise.high
    assert noise.p > 0.05


def test_one_recommender_alone_has_no_pairs() -> None:
    assert compare_pairs({"only": np.ones(3)}, **RESAMPLING) == []
