"""``rec-pipeline``: the whole project from the command line."""

import atexit
import gc
import os
import sys

import typer

from rec_pipeline.cli import benchmark, care, experiments, live, pipeline, serving
from rec_pipeline.engine.errors import RecPipelineError

app = typer.Typer(
    help="Recommendations from interactions: run the lineage, look at what it made, publish it, take it back.",
    epilog="Every command runs in the project folder, the one with dagster.yaml. Exit codes: 0 done, 2 configuration, "
    "3 input rejected, 4 gate refused or training failed, 5 artefact missing or damaged, 6 not published or no answer "
    "from the store (the old lists are still served), 7 another publisher is at work, 8 publication incomplete "
    "(publish again to finish it), 1 anything else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _add(panel: str, *commands: tuple[typer.models.CommandFunctionType, str]) -> None:
    for command, example in commands:
        app.command(rich_help_panel=panel, epilog=f"Example: rec-pipeline {example}")(command)


_add(
    "Make and look",
    (pipeline.run, "run --dataset ml-100k"),
    (live.recommend, "recommend u00042 --top-k 5"),
    (pipeline.ui, "ui --dagster-port 3001"),
    (serving.serve, "serve --port 8080"),
)
_add(
    "Try out",
    (experiments.tune, "tune --trials 30"),
    (experiments.backtest, "backtest --periods 4 --json"),
)
_add(
    "What is live",
    (live.status, "status --json"),
    (care.trace, "trace u00042 --item i00007"),
    (live.publish, "publish --plan"),
    (live.rollback, "rollback --to 3"),
    (live.unpin, "unpin"),
)
_add(
    "Housekeeping",
    (care.doctor, "doctor --json"),
    (care.forget, "forget u00042"),
    (live.gc, "gc"),
    (live.stop, "stop"),
)
app.add_typer(benchmark.app, name="benchmark", rich_help_panel="Measure")


def main() -> None:
    """Run the command line; an error made on purpose becomes one sentence and its exit code."""
    os.umask(0o027)  # nothing this project writes is for everybody on the machine
    atexit.register(gc.freeze)  # or the interpreter searches a million objects for garbage before it ends: 7 s of a run
    try:
        app()
    except RecPipelineError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
