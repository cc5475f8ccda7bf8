"""
The guards of the protocol, each with the way to take it out.

A fault is shown to be survived because of a guard by the same scenario failing without it. ``remove`` patches this
process, which is a child that ends with the scenario.
"""

from collections.abc import Callable
from typing import Any

from rec_pipeline.engine.store import connection, keys, publication, scripts, server
from rec_pipeline.engine.store.commands import pack
from rec_pipeline.engine.store.lock import PublishLock


def staging() -> None:
    """Lists are overwritten in place."""

    def set_live(work: Any, user_ids: Any, values: Any) -> Any:
        return pack("SET", keys.live_keys(user_ids), values, "PX", str(work.params.ttl_seconds * 1000))

    publication.Work._set_stage = set_live
    verification()


def verification() -> None:
    """Staged lists are not read back."""
    publication.Work._verify = lambda *arguments: len(arguments[2])


def fences() -> None:
    """Nobody looks at the generation that is there."""
    for name in ("FLIP", "SET_POPULAR", "RETIRE"):
        text = getattr(scripts, name).replace("if live > mine", "if false").replace("live >= mine", "false")
        setattr(scripts, name, text)
    scripts.SET_FIELDS = scripts.SET_FIELDS.replace("> tonumber(ARGV[1])", "> math.huge")
    PublishLock.renew = lambda _: None


def lock() -> None:
    """Two publishers may be at work."""
    PublishLock.__enter__ = lambda self: self
    PublishLock.renew = lambda _: None


def retries() -> None:
    """A lost connection is an error at once."""
    patient = connection.PatientRetry.__init__

    def impatient(self: Any, backoff: Any, retries: int) -> None:
        del retries
        patient(self, backoff, 0)

    connection.PatientRetry.__init__ = impatient


def preflight() -> None:
    """Any server will do."""
    server.StoreFacts.check = lambda *_, **__: []


def unstaging() -> None:
    """What was staged stays when memory runs out."""
    publication.Work._at_stages = lambda *_: 0


def run_ids() -> None:
    """A server that was restarted is not noticed."""
    server.StoreFacts.run_ids = frozenset()


def state() -> None:
    """Nothing is written about what is under way."""
    publication.Work._record = lambda *_: None


def store_clock() -> None:
    """Lists expire by this machine's clock."""
    server.ServerFacts.clock_seconds = property(lambda _: publication.time.time())


def release() -> None:
    """A publisher that ends in order leaves its lock."""
    PublishLock.__exit__ = lambda *_: None


def order() -> None:
    """The pointer says what is live before it is."""
    go_live = publication.Work.go_live

    def claim(work: Any, shard: Any) -> None:
        work._set_fields(keys.CURRENT, {"users": 0, "manifest_sha256": work.generation.manifest_sha256})
        go_live(work, shard)

    publication.Work.go_live = claim


def probe() -> None:
    """A right that is missing is met on the way."""
    publication.Work._probe = lambda _: None


def expiry() -> None:
    """Lists live for ever."""
    publication.Work._set_stage = lambda work, ids, values: pack("SET", keys.stage_keys(ids, work.number), values)


def routing() -> None:
    """A Cluster that changes is not followed."""
    from rec_pipeline.engine.store import cluster

    cluster.UNSETTLED = ()
    cluster._follow = lambda _client, reply, _command: reply


GUARDS: dict[str, Callable[[], None]] = {
    guard.__name__: guard
    for guard in (
        staging,
        verification,
        fences,
        lock,
        retries,
        preflight,
        unstaging,
        run_ids,
        state,
        store_clock,
        release,
        order,
        probe,
        expiry,
        routing,
    )
}


def remove(name: str | None) -> None:
    """Take one guard out of this process, or none."""
    if name is not None:
        GUARDS[name]()
