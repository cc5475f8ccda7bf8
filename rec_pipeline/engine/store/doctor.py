"""Examination of a store: what is wrong or soon will be, and what to do about it."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import redis

from rec_pipeline.engine.columns import USER_ID
from rec_pipeline.engine.errors import RecPipelineError
from rec_pipeline.engine.store.bookkeeping import explained
from rec_pipeline.engine.store.generation import find_generation, sealed_numbers
from rec_pipeline.engine.store.publication import MAX_CLOCK_SKEW_SECONDS
from rec_pipeline.engine.store.reader import RecommendationReader
from rec_pipeline.engine.store.server import WARN_FROM, ServerFacts, StoreFacts
from rec_pipeline.engine.store.status import PublicationStatus, status
from rec_pipeline.engine.store.suppression import digest_of, readmitted, suppressed, without_suppressed

Level = Literal["ok", "warn", "fail"]
OK: Final[Level] = "ok"
WARN: Final[Level] = "warn"
FAIL: Final[Level] = "fail"
# The first releases without CVE-2025-49844 and its siblings, which let a script run code in the server.
SAFE_VERSIONS: Final = {
    "redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
    "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
SOFT_AGE_HOURS: Final = 36
USERS_READ: Final = 100


@dataclass(frozen=True)
class Finding:
    """
    One thing looked at.

    Attributes
    ----------
    name
        What.
    level
        ``ok``, ``warn`` or ``fail``.
    message
        What was found and, unless it is well, what to do.
    """

    name: str
    level: Level
    message: str


def examine(client: "redis.Redis", root: Path) -> list[Finding]:
    """
    Look at the servers, at what is live and at what is sealed; no list is changed.

    Parameters
    ----------
    client
        The store.
    root
        Folder of the sealed generations.
    """
    try:
        with explained():
            facts = StoreFacts.ask(client)
            found = status(client, root)
    except RecPipelineError as error:
        return [Finding("store", FAIL, str(error))]
    findings = [finding for server in facts.servers for finding in server_findings(server)]
    return [*findings, *_publication(found), *_sealed(client, root, found)]


def exit_code(findings: list[Finding], found_half_live: bool) -> int:
    """Return 8 for a publication to finish, 1 for anything else that fails, else 0."""
    if found_half_live:
        return 8
    return int(any(finding.level == FAIL for finding in findings))


def as_documents(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return the findings for JSON."""
    return [asdict(finding) for finding in findings]


def server_findings(server: ServerFacts) -> Iterator[Finding]:
    """Look at what one server says of itself."""
    release, patch = server.release
    safe = SAFE_VERSIONS.get(server.name, {}).get(release)
    newest = max(SAFE_VERSIONS.get(server.name, {(0, 0): 0}))
    is_safe = release > newest or (safe is not None and patch >= safe)
    hint = "" if is_safe else ": older than the fix of CVE-2025-49844, unless its packager has backported it; upgrade"
    yield Finding("version", OK if is_safe else WARN, f"{server.name} {server.version}{hint}")
    yield (
        Finding("eviction", OK, "maxmemory-policy noeviction")
        if server.policy == "noeviction"
        else Finding("eviction", FAIL, f"maxmemory-policy {server.policy} drops live lists: set it to noeviction")
    )
    yield (
        Finding("persistence", OK, "appendonly yes")
        if server.has_append_only_file
        else Finding("persistence", WARN, "no persistence of the last writes: appendonly is off; set appendonly yes")
    )
    share = server.used_bytes / server.max_bytes if server.max_bytes else 0.0
    limit = f"{share:.0%} of maxmemory" if server.max_bytes else "no maxmemory"
    yield Finding("memory", WARN if share > WARN_FROM else OK, f"{server.used_bytes:,} bytes used, {limit}")
    skew = server.clock_seconds - datetime.now(UTC).timestamp()
    level = WARN if abs(skew) > MAX_CLOCK_SKEW_SECONDS else OK
    yield Finding("clock", level, f"{skew:+.1f} s from this machine's")


def _publication(found: PublicationStatus) -> Iterator[Finding]:
    if found.half_live:
        yield Finding("publication", FAIL, f"{found.half_live} went live in part: `rec-pipeline publish --resume`")
    if found.lock is not None:
        yield Finding(
            "lock", WARN, f"{found.lock['holder']} on {found.lock['host']} is publishing, or died a moment ago"
        )
    if found.pinned is not None:
        yield Finding("pin", WARN, f"generation {found.pinned} is pinned by a rollback: `rec-pipeline unpin` ends that")
    if found.live is None or found.published_at is None:
        yield Finding("live", WARN, "nothing is live")
        return
    hours = (datetime.now(UTC) - datetime.fromisoformat(found.published_at)).total_seconds() / 3600
    age = f"generation {found.live}, {found.n_users:,} users, {hours:.1f} h old"
    yield Finding("live", WARN if hours > SOFT_AGE_HOURS else OK, age)


def _sealed(client: "redis.Redis", root: Path, found: PublicationStatus) -> Iterator[Finding]:
    numbers = sealed_numbers(root)
    yield _checked(
        "sealed", lambda: f"generations {[find_generation(root, number).number for number in numbers]} on disk"
    )
    if found.live is None:
        return
    live = found.live

    def whole() -> str:
        generation = find_generation(root, live)
        generation.verify()
        return f"generation {live} is whole on disk, so that it can be restored"

    def read_back() -> str:
        reader = RecommendationReader(client)
        batch = next(find_generation(root, live).iterate(USERS_READ))
        with explained():
            users = without_suppressed(batch, suppressed(client, root), USER_ID)[USER_ID].to_pylist()
            absent = [user_id for user_id in users if reader.get(user_id) is None]
            waiting = readmitted(client)
        missing = [user_id for user_id in absent if digest_of(user_id) not in waiting]
        if missing:
            raise RecPipelineError(
                f"{len(missing)} of {len(users)} users of generation {live} have no list: `rec-pipeline publish "
                "--from-artifact last` restores them"
            )
        n_waiting = len(absent)
        wait = f"; no longer forgotten, {n_waiting} of {len(users)} users wait for the next generation"
        return f"{len(users) - n_waiting} lists read back{wait if n_waiting else ''}"

    yield _checked("artefact", whole)
    yield _checked("lists", read_back)


def _checked(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, OK, look())
    except RecPipelineError as error:
        return Finding(name, FAIL, str(error))
