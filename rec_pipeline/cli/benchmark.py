"""Commands that measure: tables under published protocols, and time and memory on generated data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rec_pipeline.cli.project import AsJson, emit_json, project_folder

app = typer.Typer(
    help="Measure models and the pipeline; docs/BENCHMARKS.md holds what came out.",
    no_args_is_help=True,
    add_completion=False,
)

Only = Annotated[
    list[str] | None, typer.Option("--only", help="Name of a row to compute; repeatable. All rows by default.")
]


@app.command(epilog="Example: rec-pipeline benchmark ncf-paper --data-dir ml-1m-ncf --seeds 5")
def ncf_paper(
    data_dir: Annotated[
        Path, typer.Option(help="Folder with train.parquet, test.parquet and test_negatives.parquet, ids from 0.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each model that depends on a seed.")] = 5,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Hit rate and ndcg at 10 among 99 given negatives, as He et al. (2017) measured NCF."""
    from rec_pipeline.benchmarks import ncf_paper as benchmark

    rows = benchmark.run(data_dir, seeds=seeds, only=only, on_row=lambda row: report_row(row.name))
    print_table({"benchmark": "ncf-paper", "seeds": seeds}, rows, as_json=as_json)


@app.command(epilog="Example: rec-pipeline benchmark full-ranking --train train.csv --test test.csv --json")
def full_ranking(
    train: Annotated[Path, typer.Option(help="CSV or Parquet with columns user_id and item_id.")],
    test: Annotated[Path, typer.Option(help="The same, held out.")],
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each model that depends on a seed.")] = 1,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Recall and ndcg at 20 over the full catalogue, by the defaults of every model."""
    from rec_pipeline.benchmarks import full_ranking as benchmark

    facts, rows = benchmark.run(train, test, seeds=seeds, only=only, on_row=lambda row: report_row(row.name))
    print_table({"benchmark": "full-ranking", "seeds": seeds, **facts}, rows, as_json=as_json)


@app.command(epilog="Example: rec-pipeline benchmark sequential --data events.csv --json")
def sequential(
    data: Annotated[
        Path,
        typer.Option(
            help="Events in order: CSV, TSV, text or Parquet of user_id, item_id and, to order by it, timestamp."
        ),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Decides initial weights and draws.")] = 42,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Hit rate and ndcg at 10 of each user's last item over the full catalogue, by the defaults of every model."""
    from rec_pipeline.benchmarks import sequential as benchmark

    facts, rows = benchmark.run(data, only=only, seed=seed, on_row=lambda row: report_row(row.name))
    print_table({"benchmark": "sequential", "seed": seed, **facts}, rows, as_json=as_json)


def report_row(name: str) -> None:
    """Say on standard error that a row is done, as a table takes minutes."""
    typer.echo(f"done: {name}", err=True)


def print_table(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print rows of one shape with facts about them, as one JSON document or as a table."""
    if as_json:
        emit_json({**facts, "rows": list(rows)})
        return

    from rich.console import Console
    from rich.table import Table

    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@app.command(epilog="Example: rec-pipeline benchmark scale --size 20000 --compute ray --workers 1 2 4")
def scale(
    size: Annotated[
        list[int] | None,
        typer.Option(min=20_000, help="Interactions generated; repeatable. 0.1, 1 and 10 million by default."),
    ] = None,
    users: Annotated[
        int | None, typer.Option(min=1_000, help="Users of every size, a 50th of the interactions by default.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of run config for every size.")] = None,
    compute: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: the first size alone, by the number of workers.")
    ] = "local",
    workers: Annotated[
        list[int] | None, typer.Option(min=1, help="Ray workers on this machine, one number or more. 1 2 by default.")
    ] = None,
    more_workers: Annotated[
        list[int] | None, typer.Argument(min=1, metavar="N", help="What follows the first number of --workers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Seconds and peak memory of every step of the pipeline, on generated data of growing size or with Ray."""
    from rec_pipeline.benchmarks import scale as benchmark

    project = project_folder()
    sizes = sorted(size or (100_000, 1_000_000, 10_000_000))
    if more_workers and not workers:
        raise typer.BadParameter(f"{more_workers[0]} belongs to no option: numbers of workers follow --workers")
    if workers and compute == "local":
        raise typer.BadParameter("--workers is of --compute ray, and the work was to be done in this process")
    costs = {}
    if compute == "ray":
        for n_workers in [0, *sorted({*(workers or (1, 2)), *(more_workers or ())})]:
            typer.echo(f"{n_workers} workers", err=True)
            ray = {"REC_COMPUTE": "ray", "REC_RAY_WORKERS": str(n_workers)}
            environment = ray if n_workers else {"REC_COMPUTE": "local"}
            costs[n_workers] = benchmark.measure(
                sizes[0], project, config, lambda line: typer.echo(f"  {line}", err=True), environment, users
            )
        facts = {"benchmark": "scale", "n_interactions": sizes[0]}
        print_table(facts, benchmark.by_workers(costs), as_json=as_json)
        return
    for n_interactions in sizes:
        typer.echo(f"{n_interactions:,} interactions", err=True)
        costs[n_interactions] = benchmark.measure(
            n_interactions, project, config, lambda line: typer.echo(f"  {line}", err=True), n_users=users
        )
    slowest = max(costs[max(costs)], key=lambda cost: cost.seconds)
    facts = {"benchmark": "scale", "slowest_step": slowest.step, "slowest_seconds": round(slowest.seconds, 1)}
    print_table(facts, benchmark.table_of(costs), as_json=as_json)
    if not as_json:
        typer.echo(f"slowest: {slowest.step}, {slowest.seconds:.0f} s")
