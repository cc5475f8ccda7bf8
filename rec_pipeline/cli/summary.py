"""What a run made, as one document, and that document as tables for people."""

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rec_pipeline.cli.execution import JobRun
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import load_sealed
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.errors import ArtifactIntegrityError, RecPipelineError
from rec_pipeline.engine.evaluation.report import EvaluationReport
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.list_schema import POPULAR
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.status import status
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.resources.progress_logger import VERDICT, finding_of
from rec_pipeline.settings import settings

REPORT = "evaluation_report"
METRICS_SHOWN = ("ndcg@10", "recall@20", "hit_rate@10", "diversity@10", "coverage@10")
N_EXAMPLES = 3
EXAMPLE_LENGTH = 5
FILE_WIDTH = 120


def summarise(run: JobRun) -> dict[str, Any]:
    """
    Return what a run read, measured and published, as JSON knows it; parts the run did not reach are absent.

    Reads the artefacts the run has just made.
    """
    document: dict[str, Any] = {
        "run_id": run.run_id,
        "status": run.status.value,
        "seconds": round(run.seconds, 1),
        "run_url": f"{settings().dagster_ui_url}/runs/{run.run_id}",
    }
    artifacts = resources_for(settings())["artifacts"]
    if rows := {key: _row_counts(artifacts, key) for key in ("interactions", "items") if key in run.made}:
        document["rows"] = rows
    document["n_checks_passed"] = sum(check.passed for check in run.checks)
    document["checks_failed"] = [
        {"asset": check.asset_key.to_user_string(), "check": check.check_name, "blocking": check.blocking}
        for check in run.checks
        if not check.passed
    ]
    if REPORT in run.made:
        document |= _evaluation(artifacts)
    document["gates"] = [
        {"check": check.check_name, "passed": check.passed, "verdict": finding_of(check)}
        for check in run.checks
        if check.blocking and VERDICT in check.metadata
    ]
    if "published_recommendations" in run.made:
        document |= _publication(artifacts)
    return document


def what_is_served() -> dict[str, Any]:
    """Return what is live although a run failed, in a sentence."""
    store = resources_for(settings())["redis_store"]
    try:
        found = status(store.publisher(), store.generations)
    except RecPipelineError as error:
        return {"live_generation": None, "served": f"What is live cannot be told: {error}."}
    if found.half_live:
        sentence = f"Generation {found.half_live[-1]} is live for some users only: `rec-pipeline publish` finishes it."
    elif found.live is None:
        sentence = "Nothing is live yet."
    else:
        sentence = f"What was live stays live: generation {found.live}."
    return {"live_generation": found.live, "served": sentence}


def print_summary(document: Mapping[str, Any]) -> None:
    """Print the document as tables on standard output."""
    console = stdout_console()
    if rows := document.get("rows"):
        console.print(_rows_table(rows))
    if metrics := document.get("metrics"):
        console.print(_metrics_table(metrics, document))
    for gate in document["gates"]:
        outcome = "[green]passed[/]" if gate["passed"] else "[red]refused[/]"
        console.print(f"Gate {gate['check']} {outcome}: {escape(gate['verdict'])}")
    if generation := document.get("generation"):
        console.print(
            f"\nGeneration [bold]{generation['number']}[/] is live: {generation['n_users']:,} users, "
            f"{generation['n_popular_users']:,} of them with the popular list for want of history, and "
            f"{generation['n_items']:,} different items."
        )
        for example in document["examples"]:
            console.print("", list_table(example, EXAMPLE_LENGTH))
    console.print(
        f"\nRun {document['run_id']}: {document['seconds']:.0f} s, {document['n_checks_passed']} checks passed."
    )
    console.print("    rec-pipeline ui  [dim]opens the Dagster and MLflow UIs, with this run in both[/]")
    if generation:
        console.print(
            f"    rec-pipeline recommend {escape(document['examples'][0]['user_id'])}  [dim]reads a list back[/]"
        )


def list_table(document: Mapping[str, Any], length: int | None = None) -> Table:
    """Return the first items of a user's list as a table."""
    table = _table(document["user_id"] + (", the popular list" if document["origin"] == POPULAR else ""))
    table.add_column("", justify="right")
    for heading in ("item", "score", "sources", "reason"):
        table.add_column(heading, justify="right" if heading == "score" else "left")
    for position, item in enumerate(document["items"][:length], start=1):
        cells = [item["title"] or item["id"], f"{item['score']:.3f}", ", ".join(item["sources"]), item["reason"]]
        table.add_row(str(position), *map(escape, cells))
    return table


def stdout_console() -> Console:
    """Return a console on standard output: as wide as the terminal, or wide enough for the tables in a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)


def published_titles(artifacts: Artifacts, generation: Generation | None) -> dict[str, str]:
    """Return the title of each item of the bundle that made a generation; nothing if that is not here any more."""
    if generation is None:
        return {}
    with suppress(ArtifactIntegrityError, KeyError):
        bundle = artifacts.store.path("serving_bundle", generation.metadata["bundle"])
        return load_sealed(bundle, ServingBundle.load_titles)
    return {}


def _row_counts(artifacts: Artifacts, key: str) -> dict[str, int]:
    table = artifacts.load(key, ValidatedTable)
    return {
        "n_read": table.n_rows_in,
        "n_kept": len(table.kept),
        "n_duplicates": table.n_duplicates,
        "n_quarantined": len(table.refused),
    }


def _evaluation(artifacts: Artifacts) -> dict[str, Any]:
    report = artifacts.load(REPORT, EvaluationReport)
    metrics = {
        name: {
            metric: {"mean": interval.mean, "low": interval.low, "high": interval.high}
            for metric in report.metrics
            for interval in [report.interval(name, metric)]
        }
        for name in report.recommenders
    }
    n_users = report.interval(report.challenger, report.params.headline).n_users
    return {"n_users_evaluated": n_users, "confidence": report.params.confidence, "metrics": metrics}


def _publication(artifacts: Artifacts) -> dict[str, Any]:
    generation = artifacts.load("recommendations", Generation)
    titles = published_titles(artifacts, generation)
    users = next(generation.iterate()).to_pylist()
    users.sort(key=lambda row: row[c.ORIGIN] == POPULAR)
    personal, others = users[: N_EXAMPLES - 1], users[N_EXAMPLES - 1 :]
    counts = {name: getattr(generation, name) for name in ("number", "n_users", "n_items", "n_popular_users")}
    return {"generation": counts, "examples": [_example(row, titles) for row in [*personal, *others[-1:]]]}


def _example(row: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    columns = zip(row[c.ITEM_ID], row[c.SCORE], row[c.SOURCES], row[c.REASON], strict=True)
    items = [
        {
            "id": item_id,
            "title": titles.get(item_id, ""),
            "score": score,
            "sources": [source[c.NAME] for source in sources],
            "reason": reason,
        }
        for item_id, score, sources, reason in columns
    ]
    return {"user_id": row[c.USER_ID], "origin": row[c.ORIGIN], "items": items}


def _table(title: str) -> Table:
    look = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    look.title, look.title_justify, look.title_style = escape(title), "left", "bold"
    return look


def _rows_table(rows: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("Data")
    table.add_column("rows")
    for heading in ("read", "kept", "duplicates", "quarantined"):
        table.add_column(heading, justify="right")
    for key, counts in rows.items():
        table.add_row(key, *(f"{count:,}" for count in counts.values()))
    return table


def _metrics_table(metrics: Mapping[str, Mapping[str, Mapping[str, float]]], document: Mapping[str, Any]) -> Table:
    table = _table(f"Test part: {document['n_users_evaluated']:,} users, {document['confidence']:.0%} intervals")
    shown = [metric for metric in METRICS_SHOWN if all(metric in values for values in metrics.values())]
    table.add_column("recommender")
    for metric in shown:
        table.add_column(metric, justify="right")
    for name, values in metrics.items():
        table.add_row(name, *(_cell(**values[metric]) for metric in shown))
    return table


def _cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f}" + ("" if math.isnan(low) else f"\n[dim]{low:.3f}-{high:.3f}[/]")
