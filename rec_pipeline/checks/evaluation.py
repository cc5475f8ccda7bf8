"""The gate, and what else must hold of a report."""

from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from rec_pipeline.checks.verdict import WARN, verdict
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.evaluation.champion import CHAMPION
from rec_pipeline.engine.evaluation.online import OnlineMetrics
from rec_pipeline.engine.evaluation.report import EvaluationReport

if TYPE_CHECKING:
    from rec_pipeline.engine.evaluation.gate import GateVerdict

MIN_P_OF_SHARES = 0.001  # looked at every night: 0.05 would cry wolf every third week
MIN_SHARE_OF_MATCHED_CLICKS = 0.9  # a few impressions are out of the window or lost on the way
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


@dg.asset_check(asset="evaluation_report", blocking=True)
def hybrid_holds_against_its_best_source(evaluation_report: EvaluationReport) -> dg.AssetCheckResult:
    """The gate: ndcg@10 of the hybrid is not significantly below that of the source that is best alone."""
    from rec_pipeline.engine.evaluation.gate import holds_against_best_source

    return _said(holds_against_best_source(evaluation_report))


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


@dg.asset_check(asset="online_metrics")
def users_are_in_variants_by_their_shares(online_metrics: OnlineMetrics) -> dg.AssetCheckResult:
    """No sample-ratio mismatch, and nobody was shown another variant than the hash gives them."""
    n_users = sum(online_metrics.users_by_variant.values())
    return verdict(
        online_metrics.p_of_shares >= MIN_P_OF_SHARES and online_metrics.n_misdealt == 0,
        p_of_shares=online_metrics.p_of_shares,
        bound=MIN_P_OF_SHARES,
        n_misdealt=online_metrics.n_misdealt,
        n_users=n_users,
    )


@dg.asset_check(asset="online_metrics")
def clicks_follow_impressions(online_metrics: OnlineMetrics) -> dg.AssetCheckResult:
    """Clicks on recommended items follow an impression of them: otherwise the application does not record those."""
    share = online_metrics.n_matched / max(1, online_metrics.n_clicks_of_served)
    return verdict(
        share >= MIN_SHARE_OF_MATCHED_CLICKS or not online_metrics.n_clicks_of_served,
        severity=WARN,
        matched_share=share,
        bound=MIN_SHARE_OF_MATCHED_CLICKS,
        n_clicks_of_served=online_metrics.n_clicks_of_served,
    )
