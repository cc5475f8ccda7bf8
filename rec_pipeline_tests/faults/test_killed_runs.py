"""F05, F06 and killed writers: artefacts are whole or absent, and Dagster's history tells the truth."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from rec_pipeline.assets.publishing.published_recommendations import published_recommendations
from rec_pipeline.automation.launcher import (
    BOOT_TAG,
    HOST_TAG,
    PROCESS_TAG,
    LocalRunLauncher,
    end_killed_runs,
    machine_tags,
)
from rec_pipeline.engine import crash_points
from rec_pipeline.engine.artifacts import ArtifactStore, read_manifest
from rec_pipeline.engine.crash_points import CrashPoint
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.compute import ComputeResource
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.redis_store import RedisStore
from rec_pipeline_tests.faults.arena import Arena
from rec_pipeline_tests.faults.runs import (
    DATA,
    all_is_told,
    artefacts_are_whole,
    commands,
    dagster_runs,
    mlflow_statuses,
    write_data,
)
from rec_pipeline_tests.fixtures.project import Project

KILLED = -signal.SIGKILL
OLD, NEW = 1, 2
URL_VARIABLE = "REC_TEST_STORE_URL"


def write(root: str, text: str, fault: str) -> None:
    crash_points.arm(CrashPoint.parse(fault) if fault else None)
    ArtifactStore(Path(root)).write(
        "model", lambda folder: (folder / "weights").write_text(text) and None, kind="Model"
    )


def in_child(work: Callable[..., None], *arguments: str) -> int:
    """Do it in a fork of this process, which has the libraries loaded; return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("point", ["saved", "sealed", "renamed"])
def test_a_killed_writer_leaves_what_was_current_and_is_run_again(tmp_path: Path, point: str) -> None:
    store = ArtifactStore(tmp_path)
    write(str(tmp_path), "old", "")
    old = store.path("model")

    assert in_child(write, str(tmp_path), "new", f"{point}-model:1:KILL") == KILLED

    assert store.path("model") == old
    assert (old / "weights").read_text() == "old"
    write(str(tmp_path), "new", "")
    assert (store.path("model") / "weights").read_text() == "new"


def test_what_a_killed_writer_has_left_is_refused(tmp_path: Path) -> None:
    write(str(tmp_path), "old", "")
    in_child(write, str(tmp_path), "new", "saved-model:1:KILL")
    (left,) = tmp_path.glob("model/.writing-*")

    with pytest.raises(ArtifactIntegrityError, match="manifest"):
        read_manifest(left)


def published(data: str, url: str, fault: str) -> None:
    """Materialise the asset as a run does, with a history that outlives the process."""
    os.environ[URL_VARIABLE] = url
    crash_points.arm(CrashPoint.parse(fault) if fault else None)
    artifacts = Artifacts(root=f"{data}/artifacts")
    resources = {
        "io_manager": artifacts,
        "artifacts": artifacts,
        "redis_store": RedisStore(
            url_variable=URL_VARIABLE, embedded_dir=f"{data}/store", generations_dir=f"{data}/generations"
        ),
        "tracker": MLflowTracker(folder=f"{data}/mlflow"),
        "compute": ComputeResource(),
    }
    recommendations = dg.AssetSpec("recommendations")
    with dg.DagsterInstance.local_temp(f"{data}/dagster") as instance:
        dg.materialize(
            [recommendations, published_recommendations],
            selection=[published_recommendations],
            instance=instance,
            resources=resources,
        )


@pytest.fixture
def history(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(f"{tmp_path}/dagster") as instance:
        yield instance


def test_f05_a_step_killed_before_its_event_is_run_again_and_nothing_is_doubled(
    arena: Arena, tmp_path: Path, history: dg.DagsterInstance
) -> None:
    generation: Generation = arena.seal()
    ArtifactStore(tmp_path / "artifacts").write("recommendations", generation.save, kind="Generation")

    with arena.watched():
        assert in_child(published, str(tmp_path), arena.url, "event:1:KILL") == KILLED
        before = arena.values()
        assert arena.live() == NEW
        assert in_child(published, str(tmp_path), arena.url, "") == 0

    assert not arena.changed_since(before)
    assert [entry["gen"] for entry in arena.status().history] == [NEW, OLD]
    records = history.fetch_materializations(dg.AssetKey("published_recommendations"), limit=10).records
    assert len(records) == 1


@dg.job
def idle() -> None: ...


def fate(monitored: dg.DagsterInstance, pid: int, **tags: str) -> str:
    """Let Dagster's monitoring look once at a run launched here whose process was ``pid``; return its status."""
    run = monitored.create_run_for_job(idle, status=dg.DagsterRunStatus.STARTED, tags=machine_tags() | tags)
    monitored.report_engine_event("Started process for run", run, EngineEventData.in_process(pid))
    record = monitored.get_run_record_by_id(run.run_id)
    monitor_started_run(monitored, None, record, logging.getLogger())  # type: ignore[arg-type] # for resuming alone
    return monitored.get_run_by_id(run.run_id).status.value


def test_f06_a_launched_run_whose_process_is_gone_is_failed_by_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = {"module": LocalRunLauncher.__module__, "class": LocalRunLauncher.__name__}
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)

    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"run_launcher": launcher}) as monitored:
        assert fate(monitored, dead) == "FAILURE"
        assert fate(monitored, os.getpid()) == "STARTED"
        assert fate(monitored, os.getpid(), **{BOOT_TAG: "before the machine was started again"}) == "FAILURE"
        assert fate(monitored, dead, **{HOST_TAG: "elsewhere"}) == "STARTED"
        monkeypatch.setattr(LocalRunLauncher, "supports_check_run_worker_health", False)
        assert fate(monitored, dead) == "STARTED"  # as Dagster's own launcher leaves it


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_f06_a_run_killed_before_it_began_or_since_is_failed_by_the_next(
    history: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    gone, alive = (
        history.create_run_for_job(idle, status=status, tags=machine_tags() | {PROCESS_TAG: str(pid)}).run_id
        for pid in (dead, os.getpid())
    )

    end_killed_runs(history)

    assert history.get_run_by_id(gone).status is dg.DagsterRunStatus.FAILURE
    assert history.get_run_by_id(alive).status is status


@pytest.mark.slow
def test_f06_a_run_killed_while_training_and_again_while_embedding_is_finished_by_the_next(project: Project) -> None:
    write_data(project.folder)
    with commands(project) as start:
        assert start.run("run", *DATA, fault="epoch:1:KILL") == KILLED
        (first,) = dagster_runs(project)
        assert first.status is dg.DagsterRunStatus.STARTED
        assert artefacts_are_whole(project) & {"interaction_split", "ncf_model"} == {"interaction_split"}
        assert "RUNNING" in mlflow_statuses(project)

        assert start.run("run", *DATA, fault="sealed-content_embeddings:1:KILL") == KILLED
        assert [run.status.value for run in dagster_runs(project)] == ["STARTED", "FAILURE"]
        assert "content_embeddings" in artefacts_are_whole(project)  # of the first

        assert start.run("run", *DATA) == 0, start.log.read_text()[-3000:]

    all_is_told(project, n_killed=2)
