from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.data.split import InteractionSplit, SplitParams, walk_forward
from rec_pipeline.engine.evaluation.backtest import BacktestReport, backtest
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker

N_USERS, N_DAYS = 12, 40
PARAMS = EvaluationParams(
    cutoffs=[1, 2], compared_metrics=["ndcg@2"], challenger="trend", user_segments=[1], n_resamples=100
)


class Trend:
    """Knows the fashion of each period: item ``day // 10`` and those after it, in a circle."""

    name = "trend"

    def __init__(self, period: int) -> None:
        self._score = -((np.arange(4) - period) % 4).astype(np.float32)

    def score(self, users: object) -> np.ndarray:
        return np.tile(self._score, (len(users), 1))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report() -> BacktestReport:
    """In each of four spans of ten days, three new users a span take that span's item and nothing else."""
    days = np.arange(N_DAYS)
    interactions = pd.DataFrame(
        {
            "user_id": [f"u{day // 10}{day % 3}" for day in days],
            "item_id": [f"i{day // 10}" for day in days],
            "timestamp": (pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(days, unit="D")).as_unit("us"),
            "weight": np.ones(N_DAYS, dtype=np.float32),
        }
    )
    items = pd.DataFrame({"item_id": [f"i{item}" for item in range(4)]})
    seen: list[int] = []

    def fit(split: InteractionSplit) -> list[Ranker]:
        popularity = ScoreRanker(
            "popularity", PopularityModel.fit(split.by_user.fitting.user_item), serves_everyone=True
        )
        return [popularity, ScoreRanker("trend", Trend(seen[-1]), serves_everyone=True)]

    splits = walk_forward(interactions, items, SplitParams(test_share=0.25, validation_share=0.2), n_periods=3)
    return backtest(splits, fit, PARAMS, on_period=lambda number, _: seen.append(number))


def test_every_period_has_every_metric_of_every_recommender(report: BacktestReport) -> None:
    trend = report.metrics[(report.metrics["recommender"] == "trend") & (report.metrics["metric"] == "ndcg@2")]

    assert report.periods["period"].tolist() == [1, 2, 3]
    assert report.periods["n_users"].tolist() == [3, 3, 3]
    assert report.periods["begins"].tolist() == [f"2024-{day}T00:00:00+00:00" for day in ("01-11", "01-21", "01-31")]
    assert trend["mean"].tolist() == [1, 1, 1]
    assert (trend["low"] <= trend["mean"]).all()
    assert report.recommenders == ["popularity", "trend"]


def test_popularity_knows_nothing_of_the_period_it_is_tested_on(report: BacktestReport) -> None:
    rows = report.metrics[(report.metrics["recommender"] == "popularity") & (report.metrics["metric"] == "recall@1")]

    assert rows["mean"].tolist() == [0, 0, 0]  # the next fashion is what nobody had yet


def test_the_report_is_a_table_and_a_line_a_metric_and_comes_back(report: BacktestReport, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.write("backtest_report", report.save, kind="BacktestReport")

    loaded = BacktestReport.load(store.path("backtest_report"))

    pd.testing.assert_frame_equal(loaded.metrics, report.metrics, check_dtype=False)
    assert loaded.to_markdown() == report.to_markdown()
    assert "| 2 | 0.0000 [0.0000, 0.0000] | 1.0000 [1.0000, 1.0000] |" in report.to_markdown()
    assert {"ndcg_2", "recall_2"} <= set(report.plots)
    assert report.to_html().count("data:image/png;base64,") == len(report.plots)
