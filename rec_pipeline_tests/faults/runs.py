"""
Whole runs of a small project, killed at any point, and what must hold of what they leave.

Commands are forks of a process that has the libraries loaded: loading them takes longer than most of what they do.
"""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd

from rec_pipeline.cli.execution import instance_ref
from rec_pipeline.engine.artifacts import CURRENT, ArtifactStore
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.status import PublicationStatus, status
from rec_pipeline.resources.embedded_valkey import ensure_server
from rec_pipeline_tests.fixtures.project import REPOSITORY, Project

N_GROUPS, ITEMS_PER_GROUP, N_USERS, ITEMS_PER_USER = 4, 20, 80, 14
DATA = ("--interactions", "events.csv", "--items", "items.csv")
PHASES = {
    "training": ("epoch", "saved-ncf_model", "sealed-ncf_model", "renamed-sequence_model"),
    "embedding": ("saved-content_embeddings", "sealed-collaborative_embeddings", "renamed-sequence_embeddings"),
    "index build": ("saved-content_index", "sealed-collaborative_index", "renamed-sequence_index"),
    "evaluation": ("saved-evaluation_report", "sealed-evaluation_report", "renamed-evaluation_report"),
    "publication": ("saved-recommendations", "stage", "flip", "alias", "event"),
}
"""Crash points by what a run is doing."""


def write_data(folder: Path) -> None:
    """Write the events of users who each like one group of items, so that every gate is passed."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(N_USERS), ITEMS_PER_USER)
    items = np.concatenate([rng.permutation(ITEMS_PER_GROUP)[:ITEMS_PER_USER] for _ in range(N_USERS)])
    items += users % N_GROUPS * ITEMS_PER_GROUP
    seconds = 1_700_000_000 + rng.integers(300 * 86_400, size=len(users))
    events = {"user_id": [f"u{user:03}" for user in users], "item_id": [f"i{item:03}" for item in items]}
    pd.DataFrame({**events, "timestamp": seconds}).to_csv(folder / "events.csv", index=False)
    every = np.arange(N_GROUPS * ITEMS_PER_GROUP)
    names = {"item_id": [f"i{item:03}" for item in every], "title": [f"Work {item}" for item in every]}
    groups = [f"genre {item // ITEMS_PER_GROUP}" for item in every]
    pd.DataFrame({**names, "categories": groups}).to_csv(folder / "items.csv", index=False)


@dataclass
class Commands:
    """Starts commands of a project."""

    process: "subprocess.Popen[str]"
    log: Path

    def start(self, *arguments: str, fault: str = "") -> int:
        """Start a command and return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, "fault": fault, "log": str(self.log)}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def ended(self) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        return self._answer()

    def run(self, *arguments: str, fault: str = "") -> int:
        """Run a command to its end."""
        self.start(*arguments, fault=fault)
        return self.ended()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@contextmanager
def commands(project: Project) -> Iterator[Commands]:
    """Give what starts commands in a project."""
    process = subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-m", __name__],
        cwd=project.folder,
        env=project.environment | {"PYTHONPATH": str(REPOSITORY)},  # the tests are not installed
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Commands(process, project.folder / "commands.log")
        assert process.stdin is not None
        process.stdin.close()  # it ends with its input


def dagster_runs(project: Project) -> list[dg.DagsterRun]:
    """Return the runs of a project, newest first."""
    with chdir(project.folder), dg.DagsterInstance.from_ref(instance_ref(project.folder)) as instance:
        return list(instance.get_runs())


def artefacts_are_whole(project: Project) -> set[str]:
    """Assert that whatever is current is what its manifest says; return its keys. What is not current is absent."""
    root = project.folder / "data" / "artifacts"
    current = {path.parent.name for path in root.glob(f"*/{CURRENT}")}
    for key in current:
        ArtifactStore(root).path(key)
    return current


def mlflow_statuses(project: Project) -> set[str]:
    """Return the statuses of all MLflow runs."""
    with closing(sqlite3.connect(project.folder / "data" / "mlflow" / "mlflow.db")) as database:
        return {row[0] for row in database.execute("select status from runs")}


def publication(project: Project) -> PublicationStatus:
    """Return what the project's store says."""
    data = project.folder / "data"
    with publisher_client(ensure_server(data / "store")) as client:
        return status(client, data / "generations")


def all_is_told(project: Project, n_killed: int) -> None:
    """Assert what must hold once a run was finished after others were killed: nothing open, nothing half, no lie."""
    newest, *before = dagster_runs(project)
    assert newest.status is dg.DagsterRunStatus.SUCCESS, newest
    assert {run.status for run in before} <= {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}
    assert sum(run.status is dg.DagsterRunStatus.FAILURE for run in before) == n_killed
    assert "RUNNING" not in mlflow_statuses(project)
    store = ArtifactStore(project.folder / "data" / "artifacts")
    with chdir(project.folder), dg.DagsterInstance.from_ref(instance_ref(project.folder)) as instance:
        for key in artefacts_are_whole(project):
            event = instance.get_latest_materialization_event(dg.AssetKey(key))
            if event is not None and event.asset_materialization is not None:  # the bundle that was evaluated has none
                version = (event.asset_materialization.tags or {}).get("dagster/data_version")
                assert version == store.manifest(key).version, f"Dagster tells of another {key}"
    found = publication(project)
    assert (found.half_live, found.lock, found.exit_code) == ([], None, 0)
    assert found.live == found.history[0]["gen"] == found.sealed[-1]
    assert found.publisher == newest.run_id


def _serve() -> None:
    """Fork a command for each line of standard input; answer with its process id, and at its end its exit code."""
    import rec_pipeline.definitions  # noqa: F401 - with all that assets need

    del sys.modules["rec_pipeline.definitions"]  # made anew by each command, by its own settings
    for name in ("faiss", "mlflow", "sentence_transformers", "torch"):
        __import__(name)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(order["arguments"], order["fault"], order["log"])
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


def _become(arguments: list[str], fault: str, log: str) -> None:
    from rec_pipeline.cli import main
    from rec_pipeline.settings import settings

    os.environ.update({"REC_FAULT": fault} if fault else {})
    settings.cache_clear()
    with Path(log).open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["rec-pipeline", *arguments]
    code: int | str | None = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve()
