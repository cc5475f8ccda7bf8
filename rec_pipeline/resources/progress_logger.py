"""What a run is doing, as tidy lines on the terminal: steps, what they say, checks with their numbers, failures."""

import logging
import os
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, TextIO

import dagster as dg
from dagster_shared.error import SerializableErrorInfo
from rich.console import Console
from rich.markup import escape

from rec_pipeline.engine.errors import RecPipelineError

VERDICT = "verdict"
"""Metadata under which a check says what it found in a sentence."""
BLOCKED = "DagsterAssetCheckFailedError"
"""What a blocking check that did not pass raises in its step."""
INTERRUPTED = "DagsterExecutionInterruptedError"
"""What Ctrl-C and SIGTERM raise in the step they meet."""
SKIPPED_STEP = "Dependencies for step "
"""How Dagster's message about each step after a failed one begins; the failure itself says enough."""


@cache
def terminal() -> TextIO:
    """
    Return the standard error this process had when this was first called.

    Dagster redirects the stream itself into the compute log while steps run, so whoever wants lines to reach the
    terminal calls this before the run starts.
    """
    return os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")


def line_console(stream: TextIO) -> Console:
    """Return a console that leaves long lines to the terminal and writes no control codes where there is none."""
    return Console(file=stream, highlight=False, soft_wrap=True)


class ProgressHandler(logging.Handler):
    """
    Prints Dagster's log records of one run.

    Parameters
    ----------
    stream
        Where lines go.
    n_assets
        Number of assets in the run, for "3/20"; unknown when None.
    check_steps
        Steps that only run a check: their result is one line, without a heading.
    verbose
        Whether failures show their stack.
    """

    def __init__(
        self, stream: TextIO, n_assets: int | None = None, check_steps: Collection[str] = (), *, verbose: bool = False
    ) -> None:
        super().__init__()
        self._console = line_console(stream)
        self._n_assets = n_assets
        self._check_steps = check_steps
        self._verbose = verbose
        self._n_started = 0
        self._heading = ""
        self._n_rows: dict[str, int] = {}
        self._by_event: dict[str, Callable[[dg.DagsterEvent], None]] = {
            "STEP_START": self._step_started,
            "ASSET_MATERIALIZATION": self._materialized,
            "ASSET_CHECK_EVALUATION": self._check_evaluated,
            "STEP_UP_FOR_RETRY": self._step_retries,
            "STEP_SUCCESS": self._step_done,
            "STEP_FAILURE": self._step_failed,
        }

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, if it says something to people."""
        meta: dict[str, Any] = record.__dict__["dagster_meta"]
        event: dg.DagsterEvent | None = meta["dagster_event"]
        if event is not None:
            if print_event := self._by_event.get(event.event_type_value):
                print_event(event)
        elif record.levelno >= logging.INFO and not meta["orig_message"].startswith(SKIPPED_STEP):
            style = "yellow" if record.levelno >= logging.WARNING else "dim"
            for line in meta["orig_message"].splitlines():
                self._print(f"    [{style}]{escape(line)}[/]")

    def _print(self, line: str) -> None:
        self._console.print(line)

    def _step_started(self, event: dg.DagsterEvent) -> None:
        if event.step_key in self._check_steps:
            return
        self._n_started += 1
        self._heading = str(event.step_key)
        of = f"/{self._n_assets}" if self._n_assets else ""
        self._print(f"[cyan]{self._n_started:>2}{of}[/] [bold]{escape(self._heading)}[/]")

    def _materialized(self, event: dg.DagsterEvent) -> None:
        rows = event.step_materialization_data.materialization.metadata.get("dagster/row_count")
        if rows is not None and event.step_key is not None:
            self._n_rows[event.step_key] = int(str(rows.value))

    def _check_evaluated(self, event: dg.DagsterEvent) -> None:
        check = event.asset_check_evaluation_data
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]" if is_blocked_by(check) else "[yellow]![/]"
        asset = check.asset_key.to_user_string()
        name = check.check_name if asset == self._heading else f"{asset}: {check.check_name}"
        self._print(f"    {mark} {escape(name)}  [dim]{escape(finding_of(check))}[/]")

    def _step_retries(self, event: dg.DagsterEvent) -> None:
        data = event.step_retry_data
        if is_interruption(data.error):
            self._print("    [yellow]interrupted[/]")
            return
        wait = f" in {data.seconds_to_wait:.0f} s" if data.seconds_to_wait else ""
        self._print(f"    [yellow]tried again{wait}[/]: {escape(root_message(data.error))}")

    def _step_done(self, event: dg.DagsterEvent) -> None:
        if event.step_key in self._check_steps:
            return
        seconds = event.step_success_data.duration_ms / 1000
        rows = self._n_rows.get(str(event.step_key))
        self._print(f"    [dim]done in {seconds:.1f} s" + (f", {rows:,} rows" if rows is not None else "") + "[/]")

    def _step_failed(self, event: dg.DagsterEvent) -> None:
        error = event.step_failure_data.error
        if event.step_key in self._check_steps and error is not None and error.cls_name == BLOCKED:
            return  # its result has just been printed
        if is_interruption(error):
            self._print("    [yellow]interrupted[/]")
            return
        self._print(f"    [red]failed[/] {escape(root_message(error))}")
        if self._verbose and error is not None:
            self._print(escape(error.to_string()))


@dg.logger(
    config_schema={"verbose": dg.Field(bool, default_value=False, description="Whether failures show their stack.")},
    description="Tidy lines for a person at a terminal: steps, what they say, checks with their numbers, failures.",
)
def progress_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Return a logger that prints the progress of a run to standard error."""
    n_assets, check_steps = None, frozenset[str]()
    if context.job_def is not None:
        keys = context.job_def.asset_layer.asset_graph.asset_check_keys
        check_steps = frozenset(f"{key.asset_key.to_python_identifier()}_{key.name}" for key in keys)
        n_assets = sum(node.name not in check_steps for node in context.job_def.nodes)
    logger = logging.Logger("progress", logging.DEBUG)  # the level of Dagster's own events
    logger.addHandler(ProgressHandler(terminal(), n_assets, check_steps, verbose=context.logger_config["verbose"]))
    return logger


def is_interruption(error: SerializableErrorInfo | None) -> bool:
    """Tell whether what ended a step, or made it be tried again, is Ctrl-C or SIGTERM."""
    return error is not None and root_cause(error).cls_name == INTERRUPTED


def root_cause(error: SerializableErrorInfo) -> SerializableErrorInfo:
    """Return the first cause of a serialised error, or, of this project's own errors, the one that says what to do."""
    kinds, cause = RecPipelineError.kinds(), error
    while error.cause is not None:
        error = error.cause
        if error.cls_name in kinds or cause.cls_name not in kinds:
            cause = error
    return cause


def root_message(error: SerializableErrorInfo | None) -> str:
    """Return what the root cause of a serialised error says, without the name of its class."""
    if error is None:
        return "for a reason Dagster does not know"
    kind, _, text = root_cause(error).message.strip().partition(": ")
    return text or kind.rpartition(".")[2]


def is_blocked_by(check: dg.AssetCheckEvaluation) -> bool:
    """Tell whether a check keeps what follows its asset from being made."""
    return not check.passed and bool(check.blocking) and check.severity is dg.AssetCheckSeverity.ERROR


def finding_of(check: dg.AssetCheckEvaluation) -> str:
    """Return what a check found: its verdict where it says one, else its numbers, e.g. ``n_rows 12, bound 0.11``."""
    if VERDICT in check.metadata:
        return str(check.metadata[VERDICT].value)
    shown = []
    for name, value in check.metadata.items():
        if isinstance(value, dg.FloatMetadataValue):
            shown.append(f"{name} {value.value:.4g}")
        elif isinstance(value, dg.IntMetadataValue):
            shown.append(f"{name} {value.value:,}")
        elif isinstance(value, dg.TextMetadataValue):
            shown.append(f"{name} {value.value}")
    return ", ".join(shown)
