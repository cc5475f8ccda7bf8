"""
The long tier: faults drawn at random for as long as asked, with readers watching all the time.

``make soak`` runs it. Each try harms one publication, asks what readers saw and what the store says, and finishes it;
the table tells for every fault how often it was tried and what was observed. Anything missing, torn, of another user or
older than before ends the soak with exit code 1 and its seed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from rec_pipeline.engine.errors import PublishFailedError, PublishIncompleteError, RecPipelineError
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.generation import Generation, delete_old_generations
from rec_pipeline_tests.faults.arena import Arena
from rec_pipeline_tests.faults.processes import Observations, Publisher, readers
from rec_pipeline_tests.faults.servers import BINARIES, Server

PHASES = ("stage", "verify", "flip")
MAX_KILLS_IN_A_ROW = 6
MAX_PUBLICATIONS = 3
LEASE_SECONDS = 3600  # what is killed leaves its lock, which is freed here; a machine that pauses must not lose it


@dataclass
class Row:
    """What was tried and seen of one fault."""

    n_tries: int = 0
    n_kills: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    seen: Observations = field(default_factory=Observations)


class Soak:
    """
    One server, its generations and the faults done to them.

    Parameters
    ----------
    server, folder
        What is attacked, and where generations are sealed.
    rng
        Draws the faults.
    n_users
        Lists of each generation.
    only
        Beginning of the names of the faults that are drawn; all where empty.
    """

    def __init__(self, server: Server, folder: Path, rng: random.Random, n_users: int, only: str = "") -> None:
        self.server = server
        users = tuple(f"u{number}" for number in range(n_users))
        self.arena = Arena(server.url, folder, users, {"lock_lease_seconds": LEASE_SECONDS})
        self.rng = rng
        self.only = only
        self.rows: dict[str, Row] = {}
        self.arena.publish()
        self.faults: dict[str, Callable[[Generation], list[int]]] = {
            **{
                f"F0{1 + place} killed in {phase}, from inside": self._inside(phase)
                for place, phase in enumerate(PHASES)
            },
            "F04 killed before the pointer": self._inside("pointer"),
            "F04 killed before the history": self._inside("history"),
            "F01-F04 killed from outside, any time": self._outside,
            "F25 stopped, overtaken, woken": self._zombie,
            "F31 SIGTERM": self._terminated,
            "F07a server killed, restarted": self._server_killed,
            "F08 connections cut": self._cut,
            "F09 server stopped, continued": self._server_stopped,
        }

    def step(self) -> None:
        """Do one fault and finish its publication."""
        name = self.rng.choice([name for name in self.faults if name.startswith(self.only)])
        row = self.rows.setdefault(name, Row())
        generation = self.arena.seal()
        with readers(self.server.url, self.arena.users, self.arena.folder) as seen:
            codes = self.faults[name](generation)
            newest = generation if not self.arena.live() > generation.number else None
            if newest is not None:
                self._finish(newest)
        row.n_tries += 1
        row.n_kills += sum(code == -signal.SIGKILL for code in codes) + name.startswith("F07a")
        for code in codes:
            row.codes[code] = row.codes.get(code, 0) + 1
        row.seen.add(seen)
        delete_old_generations(self.arena.root, {self.arena.live()}, keep=2, min_age_seconds=0)

    def _finish(self, generation: Generation) -> None:
        """Publish it again as long as the error says to; a machine that pauses for long makes connections time out."""
        for _ in range(MAX_PUBLICATIONS - 1):
            with suppress(PublishFailedError, PublishIncompleteError):
                return self.arena.converges(generation)
        return self.arena.converges(generation)

    def _start(self, generation: Generation, fault: str = "") -> Publisher:
        return self.arena.start(generation, fault=fault, params=self._params())

    def _params(self) -> dict[str, int]:
        return {"shards": self.rng.choice([1, 1, 2, 3])}

    def _inside(self, phase: str) -> Callable[[Generation], list[int]]:
        def kill(generation: Generation) -> list[int]:
            count = self.rng.randint(1, generation.n_users) if phase in PHASES else 1
            return [self._start(generation, f"{phase}:{count}:KILL").ended()]

        return lambda generation: self._several(kill, generation)

    def _outside(self, generation: Generation) -> list[int]:
        def kill(generation: Generation) -> list[int]:
            publisher = self._start(generation)
            time.sleep(self.rng.uniform(0, 0.5))
            with suppress(ProcessLookupError):
                publisher.kill()
            return [publisher.ended()]

        return self._several(kill, generation)

    def _several(self, kill: Callable[[Generation], list[int]], generation: Generation) -> list[int]:
        """Kill whoever publishes a generation, and then those who try to finish it."""
        codes = kill(generation)
        for _ in range(self.rng.randint(1, MAX_KILLS_IN_A_ROW) - 1):
            self.arena.free_the_lock()
            codes += kill(generation)
        return codes

    def _terminated(self, generation: Generation) -> list[int]:
        phase = self.rng.choice(PHASES)
        return [self._start(generation, f"{phase}:{self.rng.randint(1, generation.n_users)}:TERM").ended()]

    def _zombie(self, generation: Generation) -> list[int]:
        phase, count = self.rng.choice(PHASES), self.rng.randint(1, generation.n_users)
        zombie = self.arena.start_and_stop(generation, f"{phase}:{count}", params=self._params())
        try:
            newer = self.arena.seal()
            self._finish(newer)
        finally:
            zombie.kill(signal.SIGCONT)
        code = zombie.ended()
        if (
            code not in {6, 7}
            or self.arena.live() != newer.number
            or set(self.arena.served().values()) != {newer.number}
        ):
            raise AssertionError(f"the zombie ended with {code}: {zombie.message}; live is {self.arena.live()}")
        return [code]

    def _server_killed(self, generation: Generation) -> list[int]:
        publisher = self._start(generation)
        time.sleep(self.rng.uniform(0, 0.4))
        self.server.restart()
        return [publisher.ended()]

    def _server_stopped(self, generation: Generation) -> list[int]:
        publisher = self._start(generation)
        time.sleep(self.rng.uniform(0, 0.4))
        self.server.signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.1, 1.5))
        self.server.signal(signal.SIGCONT)
        return [publisher.ended()]

    def _cut(self, generation: Generation) -> list[int]:
        publisher = self._start(generation)
        with publisher_client(self.server.url) as client:
            for _ in range(self.rng.randint(1, 5)):
                time.sleep(self.rng.uniform(0, 0.1))
                with suppress(redis.ConnectionError):
                    client.client_kill_filter(_type="normal", skipme=True)
        return [publisher.ended()]


def table(rows: dict[str, Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| fault | tries | kills | exit codes | reads | missing | torn | of another user | backward | unreachable |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    total = Row()
    for name, row in sorted(rows.items()):
        lines.append(_line(name, row))
        total.n_tries += row.n_tries
        total.n_kills += row.n_kills
        total.seen.add(row.seen)
    return "\n".join([*lines, _line("all", total)])


def _line(name: str, row: Row) -> str:
    codes = ", ".join(f"{code}: {number}" for code, number in sorted(row.codes.items()))
    seen = row.seen
    numbers = (seen.n_reads, seen.n_missing, seen.n_torn, seen.n_foreign, seen.n_backward, seen.n_unreachable)
    return f"| {name} | {row.n_tries} | {row.n_kills} | {codes} | " + " | ".join(f"{n:,}" for n in numbers) + " |"


def main() -> int:
    """Run the soak; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description="Random faults against the publication protocol.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--min-kills", type=int, default=200, help="Go on until there were so many.")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--only", default="", help="Only faults whose name begins so.")
    parser.add_argument("--server", choices=sorted(BINARIES), default="valkey")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rec-soak-"))
    deadline = time.monotonic() + 60 * options.minutes
    began, failure, n_steps = time.monotonic(), "", 0
    try:
        with Server(options.server) as server:
            soak = Soak(server, folder, random.Random(options.seed), options.users, options.only)  # noqa: S311 - repeatable
            n_kills = n_faults = 0
            while not n_faults and (time.monotonic() < deadline or n_kills < options.min_kills):
                try:
                    soak.step()
                except (AssertionError, RecPipelineError):
                    failure = traceback.format_exc()
                    break
                n_steps += 1
                n_kills = sum(row.n_kills for row in soak.rows.values())
                n_faults = sum(row.seen.n_faults for row in soak.rows.values())
                if n_steps % 20 == 0:
                    _say(
                        f"{(time.monotonic() - began) / 60:.1f} min: {n_steps} tries, {n_kills} kills",
                        sys.stderr.fileno(),
                    )
            examples = [row.seen.example for row in soak.rows.values() if row.seen.example]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    _say(f"{options.server}, {options.users} users, seed {options.seed}, {minutes:.1f} minutes, {n_steps} tries", 1)
    _say(table(soak.rows), 1)
    if failure or examples:
        _say(json.dumps({"failure": failure, "examples": examples}), 1)
    return 1 if failure or n_faults else 0


def _say(text: str, descriptor: int) -> None:
    os.write(descriptor, (text + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
