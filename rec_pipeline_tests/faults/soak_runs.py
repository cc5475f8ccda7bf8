"""
The long tier of whole runs (F06): killed in training, embedding, index build, evaluation and publication, and with
their host.

``make soak`` runs it. Each try kills one to three runs of a small project, inside at a crash point of a phase or from
outside at any time, and then lets one finish. After every kill what is current must be whole; after the finished run
nothing is open in MLflow, Dagster tells which runs were killed and what the artefacts are, and what is live is one
generation. Every tenth try kills the Dagster UI and all that it has started, with a run under way, and starts it again.
The first promise that is not kept ends the soak with exit code 1.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.resources.embedded_valkey import ensure_server, running_server, stop_server
from rec_pipeline_tests.faults.runs import (
    DATA,
    PHASES,
    Commands,
    all_is_told,
    artefacts_are_whole,
    commands,
    dagster_runs,
    publication,
    write_data,
)
from rec_pipeline_tests.fixtures.project import Project, new_project
from rec_pipeline_tests.fixtures.waiting import free_port

OUTSIDE, HOST = "any time, from outside", "the host, with the UI and a run"
MAX_KILLS_IN_A_ROW = 3
TRIES_PER_HOST = 10
WAIT_SECONDS = 600
LAUNCH = """mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""


@dataclass
class Row:
    """What was tried of one fault."""

    n_tries: int = 0
    n_kills: int = 0
    n_finished: int = 0
    slowest_seconds: float = 0.0


class Soak:
    """
    One project and what is done to its runs.

    Parameters
    ----------
    project, start
        The project, and what starts its commands.
    rng
        Draws the faults.
    """

    def __init__(self, project: Project, start: Commands, rng: random.Random) -> None:
        self.project, self.start, self.rng = project, start, rng
        self.rows = {name: Row() for name in (*PHASES, OUTSIDE, HOST)}
        self.killed: set[str] = set()
        self.run_seconds = self.finish()

    def finish(self) -> float:
        """Let a run finish; return its seconds."""
        began = time.monotonic()
        code = self.start.run("run", *DATA)
        assert code == 0, f"the run ended with {code}: {self.start.log.read_text()[-3000:]}"
        all_is_told(self.project, len(self.killed))
        return time.monotonic() - began

    def step(self, name: str) -> None:
        """Do one fault and finish."""
        row = self.rows[name]
        live = publication(self.project).live
        if name == HOST:
            seconds = self.host()
            row.n_kills += seconds > 0
        else:
            for _ in range(self.rng.randint(1, MAX_KILLS_IN_A_ROW)):
                row.n_kills += self.kill(name)
                artefacts_are_whole(self.project)
                found = publication(self.project)
                if found.lock:  # of the dead publisher: time would free it
                    self.free_the_lock()
                assert found.half_live or (found.live or 0) >= (live or 0), "what was live is not any more"
            seconds = self.run_seconds = self.finish()  # the first, on a busy machine, may have taken ten times as long
        row.n_tries += 1
        row.n_finished += 1
        row.slowest_seconds = max(row.slowest_seconds, seconds)

    def kill(self, name: str) -> int:
        """Kill one run; 0 where it had ended before."""
        if name == OUTSIDE:
            pid = self.start.start("run", *DATA)
            time.sleep(self.rng.uniform(0, self.run_seconds))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = self.start.ended()
        else:
            code = self.start.run("run", *DATA, fault=f"{self.rng.choice(PHASES[name])}:1:KILL")
        if code == 0:
            return 0
        assert code == -signal.SIGKILL, f"it ended with {code}: {self.start.log.read_text()[-3000:]}"
        self.killed |= {run.run_id for run in dagster_runs(self.project) if not run.is_finished}
        return 1

    def free_the_lock(self) -> None:
        """Do what time does to the lock of a dead publisher."""
        with publisher_client(ensure_server(self.project.folder / "data" / "store")) as client:
            client.delete(keys.LOCK)

    def host(self) -> float:
        """
        Kill the UI, its daemon, the run it has launched and the store, and start the UI again.

        Returns
        -------
        Seconds until the run no longer stood as started; 0 if it had ended before.
        """
        with self.ui() as url:
            launched = launch(url)
            while not self.is_under_way(launched):
                time.sleep(0.2)
            time.sleep(self.rng.uniform(0, self.run_seconds / 2))
            server = running_server(self.project.folder / "data" / "store")
            for pid in {*self.project.processes(), *([server.pid] if server else [])} - {self.start.process.pid}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        artefacts_are_whole(self.project)
        self.free_the_lock()
        if self.run(launched).status is dg.DagsterRunStatus.SUCCESS:  # it was quicker
            return 0.0
        assert self.run(launched).status is dg.DagsterRunStatus.STARTED
        began = time.monotonic()
        with self.ui():
            while self.run(launched).status is dg.DagsterRunStatus.STARTED:
                assert time.monotonic() < began + WAIT_SECONDS, f"run {launched} stands as started"
                time.sleep(0.5)
            seconds = time.monotonic() - began
            while dagster_runs(self.project)[0].run_id == launched or not dagster_runs(self.project)[0].is_finished:
                assert time.monotonic() < began + WAIT_SECONDS, f"run {launched} was not started again"
                time.sleep(0.5)
        self.killed.add(launched)
        all_is_told(self.project, len(self.killed))
        return seconds

    def run(self, run_id: str) -> dg.DagsterRun:
        """Return a run as Dagster tells of it."""
        return next(run for run in dagster_runs(self.project) if run.run_id == run_id)

    def is_under_way(self, run_id: str) -> bool:
        """Tell whether a run has begun; it must not have failed."""
        status = self.run(run_id).status
        assert status is not dg.DagsterRunStatus.FAILURE
        return status is dg.DagsterRunStatus.STARTED

    @contextmanager
    def ui(self) -> Iterator[str]:
        """Run ``rec-pipeline ui``; gives the address of Dagster's. Killed inside, it is not asked to end."""
        ports = ("--dagster-port", str(free_port()), "--mlflow-port", str(free_port()))
        source = {"REC_DATASET": "files", "REC_INTERACTIONS": "events.csv", "REC_ITEMS": "items.csv"}
        process = self.project.start("ui", *ports, **source)
        try:
            assert process.stdout is not None
            found = re.match(r"Dagster +(\S+)", process.stdout.readline())
            assert found is not None, process.communicate()
            yield found[1]
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=60)


def launch(url: str) -> str:
    """Start a run as a click in the UI does; return its id."""
    job = {"repositoryLocationName": "rec_pipeline", "repositoryName": "__repository__"}
    params = {"selector": {**job, "jobName": "refresh_recommendations"}, "mode": "default", "runConfigData": {}}
    body = json.dumps({"query": LAUNCH, "variables": {"params": params}}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310 - ours
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http to this machine
        answer: dict[str, Any] = json.load(response)
    return str(answer["data"]["launchRun"]["run"]["runId"])


def table(rows: dict[str, Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| killed in | tries | kills | finished afterwards | slowest, s |", "|---|---:|---:|---:|---:|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row.n_tries} | {row.n_kills} | {row.n_finished} | {row.slowest_seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Run the soak; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description="Whole runs killed at random.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", choices=[*PHASES, OUTSIDE, HOST], action="append", help="Only these; repeatable.")
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311 - repeatable, not secret
    n_steps, failure = 0, ""
    names = options.only or [*PHASES, OUTSIDE]
    with tempfile.TemporaryDirectory(prefix="rec-soak-runs-") as folder:
        project = new_project(Path(folder))
        write_data(project.folder)
        try:
            with commands(project) as start:
                soak = Soak(project, start, rng)
                began = time.monotonic()
                while time.monotonic() < began + 60 * options.minutes:
                    n_steps += 1
                    is_hosts = options.only is None and n_steps % TRIES_PER_HOST == 0
                    try:
                        soak.step(HOST if is_hosts else rng.choice(names))
                    except AssertionError:
                        failure = traceback.format_exc()
                        break
        finally:
            stop_server(project.folder / "data" / "store")
    minutes = (time.monotonic() - began) / 60
    text = f"seed {options.seed}, {minutes:.1f} minutes, {n_steps} tries\n{table(soak.rows)}\n{failure}"
    sys.stdout.write(text)
    return int(bool(failure))


if __name__ == "__main__":
    sys.exit(main())
