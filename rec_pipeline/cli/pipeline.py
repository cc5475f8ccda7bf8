"""Commands that make recommendations and show how they were made."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rec_pipeline.cli.project import AsJson, emit_json, project_folder
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.settings import settings

LOOPBACK = "127.0.0.1"
CHECKED_FOR_CHANGE = {
    "refresh_recommendations": ("interactions", "items", "recommendations"),
    "train_and_evaluate": ("interactions", "items"),
    "publish_recommendations": ("recommendations",),
}
"""Assets of each job that are held against the last ones made."""


def run(
    dataset: Annotated[
        str | None,
        typer.Option(help="sample, files, or MovieLens: ml-100k, ml-latest-small, ml-1m, ml-20m, ml-25m, ml-32m."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Local folder of the MovieLens set; downloaded when not given.")
    ] = None,
    interactions: Annotated[Path | None, typer.Option(help="CSV or Parquet of interactions (data set files).")] = None,
    items: Annotated[Path | None, typer.Option(help="CSV or Parquet of items (data set files).")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Our column name and the file's, e.g. user_id=reviewerID; repeatable.")
    ] = None,
    job: Annotated[
        str, typer.Option(help="Job: refresh_recommendations, train_and_evaluate or publish_recommendations.")
    ] = "refresh_recommendations",
    config: Annotated[Path | None, typer.Option(help="YAML of run config, as the Launchpad takes it.")] = None,
    accept_variance: Annotated[
        bool,
        typer.Option("--accept-variance", help="Take data much larger, smaller or on another scale than the last."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show stacks and what libraries print.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read, validate, train, evaluate and publish, as a Dagster run that stands in the UI afterwards."""
    project = project_folder()
    source = source_config(dataset, data_dir, interactions, items, column or [])
    run_config = merged(
        {"loggers": {"progress": {"config": {"verbose": verbose}}}},
        {"resources": {"source": {"config": source}}} if source else {},
        variance_accepted(job) if accept_variance else {},
        read_run_config(config) if config else {},
    )

    from rec_pipeline.cli.execution import execute, failure_of
    from rec_pipeline.cli.summary import print_summary, summarise, what_is_served

    finished = execute(project, job, run_config, verbose=verbose)
    document = summarise(finished)
    error = failure_of(finished)
    if error is not None:
        failure = {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        document |= failure | what_is_served()
    if as_json:
        emit_json(document)
    else:
        print_summary(document)
    if error is not None:
        typer.echo(f"error: {error}\n{document['served']}", err=True)
        sys.exit(error.exit_code)


def ui(
    host: Annotated[str, typer.Option(help="Address the Dagster UI listens on.")] = LOOPBACK,
    dagster_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the MLflow UI.")] = 5000,
) -> None:
    """Start the Dagster UI with its daemon and the MLflow UI; Ctrl-C stops them all."""
    project = project_folder()

    import dagster as dg
    from dagster_shared.serdes import serialize_value

    from rec_pipeline import ui as processes
    from rec_pipeline.cli.execution import instance_ref
    from rec_pipeline.resources.deployment import resources_for

    ports = [processes.free_port(host, dagster_port), processes.free_port(LOOPBACK, mlflow_port)]
    for asked, found in zip((dagster_port, mlflow_port), ports, strict=True):
        if asked != found:
            typer.echo(f"port {asked} is taken: using {found}", err=True)
    dagster_url, mlflow_url = processes.local_url(host, ports[0]), processes.local_url(LOOPBACK, ports[1])
    home = settings().data_dir.absolute() / "dagster"
    environment = {
        "REC_DAGSTER_UI_URL": dagster_url,
        "REC_MLFLOW_UI_URL": mlflow_url,
        "DAGSTER_HOME": str(home),
    }
    reference = instance_ref(project)
    with dg.DagsterInstance.from_ref(reference):
        pass  # makes the databases, which the webserver and the daemon must not both do at once
    services = processes.dagster_services(serialize_value(reference), host, ports[0], environment)
    tracker = resources_for(settings())["tracker"]
    if tracker.is_local:
        argv, variables = tracker.ui_command(ports[1])
        services.append(processes.Service("mlflow", argv, f"{mlflow_url}/health", variables))
    else:
        mlflow_url = tracker.uri

    typer.echo("starting the Dagster UI, its daemon and the MLflow UI ...", err=True)
    processes.serve(
        services,
        home / "services",
        on_ready=lambda: typer.echo(f"Dagster  {dagster_url}\nMLflow   {mlflow_url}\nCtrl-C stops both."),
    )
    typer.echo("stopped", err=True)


def source_config(
    dataset: str | None, data_dir: Path | None, interactions: Path | None, items: Path | None, columns: Sequence[str]
) -> dict[str, Any]:
    """
    Return the config of the resource ``source`` for the options given; empty when none was, so that settings decide.

    Raises
    ------
    ConfigurationError
        If an option makes no sense, a path does not exist, or the options do not go together.
    """
    if not any((dataset, data_dir, interactions, items, columns)):
        return {}

    from rec_pipeline.engine.data.source import DATASETS

    chosen = dataset or ("files" if interactions else settings().dataset)
    if chosen not in DATASETS:
        raise ConfigurationError(f"--dataset {chosen!r} is unknown, expected one of {', '.join(DATASETS)}")
    if data_dir and not chosen.startswith("ml-"):
        raise ConfigurationError(f"--data-dir is the folder of a MovieLens set, but the data set is {chosen!r}")
    if (items or columns) and not interactions:
        raise ConfigurationError("--items and --column describe files: --interactions is missing")
    if bool(interactions) != (chosen == "files"):
        raise ConfigurationError(f"--interactions and the data set files go together, but the data set is {chosen!r}")
    pairs = [column.partition("=")[::2] for column in columns]
    for column, (ours, theirs) in zip(columns, pairs, strict=True):
        if not (ours and theirs):
            raise ConfigurationError(f"--column {column!r} is not of the form ours=theirs, e.g. user_id=reviewerID")
    paths = {"data_dir": data_dir, "interactions": interactions, "items": items}
    for name, path in paths.items():
        if path is not None and not path.exists():
            raise ConfigurationError(f"--{name.replace('_', '-')} {path}: there is no such file or folder")
    locations = {name: str(path.absolute()) if path else None for name, path in paths.items()}
    return {"dataset": chosen, **locations, "columns": dict(pairs)}


def variance_accepted(job: str) -> dict[str, Any]:
    """Return run config with which a job takes data and lists unlike the last ones."""
    return {"ops": {key: {"config": {"accept_variance": True}} for key in CHECKED_FOR_CHANGE.get(job, ())}}


def read_run_config(path: Path) -> dict[str, Any]:
    """
    Read run config from YAML.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or is not a mapping.
    """
    from dagster_shared.yaml_utils import load_run_config_yaml
    from yaml import YAMLError  # type: ignore[import-untyped]  # comes with Dagster, its stubs do not

    try:
        content = load_run_config_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigurationError(f"--config {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"--config {path} holds {type(content).__name__}, expected a mapping such as `ops:`")
    return content


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """
    Merge nested mappings; where they disagree the later wins.

    Examples
    --------
    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result
