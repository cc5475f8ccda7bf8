"""Publishing, answering and events on a Cluster of real processes: as it is, while slots move, while a primary dies."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.events import EventRules, make_event
from rec_pipeline.engine.errors import EventsNotRecordedError, PublishFailedError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.doctor import examine
from rec_pipeline.engine.store.drain import backlog, drain
from rec_pipeline.engine.store.events import record_events
from rec_pipeline.engine.store.forgetting import forget
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.publisher import plan, rollback
from rec_pipeline.serving.store import OnlineStore, StoreUnavailableError
from rec_pipeline_tests.faults.arena import USERS, Arena, generation_of
from rec_pipeline_tests.faults.processes import Publisher
from rec_pipeline_tests.fixtures.cluster import Cluster, cluster, slot_of
from rec_pipeline_tests.fixtures.store import look_at, patiently
from rec_pipeline_tests.fixtures.waiting import free_port, wait_until

INCOMPLETE = 8
FLIPPED = 150  # one batch of a publisher's 50 for each primary
MOVED = sorted({slot_of(user_id) for user_id in USERS[::30]})


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster() as nodes:
        yield nodes


@pytest.fixture
def arena(nodes: Cluster, tmp_path: Path) -> Arena:
    """The Cluster, emptied, with one generation live."""
    nodes.recover()
    with nodes.client() as client:
        client.flushall()
    arena = Arena(nodes.url, tmp_path)
    arena.publish()
    return arena


def stopped_in_the_flip(arena: Arena, generation: Generation, without: str | None = None) -> Publisher:
    """Start a publisher that stops itself when it has flipped a quarter of the users."""
    publisher = arena.start_and_stop(generation, f"flip:{FLIPPED}", without=without)
    assert list(arena.served().values()).count(generation.number) == FLIPPED
    return publisher


def test_a_generation_is_published_renewed_rolled_back_and_forgotten(arena: Arena) -> None:
    with publisher_client(arena.url) as client:
        with arena.watched() as seen:
            done = arena.publish()
            back = rollback(client, arena.root)
        pinned = plan(client, arena.seal()).refusal
        levels = {finding.name: finding.level for finding in examine(client, arena.root)}
        assert forget(client, arena.root, "u1").n_keys == 1
        assert client.get(keys.live_key("u1")) is None

    assert (done.n_users, back.n_users) == (len(USERS), len(USERS))
    assert seen.generations == [1, done.generation, back.generation]
    assert "pinned generation 3" in str(pinned)
    assert (levels["live"], levels["lists"], levels["persistence"]) == ("ok", "ok", "ok")


def resharded(arena: Arena, nodes: Cluster, without: str | None = None) -> None:
    """Slots are half moved when the publisher wakes in the middle of the flip, and move on while it works."""
    with arena.watched() as seen:
        publisher = stopped_in_the_flip(arena, arena.seal(), without)
        nodes.reshard(MOVED, half_way=True)
        publisher.kill(signal.SIGCONT)
        nodes.reshard(MOVED)
        assert publisher.ended() == 0, publisher.message

    assert set(arena.served().values()) == {2}
    assert seen.generations == [1, 2]
    assert arena.staged() == []


def test_slots_move_during_the_flip(arena: Arena, nodes: Cluster) -> None:
    resharded(arena, nodes)


def test_slots_move_without_the_routing_it_fails(arena: Arena, nodes: Cluster) -> None:
    with pytest.raises(AssertionError):
        resharded(arena, nodes, without="routing")


def primary_dies_while_staging(arena: Arena, nodes: Cluster, without: str | None = None) -> Generation:
    """It has no replica: its users are without an answer, and everybody else keeps the list they had."""
    dead, generation = nodes.nodes[2], arena.seal()
    lost = nodes.slots_of(dead)

    with arena.watched() as seen:
        publisher = arena.start_and_stop(generation, f"stage:{FLIPPED}", without=without, cluster_seconds=0.2)
        dead.kill()
        publisher.kill(signal.SIGCONT)
        assert publisher.ended() == 6, publisher.message
        with nodes.client() as client:
            others = [client.get(keys.live_key(user_id)) for user_id in USERS if slot_of(user_id) not in lost]

    assert set(map(generation_of, others)) == {1}
    assert seen.generations == [1]
    return generation


def test_f13_a_primary_dies_while_staging(arena: Arena, nodes: Cluster) -> None:
    generation = primary_dies_while_staging(arena, nodes)

    assert arena.run(generation)[0] == 6
    nodes.recover()
    arena.converges(generation)


def test_f13_without_staging_it_fails(arena: Arena, nodes: Cluster) -> None:
    with pytest.raises(AssertionError):
        primary_dies_while_staging(arena, nodes, without="staging")


def test_f13_a_primary_dies_after_the_last_flip(arena: Arena, nodes: Cluster) -> None:
    generation = arena.seal()
    publisher = arena.start_and_stop(generation, f"flip:{len(USERS)}", cluster_seconds=0.2)

    nodes.nodes[2].kill()
    publisher.kill(signal.SIGCONT)

    assert publisher.ended() == INCOMPLETE, publisher.message
    nodes.recover()
    arena.converges(generation)


def test_a_primary_dies_during_the_flip_and_answers_come_from_its_replica(arena: Arena, nodes: Cluster) -> None:
    online, user_id = OnlineStore(arena.url), "u3"  # of the primary with a replica

    def generation_read() -> int:
        with suppress(StoreUnavailableError):
            state = runner.run(online.read_user(user_id))
            return state.published.generation if state.published else 0
        return -1

    with asyncio.Runner() as runner, arena.watched() as seen:
        wait_until(lambda: generation_read() == 1)
        generation = arena.seal()
        publisher = stopped_in_the_flip(arena, generation)
        nodes.primary_of(user_id).kill()
        publisher.kill(signal.SIGCONT)
        # The replica may lack what its primary did last, which only publishing again makes good.
        assert publisher.ended() == INCOMPLETE, publisher.message
        nodes.wait_until_whole()
        assert arena.status().exit_code == INCOMPLETE
        arena.converges(generation)
        wait_until(lambda: generation_read() == generation.number)
        runner.run(online.close())

    assert seen.generations == [1, 2]


def test_a_user_s_answers_popular_list_and_events_are_read_and_kept(arena: Arena) -> None:
    online, rules, start = OnlineStore(arena.url), EventRules(), time.time() - 60
    events = [
        make_event(rules, user_id=f"u{number % 7}", item_id=f"i{number}", event_type="click", timestamp=start + number)
        for number in range(30)
    ]

    async def use() -> None:
        try:
            await patiently(online.look)
            popular = await patiently(online.popular)
            await patiently(lambda: online.keep_answer("u3", "field", b"an answer", 60))
            assert (online.live.generation, popular.items[0].item_id) == (1, "g1-0")
            assert await patiently(lambda: online.read_answer("u3", "field")) == (0, b"an answer")
            first = await online.record(events[:20], rules)
            again = await online.record(events[10:], rules)
            assert ((first.n_new, first.n_duplicates), (again.n_new, again.n_duplicates)) == ((20, 0), (10, 10))
            assert (await patiently(lambda: online.read_user("u3"))).events[-1][0] == "i24"
            assert await patiently(lambda: online.read_answer("u3", "field")) == (4, b"an answer")
            with pytest.raises(EventsNotRecordedError, match="max_backlog"):
                await online.record(events, EventRules(max_backlog=40))
        finally:
            await online.close()

    asyncio.run(use())

    log = EventLog(arena.folder / "log")
    with publisher_client(arena.url) as client:
        assert record_events(client, events[29:], rules) == [False]
        assert backlog(client).n_entries == 41  # what came twice is there twice: the log tells it by the event id
        assert drain(client, log, rules).n_entries == 41
        assert backlog(client).n_entries == 0
    assert sum(log.read_day(day).table.num_rows for day in log.days()) == 30


def test_a_cluster_that_is_not_there_is_named() -> None:
    url = f"redis+cluster://127.0.0.1:{free_port()}"

    with pytest.raises(PublishFailedError, match="no node of the Cluster can be reached"):
        publisher_client(url)
    with pytest.raises(StoreUnavailableError, match=r"the Cluster is not whole|cannot be reached"):
        asyncio.run(look_at(url))
