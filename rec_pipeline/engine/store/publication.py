"""
One publication of a sealed generation: stage, verify, flip.

Every list is first written beside the live one, under a key nobody reads, and read back and compared. Then one small
script a user renames it over the live key. So a reader with one plain GET finds a whole list of the old generation or
of the new one at any moment, whatever is killed when, and a publication that was interrupted is finished by running it
again.

Order between publishers is kept by fences, not by the lock: every script that changes something live first looks at the
generation that is there and leaves a newer one alone.
"""

import hashlib
import json
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import redis
from pydantic import BaseModel, Field
from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError

from rec_pipeline.engine import crash_points
from rec_pipeline.engine.columns import ITEM_ID, REASON, SCORE, SOURCES, USER_ID
from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.errors import (
    ArtifactIntegrityError,
    LockHeldError,
    PublishFailedError,
    PublishIncompleteError,
    PublishRefusedError,
)
from rec_pipeline.engine.pseudonyms import pseudonym
from rec_pipeline.engine.store import keys, scripts
from rec_pipeline.engine.store.bookkeeping import half_live, last_number
from rec_pipeline.engine.store.codec import encode_lists
from rec_pipeline.engine.store.commands import pack, pack_script, send
from rec_pipeline.engine.store.generation import (
    Generation,
    RowGroup,
    delete_old_generations,
    find_generation,
)
from rec_pipeline.engine.store.lock import PublishLock
from rec_pipeline.engine.store.server import StoreFacts, number_at, text_fields
from rec_pipeline.engine.store.suppression import digest_of, suppressed, wait_no_longer, without_suppressed

Progress = Callable[[str, int, int], None]
"""Called with phase (``stage``, ``verify``, ``flip``, ``sweep``), users done and users in all."""
Prepared = TypeVar("Prepared")
ShouldStop = Callable[[], bool]
"""Asked after each batch; True ends the publication there, in order."""

STAGING: Final = "STAGING"
FLIPPING: Final = "FLIPPING"
LIVE: Final = "LIVE"
SWEPT: Final = "SWEPT"

USERS_PER_FLIP: Final = 25
SAMPLE_USERS: Final = 256
KEY_OVERHEAD_BYTES: Final = 150
MARGIN: Final = 1.15
MAX_JITTER_SECONDS: Final = 3600
MAX_CLOCK_SKEW_SECONDS: Final = 60
WAIT_FOR_REPLICAS_MS: Final = 1000
PROBE_TTL_MS: Final = 60_000
WITHOUT_LOCK: Final = {"unstage", "count"}
"""Phases that change nothing live, and run to their end whoever holds the lock."""


class PublishParams(BaseModel, frozen=True, extra="forbid"):
    """How a generation is written to the store."""

    ttl_seconds: int = Field(
        72 * 3600,
        ge=60,
        description="Life of a published list: the guard against stale lists when publishing stops; at least 3 times "
        "the schedule. Each user's is longer by up to a tenth (at most 1 h), so that they do not all expire at once. "
        "One that was staged and never went live is removed by the next publication, or expires then too.",
    )
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
    n_left_out
        Users of this generation who asked to be forgotten.
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
    n_left_out: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Intent:
    """
    Why a generation is published, and what may be overridden for it.

    Attributes
    ----------
    publisher
        Who publishes (a run id), for the lock and the history.
    reason
        What for, for the history: ``publish``, ``rollback to 3``.
    pin
        Pin the generation, so that nothing else is published before ``unpin``.
    unpin
        Publish although another generation is pinned, and remove the pin.
    """

    publisher: str = "rec-pipeline"
    reason: str = "publish"
    pin: bool = False
    unpin: bool = False


@dataclass(frozen=True)
class Estimate:
    """
    What a publication needs of the store's memory.

    Attributes
    ----------
    bytes_per_user
        Of one list with its key, the mean over a sample.
    needed_bytes
        On top of what is used, at the peak, with a margin.
    """

    bytes_per_user: int
    needed_bytes: int


@dataclass
class Work:
    """
    The state of one publication, and its steps in the order in which they are taken.

    ``publisher.publish`` takes them; the fields after ``compute`` belong to the steps.
    """

    client: "redis.Redis"
    generation: Generation
    params: PublishParams
    intent: Intent
    on_progress: Progress
    should_stop: ShouldStop
    compute: Compute
    lock: PublishLock = field(init=False)
    started_at: float = field(default_factory=lambda: time.time())
    left_out: frozenset[str] = frozenset()
    n_left_out: int = 0
    earlier: set[int] = field(default_factory=set)
    current: dict[str, str] = field(default_factory=dict)
    job: dict[str, str] = field(default_factory=dict)
    half_live: set[int] = field(default_factory=set)
    went_live: bool = False
    facts: StoreFacts | None = None
    run_ids: frozenset[str] = frozenset()
    n_bytes: int = 0
    n_restaged: int = 0
    n_departed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    warnings: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Its number."""
        return self.generation.number

    @property
    def expires_at_ms(self) -> int:
        """When the first lists expire, epoch ms by the store's clock."""
        return int((self.started_at + self.params.ttl_seconds) * 1000)

    def is_live(self) -> bool:
        """
        Read what is live and what was interrupted; return whether this generation is live.

        Raises
        ------
        PublishRefusedError
            If going live would go back or reuse a number.
        """
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
        self.went_live = self.live == self.number
        return self.went_live

    @property
    def live(self) -> int:
        """Number of the generation that was live at the start, 0 for none."""
        return int(self.current.get("gen", 0))

    @property
    def is_begun(self) -> bool:
        """Whether lists of this generation are live, or of one that was interrupted: what fails then is unfinished."""
        return self.went_live or bool(self.half_live)

    def leave_out_the_forgotten(self) -> None:
        """Read who asked to be forgotten."""
        self.left_out = suppressed(self.client, self.generation.directory.parent)

    def take_pin(self) -> None:
        """Set, remove or respect the pin."""
        if self.intent.pin:
            self.client.set(keys.PIN, self.number)
        elif self.intent.unpin:
            self.client.unlink(keys.PIN)
        else:
            self.respect_pin()

    def respect_pin(self) -> None:
        """Refuse to replace what a rollback has pinned."""
        pinned = number_at(self.client, keys.PIN)
        if pinned not in {None, self.number}:
            raise PublishRefusedError(f"a rollback has pinned generation {pinned}: unpin it to publish {self.number}")

    def estimate(self) -> "Estimate":
        """
        Return what the publication will need, from a sample of its lists.

        Raises
        ------
        ArtifactIntegrityError
            If the files hold another number of users than the manifest says.
        """
        groups = self.generation.row_groups()
        if (found := sum(group.n_users for group in groups)) != self.generation.n_users:
            raise ArtifactIntegrityError(f"{self.generation} holds {found} users, expected {self.generation.n_users}")
        sample = self._encoding.values(groups[0].read().slice(0, SAMPLE_USERS))
        bytes_per_user = int(pc.mean(pc.binary_length(sample)).as_py()) + KEY_OVERHEAD_BYTES
        growth = max(0.0, 1 - int(self.current.get("users", 0)) / self.generation.n_users)
        share = (1 + growth * (self.params.shards - 1)) / self.params.shards
        return Estimate(bytes_per_user, int(MARGIN * bytes_per_user * self.generation.n_users * share))

    @property
    def left_staged(self) -> int | None:
        """Number of the generation that an interrupted publication may have left staged, or None."""
        return int(self.job["gen"]) if self.job.get("state") in {STAGING, FLIPPING} else None

    def left_staged_bytes(self) -> int:
        """Return the memory of what an interrupted publication has left staged, which ``prepare`` frees."""
        if self.left_staged is None:
            return 0
        return self._at_stages("EXISTS", self.left_staged, "count") * self.estimate().bytes_per_user

    def preflight(self, freed_bytes: int = 0) -> StoreFacts:
        """Check that the store, ``freed_bytes`` emptier, can take the publication; raises as ``StoreFacts.check``."""
        facts = StoreFacts.ask(self.client).after_freeing(freed_bytes)
        needed = self.estimate().needed_bytes
        self.warnings += facts.check(needed, allow_eviction=self.params.allow_eviction)
        # Lists expire by the store's clock, whatever this machine's says.
        skew = facts.clock_seconds - self.started_at
        if abs(skew) > MAX_CLOCK_SKEW_SECONDS:
            self.warnings.append(f"the store's clock is {skew:+.0f} s from this machine's: lists expire by the store's")
        self.started_at = facts.clock_seconds
        return facts

    def prepare(self) -> None:
        """Drop what an interrupted publication has staged, check the store, claim the number."""
        # First, or the memory it takes would be missing from then on.
        if self.left_staged is not None:
            self._at_stages("UNLINK", self.left_staged, "clear")
        self.facts = self.preflight()
        self._probe()
        self.client.register_script(scripts.RAISE_NUMBER)(keys=[keys.LAST_GENERATION], args=[self.number])
        self._record(STAGING)

    def go_live(self, shard: list[RowGroup]) -> None:
        """Stage and verify the users of one shard, then flip them; what cannot go live any more is not left staged."""
        try:
            self._go_live(shard)
        except (OutOfMemoryError, LockHeldError, PublishRefusedError):
            self._at_stages("UNLINK", self.number, "unstage")
            raise

    def conclude(self) -> None:
        """Move the pointer, then look after users who left and generations nobody needs."""
        n_expected = self.generation.n_users - self.n_left_out
        if self.live != self.number and self.done["flip"] != n_expected:
            raise PublishIncompleteError(
                f"{self.done['flip']} lists went live, expected {n_expected}: publish it again"
            )
        if not self.run_ids <= StoreFacts.ask(self.client).run_ids:
            raise PublishIncompleteError(
                "the store was restarted or replaced while lists went live and may have lost the last of them: publish "
                "it again"
            )
        crash_points.reach("pointer")
        popular = self._encoding.values(self.generation.popular())[0].as_py()
        self._fenced(self.client.register_script(scripts.SET_POPULAR)(keys=[keys.POPULAR], args=[self.number, popular]))
        if self.live != self.number:  # else another publisher has made the lists, and left others out
            wait_no_longer(self.client, self.left_out)
        if self.params.min_replicas:
            confirmed: Any = self.client.wait(self.params.min_replicas, WAIT_FOR_REPLICAS_MS)
            if int(confirmed) < self.params.min_replicas:
                raise PublishIncompleteError(
                    f"{confirmed} replicas confirmed within {WAIT_FOR_REPLICAS_MS} ms, expected "
                    f"{self.params.min_replicas}: publish it again"
                )
        published_at = self.current["published_at"] if self.live == self.number else pd.Timestamp.now("UTC").isoformat()
        facts = {
            "users": int(self.current["users"]) if self.live == self.number else n_expected,
            "published_at": published_at,
            "publisher": self.intent.publisher,
            "reason": self.intent.reason,
            "content": self.generation.content_number,
            "bundle": str(self.generation.metadata.get("bundle", "")),
            "manifest_sha256": self.generation.manifest_sha256,
        }
        pointer = {
            **facts,
            "ttl_seconds": self.params.ttl_seconds,
            "code_version": version("rec-pipeline"),
            "seconds": json.dumps({phase: round(seconds, 3) for phase, seconds in self.seconds.items()}),
        }
        self._set_fields(keys.CURRENT, pointer)
        crash_points.reach("history")
        self.client.register_script(scripts.ADD_TO_HISTORY)(
            keys=[keys.HISTORY], args=[self.number, json.dumps({"gen": self.number, **facts})]
        )
        self.half_live = set()
        self._record(LIVE)
        self._forget_the_latest()
        with self._timed("sweep"):
            self._sweep()
        swept, self.earlier = self.earlier, set()
        self._record(SWEPT)
        if self.facts is not None:
            evicted = StoreFacts.ask(self.client).evicted_keys - self.facts.evicted_keys
            if evicted > 0:
                self.warnings.append(f"the store evicted {evicted} keys during the publication")
        protected = {self.number, *swept, number_at(self.client, keys.PIN) or 0}
        delete_old_generations(self.generation.directory.parent, protected)

    def publication(self, *, already_live: bool) -> Publication:
        """Return what was done."""
        return Publication(
            generation=self.number,
            n_users=self.generation.n_users - self.n_left_out,
            n_bytes=self.n_bytes,
            already_live=already_live,
            n_restaged=self.n_restaged,
            n_departed=self.n_departed,
            n_left_out=self.n_left_out,
            seconds={phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            warnings=tuple(self.warnings),
        )

    def _probe(self) -> None:
        """
        Publish and retire a list under a key that can be no user's, so that a missing right is met before a user is.

        Raises
        ------
        redis.exceptions.NoPermissionError
            If the server's ACL forbids a command of the protocol.
        """
        try:
            self.client.script_load(scripts.FLIP)
            expiry = int(self.started_at * 1000) + PROBE_TTL_MS
            self.client.set(keys.PROBE_STAGE, '[{"gen":0}]', pxat=expiry)
            self.client.get(keys.PROBE_STAGE)
            self.client.register_script(scripts.FLIP)(keys=[keys.PROBE_LIVE, keys.PROBE_STAGE], args=[self.number])
            self.client.pttl(keys.PROBE_LIVE)
            self.client.pexpireat(keys.PROBE_LIVE, expiry)
        finally:
            self.client.unlink(keys.PROBE_LIVE)

    def _go_live(self, shard: list[RowGroup]) -> None:
        with self._timed("stage"):
            encoded = self.compute.map(_encoded, shard, self._encoding)
            staged = [self._stage(*packed) for packed in _ahead(map(self._packed_stage, _ahead(encoded)))]
        with self._timed("verify"):
            n_verified = sum(map(self._verify, shard, _ahead(map(self._users, shard)), staged))
        n_staged = sum(map(len, staged))
        self.n_left_out += sum(group.n_users for group in shard) - n_staged
        if n_verified != n_staged:
            raise self._failure(f"{n_verified} lists were verified, expected {n_staged}; they did not go live")
        # A store that is killed may forget its last second: staged lists, which the flip misses, or flips, which only
        # the new run id tells.
        self.run_ids = self.run_ids or StoreFacts.ask(self.client).run_ids
        self.half_live.add(self.number)
        self.went_live = True
        self._record(FLIPPING)
        with self._timed("flip"):
            self._flip(shard)

    @property
    def _encoding(self) -> "Encoding":
        return Encoding(self.number, self.params, self.left_out)

    def _users(self, group: RowGroup) -> pa.Array:
        return self._encoding.read(group, [USER_ID])[USER_ID]

    def _packed_stage(
        self, encoded: tuple[pa.Array, pa.Array]
    ) -> tuple[pa.Array, pa.Array, npt.NDArray[np.int64], int]:
        """Return these users, their commands, and a hash of each value and the bytes of all."""
        user_ids, values = encoded
        n_bytes = pc.sum(pc.binary_length(values)).as_py() or 0
        return user_ids, self._set_stage(user_ids, values), _hashed(values.cast(pa.binary()).to_pylist()), n_bytes

    def _packed_flip(self, group: RowGroup) -> tuple[pa.Array, pa.Array]:
        """Return the users of a group and the calls that flip them."""
        user_ids = self._users(group)
        both_keys = keys.live_keys(user_ids), keys.stage_keys(user_ids, self.number)
        return user_ids, pack_script(_sha1_of(scripts.FLIP), both_keys, str(self.number), self._users_per_flip)

    def _stage(
        self, user_ids: pa.Array, commands: pa.Array, hashes: npt.NDArray[np.int64], n_bytes: int
    ) -> npt.NDArray[np.int64]:
        """Stage these lists; return the hashes, which are what is kept of them until they are verified."""
        self._run_all("stage", commands, user_ids)
        self.n_bytes += n_bytes
        return hashes

    def _verify(self, group: RowGroup, user_ids: pa.Array, staged: npt.NDArray[np.int64]) -> int:
        """Read staged lists back; one that is not what was sent is staged again and compared byte by byte."""
        found = self._run_all("verify", pack("GET", keys.stage_keys(user_ids, self.number)), user_ids)
        differing = pa.array(np.flatnonzero(_hashed(found) != staged))
        if len(differing):
            self.n_restaged += len(differing)
            again, values = user_ids.take(differing), _encoded(self._encoding, group)[1].take(differing)
            self._run_all("restage", self._set_stage(again, values), again)
            found = self._run_all("restage", pack("GET", keys.stage_keys(again, self.number)), again)
            expected = values.cast(pa.binary()).to_pylist()
            still = [
                user_id for user_id, *pair in zip(again.to_pylist(), found, expected, strict=True) if len({*pair}) > 1
            ]
            if still:
                raise self._failure(
                    f"{len(still)} staged lists read back different twice, for instance that of {pseudonym(still[0])}; "
                    "they did not go live"
                )
        return len(user_ids)

    def _flip(self, shard: list[RowGroup]) -> None:
        outcomes: Counter[int] = Counter()
        self.client.script_load(scripts.FLIP)
        for user_ids, commands in _ahead(map(self._packed_flip, shard)):
            calls = self._run_all("flip", commands, user_ids, scripts.FLIP, self._users_per_flip)
            outcomes.update(outcome for call in calls for outcome in call)
        if n_overtaken := outcomes[scripts.OVERTAKEN]:
            raise PublishRefusedError(
                f"generation {self.number} was overtaken: {n_overtaken} users have a newer list, which stays"
            )
        if n_missing := outcomes[scripts.MISSING]:
            raise PublishIncompleteError(
                f"the staged lists of {n_missing} users are gone; they keep the list they had: publish it again"
            )

    def _sweep(self) -> None:
        if not self.earlier:
            return
        staying = np.sort(np.concatenate([self._hashes(group) for group in self.generation.row_groups()]))
        for number in sorted(self.earlier):
            try:
                for group in find_generation(self.generation.directory.parent, number).row_groups():
                    self._retire(group, staying)
            except ArtifactIntegrityError as error:
                self.warnings.append(
                    f"users who left since generation {number} keep their lists until they expire: {error}"
                )

    def _retire(self, group: RowGroup, staying: npt.NDArray[np.uint64]) -> None:
        """Retire the lists of the users of a group who are not among those that stay."""
        hashes = self._hashes(group)
        nearest = np.searchsorted(staying, hashes).clip(max=len(staying) - 1)
        departed = np.flatnonzero(staying[nearest] != hashes)
        if not len(departed):
            return
        user_ids = self._users(group).take(pa.array(departed))
        retirement = "delete" if self.params.delete_departed else "expire"
        sha = self.client.script_load(scripts.RETIRE)
        commands = pack(
            "EVALSHA", sha, "1", keys.live_keys(user_ids), str(self.number), retirement, self._expiry(user_ids)
        )
        self.n_departed += sum(self._run_all("sweep", commands, user_ids, script=scripts.RETIRE))

    def _at_stages(self, command: str, number: int, phase: str) -> int:
        """
        Run a command on every key under which generation ``number`` stages a list.

        Returns
        -------
        How many keys were there. Where the users of the generation are not known any more, its lists expire.
        """
        n_found = 0
        with suppress(ArtifactIntegrityError):
            for group in find_generation(self.generation.directory.parent, number).row_groups():
                user_ids = group.read([USER_ID])[USER_ID]
                n_found += sum(self._run_all(phase, pack(command, keys.stage_keys(user_ids, number)), user_ids))
        return n_found

    def _forget_the_latest(self) -> None:
        """Remove the lists of those who asked to be forgotten while this publication was under way."""
        latest = suppressed(self.client, self.generation.directory.parent) - self.left_out
        for group in self.generation.row_groups() if latest else []:
            user_ids = group.read([USER_ID])[USER_ID]
            named = pa.array([digest_of(user_id) in latest for user_id in user_ids.to_pylist()])
            if len(gone := user_ids.filter(named)):
                self._run_all("forget", pack("UNLINK", keys.live_keys(gone)), gone)

    def _set_stage(self, user_ids: pa.Array, values: pa.Array) -> pa.Array:
        # An instant, as it will live with it: RENAME keeps it, so nothing is left to be set while lists go live.
        return pack("SET", keys.stage_keys(user_ids, self.number), values, "PXAT", self._expiry(user_ids))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - started

    @property
    def _users_per_flip(self) -> int:
        """Users one call flips: a Cluster takes keys of one slot only."""
        return 1 if isinstance(self.client, RedisCluster) else min(USERS_PER_FLIP, self.params.batch_size)

    def _expiry(self, user_ids: pa.Array) -> pa.Array:
        """Return when each user's list expires, epoch ms as text: the time to live and up to a tenth of it more."""
        window_ms = 1000 * min(self.params.ttl_seconds // 10, MAX_JITTER_SECONDS)
        checksums = np.array([zlib.crc32(user_id.encode()) for user_id in user_ids.to_pylist()], dtype=np.int64)
        return pa.array(self.expires_at_ms + checksums % window_ms).cast(pa.string())

    def _run_all(
        self,
        phase: str,
        commands: pa.Array,
        user_ids: pa.Array,
        script: str | None = None,
        users_per_command: int = 1,
    ) -> list[Any]:
        """
        Send the commands of these users, renew the lock and report progress a batch at a time.

        Returns
        -------
        One reply a command, in order; the first refusal is raised.
        """
        found: list[Any] = []
        live_keys = keys.live_keys(user_ids)
        begun, n_users = self.done[phase], len(user_ids)
        for replies in send(self.client, commands, self.params.batch_size // users_per_command, live_keys):
            rows = slice(len(found), len(found) + len(replies))
            if script is not None and any(isinstance(reply, NoScriptError) for reply in replies):
                self.client.script_load(script)  # the server has restarted since; the commands are idempotent
                replies = next(send(self.client, commands[rows], len(replies), live_keys[rows]))
            for reply in replies:
                if isinstance(reply, RedisError):
                    raise reply
            found += replies
            if phase not in WITHOUT_LOCK:
                self.lock.renew()
            self.done[phase] = begun + min(len(found) * users_per_command, n_users)
            self.on_progress(phase, self.done[phase], self.generation.n_users)
            crash_points.reach(phase, self.done[phase])
            if phase not in WITHOUT_LOCK and self.should_stop():
                raise self._failure("the publication was stopped between two batches: publish it again")
        return found

    def _record(self, state: str) -> None:
        """Write the state of this publication for ``status`` and for whoever resumes it."""
        facts = {
            "state": state,
            "publisher": self.intent.publisher,
            "half_live": json.dumps(sorted(self.half_live)),
            "sweeping": json.dumps(sorted(self.earlier)),
            "updated_at": pd.Timestamp.now("UTC").isoformat(),
        }
        self._set_fields(keys.JOB, facts)

    def _set_fields(self, key: str, fields: dict[str, Any]) -> None:
        pairs = [part for name, value in fields.items() for part in (name, value)]
        self._fenced(self.client.register_script(scripts.SET_FIELDS)(keys=[key], args=[self.number, *pairs]))

    def _failure(self, text: str) -> PublishFailedError | PublishIncompleteError:
        return PublishIncompleteError(text) if self.is_begun else PublishFailedError(text)

    def _fenced(self, outcome: Any) -> None:
        if not outcome:
            raise PublishRefusedError(f"generation {self.number} was overtaken by a newer one, which stays live")

    def _hashes(self, group: RowGroup) -> npt.NDArray[np.uint64]:
        ids = np.asarray(self._users(group).to_pylist(), dtype=object)
        return pd.util.hash_array(ids, categorize=False)


@dataclass(frozen=True)
class Encoding:
    """
    How the lists of a publication become the values of the store.

    Attributes
    ----------
    number
        Of the generation.
    params
        What a value holds.
    left_out
        Digests of the users who asked to be forgotten.
    """

    number: int
    params: PublishParams
    left_out: frozenset[str]

    def read(self, group: RowGroup, columns: list[str]) -> pa.RecordBatch:
        """Read the lists of a group, but for the users who are left out."""
        return without_suppressed(group.read(columns), self.left_out, USER_ID)

    def values(self, lists: pa.RecordBatch) -> pa.Array:
        """Return the value of each list, as ``encode_lists`` does."""
        return encode_lists(
            lists,
            self.number,
            include_reasons=self.params.include_reasons,
            score_decimals=self.params.score_decimals,
        )


def _encoded(encoding: Encoding, group: RowGroup) -> tuple[pa.Array, pa.Array]:
    """Return the users of a group and the values of their lists."""
    columns = [USER_ID, ITEM_ID, SCORE, *([SOURCES, REASON] if encoding.params.include_reasons else [])]
    lists = encoding.read(group, columns)
    return lists[USER_ID], encoding.values(lists)


def _ahead(prepared: Iterator[Prepared]) -> Iterator[Prepared]:
    """Yield what comes; the next is prepared while the store is busy with the one before."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        following = worker.submit(next, prepared, None)
        while (ready := following.result()) is not None:
            following = worker.submit(next, prepared, None)
            yield ready


def _hashed(values: Sequence[bytes | None]) -> npt.NDArray[np.int64]:
    """Return 64 bits of each value, by a key of this process."""
    return np.fromiter(map(hash, values), np.int64, len(values))


def _sha1_of(script: str) -> str:
    """Return the name under which a server knows a loaded script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
