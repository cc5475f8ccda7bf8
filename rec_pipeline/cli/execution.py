"""A job of this project as a Dagster run on the project's instance, and what went wrong when it fails."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.api import execute_run_iterator
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.storage.tags import MAX_RETRIES_TAG, PARTITION_NAME_TAG
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._utils.interrupts import capture_interrupts
from dagster_shared.error import SerializableErrorInfo

from rec_pipeline.automation.launcher import end_killed_runs, process_tags
from rec_pipeline.engine.errors import ConfigurationError, GateRefusedError, InputRejectedError, RecPipelineError
from rec_pipeline.resources.days import partition_of_a_refresh
from rec_pipeline.resources.progress_logger import (
    BLOCKED,
    finding_of,
    is_blocked_by,
    is_interruption,
    root_cause,
    root_message,
    terminal,
)
from rec_pipeline.settings import settings


class RunCancelledError(RecPipelineError):
    """Somebody interrupted a run."""

    exit_code = 130


@dataclass(frozen=True)
class JobRun:
    """
    A finished run.

    Attributes
    ----------
    run_id
        Dagster's id.
    status
        Its end: success, failure or canceled.
    events
        What happened, in order.
    seconds
        Wall-clock time.
    groups
        Group of each asset key of the job.
    """

    run_id: str
    status: dg.DagsterRunStatus
    events: Sequence[dg.DagsterEvent]
    seconds: float
    groups: Mapping[str, str]

    @property
    def checks(self) -> list[dg.AssetCheckEvaluation]:
        """Results of the checks."""
        return [e.asset_check_evaluation_data for e in self.events if e.event_type_value == "ASSET_CHECK_EVALUATION"]

    @property
    def made(self) -> set[str]:
        """Keys of the assets the run materialised."""
        events = [e for e in self.events if e.event_type_value == "ASSET_MATERIALIZATION"]
        return {event.step_materialization_data.materialization.asset_key.path[-1] for event in events}


def instance_ref(project: Path) -> InstanceRef:
    """Return the instance that ``dagster.yaml`` describes; what it leaves open goes under ``data/dagster``."""
    home = settings().data_dir.absolute() / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    return InstanceRef.from_dir(str(home), config_dir=str(project))


def execute(project: Path, job_name: str, run_config: Mapping[str, Any], *, verbose: bool) -> JobRun:
    """
    Run a job in this process, registered so that the UI knows its code location and can run it again.

    What libraries print goes to the run's compute log only, unless ``verbose``; lines of the ``progress`` logger go to
    the terminal. Ctrl-C and SIGTERM cancel the run. The daemon never repeats a run that a person started here.

    Raises
    ------
    ConfigurationError
        If there is no such job or the run config does not fit it.
    """
    job = _find_job(project, job_name)
    definition = job.get_definition()
    try:
        dg.validate_run_config(definition, dict(run_config))
    except dg.DagsterInvalidConfigError as error:
        raise ConfigurationError(f"job {job_name}: " + "; ".join(entry.message for entry in error.errors)) from error
    (location,) = location_origins_from_yaml_paths([str(project / "workspace.yaml")])
    repository = RemoteRepositoryOrigin(location, job.repository.get_definition().name)
    terminal()  # bound before the streams are silenced
    partition = partition_of_a_refresh() if definition.partitions_def is not None else None
    with dg.DagsterInstance.from_ref(instance_ref(project)) as instance:
        end_killed_runs(instance)
        run = instance.create_run_for_job(
            definition,
            run_config=dict(run_config),
            tags={MAX_RETRIES_TAG: "0", **process_tags(), **({PARTITION_NAME_TAG: partition} if partition else {})},
            remote_job_origin=repository.get_job_origin(job_name),
            job_code_origin=job.get_python_origin(),
        )
        events = []
        with _streams(verbose=verbose), capture_interrupts():
            execution = execute_run_iterator(job, run, instance)
            for event in execution:
                events.append(event)
                if event.is_step_failure and is_interruption(event.step_failure_data.error):
                    # Without it the run would end as failed unexpectedly.
                    instance.report_run_canceling(run)
                elif event.is_step_up_for_retry and is_interruption(event.step_retry_data.error):
                    # A step with a retry policy would be tried again, and the run go on to its end.
                    instance.report_run_canceling(run)
                    stop = DagsterExecutionInterruptedError()
                    events.append(execution.throw(stop))  # type: ignore[attr-defined] # it is a generator
        record = instance.get_run_record_by_id(run.run_id)
    if record is None or record.start_time is None or record.end_time is None:
        raise RecPipelineError(f"run {run.run_id} did not end: {events[-1].message if events else 'nothing happened'}")
    graph = definition.asset_layer.asset_graph
    groups = {key.path[-1]: graph.get(key).group_name for key in graph.materializable_asset_keys}
    return JobRun(run.run_id, record.dagster_run.status, events, record.end_time - record.start_time, groups)


def failure_of(run: JobRun) -> RecPipelineError | None:
    """Return the error that ended a run, of the class that was raised, naming the step; None for a success."""
    if run.status is dg.DagsterRunStatus.SUCCESS:
        return None
    if run.status is dg.DagsterRunStatus.CANCELED:
        return RunCancelledError(f"run {run.run_id} was cancelled")
    event = next(event for event in run.events if event.is_failure)
    error: SerializableErrorInfo | None = event.event_specific_data.error  # type: ignore[union-attr]  # failures have it
    if _root_class(error) == BLOCKED:
        check = next(check for check in run.checks if is_blocked_by(check))
        asset = check.asset_key.to_user_string()
        refused = InputRejectedError if run.groups[asset] == "ingestion" else GateRefusedError
        return refused(f"check {check.check_name} of {asset} did not pass: {finding_of(check)}")
    step = event.step_key or "run"
    name = _root_class(error)
    if (kind := RecPipelineError.kinds().get(str(name))) is not None:
        return kind(f"step {step}: {root_message(error)}")
    return RecPipelineError(f"step {step}: {name}: {root_message(error)} (--verbose shows where)")


def _find_job(project: Path, job_name: str) -> ReconstructableJob:
    repository = ReconstructableRepository.for_module("rec_pipeline.definitions", "defs", str(project))
    jobs = sorted(job.name for job in repository.get_definition().get_all_jobs() if not job.name.startswith("__"))
    if job_name not in jobs:
        raise ConfigurationError(f"there is no job {job_name!r}, only {', '.join(jobs)}")
    return repository.get_reconstructable_job(job_name)


@contextmanager
def _streams(*, verbose: bool) -> Iterator[None]:
    """Keep standard output for the result: while steps run it goes where standard error goes, or nowhere."""
    kept = [os.dup(1), os.dup(2)]
    try:
        target = os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.close(target)
        yield
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _root_class(error: SerializableErrorInfo | None) -> str | None:
    return root_cause(error).cls_name if error else None
