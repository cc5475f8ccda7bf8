import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.data.batches import BoolVector, Ranking, UserBatch
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.errors import GateRefusedError
from rec_pipeline.engine.evaluation import plots
from rec_pipeline.engine.evaluation.gate import gate, not_worse, require_gate
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
from rec_pipeline.engine.evaluation.report import HELD_OUT, TABLES, EvaluationReport
from rec_pipeline_tests.fixtures.split import split_of

N_USERS, N_ITEMS = 80, 30


class Planted:
    """Puts the one held-out item of a user at the top for the first ``n_right`` users, else at rank two."""

    def __init__(self, name: str, n_right: int) -> None:
        self.name = name
        self.n_right = n_right

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:  # noqa: ARG002  # planted
        item_idx = (users.user_idx[:, None] + np.arange(1, top_k + 1)) % N_ITEMS  # held out is user + 1
        late = users.user_idx >= self.n_right
        item_idx[late, :2] = item_idx[late, 1::-1]
        return Ranking(item_idx, np.tile(-np.arange(top_k, dtype=np.float32), (len(users), 1)))


def rows(shift: int, day: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_idx": np.arange(N_USERS),
            "item_idx": (np.arange(N_USERS) + shift) % N_ITEMS,
            "timestamp": pd.Series([pd.Timestamp(f"2024-01-{day:02d}", tz="UTC")] * N_USERS),
            "weight": np.ones(N_USERS, dtype=np.float32),
        }
    )


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    split = split_of(
        train=rows(0, day=1),
        validation=rows(-1, day=2),
        test=rows(1, day=3),
        users=IdMap(np.array([f"u{i:03d}" for i in range(N_USERS)], dtype=object)),
        items=IdMap(np.array([f"i{i:03d}" for i in range(N_ITEMS)], dtype=object)),
        strategy="time",
        boundaries={"test_from": "2024-01-03T00:00:00+00:00"},
    )
    recommenders = [Planted("ncf", 42), Planted("hybrid", 44), Planted("popularity", 4)]
    return evaluate_recommenders(
        recommenders,
        split,
        item_vectors=np.random.default_rng(0).normal(size=(N_ITEMS, 8)).astype(np.float32),
        retrieval=pd.DataFrame({"index": ["content"], "recall@100 against exact search": [0.9987]}),
        variety=pd.DataFrame({"mmr_trade_off": [1.0, 0.5], "ndcg@10": [0.3, 0.25], "diversity@10": [0.5, 0.8125]}),
        context=pd.DataFrame({"n_users": [80], "before": [0.25], "after": [0.2875]}),
        params=EvaluationParams(cutoffs=[5, 10], compared_metrics=["ndcg@10", "mrr@10"], n_resamples=500),
    )


def test_order_is_baseline_then_challenger_then_the_others(report: EvaluationReport) -> None:
    assert report.recommenders == ["popularity", "hybrid", "ncf"]


def test_values_are_found_by_name_and_unknown_ones_are_named(report: EvaluationReport) -> None:
    assert report.value("hybrid", "mrr@10") == pytest.approx((44 + 36 / 2) / 80)
    with pytest.raises(KeyError, match=r"no 'mrr@7' of 'hybrid'"):
        report.value("hybrid", "mrr@7")


def test_a_comparison_can_be_read_from_both_sides(report: EvaluationReport) -> None:
    forward = report.comparison("hybrid", "popularity", "mrr@10")
    back = report.comparison("popularity", "hybrid", "mrr@10")

    assert forward.difference == pytest.approx(40 / 2 / 80)
    assert 0 < forward.low < forward.difference < forward.high
    assert (back.difference, back.low, back.high) == (-forward.difference, -forward.high, -forward.low)
    assert back.p_holm == forward.p_holm < 0.01
    with pytest.raises(KeyError, match="no comparison of 'hybrid' and 'nobody'"):
        report.comparison("hybrid", "nobody")


def test_any_metric_can_be_compared_and_agrees_with_the_table(report: EvaluationReport) -> None:
    table, again = report.comparison("hybrid", "ncf"), report.difference("hybrid", "ncf", "ndcg@10")

    assert (again.mean, again.low, again.high) == pytest.approx((table.difference, table.low, table.high))
    assert report.difference("hybrid", "hybrid", "novelty@5").mean == 0


def test_words_follow_the_significance(report: EvaluationReport) -> None:
    verdicts = report.verdicts()

    assert len(verdicts) == 5
    assert verdicts[0].startswith("ndcg@10: hybrid is **not significantly different from its best source alone**, ncf")
    assert verdicts[1].startswith("ndcg@10: hybrid is **significantly better than popularity**")
    assert verdicts[2].startswith("ndcg@10: hybrid is **not significantly different from ncf**")


def test_without_the_challenger_the_report_is_about_the_best(report: EvaluationReport) -> None:
    params = report.params.model_copy(update={"challenger": "nobody"})
    about_best = EvaluationReport(**{**vars_of(report), "params": params})

    assert about_best.challenger == "hybrid"


def test_markdown_holds_what_a_reader_must_know(report: EvaluationReport) -> None:
    text = report.to_markdown()

    for expected in (
        "| metric | popularity | hybrid | ncf |",
        "Split `time` (test_from 2024-01-03T00:00:00+00:00)",
        "Candidates are the full catalogue (30 items that may be recommended) minus what the user has seen",
        "| content | 0.9987 |",
        "all 80 users with a held-out item",
        "| hybrid - popularity | ndcg@10 |",
    ):
        assert expected in text
    for metric in {name.partition("@")[0] for name in report.metrics}:
        assert f"- **{metric}**: " in text


def test_html_holds_the_plots_and_no_address(report: EvaluationReport) -> None:
    page = report.to_html()

    assert page.count("data:image/png;base64,") == len(report.plots) == 7
    assert "http" not in page


def test_plots_are_small_pictures(report: EvaluationReport) -> None:
    for name, plot in report.plots.items():
        assert plot.png[:8] == b"\x89PNG\r\n\x1a\n", name
        width, height = struct.unpack(">II", plot.png[16:24])
        assert width > height >= 200, name
        assert 5_000 < len(plot.png) < 100_000, name
        assert plot.caption.endswith(".")


def test_a_saved_report_comes_back_the_same(report: EvaluationReport, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    store.write("evaluation_report", report.save, kind="EvaluationReport")
    directory = store.path("evaluation_report")
    loaded = EvaluationReport.load(directory)

    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(report, name), check_dtype=False)
    assert (loaded.params, loaded.data) == (report.params, report.data)
    assert loaded.to_markdown() == report.to_markdown() == (directory / "report.md").read_text()
    assert json.loads((directory / "report.json").read_text())["verdicts"] == report.verdicts()
    assert {path.stem for path in (directory / "plots").iterdir()} == set(report.plots)


def test_the_same_plot_is_the_same_bytes(report: EvaluationReport) -> None:
    look = plots.looks(report.recommenders, "popularity")

    again = plots.exposure_curve(report.exposure, look, HELD_OUT)

    assert again == report.plots["exposure"].png


def test_a_report_of_the_baseline_alone_needs_no_comparison_or_retrieval(
    report: EvaluationReport, tmp_path: Path
) -> None:
    def only(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["recommender"].isin(["popularity", "held-out items"])].reset_index(drop=True)

    tables = {name: only(getattr(report, name)) for name in TABLES if name != "comparisons"}
    alone = EvaluationReport(
        **tables,
        comparisons=report.comparisons.iloc[:0],
        retrieval=None,
        variety=None,
        context=None,
        params=report.params,
        data=report.data,
    )

    alone.save(tmp_path)
    loaded = EvaluationReport.load(tmp_path)

    assert loaded.retrieval is None
    assert loaded.verdicts() == []
    assert "Retrieval quality" not in loaded.to_markdown()


def test_variety_context_and_exposure_of_new_items_are_shown_and_kept(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    loaded = EvaluationReport.load(tmp_path)

    assert loaded.variety is not None
    assert loaded.variety["diversity@10"].tolist() == [0.5, 0.8125]
    assert (tmp_path / "plots" / "variety.png").stat().st_size > 1000
    words = loaded.to_markdown()
    assert "| 0.5000 | 0.2500 | 0.8125 |" in words
    assert "| 80 | 0.2500 | 0.2875 |" in words
    assert "## Exposure of new and rare items" in words


# --- the gate -----------------------------------------------------------------------------------------------------


def judged(report: EvaluationReport, **params: object) -> EvaluationReport:
    headline = {"compared_metrics": ["mrr@10"], **params}
    return replace(report, params=report.params.model_copy(update=headline))


def with_champion(report: EvaluationReport, name: str) -> EvaluationReport:
    tables = {
        table: getattr(report, table).replace({"recommender": {name: "champion"}}) for table in ("summary", "per_user")
    }
    return replace(report, **tables)


def test_gate_opens_only_above_the_bound_and_says_the_numbers(report: EvaluationReport) -> None:
    passed = gate(judged(report))
    failed = gate(judged(report, min_gain=0.3))

    assert passed.passed
    assert passed.difference == pytest.approx(1 / 4)
    assert 0 < passed.low < 1 / 4 < passed.high
    assert not failed.passed
    assert failed.message == (
        f"mrr@10 of hybrid (0.7750) minus popularity (0.5250) is +0.2500: the lower end {failed.low:+.4f} of its "
        "95 % interval is not above the bound 0.3."
    )


def test_gate_stays_shut_when_the_two_are_equal_or_too_close(report: EvaluationReport) -> None:
    assert not gate(judged(report, baseline="hybrid")).passed
    assert not gate(judged(report, challenger="popularity", baseline="hybrid")).passed


def test_a_new_model_passes_unless_it_is_significantly_worse_than_the_champion(report: EvaluationReport) -> None:
    a_little_worse = with_champion(judged(report, challenger="ncf"), "hybrid")
    worse = with_champion(judged(report, challenger="popularity"), "hybrid")

    assert not_worse(report) is None
    assert not_worse(a_little_worse).passed
    found = not_worse(worse)
    assert not found.passed
    assert found.high < found.bound == 0
    assert "upper end" in found.message
    assert not_worse(with_champion(judged(report, challenger="popularity", max_loss=0.3), "hybrid")).passed


def test_nothing_is_published_when_either_gate_is_shut(report: EvaluationReport) -> None:
    above_popularity_below_champion = with_champion(judged(report, challenger="hybrid", baseline="popularity"), "ncf")
    lost = above_popularity_below_champion.per_user["recommender"] == "hybrid"
    above_popularity_below_champion.per_user.loc[lost, "mrr@10"] *= 0.9

    assert require_gate(judged(report)).passed
    with pytest.raises(GateRefusedError, match="minus champion"):
        require_gate(above_popularity_below_champion)
    with pytest.raises(GateRefusedError, match="minus popularity"):
        require_gate(judged(report, min_gain=0.3))


def vars_of(report: EvaluationReport) -> dict[str, object]:
    return {name: getattr(report, name) for name in EvaluationReport.__dataclass_fields__}
