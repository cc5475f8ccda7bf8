"""The publication protocol against a real server, with real kills; readers watch during each fault."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
import redis

from rec_pipeline.engine.errors import (
    ArtifactIntegrityError,
    ConfigurationError,
    LockHeldError,
    PublishFailedError,
    PublishIncompleteError,
    PublishRefusedError,
    RecPipelineError,
)
from rec_pipeline.engine.pseudonyms import pseudonym
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.bookkeeping import last_number, live_number
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.forgetting import forget
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.lock import PublishLock
from rec_pipeline.engine.store.publication import Intent, PublishParams
from rec_pipeline.engine.store.publisher import plan, publish, rollback, unpin
from rec_pipeline.engine.store.reader import RecommendationReader
from rec_pipeline.engine.store.server import FULL_FROM
from rec_pipeline.engine.store.status import status
from rec_pipeline.resources.embedded_valkey import ensure_server, running_server
from rec_pipeline_tests.faults.conftest import needs_redis
from rec_pipeline_tests.fixtures.store import seal_lists
from rec_pipeline_tests.fixtures.waiting import LONG, wait_until

USERS = [f"u{number}" for number in range(600)]
PARAMS = PublishParams(batch_size=50)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "generations"


def tags_served(client: "redis.Redis", user_ids: list[str] = USERS) -> dict[str, str]:
    """Whose list every user gets, "-" for none; each list must be whole and of one generation."""
    reader = RecommendationReader(client)
    served = {}
    for user_id in user_ids:
        published = reader.get(user_id)
        tags = {item.item_id.partition("-")[0] for item in published.items} if published else {"-"}
        assert len(tags) == 1, published
        assert published is None or len(published.items) == 3
        served[user_id] = tags.pop()
    return served


@contextmanager
def readers_watching(url: str, allowed: set[str], n_readers: int = 2) -> Iterator[None]:
    """Read all the time; every read must find a whole list of an allowed tag."""
    stop, faults, n_reads = threading.Event(), [], [0] * n_readers

    def watch(position: int) -> None:
        with publisher_client(url) as client:
            while not stop.is_set():
                for user_id, tag in tags_served(client, USERS[position::37]).items():
                    n_reads[position] += 1
                    if tag not in allowed:
                        faults.append((user_id, tag))

    threads = [threading.Thread(target=watch, args=(position,)) for position in range(n_readers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults
    assert min(n_reads) > 0


def staged_keys(client: "redis.Redis") -> list[bytes]:
    return list(client.scan_iter(f"{keys.STAGE_PREFIX}*", count=1000))


def test_a_published_generation_is_what_readers_get(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")

    publication = publish(store, generation, PARAMS, Intent("run 7"))

    reader = RecommendationReader(store)
    assert set(tags_served(store).values()) == {"a"}
    published = reader.get("u5")
    assert published is not None
    assert (published.generation, published.user_id) == (1, "u5")
    assert published.items[1].score == 0.9
    assert published.items[1].sources == ("collaborative",)
    assert published.items[1].reason == "because of a"
    popular = reader.popular()
    assert popular is not None
    assert (popular.generation, popular.items[0].item_id) == (1, "a-0")
    assert (publication.generation, publication.n_users, publication.already_live) == (1, 600, False)
    assert staged_keys(store) == []
    assert store.exists(keys.LOCK) == 0
    state = status(store, root)
    assert (state.live, state.n_users, state.publisher, state.exit_code) == (1, 600, "run 7", 0)
    assert [entry["gen"] for entry in state.history] == [1]
    assert state.manifest_sha256 == generation.manifest_sha256


def test_an_empty_store_has_a_status_and_no_lists(store: "redis.Redis", root: Path) -> None:
    state = status(store, root)

    assert (state.live, state.half_live, state.lock, state.sealed, state.exit_code) == (None, [], None, [], 0)
    assert RecommendationReader(store).get("u1") is None
    assert RecommendationReader(store).popular() is None


def test_readers_see_whole_lists_of_old_or_new_during_a_publication(
    store: "redis.Redis", store_url: str, root: Path
) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)

    with readers_watching(store_url, {"a", "b"}):
        publish(store, seal_lists(root, USERS, "b"), PublishParams(batch_size=5, shards=3))

    assert set(tags_served(store).values()) == {"b"}


def test_publishing_the_same_generation_again_does_nothing(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")
    publish(store, generation, PARAMS)
    before = status(store, root)
    expiry = store.pexpiretime(keys.live_key("u1"))

    again = publish(store, generation, PARAMS)

    assert again.already_live
    assert status(store, root) == before
    assert store.pexpiretime(keys.live_key("u1")) == expiry


def test_lists_expire_after_the_time_to_live_but_not_all_at_once(store: "redis.Redis", root: Path) -> None:
    began = time.time()
    publish(store, seal_lists(root, USERS, "a"), PublishParams(ttl_seconds=1000))

    lives = [store.pexpiretime(keys.live_key(user_id)) / 1000 - began for user_id in USERS]

    assert min(lives) > 999
    assert max(lives) <= 1100 + time.time() - began
    assert max(lives) - min(lives) > 90


def test_p09_of_many_lists_few_expire_in_any_one_second(store: "redis.Redis", root: Path) -> None:
    users = [f"user{number}" for number in range(20_000)]
    publish(store, seal_lists(root, users, "a", rows_per_group=5000))

    pipeline = store.pipeline(transaction=False)
    for user_id in users:
        pipeline.pexpiretime(keys.live_key(user_id))
    in_second = Counter(expiry // 1000 for expiry in pipeline.execute())

    assert max(in_second.values()) <= 0.001 * len(users)
    assert max(in_second) - min(in_second) > 3500


@pytest.mark.parametrize(
    "user_id", ["ユーザー", "Жанна", "👩‍🚀", "a:b", "*", "two words", 'quote"d', "back\\slash", "$5"]
)
def test_ids_of_any_script_are_published(store: "redis.Redis", root: Path, user_id: str) -> None:
    publish(store, seal_lists(root, [user_id, "other"], "a"), PARAMS)

    assert tags_served(store, [user_id]) == {user_id: "a"}
    assert store.get(f"recommendations:{user_id}".encode()) is not None


# What is killed, when


def run_to_its_death(url: str, generation: Generation, phase: str, count: int, shards: int) -> None:
    command = [sys.executable, "-m", "rec_pipeline_tests.fixtures.dying_publisher"]
    arguments = [url, str(generation.directory), phase, str(count), str(shards)]
    ended = subprocess.run([*command, *arguments], check=False, timeout=LONG)  # noqa: S603 - our own module
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("phase", "count", "shards", "n_new", "exit_code"),
    [
        ("stage", 300, 1, 0, 0),
        ("verify", 300, 1, 0, 0),
        ("flip", 300, 1, 300, 8),
        ("stage", 300, 3, 200, 8),
        ("flip", 590, 1, 590, 8),
        ("sweep", 1, 1, 590, 0),
    ],
)
def test_a_killed_publisher_harms_no_reader_and_is_finished_by_the_next(
    store: "redis.Redis", store_url: str, root: Path, phase: str, count: int, shards: int, n_new: int, exit_code: int
) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    generation = seal_lists(root, USERS[:590], "b")

    with readers_watching(store_url, {"a", "b"}):
        run_to_its_death(store_url, generation, phase, count, shards)
        served = list(tags_served(store).values())
        state = status(store, root)
        assert served.count("b") == n_new
        assert served.count("a") == 600 - n_new
        assert state.live == (2 if phase == "sweep" else 1)
        assert state.exit_code == exit_code
        with pytest.raises(LockHeldError, match="'dying'"):
            publish(store, generation, PARAMS)
        store.pexpire(keys.LOCK, 1)  # the lease of the dead one runs out
        wait_until(lambda: not store.exists(keys.LOCK))
        resumed = publish(store, generation, PARAMS)

    served = tags_served(store)
    assert all(served[user_id] == "b" for user_id in USERS[:590])
    assert all(served[user_id] == "a" for user_id in USERS[590:])
    assert resumed.n_departed == 10
    state = status(store, root)
    assert (state.live, state.half_live, state.exit_code, state.job["state"]) == (2, [], 0, "SWEPT")
    assert [entry["gen"] for entry in state.history] == [2, 1]
    assert staged_keys(store) == []


@pytest.mark.parametrize("follows", [False, True])
def test_what_an_interrupted_publication_staged_takes_no_memory_from_the_next(
    store: "redis.Redis", root: Path, *, follows: bool
) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    used = int(store.info("memory")["used_memory"])
    interrupted = seal_lists(root, USERS, "b")
    with pytest.raises(KeyboardInterrupt):
        publish(store, interrupted, PARAMS, on_progress=raising(KeyboardInterrupt, "verify", 600))
    staged = int(store.info("memory")["used_memory"]) - used
    following = seal_lists(root, USERS, "c") if follows else interrupted
    planned = plan(store, following, PARAMS)
    assert planned.used_bytes - used > staged / 2
    assert planned.freed_bytes == pytest.approx(staged, rel=0.25)
    store.config_set("maxmemory", int((used + staged / 2 + planned.needed_bytes) / FULL_FROM))
    assert plan(store, following, PARAMS).refusal is None

    publish(store, following, PARAMS)

    assert set(tags_served(store).values()) == {"c" if follows else "b"}
    assert staged_keys(store) == []


def test_a_newer_generation_may_follow_an_interrupted_one(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS[:200], "a"), PARAMS)
    interrupted = seal_lists(root, USERS[200:400], "b")
    with pytest.raises(KeyboardInterrupt):
        publish(store, interrupted, PARAMS, on_progress=raising(KeyboardInterrupt, "flip", 100))
    assert status(store, root).half_live == [2]

    publication = publish(store, seal_lists(root, USERS[400:], "c"), PublishParams(delete_departed=True))

    served = list(tags_served(store).values())
    assert served == ["-"] * 400 + ["c"] * 200
    assert publication.n_departed == 300
    assert staged_keys(store) == []
    assert status(store, root).exit_code == 0


def raising(error: type[BaseException], phase: str, count: int) -> Callable[[str, int, int], None]:
    def on_progress(now: str, n_done: int, n_users: int) -> None:
        del n_users
        if now == phase and n_done >= count:
            raise error

    return on_progress


def test_ctrl_c_while_flipping_frees_the_lock_and_is_resumed_at_once(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    generation = seal_lists(root, USERS, "b")

    with pytest.raises(KeyboardInterrupt):
        publish(store, generation, PARAMS, on_progress=raising(KeyboardInterrupt, "flip", 300))
    half_way = status(store, root)
    publish(store, generation, PARAMS)

    assert (half_way.live, half_way.half_live, half_way.exit_code, half_way.lock) == (1, [2], 8, None)
    assert set(tags_served(store).values()) == {"b"}


@pytest.mark.parametrize("phase", ["stage", "verify", "flip"])
def test_a_server_killed_and_restarted_loses_no_list(own_store: "redis.Redis", tmp_path: Path, phase: str) -> None:
    directory, root = tmp_path / "own_store", tmp_path / "generations"
    publish(own_store, seal_lists(root, USERS, "a"), PARAMS)
    generation, killed = seal_lists(root, USERS, "b"), []

    def kill_server(now: str, n_done: int, n_users: int) -> None:
        server = running_server(directory)
        if server is not None and (now, n_done) == (phase, n_users // 2) and not killed:
            os.kill(server.pid, signal.SIGKILL)
            killed.append(server.pid)
            ensure_server(directory)

    with nullcontext() if phase == "stage" else suppress(PublishIncompleteError):
        publish(own_store, generation, PARAMS, on_progress=kill_server)
    assert killed
    assert "-" not in tags_served(own_store).values()
    publish(own_store, generation, PARAMS)

    assert set(tags_served(own_store).values()) == {"b"}


def test_a_restart_after_lists_went_live_is_not_overlooked(own_store: "redis.Redis", tmp_path: Path) -> None:
    directory, root = tmp_path / "own_store", tmp_path / "generations"
    generation, restarted = seal_lists(root, USERS, "a"), []

    def restart(now: str, n_done: int, n_users: int) -> None:
        if (now, n_done) == ("flip", n_users):
            server = running_server(directory)
            assert server is not None
            os.kill(server.pid, signal.SIGKILL)
            restarted.append(ensure_server(directory))

    with pytest.raises(PublishIncompleteError, match="restarted"):
        publish(own_store, generation, PARAMS, on_progress=restart)

    assert live_number(own_store) == 0
    assert restarted


def test_lost_connections_are_made_again(store: "redis.Redis", store_url: str, root: Path) -> None:
    with publisher_client(store_url) as other:
        publish(
            store,
            seal_lists(root, USERS, "a"),
            PARAMS,
            on_progress=lambda *_: other.client_kill_filter(_type="normal", skipme=True),
        )

    assert set(tags_served(store).values()) == {"a"}


def test_scripts_the_server_has_forgotten_are_loaded_again(store: "redis.Redis", root: Path) -> None:
    def forget(phase: str, n_done: int, n_users: int) -> None:
        if (phase, n_done) == ("flip", n_users // 2):
            store.script_flush()

    publish(store, seal_lists(root, USERS, "a"), PARAMS, on_progress=forget)

    assert set(tags_served(store).values()) == {"a"}


# Two publishers


def test_a_second_publisher_is_told_who_holds_the_lock(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")

    with PublishLock(store, "the first", lease_seconds=60), pytest.raises(LockHeldError) as caught:
        publish(store, generation, PARAMS)

    for part in ("the first", socket.gethostname(), str(os.getpid()), "expires in"):
        assert part in str(caught.value)
    assert store.dbsize() == 0


def test_a_plan_says_who_holds_the_lock_and_what_the_rest_will_take(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")

    with PublishLock(store, "the nightly run", lease_seconds=60):
        found = plan(store, generation, PARAMS)

    assert found.exit_code == LockHeldError.exit_code
    assert re.search(r"'the nightly run' on \S+ \(pid \d+\) took the lock \d+ s ago.* in \d+ s", found.refusal or "")
    assert found.needed_bytes == plan(store, generation, PARAMS).needed_bytes
    assert plan(store, generation, PARAMS).refusal is None


def test_a_lock_is_released_by_its_holder_only(store: "redis.Redis") -> None:
    stalled, working = PublishLock(store, "stalled", lease_seconds=60), PublishLock(store, "working", lease_seconds=60)

    with working:
        stalled.__exit__(None, None, None)
        assert store.exists(keys.LOCK) == 1

    assert store.exists(keys.LOCK) == 0


def test_a_publisher_that_stalled_past_its_lease_stops(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")

    def stall(phase: str, n_done: int, n_users: int) -> None:
        del n_users
        if (phase, n_done) == ("stage", 100):
            time.sleep(1.2)

    with pytest.raises(LockHeldError, match="lost it"):
        publish(store, generation, PublishParams(batch_size=50, lock_lease_seconds=1), on_progress=stall)

    assert set(tags_served(store).values()) == {"-"}


def test_a_zombie_changes_neither_lists_nor_pointer(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    older, newer = seal_lists(root, USERS, "b"), seal_lists(root, USERS, "c")
    overtaken = []

    def be_overtaken(phase: str, n_done: int, n_users: int) -> None:
        del n_users
        if (phase, n_done) == ("flip", 100) and not overtaken:
            store.delete(keys.LOCK)  # as if the lease had ended while this publisher was stopped
            overtaken.append(publish(store, newer, PARAMS))

    with pytest.raises(PublishRefusedError, match="overtaken"):
        publish(store, older, PARAMS, on_progress=be_overtaken)

    assert overtaken
    assert set(tags_served(store).values()) == {"c"}
    state = status(store, root)
    assert (state.live, state.exit_code, [entry["gen"] for entry in state.history]) == (3, 0, [3, 1])
    assert staged_keys(store) == []


def test_an_older_generation_cannot_replace_a_newer_one(store: "redis.Redis", root: Path) -> None:
    older, newer = seal_lists(root, USERS, "a"), seal_lists(root, USERS, "b")
    publish(store, newer, PARAMS)

    with pytest.raises(PublishRefusedError, match=r"generation 1 is older than 2.*roll back"):
        publish(store, older, PARAMS)

    assert set(tags_served(store).values()) == {"b"}


def test_another_generation_of_the_same_number_is_refused(store: "redis.Redis", tmp_path: Path) -> None:
    publish(store, seal_lists(tmp_path / "one", USERS, "a"), PARAMS)

    with pytest.raises(PublishRefusedError, match="another generation 1 is live"):
        publish(store, seal_lists(tmp_path / "two", USERS, "b"), PARAMS)

    publish(store, seal_lists(tmp_path / "two", USERS, "b", after=last_number(store)), PARAMS)
    assert set(tags_served(store).values()) == {"b"}


# What is verified before it goes live


def test_a_staged_list_that_was_changed_is_staged_again(store: "redis.Redis", root: Path) -> None:
    def tamper(phase: str, n_done: int, n_users: int) -> None:
        if (phase, n_done) == ("stage", n_users):
            store.set(keys.stage_key("u3", 1), "[]")
            store.delete(keys.stage_key("u4", 1))

    publication = publish(store, seal_lists(root, USERS, "a"), PARAMS, on_progress=tamper)

    assert publication.n_restaged == 2
    assert set(tags_served(store).values()) == {"a"}


def test_a_list_that_never_reads_back_equal_stops_the_publication(store: "redis.Redis", root: Path) -> None:
    def tamper(phase: str, n_done: int, n_users: int) -> None:
        if (phase, n_done) == ("stage", n_users) or phase == "restage":
            store.set(keys.stage_key("u3", 1), "[]")

    with pytest.raises(PublishFailedError, match=pseudonym("u3")):
        publish(store, seal_lists(root, USERS, "a"), PARAMS, on_progress=tamper)

    assert set(tags_served(store).values()) == {"-"}


def test_a_staged_list_lost_after_verification_is_reported_and_resumed(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    generation = seal_lists(root, USERS, "b")

    def lose(phase: str, n_done: int, n_users: int) -> None:
        if (phase, n_done) == ("verify", n_users):
            store.delete(keys.stage_key("u3", 2))

    with pytest.raises(PublishIncompleteError, match="1 users"):
        publish(store, generation, PARAMS, on_progress=lose)

    assert tags_served(store, ["u2", "u3", "u4"]) == {"u2": "b", "u3": "a", "u4": "b"}
    assert status(store, root).live == 1
    publish(store, generation, PARAMS)
    assert set(tags_served(store).values()) == {"b"}


def test_a_damaged_generation_is_refused_before_anything_is_written(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")
    part = generation.directory / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])

    with pytest.raises(ArtifactIntegrityError, match="part-00000"):
        publish(store, generation, PARAMS)

    assert store.dbsize() == 0


def test_a_foreign_value_under_a_users_key_is_replaced(store: "redis.Redis", root: Path) -> None:
    store.hset(keys.live_key("u1"), mapping={"not": "a list"})
    store.set(keys.live_key("u2"), '[{"id":"fallback","score":1}]')

    publish(store, seal_lists(root, USERS, "a"), PARAMS)

    assert tags_served(store, ["u1", "u2"]) == {"u1": "a", "u2": "a"}


def test_without_enough_replicas_the_pointer_stays_and_publishing_again_finishes(
    store: "redis.Redis", root: Path
) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    generation = seal_lists(root, USERS, "b")

    with pytest.raises(PublishIncompleteError, match="0 replicas confirmed within 1000 ms, expected 1"):
        publish(store, generation, PublishParams(min_replicas=1))

    state = status(store, root)
    assert (state.live, state.half_live, state.exit_code) == (1, [2], 8)
    publish(store, generation, PARAMS)
    assert (status(store, root).live, status(store, root).exit_code) == (2, 0)


def test_what_a_server_evicts_meanwhile_is_told(store: "redis.Redis", root: Path) -> None:
    store.config_set("maxmemory-policy", "allkeys-lru")

    def evict(phase: str, n_done: int, n_users: int) -> None:
        if (phase, n_done) == ("flip", n_users):
            store.config_set("maxmemory", int(store.info("memory")["used_memory"]) - 50_000)
            store.set("one", "more")
            store.config_set("maxmemory", 0)

    done = publish(store, seal_lists(root, USERS, "a"), PublishParams(allow_eviction=True), on_progress=evict)

    assert any(re.match(r"the store evicted \d+ keys", warning) for warning in done.warnings)


@pytest.mark.parametrize("damaged", ["part-00000.parquet", "manifest.json"])
def test_damage_to_an_older_generation_stops_no_newer_one(store: "redis.Redis", root: Path, damaged: str) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    interrupted = seal_lists(root, USERS, "b")
    with pytest.raises(KeyboardInterrupt):
        publish(store, interrupted, PARAMS, on_progress=raising(KeyboardInterrupt, "flip", 300))
    for number in (1, 2):
        (root / f"{number:08d}" / damaged).write_bytes(b"not what it was")

    done = publish(store, seal_lists(root, USERS[:590], "c"), PARAMS)

    assert re.findall(r"who left since generation (\d)", "".join(done.warnings)) == ["1", "2"]
    assert set(tags_served(store, USERS[:590]).values()) == {"c"}
    state = status(store, root)
    assert (state.live, state.exit_code, state.job["state"], state.sealed[-1]) == (3, 0, "SWEPT", 3)
    assert forget(store, root, "u3").n_keys == 1
    with pytest.raises(ArtifactIntegrityError, match=damaged):
        rollback(store, root, to=1)


# Users who left


def test_lists_of_users_who_left_stay_until_they_expire(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, ["stays", "leaves"], "a"), PublishParams(ttl_seconds=1000))
    store.persist(keys.live_key("leaves"))

    publication = publish(store, seal_lists(root, ["stays"], "b"), PublishParams(ttl_seconds=1000))

    assert publication.n_departed == 1
    assert tags_served(store, ["stays", "leaves"]) == {"stays": "b", "leaves": "a"}
    assert 0 < store.ttl(keys.live_key("leaves")) <= 1100


def test_lists_of_users_who_left_are_deleted_on_request(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, ["stays", "leaves"], "a"), PARAMS)

    publish(store, seal_lists(root, ["stays"], "b"), PublishParams(delete_departed=True))

    assert tags_served(store, ["stays", "leaves"]) == {"stays": "b", "leaves": "-"}


def test_a_list_made_for_a_departed_user_since_then_is_not_deleted(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, ["stays", "leaves"], "a"), PARAMS)
    store.set(keys.live_key("leaves"), '[{"id":"made-online","score":1}]')

    publication = publish(store, seal_lists(root, ["stays"], "b"), PublishParams(delete_departed=True))

    assert publication.n_departed == 0
    assert store.get(keys.live_key("leaves")) is not None


# Rollback


def test_a_rollback_publishes_the_older_lists_forward_and_pins_them(store: "redis.Redis", root: Path) -> None:
    for tag in "abc":
        publish(store, seal_lists(root, USERS, tag), PARAMS)

    publication = rollback(store, root, params=PARAMS)

    assert publication.generation == 4
    assert set(tags_served(store).values()) == {"b"}
    assert status(store, root).pinned == 4
    with pytest.raises(PublishRefusedError, match="pinned generation 4"):
        publish(store, seal_lists(root, USERS, "d"), PARAMS)
    assert unpin(store) == 4
    publish(store, seal_lists(root, USERS, "d"), PARAMS)
    assert set(tags_served(store).values()) == {"d"}


def test_a_second_rollback_goes_further_back(store: "redis.Redis", root: Path) -> None:
    for tag in "abc":
        publish(store, seal_lists(root, USERS, tag), PARAMS)

    rollback(store, root, params=PARAMS)
    rollback(store, root, params=PARAMS)

    assert set(tags_served(store).values()) == {"a"}
    with pytest.raises(PublishRefusedError, match="nothing to roll back to"):
        rollback(store, root, params=PARAMS)


def test_an_interrupted_rollback_is_finished_by_the_next(store: "redis.Redis", root: Path) -> None:
    for tag in "ab":
        publish(store, seal_lists(root, USERS, tag), PARAMS)

    with pytest.raises(KeyboardInterrupt):
        rollback(store, root, params=PARAMS, on_progress=raising(KeyboardInterrupt, "flip", 300))
    publication = rollback(store, root, params=PARAMS)

    assert publication.generation == 3
    assert set(tags_served(store).values()) == {"a"}


def test_a_rollback_names_what_it_does_not_find(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)

    with pytest.raises(ArtifactIntegrityError, match=r"generation 9 is not sealed.*\[1\]"):
        rollback(store, root, to=9)


def test_publishing_may_end_the_pin(store: "redis.Redis", root: Path) -> None:
    for tag in "ab":
        publish(store, seal_lists(root, USERS, tag), PARAMS)
    rollback(store, root, params=PARAMS)

    publish(store, seal_lists(root, USERS, "c"), PARAMS, Intent(unpin=True))

    assert status(store, root).pinned is None


# Servers that refuse


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_may_evict_lists_is_refused(store: "redis.Redis", root: Path, policy: str) -> None:
    store.config_set("maxmemory-policy", policy)
    generation = seal_lists(root, USERS, "a")

    with pytest.raises(ConfigurationError, match=policy):
        publish(store, generation, PARAMS)
    assert list(store.scan_iter("recommendations*")) == []

    publish(store, generation, PublishParams(allow_eviction=True))
    assert set(tags_served(store).values()) == {"a"}


def test_memory_that_will_not_suffice_is_refused_before_writing(store: "redis.Redis", root: Path) -> None:
    store.config_set("maxmemory", int(store.info("memory")["used_memory"] / 0.9) + 10_000)

    with pytest.raises(PublishRefusedError, match="maxmemory"):
        publish(store, seal_lists(root, USERS, "a"), PARAMS)

    assert list(store.scan_iter("recommendations*")) == []


def test_running_out_of_memory_removes_what_was_staged(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)

    def fill_up(phase: str, n_done: int, n_users: int) -> None:
        if (phase, n_done) == ("stage", n_users // 2):
            store.config_set("maxmemory", 1)

    with pytest.raises(PublishFailedError, match="OOM"):
        publish(store, seal_lists(root, USERS, "b"), PARAMS, on_progress=fill_up)

    assert staged_keys(store) == []
    assert set(tags_served(store).values()) == {"a"}
    assert status(store, root).exit_code == 0


def test_a_replica_is_refused(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")
    store.replicaof("127.0.0.1", "1")

    try:
        with pytest.raises(PublishRefusedError, match="READONLY"):
            publish(store, generation, PARAMS)
    finally:
        store.replicaof("NO", "ONE")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that grows by each pause before a command is tried again."""
    made: list[float] = []
    monkeypatch.setattr("redis.retry.sleep", made.append)
    return made


def test_a_missing_right_is_named_and_not_retried(
    store: "redis.Redis", store_url: str, root: Path, pauses: list[float]
) -> None:
    store.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-evalsha"])
    generation = seal_lists(root, USERS, "a")

    try:
        with publisher_client(store_url + "?username=limited&password=pw") as limited:
            with pytest.raises(PublishRefusedError, match=r"NOPERM.*evalsha"):
                publish(limited, generation, PARAMS)
            assert pauses == []
    finally:
        store.acl_deluser("limited")
    assert list(store.scan_iter(f"{keys.LIVE_PREFIX}*")) == []


@pytest.mark.parametrize("query", ["", "?password=wrong"])
def test_refused_credentials_are_not_retried_nor_shown(
    store: "redis.Redis", store_url: str, root: Path, pauses: list[float], query: str
) -> None:
    generation = seal_lists(root, USERS, "a")
    store.config_set("requirepass", "hunter2")

    try:
        with publisher_client(store_url + query) as stranger:
            with pytest.raises(PublishRefusedError, match="credentials") as caught:
                publish(stranger, generation, PARAMS)
            assert pauses == []
            assert "wrong" not in str(caught.value).replace("WRONGPASS", "").lower().replace("wrong number", "")
    finally:
        store.auth("hunter2")
        store.config_set("requirepass", "")


def test_a_server_that_cannot_save_is_named(own_store: "redis.Redis", tmp_path: Path) -> None:
    (tmp_path / "own_store" / "dump.rdb").mkdir()
    own_store.config_set("save", "3600 1")
    own_store.bgsave()
    wait_until(lambda: own_store.info("persistence")["rdb_last_bgsave_status"] == "err")

    with pytest.raises(PublishFailedError, match="MISCONF"):
        publish(own_store, seal_lists(tmp_path / "generations", USERS, "a"), PARAMS)
    own_store.config_set("save", "")


def test_a_server_that_is_not_there_is_named_and_tried_again(root: Path, pauses: list[float]) -> None:
    generation = seal_lists(root, USERS, "a")

    nobody = f"unix://{root}/nobody.sock"
    with publisher_client(nobody) as client, pytest.raises(PublishFailedError, match="cannot be reached"):
        publish(client, generation, PARAMS)

    assert len(pauses) > 3


def test_a_url_of_another_kind_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        publisher_client("http://user:hunter2@host")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("failure", [PublishFailedError, LockHeldError, PublishIncompleteError])
def test_failures_that_pass_are_marked_for_retry(failure: type[RecPipelineError]) -> None:
    assert failure.is_transient
    assert not PublishRefusedError.is_transient


@needs_redis
def test_the_protocol_works_on_redis_too(tmp_path: Path) -> None:
    root, path = tmp_path / "generations", tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--dir", str(tmp_path), "--save", ""]
    binary = shutil.which("redis-server")
    assert binary is not None
    server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)  # noqa: S603 - the machine's own server
    try:
        with publisher_client(f"unix://{path}") as client:
            for tag in "ab":
                publication = publish(client, seal_lists(root, USERS, tag), PARAMS)
            assert set(tags_served(client).values()) == {"b"}
            rollback(client, root, params=PARAMS)
            assert set(tags_served(client).values()) == {"a"}
            assert any("appendonly" in warning for warning in publication.warnings)
    finally:
        server.terminate()
        server.wait()
