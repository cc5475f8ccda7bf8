"""Child processes that belong together: started together, watched, and stopped together whatever ends them."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from rec_pipeline.engine.errors import ConfigurationError, RecPipelineError

POLL_SECONDS = 0.2
START_SECONDS = 120
GRACE_SECONDS = 10
PORTS_TRIED = 20
LOG_LINES_SHOWN = 15
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServiceStoppedError(RecPipelineError):
    """A child process ended by itself or did not start to answer."""


@dataclass(frozen=True)
class Service:
    """
    One child process.

    Attributes
    ----------
    name
        Name in messages and of its log file.
    argv
        Command line.
    health_url
        Answers with HTTP 200 once the service is ready; None for one that is ready when it runs.
    environment
        Variables added to this process's own.
    """

    name: str
    argv: Sequence[str]
    health_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def dagster_services(instance_ref: str, host: str, port: int, environment: Mapping[str, str]) -> list[Service]:
    """Return the Dagster webserver and daemon on a serialised instance and the ``workspace.yaml`` of this folder."""
    options = ["--instance-ref", instance_ref, "--workspace", "workspace.yaml"]
    webserver = [sys.executable, "-m", "dagster_webserver", "--host", host, "--port", str(port), *options]
    daemon = [sys.executable, "-m", "dagster._daemon", "run", *options]
    return [
        Service("dagster-webserver", webserver, f"{local_url(host, port)}/server_info", environment),
        Service("dagster-daemon", daemon, None, environment),
    ]


def free_port(host: str, port: int) -> int:
    """
    Return the first port from ``port`` on that nobody listens on.

    Raises
    ------
    ConfigurationError
        If the host cannot be bound, or all of the next ports are taken.
    """
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except socket.gaierror as error:
                raise ConfigurationError(f"{host!r} is no address of this machine: {error}") from error
            except OSError:
                continue
            return candidate
    raise ConfigurationError(f"no free port on {host} from {port} to {port + PORTS_TRIED - 1}: choose another")


def local_url(host: str, port: int) -> str:
    """Return the address under which a browser on this machine reaches a server bound to ``host``."""
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared with, not bound


def serve(services: Sequence[Service], log_dir: Path, on_ready: Callable[[], None]) -> None:
    """
    Run ``services`` until Ctrl-C, SIGTERM or SIGHUP, then stop all of them and their children.

    Each service leads a process group of its own, so a Ctrl-C in the terminal reaches only this process, which then
    stops them. Their output goes to ``<log_dir>/<name>.log``.

    Parameters
    ----------
    services
        What to start, all at once.
    log_dir
        Folder of the logs; made when absent.
    on_ready
        Called once when every service answers.

    Raises
    ------
    ServiceStoppedError
        If one of them ends by itself or does not answer in time; the others are stopped, and the message ends with the
        last lines of its log.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with _stop_requested() as stop:
        try:
            for service in services:
                processes[service.name] = _start(service, log_dir)
            waiting = {service.name: service.health_url for service in services if service.health_url}
            deadline = time.monotonic() + START_SECONDS
            while not stop.wait(POLL_SECONDS):
                for name, process in processes.items():
                    if process.poll() is not None:
                        raise ServiceStoppedError(f"{name} ended with {process.returncode}:\n{_tail(log_dir, name)}")
                if not waiting:
                    continue
                waiting = {name: url for name, url in waiting.items() if not _answers(url)}
                if not waiting:
                    on_ready()
                elif time.monotonic() > deadline:
                    name = next(iter(waiting))
                    raise ServiceStoppedError(
                        f"{name} did not answer at {waiting[name]} in {START_SECONDS} s:\n{_tail(log_dir, name)}"
                    )
        finally:
            stop_groups(list(processes.values()))


def stop_groups(leaders: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the process group of every leader: SIGTERM, and SIGKILL for what is left after the time of grace."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for leader in leaders:
            _signal_group(leader, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(_signal_group(leader, 0) for leader in leaders) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)


@contextmanager
def _stop_requested() -> Iterator[Event]:
    # Handlers also undo an inherited "ignore", and unlike an ignored signal a handled one is back to its default in the
    # children: started by a parent that ignores SIGINT and SIGTERM, this process and its children still stop on them.
    stop = Event()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(service: Service, log_dir: Path) -> subprocess.Popen[bytes]:
    with (log_dir / f"{service.name}.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - the arguments are this project's own
            service.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **service.environment},
            start_new_session=True,
        )


def _signal_group(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the group; return whether anybody is left in it."""
    leader.poll()  # a dead leader that is not reaped counts as a member
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - http to this machine
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _tail(log_dir: Path, name: str) -> str:
    lines = (log_dir / f"{name}.log").read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])
