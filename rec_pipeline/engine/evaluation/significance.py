"""
How sure a difference is: bootstrap intervals, paired tests and Holm's correction, all over users.

Users are the unit that is resampled, because the values of one user under two recommenders belong together. Equal seeds
and equal user counts draw equal resamples, so that everything in one report is paired.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from rec_pipeline.engine.evaluation.metrics import FloatMatrix, FloatVector

CHUNK_CELLS: Final = 2**22  # resampling weights held at once: 32 MiB of float64


@dataclass(frozen=True)
class Interval:
    """A mean over ``n_users`` users and its bootstrap percentile interval; all NaN when no user has a value."""

    mean: float
    low: float
    high: float
    n_users: int


@dataclass(frozen=True)
class PairedComparison:
    """
    Mean of ``first`` minus ``second`` over the same users.

    Attributes
    ----------
    first, second
        Names of the two recommenders.
    difference, low, high
        Mean difference and its paired bootstrap interval.
    p
        Two-sided p value of the sign-flip permutation test: how often chance alone gives a difference this large.
    p_holm
        ``p`` corrected for all pairs that were tested together.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def bootstrap_means(values: FloatMatrix, n_resamples: int, seed: int) -> FloatMatrix:
    """
    Average each column over resamples of the rows, drawn with replacement.

    Parameters
    ----------
    values : float64 of shape (n_users, n_columns)
        NaN where a value is undefined: averages are over those that are drawn and defined.
    n_resamples : int
        Resamples, >= 1.
    seed : int
        The same seed and ``n_users`` draw the same resamples.

    Returns
    -------
    float64 of shape (n_resamples, n_columns)
        NaN where a resample holds no defined value. Memory beside it and ``values``: 100 MiB at most for up to
        four million users.

    References
    ----------
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, section 6.
    """
    n_users = len(values)
    rng = np.random.default_rng(seed)
    is_defined = ~np.isnan(values)
    filled = values if is_defined.all() else np.where(is_defined, values, 0.0)
    partial = np.flatnonzero(~is_defined.all(axis=0))
    present = is_defined[:, partial].astype(np.float64)
    means = np.empty((n_resamples, values.shape[1]))
    for rows in _chunks(n_resamples, n_users):
        drawn = rng.integers(n_users, size=(rows.stop - rows.start, n_users))
        drawn += np.arange(len(drawn))[:, None] * n_users
        # How often each user was drawn: averaging all columns of a resample is then one row of a matrix product.
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        means[rows] = times @ filled / n_users
        n_present = times @ present
        shares = np.divide(n_users, n_present, out=np.full(n_present.shape, np.nan), where=n_present > 0)
        means[rows, partial] *= shares
    return means


def bootstrap_intervals(values: FloatMatrix, *, n_resamples: int, confidence: float, seed: int) -> list[Interval]:
    """
    Return the mean of each column with its bootstrap percentile interval.

    Parameters
    ----------
    values : float64 of shape (n_users, n_columns)
        NaN where a value is undefined; such users do not count.
    n_resamples : int
        Resamples of the users.
    confidence : float
        Probability the interval is meant to cover, in (0, 1).
    seed : int
        Seed of the resamples.
    """
    n_defined = (~np.isnan(values)).sum(axis=0)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = [Interval(np.nan, np.nan, np.nan, 0)] * values.shape[1]
    columns = np.flatnonzero(n_defined)
    if len(columns):
        low, high = np.nanquantile(bootstrap_means(values[:, columns], n_resamples, seed), tails, axis=0)
        mean = np.nanmean(values[:, columns], axis=0)
        for i, column in enumerate(columns):
            intervals[column] = Interval(float(mean[i]), float(low[i]), float(high[i]), int(n_defined[column]))
    return intervals


def sign_flip_p_values(differences: FloatMatrix, *, n_resamples: int, seed: int) -> FloatVector:
    """
    Test whether each column of paired differences has mean zero.

    Were two recommenders exchangeable for every user, each difference could as well have the other sign. The p value is
    the share of random sign assignments whose mean is at least as far from zero as the observed one, that one counted
    as an assignment itself; so it is never 0 and is at least ``1 / (n_resamples + 1)``.

    Parameters
    ----------
    differences : float64 of shape (n_users, n_columns)
        No NaN.
    n_resamples : int
        Random sign assignments.
    seed : int
        Seed of the assignments.

    Returns
    -------
    float64 of shape (n_columns,)
        Two-sided p values; 1 where all differences are zero.

    References
    ----------
    Smucker, Allan & Carterette (2007), CIKM, on tests for paired retrieval results; the one added to both counts is
    Phipson & Smyth (2010).
    """
    n_users = len(differences)
    rng = np.random.default_rng(seed)
    total = differences.sum(axis=0)
    # Equal sums differ by rounding with the order of their terms; those must count as equally far.
    bound = np.abs(total) - 1e-12 * np.abs(differences).sum(axis=0)
    n_as_far = np.zeros(differences.shape[1])
    for rows in _chunks(n_resamples, n_users):
        keeps = rng.integers(2, size=(rows.stop - rows.start, n_users), dtype=np.int8).astype(np.float64)
        n_as_far += (np.abs(2 * (keeps @ differences) - total) >= bound).sum(axis=0)
    p_values: FloatVector = (n_as_far + 1) / (n_resamples + 1)
    return p_values


def holm(p_values: FloatVector) -> FloatVector:
    """
    Correct p values for having been tested together, by Holm's step-down method.

    The i-th smallest of m is multiplied by ``m - i + 1``, raised to the largest before it, and cut at 1.

    References
    ----------
    Holm (1979), Scandinavian Journal of Statistics 6(2).

    Examples
    --------
    >>> holm(np.array([0.03, 0.01, 0.04])).round(6)
    array([0.06, 0.03, 0.06])
    """
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(corrected, 1.0)


def compare_pairs(
    values: Mapping[str, FloatVector], *, n_resamples: int, confidence: float, seed: int
) -> list[PairedComparison]:
    """
    Compare every pair of recommenders on per-user values, with Holm's correction over all pairs.

    Parameters
    ----------
    values : mapping of name to float64 of shape (n_users,)
        One metric, the same users in the same order for all, no NaN.
    n_resamples, confidence, seed
        As for ``bootstrap_intervals``; the same number of sign assignments is drawn.

    Returns
    -------
    list of PairedComparison
        In the order of ``itertools.combinations`` of the names; empty for fewer than two.
    """
    pairs = list(combinations(values, 2))
    if not pairs:
        return []
    differences = np.column_stack([values[first] - values[second] for first, second in pairs])
    intervals = bootstrap_intervals(differences, n_resamples=n_resamples, confidence=confidence, seed=seed)
    p_values = sign_flip_p_values(differences, n_resamples=n_resamples, seed=seed)
    return [
        PairedComparison(first, second, interval.mean, interval.low, interval.high, float(p), float(corrected))
        for (first, second), interval, p, corrected in zip(pairs, intervals, p_values, holm(p_values), strict=True)
    ]


def _chunks(n_resamples: int, n_users: int) -> Iterator[slice]:
    size = max(1, CHUNK_CELLS // n_users)
    for start in range(0, n_resamples, size):
        yield slice(start, min(start + size, n_resamples))
