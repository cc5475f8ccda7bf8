"""The gate, and what else must hold of a report."""

from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from rec_pipeline.checks.verdict import WARN, verdict
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.evaluation.champion import CHAMPION
from rec_pipeline.engine.evaluation.report import EvaluationReport

if TYPE_CHECKING:
    from rec_pipeline.engine.evaluation.gate import GateVerdict

MIN_USERS_EVALUATED = 30  # below it intervals are too wide to decide much


@dg.asset_check(asset="evaluation_report", blocking=True)
def hybrid_beats_popularity(evaluation_report: EvaluationReport) -> dg.AssetCheckResult:
    """The gate: ndcg@10 of the hybrid minus that of popularity lies above the bound with its whole interval."""
    from rec_pipeline.engine.evaluation.gate import gate

    return _said(gate(evaluation_report))


@dg.asset_check(asset="evaluation_report", blocking=True)
def not_worse_than_the_champion(evaluation_report: EvaluationReport) -> dg.AssetCheckResult:
    """The gate: ndcg@10 of the hybrid is not significantly below that of the model behind what is live, if any is."""
    from rec_pipeline.engine.evaluation.gate import not_worse

    found = not_worse(evaluation_report)
    if found is None:
        return verdict(True, verdict=evaluation_report.data.get(CHAMPION, "There is no champion."))
    return _said(found)


@dg.asset_check(asset="evaluation_report")
def the_hybrid_is_not_worse_than_its_sources(evaluation_report: EvaluationReport) -> dg.AssetCheckResult:
    """Merging should not cost accuracy: no source alone has a significantly better ndcg@10."""
    report = evaluation_report
    sources = [name for name in ("ncf", "content") if name in report.recommenders]
    highs = {name: report.difference("hybrid", name, report.params.headline).high for name in sources}
    return verdict(
        min(highs.values()) >= 0, severity=WARN, **{f"high_against_{name}": high for name, high in highs.items()}
    )


@dg.asset_check(asset="evaluation_report")
def enough_users_were_evaluated(evaluation_report: EvaluationReport) -> dg.AssetCheckResult:
    """Enough users stand behind the means."""
    n_users = evaluation_report.data["n_users_evaluated"]
    return verdict(n_users >= MIN_USERS_EVALUATED, severity=WARN, n_users=n_users, bound=MIN_USERS_EVALUATED)


@dg.asset_check(asset="evaluation_report", blocking=True)
def accuracy_lies_between_zero_and_one(evaluation_report: EvaluationReport) -> dg.AssetCheckResult:
    """A precision, recall or ndcg outside [0, 1] is a defect of the evaluation."""
    table = evaluation_report.summary
    family = table[c.METRIC].str.partition("@")[0]
    values = table.loc[family.isin(["precision", "recall", "ndcg", "hit_rate", "mrr", "map"]), c.MEAN]
    return verdict(np.all((values >= 0) & (values <= 1)), lowest=values.min(), highest=values.max())


def _said(found: "GateVerdict") -> dg.AssetCheckResult:
    return verdict(
        found.passed,
        verdict=found.message,
        difference=found.difference,
        low=found.low,
        high=found.high,
        bound=found.bound,
    )
