"""F07 to F13 and F28: what happens to the server."""

import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import redis

from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.doctor import WARN, examine
from rec_pipeline.engine.store.publisher import restorable
from rec_pipeline.engine.store.reader import RecommendationReader, reader_client
from rec_pipeline_tests.faults.arena import USERS, Arena
from rec_pipeline_tests.faults.conftest import KINDS
from rec_pipeline_tests.faults.servers import Server, cutting_proxy, forget_the_last_bytes
from rec_pipeline_tests.fixtures.waiting import LONG, wait_until

OLD, NEW = 1, 2
N_CUTS = 4  # fewer than the publisher's retries, so that even all in a row are survived
# Bytes after which a connection ends: to the server, and from it.
CUT_AFTER = ((50_000, 1 << 20), (1 << 20, 30_001), (60, 1 << 20), (20_003, 1 << 20), (1 << 20, 5_000))


def power_fails_while_staging(server: Server, arena: Arena, without: str | None = None) -> None:
    """The server dies with a publisher waiting in mid-stage, forgets its last writes and comes back."""
    generation = arena.seal()

    publisher = arena.start_and_stop(generation, "stage:550", without=without)
    assert len(arena.staged()) == 550
    server.kill()
    forget_the_last_bytes(server, 40_000)
    server.start()
    with arena.watched():
        n_lost = 550 - len(arena.staged())
        publisher.kill(signal.SIGCONT)
        code = publisher.ended()

    assert n_lost > 50
    assert code == 0, publisher.message
    assert f'"n_restaged": {n_lost}' in publisher.message
    assert set(arena.served().values()) == {NEW}


@pytest.mark.parametrize("server", KINDS, indirect=True)
def test_f07a_power_failure_while_staging(server: Server, arena: Arena) -> None:
    power_fails_while_staging(server, arena)


def test_f07a_without_verification_it_fails(server: Server, arena: Arena) -> None:
    with pytest.raises(AssertionError):
        power_fails_while_staging(server, arena, without="verification")


def power_fails_after_the_last_flip(server: Server, arena: Arena, without: str | None = None) -> None:
    generation = arena.seal()

    publisher = arena.start_and_stop(generation, "flip:600", without=without)
    assert set(arena.served().values()) == {NEW}
    server.kill()
    forget_the_last_bytes(server, 20_000)
    server.start()
    publisher.kill(signal.SIGCONT)
    code = publisher.ended()

    served = list(arena.served().values())
    assert -1 not in served
    assert OLD in served
    assert code == 8, publisher.message
    assert arena.live() == OLD
    arena.converges(generation)


def test_f07a_power_failure_after_the_last_flip(server: Server, arena: Arena) -> None:
    power_fails_after_the_last_flip(server, arena)


def test_f07a_without_a_look_at_the_run_id_it_fails(server: Server, arena: Arena) -> None:
    with pytest.raises(AssertionError):
        power_fails_after_the_last_flip(server, arena, without="run_ids")


def all_lists_are_lost(folder: Path, *, is_sealed: bool = True) -> None:
    with Server(options={"appendonly": "no"}) as server:
        arena = Arena(server.url, folder)
        arena.publish()
        with publisher_client(server.url) as client:
            assert ("persistence", WARN) in {(finding.name, finding.level) for finding in examine(client, arena.root)}
        server.restart()
        assert set(arena.served().values()) == {-1}
        if not is_sealed:
            shutil.rmtree(arena.root)

        with publisher_client(server.url) as client:
            arena.publish(restorable(client, arena.root))

        assert set(arena.served().values()) == {OLD}


def test_f07b_a_store_without_persistence_is_restored_from_disk(tmp_path: Path) -> None:
    all_lists_are_lost(tmp_path)


def test_f07b_without_sealed_generations_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ArtifactIntegrityError):
        all_lists_are_lost(tmp_path, is_sealed=False)


def connections_are_cut(arena: Arena, without: str | None = None) -> None:
    """The first cut hits a command that the server holds back while the publisher waits; the others hit anywhere."""
    generation, done, killed = arena.seal(), threading.Event(), set[str]()
    publisher = arena.start_and_stop(generation, "stage:300", without=without)
    assert len(arena.staged()) == 300

    def cut(client: redis.Redis, flag: str = "") -> bool:
        for entry in client.client_list():
            if entry["name"] == "rec-pipeline-publisher" and entry["id"] not in killed and flag in entry["flags"]:
                client.client_kill_filter(_id=entry["id"])
                killed.add(entry["id"])
        return len(killed) > 0

    def go_on_cutting() -> None:
        with publisher_client(arena.url) as client:
            killed.add(str(client.client_id()))
            while len(killed) <= N_CUTS and not done.wait(0.01):
                cut(client)

    cutter = threading.Thread(target=go_on_cutting)
    with arena.watched(), redis.Redis.from_url(arena.url) as client:
        client.client_pause(LONG * 1000, all=False)
        publisher.kill(signal.SIGCONT)
        wait_until(lambda: cut(client, flag="b"))
        client.client_unpause()
        cutter.start()
        try:
            code = publisher.ended()
        finally:
            done.set()
            cutter.join()

    assert code == 0, publisher.message
    assert set(arena.served().values()) == {NEW}


def test_f08_connections_cut_several_times(arena: Arena) -> None:
    connections_are_cut(arena)


def test_f08_without_retries_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        connections_are_cut(arena, without="retries")


def connections_end_after_some_bytes(server: Server, arena: Arena, without: str | None = None) -> None:
    """Commands and replies are cut anywhere, a batch in its middle and a greeting too."""
    with cutting_proxy(server.folder / "s.sock", CUT_AFTER) as proxy, arena.watched():
        through = Arena(proxy.url, arena.folder, arena.users)
        code, message = through.run(arena.seal(), without=without)

    assert proxy.n_cuts == len(CUT_AFTER), message
    assert code == 0, message
    assert set(arena.served().values()) == {NEW}


def test_f08_connections_that_end_in_the_middle_of_a_command_or_reply(server: Server, arena: Arena) -> None:
    connections_end_after_some_bytes(server, arena)


def test_f08_without_retries_a_cut_in_the_middle_is_the_end(server: Server, arena: Arena) -> None:
    with pytest.raises(AssertionError):
        connections_end_after_some_bytes(server, arena, without="retries")


def server_hangs(server: Server, arena: Arena, *, socket_seconds: float = 1, within: float = LONG) -> None:
    generation = arena.seal()
    publisher = arena.start_and_stop(generation, "stage:300", socket_seconds=socket_seconds)
    assert len(arena.staged()) == 300

    server.signal(signal.SIGSTOP)
    publisher.kill(signal.SIGCONT)
    try:
        code = publisher.ended(within)
        with reader_client(arena.url, timeout_seconds=0.05) as client, pytest.raises(redis.TimeoutError):
            RecommendationReader(client).get("u1")
    finally:
        server.signal(signal.SIGCONT)

    assert code == 6, publisher.message
    assert "did not answer in time" in publisher.message
    assert set(arena.served().values()) == {OLD}
    arena.converges(generation)


def test_f09_a_server_that_hangs_is_given_up_and_found_again(server: Server, arena: Arena) -> None:
    server_hangs(server, arena)


def test_f09_without_the_timeouts_it_fails(server: Server, arena: Arena) -> None:
    with pytest.raises(AssertionError, match="did not end within"):
        server_hangs(server, arena, socket_seconds=3600, within=2)


def memory_runs_out(server: Server, arena: Arena, without: str | None = None) -> None:
    generation = arena.seal()
    publisher = arena.start_and_stop(generation, "stage:300", without=without)
    assert len(arena.staged()) == 300

    with server.client() as client:
        client.config_set("maxmemory", 1_000_000)
        publisher.kill(signal.SIGCONT)
        code = publisher.ended()
        client.config_set("maxmemory", 0)

    assert code == 6
    assert "OOM" in publisher.message
    assert set(arena.served().values()) == {OLD}
    assert arena.staged() == []


def test_f10_memory_runs_out_while_staging(server: Server, arena: Arena) -> None:
    memory_runs_out(server, arena)


def test_f10_without_the_removal_of_stages_it_fails(server: Server, arena: Arena) -> None:
    with pytest.raises(AssertionError):
        memory_runs_out(server, arena, without="unstaging")


def evicting(server: Server, arena: Arena, without: str | None = None) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 100_000)
        n_before = client.dbsize()

        code, message = arena.run(arena.seal(), without=without)

        assert client.dbsize() >= n_before
        assert client.info("stats")["evicted_keys"] == 0
    assert code == 2
    assert "allkeys-lru" in message


def test_f11_a_server_that_evicts_is_refused(server: Server, arena: Arena) -> None:
    evicting(server, arena)


def test_f11_without_the_check_lists_are_lost(server: Server, arena: Arena) -> None:
    with pytest.raises(AssertionError):
        evicting(server, arena, without="preflight")


def test_f12_a_real_replica_is_refused(server: Server, arena: Arena) -> None:
    with server.client() as client:
        client.config_set("repl-diskless-sync-delay", 0)
    with Server(options={"replicaof": f"127.0.0.1 {server.port}"}) as replica:
        reading = Arena(replica.url, arena.folder, arena.users)
        wait_until(lambda: set(reading.served().values()) == {OLD})

        code, message = reading.run(arena.seal())

    assert code == 6
    assert "READONLY" in message


def test_f12_a_server_that_loads_is_waited_for(server: Server, arena: Arena) -> None:
    with server.client() as client:
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    server.kill()
    # A minute, unless it is told to be quicker.
    server.options = {"key-load-delay": 60_000_000 // len(USERS), "loading-process-events-interval-bytes": 1024}
    server.start(wait=False)
    with server.client() as client:
        wait_until(lambda: client.info("persistence")["loading"], despite=(redis.ConnectionError,))
        generation = arena.seal()
        publisher = arena.start(generation)
        wait_until(lambda: client.info("errorstats").get("errorstat_LOADING"))
        client.config_set("key-load-delay", 0)
        code = publisher.ended()

    # Tried again for a while; a server that takes longer is named.
    assert code == 0 or (code == 6 and "LOADING" in publisher.message), publisher.message
    server.wait_until_up()
    arena.converges(generation)


def right_is_missing(server: Server, arena: Arena, missing: str, without: str | None = None) -> None:
    with server.client() as client:
        client.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", f"-{missing}"])
    before = arena.values()
    limited = Arena(f"{server.url}?username=limited&password=pw", arena.folder, arena.users)

    with server.client() as client:
        client.acl_log_reset()
        code, message = limited.run(arena.seal(), without=without)
        denied = sum(int(entry["count"]) for entry in client.acl_log())

    assert code == 6, message
    assert denied == 1  # what is not allowed is not tried again
    assert not arena.changed_since(before)
    assert arena.status().exit_code == 0


@pytest.mark.parametrize("missing", ["rename", "pexpireat", "pttl", "getrange", "script|load", "set"])
def test_f12_a_right_that_is_missing_is_met_before_anything_is_live(server: Server, arena: Arena, missing: str) -> None:
    right_is_missing(server, arena, missing)


def test_f12_without_the_probe_it_fails(server: Server, arena: Arena) -> None:
    with pytest.raises(AssertionError):
        right_is_missing(server, arena, "pexpireat", without="probe")


def test_f28_lists_that_are_not_renewed_vanish_and_the_doctor_says_so_before(arena: Arena) -> None:
    with publisher_client(arena.url) as client:
        client.hset(keys.CURRENT, "published_at", "2020-01-01T00:00:00+00:00")
        assert ("live", WARN) in {(finding.name, finding.level) for finding in examine(client, arena.root)}
        soon = int(time.time() * 1000) + 1000
        for user_id in USERS:
            client.pexpireat(keys.live_key(user_id), soon)
        wait_until(lambda: set(arena.served().values()) == {-1})
        assert RecommendationReader(client).popular() is not None


def lists_expire(arena: Arena, without: str | None = None) -> None:
    assert arena.run(arena.seal(), params={"ttl_seconds": 60}, without=without)[0] == 0

    with publisher_client(arena.url) as client:
        assert all(0 < client.pttl(keys.live_key(user_id)) <= 66_000 for user_id in USERS)


def test_f28_every_list_expires(arena: Arena) -> None:
    lists_expire(arena)


def test_f28_without_an_expiry_it_fails(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        lists_expire(arena, without="expiry")
