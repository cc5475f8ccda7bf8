"""Publishing and answering behind Sentinel, with real processes, users of few rights, and a primary that dies."""

import asyncio
import signal
from pathlib import Path

from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.reader import RecommendationReader, reader_client
from rec_pipeline.serving.store import OnlineStore
from rec_pipeline_tests.faults.arena import Arena
from rec_pipeline_tests.fixtures.operations import PASSWORDS, USERS
from rec_pipeline_tests.fixtures.sentinels import sentinels
from rec_pipeline_tests.fixtures.store import patiently

INCOMPLETE = 8
FLIPPED = 150


def test_a_primary_dies_during_the_flip_and_its_replica_is_published_to(tmp_path: Path) -> None:
    with sentinels(tmp_path) as watched:
        for server in (watched.primary, watched.replica):
            for user in PASSWORDS:
                server.ask("ACL", "SETUSER", user, *USERS[user].split())
        arena = Arena(watched.url("rec_pub", PASSWORDS["rec_pub"]), tmp_path)
        arena.publish()
        online = OnlineStore(watched.url("rec_serve", PASSWORDS["rec_serve"]))

        with asyncio.Runner() as runner, arena.watched() as seen:
            assert runner.run(patiently(lambda: online.read_user("u1"))).published.generation == 1
            generation = arena.seal()
            publisher = arena.start_and_stop(generation, f"flip:{FLIPPED}")
            assert list(arena.served().values()).count(generation.number) == FLIPPED
            watched.primary.kill()
            publisher.kill(signal.SIGCONT)
            # The replica may lack what its primary did last, which only publishing again makes good.
            assert publisher.ended() == INCOMPLETE, publisher.message
            converges(arena, generation)
            assert runner.run(patiently(lambda: online.read_user("u1"))).published.generation == 2
            runner.run(online.close())

        assert seen.generations == [1, 2]
        with reader_client(arena.url) as client:
            popular = RecommendationReader(client).popular()
        assert popular is not None
        assert popular.generation == 2


def converges(arena: Arena, generation: Generation) -> None:
    """As of an arena, without the commands that this user may not use."""
    arena.publish(generation)
    assert set(arena.served().values()) == {generation.number}
    assert arena.status().exit_code == 0
    with publisher_client(arena.url) as client:
        assert client.exists(*(f"recommendations_stage:{{recommendations:{user}}}:2" for user in arena.users)) == 0
