"""Whether what was evaluated may be published."""

from dataclasses import dataclass

from rec_pipeline.engine.errors import GateRefusedError
from rec_pipeline.engine.evaluation.champion import CHAMPION
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


def gate(report: EvaluationReport) -> GateVerdict:
    """
    Pass if the challenger beats the baseline beyond doubt: the interval of the difference lies above ``min_gain``.

    Challenger, baseline, metric (the headline) and bound are those of ``report.params``.

    Raises
    ------
    KeyError
        If the report lacks one of the two.
    """
    params = report.params
    return _verdict(report, params.challenger, params.baseline, params.min_gain, end="low")


def not_worse(report: EvaluationReport) -> GateVerdict | None:
    """
    Pass unless the challenger is significantly worse than the champion; None if the report has no champion.

    Significantly worse is an interval of challenger minus champion, over the same users, that lies below ``-max_loss``
    of ``report.params`` with its whole length.

    Raises
    ------
    KeyError
        If the report lacks the challenger.
    """
    params = report.params
    if CHAMPION not in report.recommenders:
        return None
    return _verdict(report, params.challenger, CHAMPION, 0.0 - params.max_loss, end="high")


def holds_against_best_source(report: EvaluationReport) -> GateVerdict:
    """
    Pass unless the challenger is significantly worse than the best of its sources alone, which the message names.

    Significantly worse is an interval of challenger minus source, over the same users, that lies below 0 with its whole
    length. The best source is chosen on the same users, which is against the challenger.

    Raises
    ------
    KeyError
        If the report lacks the challenger.
    """
    return _verdict(report, report.params.challenger, report.best_source or report.params.baseline, 0.0, end="high")


def require_gate(report: EvaluationReport) -> GateVerdict:
    """
    Return the verdict of ``gate`` on ``report`` if it, ``not_worse`` and ``holds_against_best_source`` passed.

    Raises
    ------
    GateRefusedError
        If one did not, with the number that failed and its bound.
    """
    verdict = gate(report)
    for found in (verdict, not_worse(report), holds_against_best_source(report)):
        if found is not None and not found.passed:
            raise GateRefusedError(f"nothing is published: {found.message}")
    return verdict


def _verdict(report: EvaluationReport, challenger: str, other: str, bound: float, *, end: str) -> GateVerdict:
    metric = report.params.headline
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
