"""
Publication of a sealed generation: stage, verify, flip.

Every list is first written beside the live one, under a key nobody reads, and read back and compared. Then one small
script a user renames it over the live key. So a reader with one plain GET finds a whole list of the old generation or
of the new one at any moment, whatever is killed when, and a publication that was interrupted is finished by running it
again.

Order between publishers is kept by fences, not by the lock: every script that changes something live first looks at the
generation that is there and leaves a newer one alone.
"""

import json
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import redis
from pydantic import BaseModel, Field
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError

from rec_pipeline.engine.columns import ITEM_ID, REASON, SCORE, SOURCES, USER_ID
from rec_pipeline.engine.errors import (
    ArtifactIntegrityError,
    PublishFailedError,
    PublishIncompleteError,
    PublishRefusedError,
)
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.codec import encode_lists
from rec_pipeline.engine.store.commands import pack, send
from rec_pipeline.engine.store.generation import (
    Generation,
    RowGroup,
    delete_old_generations,
    find_generation,
    list_generations,
    renumber,
)
from rec_pipeline.engine.store.lock import PublishLock
from rec_pipeline.engine.store.server import ServerFacts, explain, is_refusal, number_at, text_fields

Progress = Callable[[str, int, int], None]
"""Called with phase (``stage``, ``verify``, ``flip``, ``sweep``), users done and users in all."""

STAGING: Final = "STAGING"
FLIPPING: Final = "FLIPPING"
LIVE: Final = "LIVE"
SWEPT: Final = "SWEPT"

ENCODED_COLUMNS: Final = [USER_ID, ITEM_ID, SCORE, SOURCES, REASON]
HISTORY_LENGTH: Final = 20
KEY_OVERHEAD_BYTES: Final = 150
SAMPLE_USERS: Final = 256
MAX_JITTER_SECONDS: Final = 3600
WAIT_FOR_REPLICAS_MS: Final = 1000

# The generation of the value at KEYS[1]; 0 for none, for a list no publication wrote, and for another type of value.
_LIVE_GENERATION: Final = """
local head = redis.pcall('GETRANGE', KEYS[1], 0, 31)
local live = type(head) == 'string' and tonumber(string.match(head, '^%[{"gen":(%d+)')) or 0
local mine = tonumber(ARGV[1])
"""
_FLIP: Final = (
    _LIVE_GENERATION
    + """
if live > mine then redis.call('UNLINK', KEYS[2]) return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then return live == mine and 2 or -1 end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
return 1
"""
)
OVERTAKEN, FLIPPED, ALREADY, MISSING = 0, 1, 2, -1

_SET_POPULAR: Final = _LIVE_GENERATION + "if live > mine then return 0 end redis.call('SET', KEYS[1], ARGV[2]) return 1"
_RETIRE: Final = (
    _LIVE_GENERATION
    + """
if live == 0 or live >= mine then return 0 end
if ARGV[2] == 'delete' then return redis.call('UNLINK', KEYS[1]) end
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIREAT', KEYS[1], ARGV[3]) end
return 1
"""
)
_SET_FIELDS: Final = """
if tonumber(redis.call('HGET', KEYS[1], 'gen') or 0) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'gen', unpack(ARGV))
return 1
"""
_RAISE_NUMBER: Final = """
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
"""
_ADD_TO_HISTORY: Final = f"""
local last = redis.call('LINDEX', KEYS[1], 0)
if last and cjson.decode(last).gen >= tonumber(ARGV[1]) then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[2])
redis.call('LTRIM', KEYS[1], 0, {HISTORY_LENGTH - 1})
return 1
"""


class PublishParams(BaseModel, frozen=True, extra="forbid"):
    """How a generation is written to the store."""

    ttl_seconds: int = Field(
        72 * 3600,
        ge=60,
        description="Life of a published list: the guard against stale lists when publishing stops; at least 3 times "
        "the schedule. Each user's is longer by up to a tenth (at most 1 h), so that they do not all expire at once.",
    )
    stage_ttl_seconds: int = Field(3600, ge=60, description="Life of a staged list that never went live.")
    batch_size: int = Field(100, ge=1, le=1000, description="Commands per pipeline; servers are fastest at 16 to 100.")
    shards: int = Field(
        1, ge=1, le=1024, description="Parts staged and flipped one after the other; memory peaks at 1 + 1/shards."
    )
    include_reasons: bool = Field(True, description="Whether published items carry `sources` and `reason`.")
    score_decimals: int = Field(4, ge=1, le=9, description="Decimals of a published score; the order never changes.")
    delete_departed: bool = Field(
        False,
        description="Delete the lists of users who were in the previous generation and are not in this one; by default "
        "they stay until they expire.",
    )
    allow_eviction: bool = Field(False, description="Publish to a server that may evict live lists to free memory.")
    min_replicas: int = Field(0, ge=0, le=16, description="Replicas that must confirm before a generation is live.")
    lock_lease_seconds: int = Field(60, ge=1, le=3600, description="How long a dead publisher's lock blocks others.")


@dataclass(frozen=True)
class Publication:
    """
    What a publication did.

    Attributes
    ----------
    generation, n_users, n_bytes
        The generation that is live, its users, and the bytes of their lists.
    already_live
        True if nothing had to be done.
    n_restaged
        Lists that had to be staged twice because they did not read back equal.
    n_departed
        Users of earlier generations who are not in this one.
    seconds
        Wall time by phase.
    warnings
        Sentences for people.
    """

    generation: int
    n_users: int
    n_bytes: int
    already_live: bool
    n_restaged: int
    n_departed: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]


def publish(
    client: "redis.Redis",
    generation: Generation,
    params: PublishParams | None = None,
    *,
    publisher: str = "rec-pipeline",
    unpin: bool = False,
    on_progress: Progress | None = None,
) -> Publication:
    """
    Make a sealed generation live.

    Running it again after it was interrupted finishes it, and after it succeeded does nothing.

    Parameters
    ----------
    client
        As ``publisher_client`` makes it.
    generation
        Its number must be above what is live, or be what is live.
    params
        Defaults where None.
    publisher
        Who publishes (a run id), written to the lock and the history.
    unpin : bool
        Publish although a rollback has pinned another generation, and remove the pin.
    on_progress
        Called after each batch.

    Raises
    ------
    ArtifactIntegrityError
        If the sealed files are damaged; nothing is written.
    ConfigurationError
        If the server is too old or evicts keys.
    LockHeldError
        If another publisher is at work.
    PublishRefusedError
        If it cannot be published as things stand: pinned, overtaken, no rights, no memory.
    PublishFailedError
        If it stopped before anything went live.
    PublishIncompleteError
        If it stopped while going live; publish it again.
    """
    return _publish(client, generation, params or PublishParams(), publisher, on_progress, unpin=unpin, pin=False)


def rollback(
    client: "redis.Redis",
    root: Path,
    to: int | None = None,
    params: PublishParams | None = None,
    *,
    publisher: str = "rec-pipeline rollback",
    on_progress: Progress | None = None,
) -> Publication:
    """
    Publish an older sealed generation forward, under a new number, and pin it.

    While pinned, ``publish`` refuses, so that a schedule does not bring back what was rolled back; ``unpin`` ends that.

    Parameters
    ----------
    client, params, publisher, on_progress
        As for ``publish``.
    root
        Folder of the sealed generations.
    to : int, optional
        Generation to return to; by default the last one published before the content that is live.

    Raises
    ------
    PublishRefusedError
        If there is no earlier generation to return to.
    ArtifactIntegrityError
        If generation ``to`` is not sealed under ``root`` or is damaged.
    """
    with explained():
        live = live_number(client)
        last = last_number(client)
        published = {int(entry["gen"]) for entry in published_history(client)}
    sealed = {generation.number: generation for generation in list_generations(root)}
    if to is None:
        content = sealed[live].content_number if live in sealed else live
        earlier = sorted(number for number in published & sealed.keys() if number < content)
        if not earlier:
            raise PublishRefusedError(
                f"nothing to roll back to: generation {live} is live, sealed under {root} are {sorted(sealed)}, "
                f"published were {sorted(published)}"
            )
        to = earlier[-1]
    target = find_generation(root, to)
    # A rollback that was interrupted has left its generation sealed but not live: finish that one.
    unfinished = [
        generation
        for number, generation in sealed.items()
        if number > live and number >= last and generation.content_number == target.content_number and number != to
    ]
    forward = unfinished[-1] if unfinished else renumber(target, after=last)
    return _publish(client, forward, params or PublishParams(), publisher, on_progress, unpin=False, pin=True)


def unpin(client: "redis.Redis") -> int | None:
    """Let ``publish`` work again after a rollback; returns the generation that was pinned, or None."""
    with explained():
        pinned = number_at(client, keys.PIN)
        client.delete(keys.PIN)
    return pinned


def live_number(client: "redis.Redis") -> int:
    """Return the number of the generation that is live, 0 before the first."""
    return int(text_fields(client, keys.CURRENT).get("gen", 0))


def last_number(client: "redis.Redis") -> int:
    """Return the highest number that anybody ever began to publish here; a new generation needs a higher one."""
    return max(number_at(client, keys.LAST_GENERATION) or 0, live_number(client))


def published_history(client: "redis.Redis") -> list[dict[str, Any]]:
    """Return the last publications, newest first: gen, users, published_at, publisher."""
    entries: Any = client.lrange(keys.HISTORY, 0, -1)
    return [json.loads(entry) for entry in entries]


def half_live(job: Mapping[str, str]) -> list[int]:
    """Return the generations that, by the fields of the job, have begun to flip and not finished."""
    return [int(number) for number in json.loads(job.get("half_live", "[]"))]


def _publish(
    client: "redis.Redis",
    generation: Generation,
    params: PublishParams,
    publisher: str,
    on_progress: Progress | None,
    *,
    unpin: bool,
    pin: bool,
) -> Publication:
    generation.verify()
    work = _Work(client, generation, params, publisher, on_progress or (lambda *_: None))
    with (
        explained(lambda: bool(work.half_live)),
        PublishLock(client, publisher, params.lock_lease_seconds) as work.lock,
    ):
        if work.is_live():
            if work.job.get("state") == SWEPT or int(work.job.get("gen", 0)) != generation.number:
                return work.publication(already_live=True)
        else:
            work.take_pin(unpin=unpin, pin=pin)
            work.prepare()
            groups = generation.row_groups()
            for shard in np.array_split(np.arange(len(groups)), min(params.shards, len(groups))):
                work.go_live([groups[position] for position in shard])
        work.conclude()
    return work.publication(already_live=False)


@contextmanager
def explained(is_half_live: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn what the store or its client says into the error a caller can react to."""
    try:
        yield
    except RedisError as error:
        if is_half_live():
            raise PublishIncompleteError(f"{explain(error)}; every user has a whole list: publish it again") from error
        kind = PublishRefusedError if is_refusal(error) else PublishFailedError
        raise kind(f"{explain(error)}; nothing went live") from error


@dataclass
class _Work:
    """The state of one publication."""

    client: "redis.Redis"
    generation: Generation
    params: PublishParams
    publisher: str
    on_progress: Progress
    lock: PublishLock = field(init=False)
    started_at: float = field(default_factory=time.time)
    earlier: set[int] = field(default_factory=set)
    current: dict[str, str] = field(default_factory=dict)
    job: dict[str, str] = field(default_factory=dict)
    half_live: set[int] = field(default_factory=set)
    facts: ServerFacts | None = None
    run_id: str = ""
    n_bytes: int = 0
    n_restaged: int = 0
    n_departed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    warnings: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        return self.generation.number

    @property
    def expires_at_ms(self) -> int:
        return int((self.started_at + self.params.ttl_seconds) * 1000)

    def is_live(self) -> bool:
        """Read what is live and what was interrupted; refuse to go back or to reuse a number."""
        self.current = text_fields(self.client, keys.CURRENT)
        self.job = text_fields(self.client, keys.JOB)
        self.half_live = set(half_live(self.job))
        unswept = set(json.loads(self.job.get("sweeping", "[]")))
        self.earlier = {self.live, *self.half_live, *unswept} - {0, self.number}
        newest = last_number(self.client)
        if newest > self.number and (self.live != self.number or self.half_live):
            raise PublishRefusedError(
                f"generation {self.number} is older than {newest}, which has been published or begun: publish {newest} "
                "again, seal this one anew, or roll back to it"
            )
        if self.live == self.number and self.current["manifest_sha256"] != self.generation.manifest_sha256:
            raise PublishRefusedError(
                f"another generation {self.number} is live (manifest {self.current['manifest_sha256'][:12]}, not "
                f"{self.generation.manifest_sha256[:12]}): seal this one again after number {self.live}"
            )
        return self.live == self.number

    @property
    def live(self) -> int:
        return int(self.current.get("gen", 0))

    def take_pin(self, *, unpin: bool, pin: bool) -> None:
        pinned = number_at(self.client, keys.PIN)
        if pin:
            self.client.set(keys.PIN, self.number)
        elif unpin:
            self.client.delete(keys.PIN)
        elif pinned not in {None, self.number}:
            raise PublishRefusedError(f"a rollback has pinned generation {pinned}: unpin it to publish {self.number}")

    def prepare(self) -> None:
        """Check the server, claim the number, drop what an interrupted publication has staged."""
        groups = self.generation.row_groups()
        if (found := sum(group.n_users for group in groups)) != self.generation.n_users:
            raise ArtifactIntegrityError(f"{self.generation} holds {found} users, expected {self.generation.n_users}")
        sample = self._encode(groups[0].read(ENCODED_COLUMNS).slice(0, SAMPLE_USERS))
        mean_bytes = pc.mean(pc.binary_length(sample)).as_py() + KEY_OVERHEAD_BYTES
        growth = max(0.0, 1 - int(self.current.get("users", 0)) / self.generation.n_users)
        share = (1 + growth * (self.params.shards - 1)) / self.params.shards
        facts = ServerFacts.ask(self.client)
        needed = int(1.15 * mean_bytes * self.generation.n_users * share)
        self.warnings += facts.check(needed, allow_eviction=self.params.allow_eviction)
        self.facts = facts
        self.client.register_script(_RAISE_NUMBER)(keys=[keys.LAST_GENERATION], args=[self.number])
        interrupted = int(self.job.get("gen", 0))
        if self.job.get("state") in {STAGING, FLIPPING} and interrupted != self.number:
            self._unstage(interrupted)
        self._record(STAGING)

    def go_live(self, shard: list[RowGroup]) -> None:
        """Stage and verify the users of one shard, then flip them."""
        try:
            for group in shard:
                self._stage(group)
            n_verified = sum(self._verify(group) for group in shard)
        except OutOfMemoryError:
            self._unstage(self.number)
            raise
        expected = sum(group.n_users for group in shard)
        if n_verified != expected:
            raise self._failure(f"{n_verified} lists were verified, expected {expected}; they did not go live")
        # A store that is killed may forget its last second: staged lists, which the flip misses, or flips, which only
        # the new run id tells.
        self.run_id = self.run_id or ServerFacts.ask(self.client).run_id
        self.half_live.add(self.number)
        self._record(FLIPPING)
        self._flip(shard)

    def conclude(self) -> None:
        """Move the pointer, then look after users who left and generations nobody needs."""
        if self.live != self.number and self.done["flip"] != self.generation.n_users:
            raise PublishIncompleteError(
                f"{self.done['flip']} lists went live, expected {self.generation.n_users}: publish it again"
            )
        if self.run_id and ServerFacts.ask(self.client).run_id != self.run_id:
            raise PublishIncompleteError(
                "the store was restarted or replaced while lists went live and may have lost the last of them: publish "
                "it again"
            )
        popular = self._encode(self.generation.popular())[0].as_py()
        self._fenced(self.client.register_script(_SET_POPULAR)(keys=[keys.POPULAR], args=[self.number, popular]))
        if self.params.min_replicas:
            confirmed: Any = self.client.wait(self.params.min_replicas, WAIT_FOR_REPLICAS_MS)
            if int(confirmed) < self.params.min_replicas:
                raise PublishIncompleteError(
                    f"{confirmed} replicas confirmed within {WAIT_FOR_REPLICAS_MS} ms, expected "
                    f"{self.params.min_replicas}: publish it again"
                )
        published_at = self.current["published_at"] if self.live == self.number else pd.Timestamp.now("UTC").isoformat()
        facts = {
            "users": self.generation.n_users,
            "published_at": published_at,
            "publisher": self.publisher,
            "manifest_sha256": self.generation.manifest_sha256,
        }
        pointer = {**facts, "ttl_seconds": self.params.ttl_seconds, "code_version": version("rec-pipeline")}
        self._set_fields(keys.CURRENT, pointer)
        self.client.register_script(_ADD_TO_HISTORY)(
            keys=[keys.HISTORY], args=[self.number, json.dumps({"gen": self.number, **facts})]
        )
        self.half_live = set()
        self._record(LIVE)
        self._sweep()
        swept, self.earlier = self.earlier, set()
        self._record(SWEPT)
        if self.facts is not None:
            evicted = ServerFacts.ask(self.client).evicted_keys - self.facts.evicted_keys
            if evicted > 0:
                self.warnings.append(f"the store evicted {evicted} keys during the publication")
        protected = {self.number, *swept, number_at(self.client, keys.PIN) or 0}
        delete_old_generations(self.generation.directory.parent, protected)

    def publication(self, *, already_live: bool) -> Publication:
        return Publication(
            generation=self.number,
            n_users=self.generation.n_users,
            n_bytes=self.n_bytes,
            already_live=already_live,
            n_restaged=self.n_restaged,
            n_departed=self.n_departed,
            seconds={phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            warnings=tuple(self.warnings),
        )

    def _stage(self, group: RowGroup) -> None:
        batch = group.read(ENCODED_COLUMNS)
        values = self._encode(batch)
        self.n_bytes += pc.sum(pc.binary_length(values)).as_py()
        for _ in self._run("stage", self._set_stage(batch[USER_ID], values)):
            pass

    def _verify(self, group: RowGroup) -> int:
        batch = group.read(ENCODED_COLUMNS)
        values, user_ids = self._encode(batch), batch[USER_ID]
        differing = self._differing(user_ids, values)
        if len(differing):
            self.n_restaged += len(differing)
            user_ids, values = user_ids.take(differing), values.take(differing)
            for _ in self._run("restage", self._set_stage(user_ids, values)):
                pass
            still = self._differing(user_ids, values)
            if len(still):
                raise self._failure(
                    f"{len(still)} staged lists read back different twice, for instance that of "
                    f"{user_ids[still[0].as_py()].as_py()!r}; they did not go live"
                )
        return len(batch)

    def _differing(self, user_ids: pa.Array, values: pa.Array) -> pa.Array:
        commands = pack("GET", keys.stage_keys(user_ids, self.number))
        found = [reply for replies in self._run("verify", commands) for reply in replies]
        expected = values.cast(pa.binary()).to_pylist()
        return pa.array([row for row, value in enumerate(expected) if found[row] != value], pa.int64())

    def _flip(self, shard: list[RowGroup]) -> None:
        outcomes: Counter[int] = Counter()
        sha = self.client.script_load(_FLIP)
        for group in shard:
            user_ids = group.read([USER_ID])[USER_ID]
            live, stage = keys.live_keys(user_ids), keys.stage_keys(user_ids, self.number)
            commands = pack("EVALSHA", sha, "2", live, stage, str(self.number), self._expiry(user_ids))
            for replies in self._run("flip", commands, script=_FLIP):
                outcomes.update(replies)
        if outcomes[OVERTAKEN]:
            raise PublishRefusedError(
                f"generation {self.number} was overtaken: {outcomes[OVERTAKEN]} users have a newer list, which stays"
            )
        if outcomes[MISSING]:
            raise PublishIncompleteError(
                f"the staged lists of {outcomes[MISSING]} users are gone; they keep the list they had: publish it again"
            )

    def _sweep(self) -> None:
        sealed = {generation.number: generation for generation in list_generations(self.generation.directory.parent)}
        if absent := sorted(self.earlier - sealed.keys()):
            self.warnings.append(
                f"generations {absent} are not on disk: users who left keep their lists until they expire"
            )
        if not self.earlier & sealed.keys():
            return
        staying = np.sort(np.concatenate([_hashes(group) for group in self.generation.row_groups()]))
        retirement = "delete" if self.params.delete_departed else "expire"
        sha = self.client.script_load(_RETIRE)
        for number in sorted(self.earlier & sealed.keys()):
            for group in sealed[number].row_groups():
                hashes = _hashes(group)
                nearest = np.searchsorted(staying, hashes).clip(max=len(staying) - 1)
                departed = np.flatnonzero(staying[nearest] != hashes)
                if not len(departed):
                    continue
                user_ids = group.read([USER_ID])[USER_ID].take(pa.array(departed))
                arguments = (str(self.number), retirement, self._expiry(user_ids))
                commands = pack("EVALSHA", sha, "1", keys.live_keys(user_ids), *arguments)
                self.n_departed += sum(sum(replies) for replies in self._run("sweep", commands, script=_RETIRE))

    def _unstage(self, number: int) -> None:
        """Remove what generation ``number`` has staged, where its users are known; else the lists expire."""
        try:
            generation = find_generation(self.generation.directory.parent, number)
        except ArtifactIntegrityError:
            return
        for group in generation.row_groups():
            commands = pack("UNLINK", keys.stage_keys(group.read([USER_ID])[USER_ID], number))
            for _ in self._run("unstage", commands):
                pass

    def _set_stage(self, user_ids: pa.Array, values: pa.Array) -> pa.Array:
        ttl_ms = str(self.params.stage_ttl_seconds * 1000)
        return pack("SET", keys.stage_keys(user_ids, self.number), values, "PX", ttl_ms)

    def _encode(self, batch: pa.RecordBatch) -> pa.Array:
        return encode_lists(
            batch,
            self.number,
            include_reasons=self.params.include_reasons,
            score_decimals=self.params.score_decimals,
        )

    def _expiry(self, user_ids: pa.Array) -> pa.Array:
        """Return when each user's list expires, epoch ms as text: the time to live and up to a tenth of it more."""
        window_ms = 1000 * min(self.params.ttl_seconds // 10, MAX_JITTER_SECONDS)
        checksums = np.array([zlib.crc32(user_id.encode()) for user_id in user_ids.to_pylist()], dtype=np.int64)
        return pa.array(self.expires_at_ms + checksums % window_ms).cast(pa.string())

    def _run(self, phase: str, commands: pa.Array, script: str | None = None) -> Iterator[list[Any]]:
        """Send commands, renew the lock and report progress a batch at a time; the first refusal is raised."""
        started = time.perf_counter()
        batch_size = self.params.batch_size
        for position, replies in enumerate(send(self.client, commands, batch_size)):
            if script is not None and any(isinstance(reply, NoScriptError) for reply in replies):
                self.client.script_load(script)  # the server has restarted since; the commands are idempotent
                replies = next(send(self.client, commands.slice(position * batch_size, batch_size), batch_size))
            for reply in replies:
                if isinstance(reply, RedisError):
                    raise reply
            self.seconds[phase] += time.perf_counter() - started
            self.lock.renew()
            self.done[phase] += len(replies)
            self.on_progress(phase, self.done[phase], self.generation.n_users)
            yield replies
            started = time.perf_counter()

    def _record(self, state: str) -> None:
        """Write the state of this publication for ``status`` and for whoever resumes it."""
        facts = {
            "state": state,
            "publisher": self.publisher,
            "half_live": json.dumps(sorted(self.half_live)),
            "sweeping": json.dumps(sorted(self.earlier)),
            "updated_at": pd.Timestamp.now("UTC").isoformat(),
        }
        self._set_fields(keys.JOB, facts)

    def _set_fields(self, key: str, fields: dict[str, Any]) -> None:
        pairs = [part for name, value in fields.items() for part in (name, value)]
        self._fenced(self.client.register_script(_SET_FIELDS)(keys=[key], args=[self.number, *pairs]))

    def _failure(self, text: str) -> PublishFailedError | PublishIncompleteError:
        return PublishIncompleteError(text) if self.half_live else PublishFailedError(text)

    def _fenced(self, outcome: Any) -> None:
        if not outcome:
            raise PublishRefusedError(f"generation {self.number} was overtaken by a newer one, which stays live")


def _hashes(group: RowGroup) -> npt.NDArray[np.uint64]:
    ids = np.asarray(group.read([USER_ID])[USER_ID].to_pylist(), dtype=object)
    return pd.util.hash_array(ids, categorize=False)
