import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rec_pipeline import ui
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline_tests.fixtures.project import Project, listening
from rec_pipeline_tests.fixtures.waiting import LONG, free_port, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")

# Serves the services given as JSON, with a short time of grace, and says READY once they answer.
SERVE = """
import json, sys
from pathlib import Path
from rec_pipeline import ui
ui.GRACE_SECONDS, ui.START_SECONDS = 1, float(sys.argv[2])
services = [ui.Service(**service) for service in json.loads(sys.argv[1])]
try:
    ui.serve(services, Path("logs"), on_ready=lambda: print("READY", flush=True))
except ui.ServiceStoppedError as error:
    sys.exit(f"stopped: {error}")
"""
SLEEPER = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '600'])"]
STUBBORN = ["bash", "-c", "trap '' TERM INT; sleep 600 & while true; do sleep 0.1; done"]


def http_service(port: int) -> dict[str, object]:
    argv = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    return {"name": "web", "argv": argv, "health_url": f"http://127.0.0.1:{port}/"}


def serve(
    project: Project, *services: dict[str, object], ignoring: bool = False, start_seconds: int = LONG
) -> "subprocess.Popen[str]":
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    return subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-c", SERVE, json.dumps(services), str(start_seconds)],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignore if ignoring else None,
    )


def ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LONG) as response:  # noqa: S310 - http to this machine
        return str(response.read().decode())


@pytest.fixture
def port() -> int:
    return free_port()


def test_a_port_that_is_listened_on_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]

        assert taken < ui.free_port("127.0.0.1", taken) < taken + ui.PORTS_TRIED


def test_a_host_that_is_not_this_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such\.host\.invalid"):
        ui.free_port("no.such.host.invalid", 3000)


def test_a_server_on_all_addresses_is_reached_on_the_loopback() -> None:
    assert ui.local_url("0.0.0.0", 3000) == "http://127.0.0.1:3000"  # noqa: S104 - nothing is bound


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_services_and_their_children(project: Project, port: int, number: int) -> None:
    with serve(project, http_service(port), {"name": "sleeper", "argv": SLEEPER}) as process:
        ready(process)
        wait_until(lambda: len(project.processes()) == 4)  # itself, web, sleeper and the sleep below it

        process.send_signal(number)

        assert process.wait(LONG) == 0
        wait_until(lambda: not project.processes())


def test_a_service_that_ignores_sigterm_is_killed_with_its_children(project: Project, port: int) -> None:
    with serve(project, http_service(port), {"name": "stubborn", "argv": STUBBORN}) as process:
        ready(process)

        process.send_signal(signal.SIGINT)

        assert process.wait(LONG) == 0
        wait_until(lambda: not project.processes())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_it_although_its_parent_ignores_them(project: Project, port: int, number: int) -> None:
    with serve(project, http_service(port), {"name": "sleeper", "argv": SLEEPER}, ignoring=True) as process:
        ready(process)

        process.send_signal(number)

        assert process.wait(LONG) == 0
        wait_until(lambda: not project.processes())


def test_children_of_a_parent_that_ignores_signals_do_not_ignore_them(project: Project, port: int) -> None:
    with serve(project, http_service(port), ignoring=True) as process:
        ready(process)
        (child,) = project.processes().keys() - {process.pid}
        ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{child}/status").read_text())

        process.send_signal(signal.SIGINT)

        assert ignored is not None
        assert not int(ignored[1], 16) & (1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1)
        assert process.wait(LONG) == 0


def test_one_service_ending_stops_the_others_and_its_last_words_are_shown(project: Project, port: int) -> None:
    ending = [sys.executable, "-c", "import time; time.sleep(1); raise SystemExit('no such database')"]

    with serve(project, http_service(port), {"name": "ending", "argv": ending}) as process:
        _, stderr = process.communicate(timeout=LONG)

    assert process.returncode == 1
    assert "ending ended with 1" in stderr
    assert "no such database" in stderr
    wait_until(lambda: not project.processes())


def test_a_service_that_does_not_answer_is_named_and_all_are_stopped(project: Project, port: int) -> None:
    silent = {"name": "silent", "argv": SLEEPER, "health_url": f"http://127.0.0.1:{port}/"}

    with serve(project, silent, {"name": "sleeper", "argv": SLEEPER}, start_seconds=1) as process:
        stdout, stderr = process.communicate(timeout=LONG)

    assert stdout == ""
    assert f"silent did not answer at http://127.0.0.1:{port}/" in stderr
    wait_until(lambda: not project.processes())


@pytest.mark.slow
def test_s07_s10_both_uis_answer_until_ctrl_c_and_nothing_is_left(project: Project, port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        process = project.start("ui", "--dagster-port", taken, "--mlflow-port", str(port))
        try:
            assert process.stdout is not None
            addresses = [process.stdout.readline() for _ in range(2)]
            pages = [page(line.split()[1]) for line in addresses if line]
            heard = listening(project.processes())
            foreign = urllib.request.Request(addresses[1].split()[1], headers={"Host": "elsewhere.example"})  # noqa: S310
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(foreign, timeout=LONG)  # noqa: S310 - http to this machine
            refused.value.close()
        finally:
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=LONG)

    assert all(addresses), stderr
    (dagster, dagster_url), (mlflow, _) = map(str.split, addresses)
    assert (dagster, mlflow) == ("Dagster", "MLflow")
    assert f"port {taken} is taken: using {dagster_url.rpartition(':')[2]}" in stderr
    assert set(heard) == {"127.0.0.1"}
    assert refused.value.code == 403
    assert "Dagster" in pages[0]
    assert "MLflow" in pages[1]
    assert process.returncode == 0
    wait_until(lambda: not project.processes())
    assert sorted(path.name for path in project.folder.iterdir()) == ["dagster.yaml", "data", "workspace.yaml"]
