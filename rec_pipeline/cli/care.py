"""Commands that look after the store: examine it, trace a list, forget a person."""

import sys
from typing import Annotated, Any

import typer

from rec_pipeline.cli.project import AsJson, emit_json, project_folder
from rec_pipeline.settings import settings

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


def doctor(as_json: AsJson = False) -> None:
    """Examine servers, live lists and artefacts, and tell MLflow what is live; exit code 8, 1 or 0."""
    resources = _resources()

    from rec_pipeline.engine.errors import RecPipelineError
    from rec_pipeline.engine.store.doctor import FAIL, OK, WARN, Finding, as_documents, examine, exit_code
    from rec_pipeline.resources.release import align_aliases

    store = resources["redis_store"]
    try:
        client = store.publisher()
    except RecPipelineError as error:
        findings = [Finding("store", FAIL, str(error))]
    else:
        findings = examine(client, store.generations)
        if all(finding.name != "store" for finding in findings):
            note = align_aliases(client, resources["tracker"])
            findings.append(Finding("champion", WARN if note else OK, note or "MLflow's aliases name what is live"))
    code = exit_code(findings, any(finding.name == "publication" for finding in findings))
    if as_json:
        emit_json({"findings": as_documents(findings), "exit_code": code})
    else:
        for finding in findings:
            typer.echo(f"{MARKS[finding.level]} {finding.name:<12} {finding.message}")
    sys.exit(code)


def trace(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="User id.")],
    item: Annotated[str | None, typer.Option(metavar="ID", help="Only this item of the list.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say where the list that is live for a user came from: runs, data, models, and each item's sources."""
    resources = _resources()

    from rec_pipeline.engine.errors import TrackingUnavailableError
    from rec_pipeline.engine.store.tracing import trace as trace_of

    store = resources["redis_store"]
    document = trace_of(store.publisher(), store.generations, user_id, item)
    try:
        document["mlflow_runs"] = resources["tracker"].runs_of(_training_run(document))
    except TrackingUnavailableError as error:
        document["mlflow_runs"] = {}
        typer.echo(f"warning: MLflow does not answer: {error}", err=True)
    document["dagster_run_url"] = f"{settings().dagster_ui_url}/runs/{document['lineage'].get('dagster_run_id')}"
    if as_json:
        emit_json(document)
        return
    _print_trace(document)


def forget(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="User id.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let the user be published again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what store, event log and days of interactions hold of a user, who is in no publication from now on."""
    resources = _resources()
    store = resources["redis_store"]

    from rec_pipeline.engine.store import forgetting

    if undo:
        was_forgotten = forgetting.remember(store.publisher(), store.generations, user_id)
        if as_json:
            emit_json({"remembered": was_forgotten})
        else:
            typer.echo("is published again with the next generation" if was_forgotten else "was not forgotten")
        return
    done = forgetting.forget(store.publisher(), store.generations, user_id)
    n_events = resources["event_stream"].forget(store, user_id)
    n_interactions = resources["artifacts"].forget(user_id)
    if as_json:
        counts = {"n_keys": done.n_keys, "n_events": n_events, "n_interactions": n_interactions}
        emit_json({"forgotten": True, **counts, "is_new": done.is_new})
    else:
        of_days = f" and {n_interactions} interactions of days" if n_interactions else ""
        typer.echo(
            f"forgotten: {done.n_keys} keys and {n_events} events{of_days} deleted, left out of every publication from "
            "now on"
        )


def _resources() -> dict[str, Any]:
    project_folder()

    from rec_pipeline.resources.deployment import resources_for

    return resources_for(settings())


def _training_run(document: dict[str, Any]) -> str:
    lineage = document["lineage"]
    return str(lineage.get("lineage", {}).get("dagster_run_id") or lineage.get("dagster_run_id"))


def _print_trace(document: dict[str, Any]) -> None:
    generation = document["generation"]
    typer.echo(f"user       {document['user_id']} ({document['origin']} list), {document['name_in_messages']} in logs")
    typer.echo(
        f"generation {generation['number']} (content of {generation['content']}), sealed {generation['sealed_at']}"
    )
    typer.echo(f"manifest   {generation['manifest_sha256']}")
    typer.echo(f"published  {generation['published_at']} by {generation['publisher']} ({generation['reason']})")
    for name, value in _flat(document["lineage"]):
        typer.echo(f"{name}: {value}")
    for asset, url in document["mlflow_runs"].items():
        typer.echo(f"mlflow {asset}: {url}")
    typer.echo(f"dagster: {document['dagster_run_url']}")
    for entry in document["items"]:
        typer.echo(f"{entry['rank']:>3}. {entry['id']}  {entry['score']:.4f}  {entry['reason']}")
        for source in entry["sources"]:
            typer.echo(f"       {source['name']}: rank {source['rank']}, {source['share']:.0%} of the score")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for name, value in values.items():
        flat += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return flat
