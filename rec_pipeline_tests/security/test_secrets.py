"""S06: a password that is planted everywhere one belongs is in nothing that is printed, logged, raised or stored."""

import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from rec_pipeline.automation.rollback import rollback_recommendations
from rec_pipeline.cli import app
from rec_pipeline.engine.errors import RecPipelineError
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.settings import settings
from rec_pipeline_tests.faults.servers import Server
from rec_pipeline_tests.fixtures.operations import PASSWORDS, USERS
from rec_pipeline_tests.fixtures.project import Project
from rec_pipeline_tests.fixtures.store import seal_lists
from rec_pipeline_tests.fixtures.waiting import free_port

PASSWORD = "hunter2-5d3c9f10a7"  # noqa: S105 - of a server that lives for this test
COMMANDS = [
    ["publish", "--generation", "1"],
    ["publish", "--plan", "--json"],
    ["publish"],
    ["status"],
    ["doctor"],
    ["trace", "u1"],
    ["recommend", "u1"],
    ["rollback", "--json"],
    ["unpin"],
    ["forget", "u2"],
    ["gc"],
]


@pytest.fixture
def secured() -> Iterator[Server]:
    with Server() as server:
        rules = USERS["rec_pub"].replace(PASSWORDS["rec_pub"], PASSWORD)
        server.ask("ACL", "SETUSER", "rec_pub", *rules.split())
        yield server


def files_with(secret: str, folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def invoked(command: list[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit code and all it said, the whole chain of exceptions included."""
    result = CliRunner().invoke(app, command)
    error = result.exception
    code = error.exit_code if isinstance(error, RecPipelineError) else result.exit_code
    return code, result.output + "".join(traceback.format_exception(error) if error else [])


def rolled_back(folder: Path) -> tuple[int, str]:
    """Run the job of the UI, its events kept in a folder; return 1 if it failed, and its events."""
    folder.mkdir()
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        job = rollback_recommendations.execute_in_process(
            instance=instance, resources=resources_for(settings()), raise_on_error=False
        )
        return int(not job.success), "".join(str(event) for event in instance.all_logs(job.run_id))


def test_s06_no_command_no_job_and_no_failure_shows_a_password(
    secured: Server, project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(project.folder)
    for tag in ("g1", "g2"):
        seal_lists(project.folder / "data" / "generations", ["u1", "u2"], tag)
    urls = {
        "right": f"redis://rec_pub:{PASSWORD}@127.0.0.1:{secured.port}",
        "wrong": f"redis://rec_pub:{PASSWORD}-wrong@127.0.0.1:{secured.port}",
        "closed": f"redis://rec_pub:{PASSWORD}@127.0.0.1:{free_port()}",
        "malformed": f"redis://rec_pub:{PASSWORD}@host:port",
        "cluster": f"redis+cluster://rec_pub:{PASSWORD}@127.0.0.1:{free_port()}",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("REC_SERVE_TOKEN", PASSWORD)
    said, codes = "", {}
    caplog.set_level(logging.DEBUG)
    try:
        for kind, url in urls.items():
            monkeypatch.setenv("REC_REDIS_URL", url)
            settings.cache_clear()
            for command in COMMANDS if kind == "right" else [["publish"], ["recommend", "u1"]]:
                codes[kind, command[0]], words = invoked(command)
                said += words
            said += repr(settings()) + repr(resources_for(settings()))
            if kind in {"right", "wrong"}:  # a job tries the others again, for some seconds
                codes[kind, "job"], words = rolled_back(project.folder / "data" / f"instance-{kind}")
                said += words
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://u:{PASSWORD}@127.0.0.1:1")
        settings.cache_clear()
        codes["mlflow", "status"], words = invoked(["status"])
        said += words + repr(settings())
    finally:
        settings.cache_clear()

    assert codes["mlflow", "status"] == 2
    assert {code for (kind, what), code in codes.items() if kind == "right" and what != "job"} == {0}, codes
    assert all(codes[kind, "publish"] for kind in urls if kind != "right"), codes
    assert codes["wrong", "job"] == 1
    assert PASSWORD not in said
    assert PASSWORD not in caplog.text
    assert files_with(PASSWORD, project.folder) == []


def test_s06_the_search_finds_a_password_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_text(f"redis://:{PASSWORD}@host")

    assert files_with(PASSWORD, tmp_path) == ["a/log"]
