"""What an evaluation tells: its numbers in the log, in MLflow and in the Dagster UI."""

from typing import Any

import dagster as dg

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.evaluation.backtest import BacktestReport
from rec_pipeline.engine.evaluation.gate import gate
from rec_pipeline.engine.evaluation.report import EvaluationReport
from rec_pipeline.resources.metadata import image
from rec_pipeline.resources.tracked_run import TrackedRun


def log_report(
    context: dg.AssetExecutionContext, run: TrackedRun, report: EvaluationReport, data_version: str
) -> dict[str, Any]:
    """Log every number, table and plot of ``report`` to ``run``; return what the Dagster UI shows of it."""
    headline = report.params.headline
    for recommender in report.recommenders:
        interval = report.interval(recommender, headline)
        context.log.info(f"{recommender}: {headline} {interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f})")
    run.log_params(report.params.model_dump())
    run.log_dataset("interaction_split", data_version, "test", report.data["n_test"])
    run.log_metrics(
        {f"{row[c.RECOMMENDER]}/{row[c.METRIC]}": row[c.MEAN] for row in report.summary.to_dict("records")}
        | {metric: report.value(report.challenger, metric) for metric in report.metrics}
    )
    run.log_text("report.md", report.to_markdown())
    run.log_text("report.html", report.to_html())
    run.log_table("summary.json", report.summary)
    run.log_table("slices.json", report.slices)
    if report.retrieval is not None:
        run.log_table("retrieval.json", report.retrieval)
    for name, plot in report.plots.items():
        run.log_bytes(f"plots/{name}.png", plot.png)
    verdict = gate(report)
    return {
        "n_users_evaluated": report.data["n_users_evaluated"],
        "gate": verdict.message,
        "gate_passed": verdict.passed,
        "champion": report.data["champion"],
        **{f"{name}_{headline.replace('@', '_')}": report.value(name, headline) for name in report.recommenders},
        "report": dg.MetadataValue.md(report.to_markdown()),
        **{f"plot_{name}": image(plot.png) for name, plot in report.plots.items()},
        "mlflow_run": run.link,
    }


def log_backtest(context: dg.OpExecutionContext, run: TrackedRun, report: BacktestReport) -> None:
    """Log every period of ``report`` to ``run``, one step a period, and tell the headline."""
    for (recommender, metric), rows in report.metrics.groupby([c.RECOMMENDER, c.METRIC], sort=False):
        for period, mean in zip(rows[c.PERIOD], rows[c.MEAN], strict=True):
            run.log_metrics({f"{recommender}/{metric}": float(mean)}, step=int(period))
        if metric == report.params.headline:
            line = " ".join(f"{mean:.4f}" for mean in rows[c.MEAN])
            context.log.info(f"{recommender}: {metric} by period {line}")
    run.log_text("report.md", report.to_markdown())
    run.log_text("report.html", report.to_html())
    run.log_table("metrics.json", report.metrics)
    for name, plot in report.plots.items():
        run.log_bytes(f"plots/{name}.png", plot.png)
