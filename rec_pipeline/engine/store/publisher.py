"""What one does with sealed generations: publish, finish, restore, take back, and say beforehand what it will cost."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import redis

from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.errors import ConfigurationError, LockHeldError, PublishRefusedError, RecPipelineError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.bookkeeping import explained, half_live, last_number, live_number, published_history
from rec_pipeline.engine.store.generation import (
    Generation,
    find_generation,
    list_generations,
    newest_generation,
    renumber,
)
from rec_pipeline.engine.store.lock import PublishLock, describe_lock
from rec_pipeline.engine.store.publication import (
    FLIPPING,
    LIVE,
    STAGING,
    SWEPT,
    Intent,
    Progress,
    Publication,
    PublishParams,
    ShouldStop,
    Work,
)
from rec_pipeline.engine.store.server import StoreFacts, number_at, text_fields

USERS_PER_SECOND: Final = {"stage": 40_000, "verify": 110_000, "flip": 34_000}
"""Assumed before a store has seen a publication; after one, its own figures count."""
NOTHING_WENT_LIVE: Final = "nothing went live"


@dataclass(frozen=True)
class PublishPlan:
    """
    What a publication will take.

    Attributes
    ----------
    generation, n_users, shards
        What would be published, in how many parts.
    bytes_per_user
        Of one list in the store, the mean over a sample.
    used_bytes, freed_bytes, needed_bytes, max_bytes
        Memory of the store: now; of that, what an interrupted publication has left staged, which goes first; on top of
        the rest at the peak; its limit (0: none). Of a Cluster, the sum.
    seconds
        Estimated, by phase.
    warnings
        Sentences for people.
    refusal
        Why it would be refused now, or None.
    exit_code
        With which it would end; 0 unless refused.
    """

    generation: int
    n_users: int
    shards: int
    bytes_per_user: int
    used_bytes: int
    freed_bytes: int
    needed_bytes: int
    max_bytes: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    refusal: str | None
    exit_code: int


def publish(
    client: "redis.Redis",
    generation: Generation,
    params: PublishParams | None = None,
    intent: Intent | None = None,
    *,
    compute: Compute = LOCAL,
    on_progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
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
    params, intent
        Defaults where None.
    compute
        Where lists are encoded; this process alone writes to the store.
    on_progress
        Called after each batch.
    should_stop
        Asked after each batch; True ends the publication in order, to be finished by publishing again.

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
    intent = intent or Intent()
    generation.verify()
    work = _work(client, generation, params, intent, on_progress, should_stop, compute)
    with (
        explained(NOTHING_WENT_LIVE, lambda: work.is_begun),
        PublishLock(client, intent.publisher, work.params.lock_lease_seconds) as work.lock,
    ):
        work.leave_out_the_forgotten()
        if work.is_live():
            if work.job.get("state") == SWEPT or int(work.job.get("gen", 0)) != generation.number:
                return work.publication(already_live=True)
        else:
            work.take_pin()
            work.prepare()
            groups = generation.row_groups()
            for shard in np.array_split(np.arange(len(groups)), min(work.params.shards, len(groups))):
                work.go_live([groups[position] for position in shard])
        work.conclude()
    return work.publication(already_live=False)


def plan(client: "redis.Redis", generation: Generation, params: PublishParams | None = None) -> PublishPlan:
    """
    Say what publishing a generation will take, without writing anything.

    Raises
    ------
    ArtifactIntegrityError
        If the sealed files are damaged.
    PublishFailedError
        If the store cannot be read.
    """
    generation.verify()
    work = _work(client, generation, params, Intent(), None, None)
    refusal: RecPipelineError | None = None
    freed_bytes = 0
    with explained():
        facts = StoreFacts.ask(client)
        held = describe_lock(client)
        try:
            work.is_live()
            freed_bytes = work.left_staged_bytes()
            work.respect_pin()
            work.preflight(freed_bytes)
        except (PublishRefusedError, ConfigurationError) as error:
            refusal = error
        if held is not None:
            refusal = LockHeldError(held)
        past = json.loads(work.current.get("seconds", "{}"))
        past_users = int(work.current.get("users", 0))
    rates = {
        phase: past_users / past[phase] if past.get(phase) and past_users else float(assumed)
        for phase, assumed in USERS_PER_SECOND.items()
    }
    estimate = work.estimate()
    return PublishPlan(
        generation=generation.number,
        n_users=generation.n_users,
        shards=work.params.shards,
        bytes_per_user=estimate.bytes_per_user,
        used_bytes=sum(server.used_bytes for server in facts.servers),
        freed_bytes=freed_bytes,
        needed_bytes=estimate.needed_bytes,
        max_bytes=sum(server.max_bytes for server in facts.servers),
        seconds={phase: round(generation.n_users / rate, 3) for phase, rate in rates.items()},
        warnings=tuple(work.warnings),
        refusal=None if refusal is None else str(refusal),
        exit_code=0 if refusal is None else refusal.exit_code,
    )


def interrupted(client: "redis.Redis") -> int | None:
    """Return the number of the generation whose publication was interrupted, or None."""
    with explained():
        job = text_fields(client, keys.JOB)
    begun = [*half_live(job), *([int(job["gen"])] if job.get("state") in {STAGING, FLIPPING, LIVE} else [])]
    return max(begun, default=None)


def restorable(client: "redis.Redis", root: Path, number: int | None = None) -> Generation:
    """
    Return a generation that may be published with the content of ``number``, for a store that has lost lists.

    Parameters
    ----------
    client
        The store, which may be empty.
    root
        Folder of the sealed generations.
    number : int, optional
        Generation to restore; by default the one published last, or the newest sealed where the store remembers none.

    Returns
    -------
    That generation, or its content under a new number where the store has seen the number already.

    Raises
    ------
    ArtifactIntegrityError
        If it is not sealed under ``root`` or is damaged; if nothing is.
    """
    with explained():
        last = last_number(client)
        history = published_history(client)
    newest, sealed = newest_generation(root), list_generations(root)
    if number is None:
        number = int(history[0]["gen"]) if history else newest.number
    chosen = find_generation(root, number)
    if chosen.number > last:
        return chosen
    # One that was sealed for this and not published yet is taken again, so that trying twice seals once.
    again = [found for found in sealed if found.number > last and found.content_number == chosen.content_number]
    return again[-1] if again else renumber(chosen, after=last)


def rollback(
    client: "redis.Redis",
    root: Path,
    to: int | None = None,
    params: PublishParams | None = None,
    *,
    publisher: str = "rec-pipeline rollback",
    on_progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Publication:
    """
    Publish an older sealed generation forward, under a new number, and pin it.

    While pinned, ``publish`` refuses, so that a schedule does not bring back what was rolled back; ``unpin`` ends that.

    Parameters
    ----------
    client, params, on_progress, should_stop
        As for ``publish``.
    publisher
        Who rolls back.
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
    with explained(NOTHING_WENT_LIVE):
        live = live_number(client)
        last = last_number(client)
        published = {int(entry["gen"]) for entry in published_history(client)}
    sealed = {generation.number: generation for generation in list_generations(root)}
    if to is None:
        content = sealed[live].content_number if live in sealed else live
        earlier = sorted(number for number in published & sealed.keys() if number < content)
        if not earlier:
            what = f"generation {live}, whose lists are of {content}" if live else "none"
            raise PublishRefusedError(
                f"nothing to roll back to: live is {what}, sealed under {root} are {sorted(sealed) or 'none'}, "
                f"published were {sorted(published) or 'none'}; it takes one from before those lists that was "
                "published and is still sealed, or one that is named"
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
    intent = Intent(publisher, reason=f"rollback to {to}", pin=True)
    return publish(client, forward, params, intent, on_progress=on_progress, should_stop=should_stop)


def unpin(client: "redis.Redis") -> int | None:
    """Let ``publish`` work again after a rollback; returns the generation that was pinned, or None."""
    with explained("what was pinned stays so"):
        pinned = number_at(client, keys.PIN)
        client.unlink(keys.PIN)
    return pinned


def _work(
    client: "redis.Redis",
    generation: Generation,
    params: PublishParams | None,
    intent: Intent,
    on_progress: Progress | None,
    should_stop: ShouldStop | None,
    compute: Compute = LOCAL,
) -> Work:
    return Work(
        client,
        generation,
        params or PublishParams(),
        intent,
        on_progress or (lambda *_: None),
        should_stop or (lambda: False),
        compute,
    )
