"""Commands that try things out without changing what is served: the search for settings and the backtest."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rec_pipeline.cli.pipeline import merged, read_run_config
from rec_pipeline.cli.project import AsJson, emit_json, project_folder
from rec_pipeline.settings import settings

Config = Annotated[Path | None, typer.Option(help="YAML of run config for the job, as the Launchpad takes it.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show stacks and what libraries print.")]


def tune(
    trials: Annotated[int, typer.Option(min=1, help="Trials in all; those of an interrupted search count.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Decides which values are tried.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Run config to write; data/tuned.yaml when not given.")] = None,
    config: Config = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Search hyper-parameters of NCF on validation data; `run --config data/tuned.yaml` then uses the best."""
    path = (output or settings().tuned_config).absolute()
    asked = {"search": {"n_trials": trials, "seed": seed}, "output": str(path)}
    _execute("tune", "search_hyper_parameters", asked, config, verbose=verbose)
    found = read_run_config(path)
    if as_json:
        emit_json({"output": str(path), "run_config": found})
    else:
        params = found["ops"]["ncf_model"]["config"]["params"]
        width = max(map(len, params))
        for name, value in params.items():
            typer.echo(f"{name:<{width}} {value}")
        typer.echo(f"\n    rec-pipeline run --config {path}")


def backtest(
    periods: Annotated[int, typer.Option(min=2, max=52, help="Periods tested, one after the other.")] = 4,
    share: Annotated[float, typer.Option(min=0.001, max=0.3, help="Share of all interactions in a period.")] = 0.1,
    config: Config = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Fit and evaluate every recommender at several points in time, to tell luck from quality."""
    asked = {"periods": {"n_periods": periods, "period_share": share}}
    _execute("backtest", "backtest_periods", asked, config, verbose=verbose)

    from rec_pipeline.automation.backtest import BACKTEST_REPORT
    from rec_pipeline.engine.evaluation.backtest import BacktestReport
    from rec_pipeline.resources.deployment import resources_for

    report: BacktestReport = resources_for(settings())["artifacts"].load(BACKTEST_REPORT, BacktestReport)
    if as_json:
        emit_json({"periods": report.periods.to_dict("records"), "metrics": report.metrics.to_dict("records")})
    else:
        typer.echo(report.to_markdown())


def _execute(job: str, op: str, asked: dict[str, Any], config: Path | None, *, verbose: bool) -> None:
    project = project_folder()
    run_config = merged(
        {"loggers": {"progress": {"config": {"verbose": verbose}}}, "ops": {op: {"config": asked}}},
        read_run_config(config) if config else {},
    )

    from rec_pipeline.cli.execution import execute, failure_of

    error = failure_of(execute(project, job, run_config, verbose=verbose))
    if error is not None:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
