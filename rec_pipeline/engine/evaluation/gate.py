"""Whether what was evaluated may be published."""

from dataclasses import dataclass

from rec_pipeline.engine.errors import GateRefusedError
from rec_pipeline.engine.evaluation.report import EvaluationReport


@dataclass(frozen=True)
class GateVerdict:
    """
    The decision of a gate and the numbers it was made from.

    Attributes
    ----------
    passed
        Whether to go on.
    difference, low, high
        Challenger minus the other, mean over the same users with its paired bootstrap interval.
    bound
        What ``low`` (or ``high``, for ``not_worse``) was held against.
    message
        One sentence with the names and numbers.
    """

    passed: bool
    difference: float
    low: float
    high: float
    bound: float
    message: str


def gate(
    report: EvaluationReport,
    challenger: str = "hybrid",
    baseline: str = "popularity",
    metric: str = "ndcg@10",
    min_difference: float = 0.0,
) -> GateVerdict:
    """
    Pass if ``challenger`` beats ``baseline`` beyond doubt: the interval of the difference lies above the bound.

    Parameters
    ----------
    report
        Holds both recommenders.
    challenger, baseline
        Names in the report.
    metric
        A per-user metric of the report.
    min_difference : float
        The lower end of the interval must be greater than this.

    Raises
    ------
    KeyError
        If the report has no such recommender or metric.
    """
    return _verdict(report, challenger, baseline, metric, min_difference, end="low")


def not_worse(
    report: EvaluationReport,
    challenger: str = "hybrid",
    champion: str = "champion",
    metric: str = "ndcg@10",
    max_loss: float = 0.0,
) -> GateVerdict:
    """
    Pass unless ``challenger`` is significantly worse: the interval of the difference reaches above ``-max_loss``.

    Parameters
    ----------
    report
        Holds both recommenders, the champion evaluated as one among the others on the same users.
    challenger, champion
        Names in the report.
    metric
        A per-user metric of the report.
    max_loss : float
        Loss that is accepted even if it is certain, >= 0.

    Raises
    ------
    KeyError
        If the report has no such recommender or metric.
    """
    return _verdict(report, challenger, champion, metric, 0.0 - max_loss, end="high")


def require_gate(report: EvaluationReport) -> GateVerdict:
    """
    Return the verdict of ``gate`` on ``report`` if it passed.

    Raises
    ------
    GateRefusedError
        If it did not, with the number that failed and its bound.
    """
    verdict = gate(report)
    if not verdict.passed:
        raise GateRefusedError(f"nothing is published: {verdict.message}")
    return verdict


def _verdict(
    report: EvaluationReport, challenger: str, other: str, metric: str, bound: float, *, end: str
) -> GateVerdict:
    interval = report.difference(challenger, other, metric)
    # Equal recommenders differ by exactly 0: that is no proof of being better, and none of being worse.
    passed = interval.low > bound if end == "low" else interval.high >= bound
    name, number = ("lower", interval.low) if end == "low" else ("upper", interval.high)
    relation = "above" if end == "low" else "at or above"
    message = (
        f"{metric} of {challenger} ({report.value(challenger, metric):.4f}) minus {other} "
        f"({report.value(other, metric):.4f}) is {interval.mean:+.4f}: the {name} end {number:+.4f} of its "
        f"{report.params.confidence * 100:g} % interval {'is' if passed else 'is not'} {relation} the bound "
        f"{bound:g}."
    )
    return GateVerdict(bool(passed), interval.mean, interval.low, interval.high, bound, message)
