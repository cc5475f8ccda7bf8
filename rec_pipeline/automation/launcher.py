"""
Runs as processes of this machine, and which of them are gone.

Dagster's own launcher never asks whether the process of a run still lives, so a run whose host was switched off stands
as started until ``max_runtime_seconds``, and with one run at a time nothing else begins. This one can tell: the daemon
asks every ``poll_interval_seconds``, fails such a run and, where ``run_retries`` says so, starts it again.
"""

import os
import socket
from pathlib import Path
from typing import Final

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, LaunchRunContext, WorkerStatus

from rec_pipeline.resources.embedded_valkey import is_running

HOST_TAG: Final = "rec_pipeline/host"
BOOT_TAG: Final = "rec_pipeline/boot"
PROCESS_TAG: Final = "rec_pipeline/process"
KILLED: Final = "its process was killed; what it had made is kept"
UNDER_WAY: Final = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class LocalRunLauncher(DefaultRunLauncher):
    """Launches as ``DefaultRunLauncher`` does and knows whether the process of a run lives."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run's process; the run remembers the machine."""
        self._instance.add_run_tags(context.dagster_run.run_id, machine_tags())
        super().launch_run(context)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Whether ``check_run_worker_health`` can be asked."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Tell whether the process of a run lives; of one on another machine it is assumed."""
        if is_gone(self._instance, run):
            return CheckRunHealthResult(WorkerStatus.FAILED, KILLED)
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def machine_tags() -> dict[str, str]:
    """Return the tags of a run that this machine executes."""
    return {HOST_TAG: socket.gethostname(), BOOT_TAG: _boot()}


def process_tags() -> dict[str, str]:
    """Return the tags of a run that this process executes."""
    return {**machine_tags(), PROCESS_TAG: str(os.getpid())}


def is_gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tell whether a run that is under way was executed by this machine in a process that has ended."""
    if run.tags.get(HOST_TAG) != socket.gethostname():
        return False
    if run.tags.get(BOOT_TAG) != _boot():
        return True
    pid = run.tags.get(PROCESS_TAG) or _launched_process(instance, run)
    return pid is not None and not is_running(int(pid))


def end_killed_runs(instance: dg.DagsterInstance) -> None:
    """Say of runs whose process here is gone that they failed; Dagster itself would take them for running for ever."""
    here = dg.RunsFilter(statuses=UNDER_WAY, tags={HOST_TAG: socket.gethostname()})
    for run in instance.get_runs(here):
        if is_gone(instance, run):
            instance.report_run_failed(run, KILLED)


def _launched_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Return the process that a launched run said it began in; None before it has."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event else None
        if pid is not None:
            return str(pid.value)
    return None


def _boot() -> str:
    """Name this start of the machine, or of the container: process ids mean something within it alone."""
    try:
        began = (
            Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
        )  # field 22, ticks since the kernel's start
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{began}"
    except OSError:
        return ""
