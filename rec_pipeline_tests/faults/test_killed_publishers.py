"""F01 to F04, F25, F31, F32: what happens to the publisher."""

import os
import signal
import time

import pytest

from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline_tests.faults.arena import USERS, Arena
from rec_pipeline_tests.faults.conftest import KINDS
from rec_pipeline_tests.fixtures.waiting import LONG

KILLED = -signal.SIGKILL
OLD, NEW = 1, 2


def killed_before_any_flip(arena: Arena, phase: str, without: str | None = None) -> None:
    before, generation = arena.values(), arena.seal()

    with arena.watched() as seen:
        assert arena.run(generation, fault=f"{phase}:300:KILL", without=without)[0] == KILLED
        assert not arena.changed_since(before)
        state = arena.status()
        assert (state.live, state.exit_code, state.job["state"]) == (OLD, 0, "STAGING")
        arena.converges(generation)

    assert set(seen.generations) <= {OLD, NEW}


@pytest.mark.parametrize("server", KINDS, indirect=True)
def test_f01_kill_while_staging(arena: Arena) -> None:
    killed_before_any_flip(arena, "stage")


def test_f01_without_staging_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        killed_before_any_flip(arena, "stage", without="staging")


def orphans_expire(arena: Arena, without: str | None = None) -> None:
    arena.run(arena.seal(), fault="stage:300:KILL", without=without, params={"ttl_seconds": 60})

    with publisher_client(arena.url) as client:
        left = [client.pttl(key) for key in arena.staged()]
    assert len(left) >= 300
    assert all(0 < ms <= 66_000 for ms in left)


def test_f01_orphaned_stages_expire(arena: Arena) -> None:
    orphans_expire(arena)


def test_f01_without_an_expiry_they_stay(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        orphans_expire(arena, without="expiry")


def test_f01_the_next_publication_removes_the_orphans_of_another(arena: Arena) -> None:
    arena.run(arena.seal(), fault="stage:300:KILL")

    arena.converges(arena.seal())


def test_f02_kill_while_verifying(arena: Arena) -> None:
    killed_before_any_flip(arena, "verify")


def test_f02_without_staging_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        killed_before_any_flip(arena, "verify", without="staging")


def killed_while_flipping(arena: Arena, count: int, shards: int, without: str | None = None) -> None:
    generation = arena.seal()

    with arena.watched() as seen:
        code, _ = arena.run(generation, fault=f"flip:{count}:KILL", without=without, params={"shards": shards})
        assert code == KILLED
        served = list(arena.served().values())
        assert (served.count(NEW), served.count(OLD)) == (count, len(USERS) - count)
        state = arena.status()
        assert (state.live, state.half_live, state.exit_code) == (OLD, [NEW], 8)
        assert state.job["state"] == "FLIPPING"
        arena.converges(generation)

    assert set(seen.generations) <= {OLD, NEW}


@pytest.mark.parametrize("server", KINDS, indirect=True)
@pytest.mark.parametrize(("count", "shards"), [(50, 1), (300, 3), (600, 1)])
def test_f03_kill_while_flipping(arena: Arena, count: int, shards: int) -> None:
    killed_while_flipping(arena, count, shards)


@pytest.mark.parametrize("guard", ["state", "staging"])
def test_f03_without_state_or_staging_it_fails(arena: Arena, guard: str) -> None:
    with pytest.raises(AssertionError):
        killed_while_flipping(arena, 300, 1, without=guard)


def killed_around_the_pointer(arena: Arena, point: str, without: str | None = None) -> None:
    generation = arena.seal()

    with arena.watched():
        assert arena.run(generation, fault=f"{point}:1:KILL", without=without)[0] == KILLED
        assert set(arena.served().values()) == {NEW}
        assert arena.live() == (OLD if point == "pointer" else NEW)
        before = arena.values()
        arena.converges(generation)
        assert not arena.changed_since(before)

    assert [entry["gen"] for entry in arena.status().history] == [NEW, OLD]


@pytest.mark.parametrize("point", ["pointer", "history"])
def test_f04_kill_around_the_pointer(arena: Arena, point: str) -> None:
    killed_around_the_pointer(arena, point)


def test_f04_with_the_pointer_moved_first_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        killed_around_the_pointer(arena, "pointer", without="order")


def test_f04_kill_while_sweeping(arena: Arena) -> None:
    generation = arena.seal(USERS[:300])

    with arena.watched():
        assert arena.run(generation, fault="sweep:50:KILL")[0] == KILLED
        arena.free_the_lock()
        arena.publish(generation)

    served = arena.served()
    assert [served[user_id] for user_id in USERS] == [NEW] * 300 + [OLD] * 300
    assert arena.status().job["state"] == "SWEPT"


def zombie_wakes(arena: Arena, without: str | None = None) -> None:
    """A publisher is stopped while it flips, loses its lease, and wakes when a newer one has finished."""
    older, newer = arena.seal(), arena.seal()

    with arena.watched() as seen:
        zombie = arena.start_and_stop(older, "flip:50", without=without)
        try:
            assert list(arena.served().values()).count(older.number) == 50
            arena.free_the_lock()
            arena.publish(newer)
        finally:
            zombie.kill(signal.SIGCONT)
        code = zombie.ended()

    assert code in {6, 7}, zombie.message
    assert arena.staged() == []
    assert set(arena.served().values()) == {newer.number}
    state = arena.status()
    assert (state.live, state.exit_code) == (newer.number, 0)
    assert [entry["gen"] for entry in state.history] == [newer.number, 1]
    assert seen.generations[-1] == newer.number


@pytest.mark.parametrize("server", KINDS, indirect=True)
def test_f25_a_zombie_changes_nothing(arena: Arena) -> None:
    zombie_wakes(arena)


def test_f25_without_fences_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        zombie_wakes(arena, without="fences")


def two_at_once(arena: Arena, without: str | None = None) -> None:
    first = arena.start_and_stop(arena.seal(), "stage:50")
    try:
        assert len(arena.staged()) == 50
        code, message = arena.run(arena.seal(), without=without)
    finally:
        first.kill(signal.SIGKILL)
        first.kill(signal.SIGCONT)
    first.ended()

    assert code == 7, message
    for part in ("LockHeldError", f"pid {first_pid(message)}", os.uname().nodename, "expires in"):
        assert part in message


def first_pid(message: str) -> str:
    return message.partition("'publisher ")[2].partition("'")[0]


def test_f25_the_second_publisher_is_told_of_the_first(arena: Arena) -> None:
    two_at_once(arena)


def test_f25_without_the_lock_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        two_at_once(arena, without="lock")


def terminated(arena: Arena, phase: str, expected: int, without: str | None = None) -> None:
    generation = arena.seal()

    with arena.watched():
        code, message = arena.run(generation, fault=f"{phase}:100:TERM", without=without)
        assert code == expected, message
        state = arena.status()
        assert (state.lock, state.exit_code) == (None, 8 if expected == 8 else 0)
        arena.converges(generation)


@pytest.mark.parametrize(("phase", "expected"), [("stage", 6), ("verify", 6), ("flip", 8)])
def test_f31_sigterm_ends_in_order(arena: Arena, phase: str, expected: int) -> None:
    terminated(arena, phase, expected)


def test_f31_sigterm_while_sweeping_says_that_it_is_unfinished_and_not_that_nothing_is_live(arena: Arena) -> None:
    generation = arena.seal(USERS[:300])

    code, message = arena.run(generation, fault="sweep:50:TERM")

    assert code == 8, message
    assert arena.live() == NEW
    arena.publish(generation)
    assert arena.status().job["state"] == "SWEPT"


def test_f31_without_the_release_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        terminated(arena, "stage", 6, without="release")


def clock_is_wrong(arena: Arena, without: str | None = None) -> None:
    generation = arena.seal()

    code, message = arena.run(generation, clock_skew_seconds=-3600, params={"ttl_seconds": 7200}, without=without)

    assert code == 0, message
    with publisher_client(arena.url) as client:
        assert 7200 - LONG < client.ttl(keys.live_key("u1")) <= 7920
    assert without or "clock is +36" in message


def test_f32_lists_expire_by_the_clock_of_the_store(arena: Arena) -> None:
    clock_is_wrong(arena)


def test_f32_without_the_clock_of_the_store_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        clock_is_wrong(arena, without="store_clock")


def test_f32_numbers_grow_whatever_the_clock_said(arena: Arena) -> None:
    future = arena.seal()
    ahead = time.time() + 86_400
    for path in future.directory.iterdir():
        os.utime(path, (ahead, ahead))
    arena.publish(future)

    later = arena.seal()

    assert later.number == future.number + 1
    arena.converges(later)
