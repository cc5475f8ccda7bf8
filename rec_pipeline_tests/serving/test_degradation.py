import asyncio
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from redis.asyncio.connection import AbstractConnection

from rec_pipeline import HybridRecommender
from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.data.batches import BoolVector, Ranking, UserBatch
from rec_pipeline.engine.errors import InvalidIdError
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.hybrid import HybridRanker
from rec_pipeline.engine.store.codec import user_checksum
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.resources.embedded_valkey import ensure_server, running_server
from rec_pipeline.serving import service
from rec_pipeline.serving.answers import Recommendations
from rec_pipeline.serving.bundles import LoadedBundle
from rec_pipeline.serving.connection import CONNECTIONS
from rec_pipeline.serving.params import Request
from rec_pipeline.serving.service import MADE_AT_ONCE, POPULAR_SECONDS, REST, WAITING, NothingToServeError
from rec_pipeline.serving.store import OnlineStore, StoreUnavailableError, UserState
from rec_pipeline_tests.fixtures.store import patiently
from rec_pipeline_tests.fixtures.waiting import LONG

Publish = Callable[[], Generation]
Patience = Callable[[float], None]
LITTLE = 0.12  # seconds a question to the store may take


@pytest.fixture
def own(publish_lists: Publish, own_store: "redis.Redis", tmp_path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """A store of this test alone with a published generation: configuration, and the server's pid."""
    publish(own_store, publish_lists())
    server = running_server(tmp_path / "own_store")
    assert server is not None
    yield {"rt_config": {"redis_url": server.url}, "source_budget": LONG}, server.pid
    if Path(f"/proc/{server.pid}").exists():
        os.kill(server.pid, signal.SIGCONT)


def blocked(recommender: HybridRecommender) -> asyncio.Event:
    """Let no answer be made that asks a source, until the event is set."""
    may_go_on = asyncio.Event()
    counted(recommender, may_go_on)
    return may_go_on


def counted(recommender: HybridRecommender, may_go_on: asyncio.Event | None = None) -> list[str]:
    """Return a list of those for whom an answer is made that asks a source; each waits for the event, if any."""
    original, made = recommender.service.live.answer, list[str]()

    async def counting(loaded: LoadedBundle, request: Request, *arguments: Any, only: Any) -> Any:
        if only != ():
            made.append(request.user_id or "")
            if may_go_on is not None:
                await may_go_on.wait()
        return await original(loaded, request, *arguments, only=only)

    recommender.service.live.answer = counting  # type: ignore[method-assign]
    return made


async def until(source: str, recommender: HybridRecommender, user_id: str) -> None:
    deadline = time.monotonic() + LONG
    while (await recommender.get_recommendations(user_id)).answer.source != source:
        assert time.monotonic() < deadline, f"no answer from {source} again"
        await asyncio.sleep(0.1)


def test_a_store_that_hangs_costs_the_lists_and_comes_back_by_itself(
    own: tuple[dict[str, Any], int], patience: Patience
) -> None:
    config, pid = own

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            assert (await recommender.get_recommendations("u007")).answer.source == "cache"
            recommender.service.store.breaker.window = LONG
            os.kill(pid, signal.SIGSTOP)
            patience(LITTLE)
            answers = [(await recommender.get_recommendations(f"u{row:03d}")).answer for row in range(10)]
            assert all(len(answer.items) == 10 and answer.degraded for answer in answers)
            assert {answer.source for answer in answers} == {"snapshot"}
            assert recommender.service.store.breaker.is_open
            os.kill(pid, signal.SIGCONT)
            patience(LONG)
            await until("cache", recommender, "u007")
            assert not recommender.service.store.is_down

    asyncio.run(scenario())


def is_popular(found: Recommendations) -> bool:
    return {source for item in found for source in item["sources"]} == {"popularity"}


def test_while_the_store_hangs_nobody_waits_for_an_answer_to_be_made(
    own: tuple[dict[str, Any], int], patience: Patience
) -> None:
    config, pid = own

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            ask, service = recommender.get_recommendations, recommender.service
            published = await ask("u007")
            narrowed = await ask("u007", exclude=["i001"])
            os.kill(pid, signal.SIGSTOP)
            patience(LITTLE)
            may_go_on = asyncio.Event()
            made = counted(recommender, may_go_on)
            async with asyncio.timeout(LONG):
                for before, question in ((published, {}), (narrowed, {"exclude": ["i001"]})):
                    again = await ask("u007", **question)
                    assert (list(again), again.answer.source, again.answer.degraded) == (list(before), "snapshot", True)
                for user in ("u008", "u009", "u008"):
                    assert is_popular(await ask(user))
            assert made == ["u008"]  # one at a time, ahead
            asked = time.monotonic()
            await asyncio.sleep(0.01)
            may_go_on.set()
            went_on = time.monotonic()
            await service.settled()
            assert not is_popular(await ask("u008"))
            here = service._here()
            assert here.rests_until >= went_on + REST * (went_on - asked)
            here.rests_until = math.inf
            assert is_popular(await ask("u009"))
            await service.settled()
            here.rests_until = 0
            assert is_popular(await ask("u009"))
            await service.settled()
            assert not is_popular(await ask("u009"))
            assert made == ["u008", "u009"]

    asyncio.run(scenario())


def test_what_is_popular_is_made_once_for_everybody_and_holds_nothing_that_a_user_has(
    own: tuple[dict[str, Any], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = own

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            service, loaded = recommender.service, recommender.service.bundles.current
            assert loaded is not None
            original, made = service.live.answer, list[str | None]()

            async def counting(loaded: LoadedBundle, request: Request, *arguments: Any, only: Any) -> Any:
                made.append(request.user_id)
                return await original(loaded, request, *arguments, only=only)

            service.live.answer = counting  # type: ignore[method-assign]
            first = (await service._popular(loaded, Request("nobody", 5))).items[0]["id"]
            for user, top_k, events, of_whom in (
                ("nobody", 5, [first], []),
                ("u007", 10, [], []),
                ("u008", 100, ["i001"], ["u008"]),  # more than there are
            ):
                made.clear()
                found = await service._popular(loaded, Request(user, top_k), events)
                assert made == of_whom
                expected = await original(loaded, Request(user, top_k), events, only=())
                assert [item["id"] for item in found.items] == [item["id"] for item in expected.items]
                assert found.shares == expected.shares
                assert (found.user_id, found.source, found.bundle) == (user, "popular", loaded.version)
                assert not {*events} & {item["id"] for item in found.items}
            popular, rows = await service._popular_for_everybody(loaded)
            service._for_everybody = replace(popular, made_at=time.time() - 2 * POPULAR_SECONDS), rows
            assert len((await service._popular(loaded, Request("nobody", 5))).items) == 5
            assert made == ["u008", None]
            expires = loaded.bundle.facts.expires_at.copy()
            expires[loaded.rows[first]] = int(time.time()) + 1
            await asyncio.sleep(1.01)
            monkeypatch.setitem(loaded.bundle.facts.__dict__, "expires_at", expires)
            monkeypatch.setitem(loaded.__dict__, "expiries", sorted(expires.tolist()))
            without = await service._popular(loaded, Request("nobody", 5))
            assert first not in {item["id"] for item in without.items}
            assert made == ["u008", None, None]

    asyncio.run(scenario())


def test_no_answer_waits_for_the_probe_of_a_store_that_hangs(
    own: tuple[dict[str, Any], int], patience: Patience
) -> None:
    config, pid = own
    answers = asyncio.Event()

    async def waiting(_: object) -> tuple[None, None]:
        await answers.wait()
        return None, None

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            await recommender.get_recommendations("u007")
            store = recommender.service.store
            store.breaker.window, store.breaker.pause = LONG, 0.0
            os.kill(pid, signal.SIGSTOP)
            patience(LITTLE)
            while not store.breaker.is_open:
                await recommender.get_recommendations("u007")
            await asyncio.gather(store._here().probe or asyncio.sleep(0))
            store._asked = waiting  # type: ignore[method-assign]
            async with asyncio.timeout(LONG):
                sources = {(await recommender.get_recommendations("u007")).answer.source for _ in range(3)}
            assert sources == {"snapshot"}
            probe = store._here().probe
            assert probe is not None
            assert not probe.done()
            answers.set()
            del store._asked  # type: ignore[method-assign]
            os.kill(pid, signal.SIGCONT)
            patience(LONG)
            await until("cache", recommender, "u007")

    asyncio.run(scenario())


def test_a_store_that_dies_is_used_again_once_it_is_back(own: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    config, pid = own

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            await recommender.get_recommendations("u007")
            os.kill(pid, signal.SIGKILL)
            answer = (await recommender.get_recommendations("u007")).answer
            assert (answer.source, answer.degraded) == ("snapshot", True)
            url = await asyncio.to_thread(ensure_server, tmp_path / "own_store")
            await until("cache", recommender, "u007")
            with redis.Redis.from_url(url) as client:
                client.config_set("maxclients", 2 * CONNECTIONS)  # the pool, and those given up that are still there
                await asyncio.gather(*(recommender.get_recommendations(f"stranger{number}") for number in range(200)))
                assert client.info("stats")["rejected_connections"] == 0

    asyncio.run(scenario())


def test_without_models_published_lists_are_served_and_without_both_the_sealed_popular_list(
    own: tuple[dict[str, Any], int], data_dir: Path, patience: Patience
) -> None:
    config, pid = own
    (data_dir / "artifacts" / "serving_bundle" / "current").unlink()

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            personal = (await recommender.get_recommendations("u007")).answer
            assert (personal.source, personal.degraded) == ("cache", False)
            stranger = (await recommender.get_recommendations("stranger")).answer
            assert (stranger.source, stranger.degraded) == ("popular", True)
            assert "no serving bundle" in stranger.reason
            os.kill(pid, signal.SIGSTOP)
            patience(LITTLE)
            (part,) = (data_dir / "generations").glob("*/part-*")
            part.write_bytes(b"")  # of many users it would take long to verify, and is not asked
            last = (await recommender.get_recommendations("u007", top_k=3)).answer
            assert (last.source, last.degraded, len(last.items)) == ("snapshot", True, 3)
            (popular,) = (data_dir / "generations").glob("*/popular.parquet")
            popular.write_bytes(popular.read_bytes()[:-1] + b"?")
            recommender.service._sealed = None
            with pytest.raises(NothingToServeError):
                await recommender.get_recommendations("u008")
            os.kill(pid, signal.SIGCONT)

    asyncio.run(scenario())


@pytest.mark.usefixtures("sealed")
def test_strict_raises_where_an_answer_would_be_degraded() -> None:
    strict = HybridRecommender({"strict": True, "rt_config": {"redis_host": "127.0.0.1", "redis_port": 1}})

    with pytest.raises(StoreUnavailableError):
        strict.get_recommendations_sync("u001")


class Failing:
    """A source that fails, once it may."""

    name = "content"

    def __init__(self, may_fail: threading.Event) -> None:
        self.may_fail = may_fail

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        del users, top_k, eligible
        self.may_fail.wait()
        raise ValueError("out of order")


@pytest.mark.parametrize(("budget", "why"), [(LONG, "failed: ValueError"), (0.1, "late: no answer within 100 ms")])
def test_a_source_that_fails_or_is_late_is_left_out_and_named(
    sealed: ServingBundle, config: dict[str, Any], budget: float, why: str
) -> None:
    with_failure, may_fail = HybridRecommender({**config, "source_budget": budget}), threading.Event()
    loaded = with_failure.bundles.load()
    hybrid = replace(loaded.hybrid, sources={**loaded.hybrid.sources, "content": Failing(may_fail)})
    assert isinstance(hybrid, HybridRanker)
    with_failure.bundles._current = LoadedBundle("broken", sealed, hybrid)
    if budget == LONG:
        may_fail.set()

    answer = with_failure.get_recommendations_sync(None, items=["i001", "i003"], top_k=5).answer
    may_fail.set()
    with_failure.close()

    assert answer.left_out["content"] == why
    assert set(answer.left_out) == {"content"} or budget < LONG  # on a busy machine others may be late as well
    assert answer.degraded
    assert len(answer.items) == 5
    assert "content" not in {source for item in answer.items for source in item["sources"]}


def test_a_damaged_new_bundle_is_refused_and_a_good_one_is_taken_without_a_restart(
    sealed: ServingBundle, data_dir: Path, config: dict[str, Any]
) -> None:
    recommender = HybridRecommender(config)
    first = recommender.bundles.load().version
    store = ArtifactStore(data_dir / "artifacts")
    newer = replace(sealed, metadata={"run_id": "r2"})

    version = store.write("serving_bundle", newer.save, kind="ServingBundle").version
    weights = data_dir / "artifacts" / "serving_bundle" / version / "ncf" / "network.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert recommender.bundles.load().version == first
    assert "does not match its manifest" in recommender.bundles.error

    third = store.write("serving_bundle", replace(sealed, metadata={"run_id": "r3"}).save, kind="ServingBundle").version
    assert recommender.bundles.load().version == third
    assert recommender.bundles.error == ""


def test_after_a_rollback_live_answers_are_made_with_the_bundle_of_what_is_live(
    publish_lists: Publish, sealed: ServingBundle, data_dir: Path, config: dict[str, Any]
) -> None:
    publish_lists()
    store = ArtifactStore(data_dir / "artifacts")
    first = store.manifest("serving_bundle").version
    newer = store.write("serving_bundle", replace(sealed, metadata={"run_id": "r2"}).save, kind="ServingBundle").version
    recommender = HybridRecommender(config)
    assert recommender.bundles.load().version == newer

    recommender.get_recommendations_sync("u001")  # learns what is live, which the first bundle made
    taken = recommender.bundles.load().version
    recommender.close()

    assert taken == first


def test_whoever_asks_while_too_many_wait_gets_the_popular_list_at_once(
    publish_lists: Publish, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "WAITING_SECONDS", LONG)
    publish_lists()
    n_at_most, n_too_many = MADE_AT_ONCE + WAITING, 5

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            await recommender.get_recommendations("u000")  # loads the bundle
            may_go_on = blocked(recommender)
            tasks = [
                asyncio.create_task(recommender.get_recommendations(f"x{number}", items=["i001"], top_k=5))
                for number in range(n_at_most + n_too_many)
            ]
            done, waiting = await asyncio.wait(tasks, timeout=LONG, return_when="FIRST_COMPLETED")
            while len(done) < n_too_many:
                more, waiting = await asyncio.wait(waiting, timeout=LONG, return_when="FIRST_COMPLETED")
                assert more, f"{len(done)} were answered at once"
                done |= more
            may_go_on.set()
            await asyncio.gather(*tasks)
            at_once = [task.result() for task in done]
            later = [task.result() for task in waiting]

        assert len(at_once) == n_too_many
        assert all("overload" in found.answer.reason and len(found) == 5 for found in at_once)
        assert {source for found in at_once for item in found for source in item["sources"]} == {"popularity"}
        assert not any("overload" in found.answer.reason for found in later)

    asyncio.run(scenario())


async def occupied(recommender: HybridRecommender, may_go_on: asyncio.Event) -> "asyncio.Future[list[Recommendations]]":
    """Have as many answers being made as are at once, until the event is set."""
    made = counted(recommender, may_go_on)
    asked = (recommender.get_recommendations(f"x{number}", items=["i001"]) for number in range(MADE_AT_ONCE))
    others = asyncio.gather(*asked)
    while len(made) < MADE_AT_ONCE:
        await asyncio.sleep(0.01)
    return others


def test_whoever_waits_too_long_gets_what_there_is(
    publish_lists: Publish, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_lists()

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            ask = recommender.get_recommendations
            published = [item["id"] for item in await ask("u007")]
            await recommender.record_event("u007", published[0], "click")
            may_go_on = asyncio.Event()
            others = await occupied(recommender, may_go_on)
            monkeypatch.setattr(service, "WAITING_SECONDS", 0.05)
            mine, stranger = await asyncio.gather(ask("u007", top_k=5), ask("stranger", items=["i001"]))
            assert [item["id"] for item in mine] == published[1:6]
            assert is_popular(stranger)
            assert {found.answer.reason for found in (mine, stranger)} == {"overload"}
            may_go_on.set()
            assert not any(found.answer.degraded for found in await others)
            assert (await ask("u007", top_k=5)).answer.source == "generated"

    asyncio.run(scenario())


@pytest.mark.parametrize("is_recent", [False, True])
def test_a_list_that_lacks_what_was_done_some_time_ago_stands_in_while_others_wait(
    publish_lists: Publish, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, is_recent: bool
) -> None:
    monkeypatch.setattr(service, "RECENT_SECONDS", LONG if is_recent else 0.0)
    monkeypatch.setattr(service, "WAITING_SECONDS", LONG)
    publish_lists()

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            ask = recommender.get_recommendations
            published = [item["id"] for item in await ask("u007", top_k=6)]
            await recommender.record_event("u007", published[0], "click")
            recommender.service.store.is_touched("u007")  # as in a process that did not take the event
            made, may_go_on = counted(recommender), asyncio.Event()
            others = await occupied(recommender, may_go_on)
            asked = [asyncio.create_task(ask("u007", top_k=5)) for _ in range(3)]
            if is_recent:
                await asyncio.wait(asked, timeout=0.1)
                assert not any(task.done() for task in asked)
            else:
                for found in await asyncio.gather(*asked):
                    assert [item["id"] for item in found] == published[1:]
                    assert (found.answer.source, found.answer.degraded) == ("cache", False)
            may_go_on.set()
            await asyncio.gather(others, *asked)
            await recommender.service.settled()
            assert made.count("u007") == 1
            anew = (await ask("u007", top_k=5)).answer
            assert (anew.source, bool(anew.bundle)) == ("cache", True)

    asyncio.run(scenario())


def test_many_who_ask_at_once_wait_for_one_answer_and_one_who_leaves_takes_it_from_nobody(
    publish_lists: Publish, config: dict[str, Any]
) -> None:
    publish_lists()

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            may_go_on = asyncio.Event()
            made = counted(recommender, may_go_on)
            request = {"exclude": ["i001"], "top_k": 5}
            tasks = [asyncio.create_task(recommender.get_recommendations("u007", **request)) for _ in range(24)]
            while not made:
                await asyncio.sleep(0.01)
            for task in tasks[::2]:
                task.cancel()
            may_go_on.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert made == ["u007"]
            assert all(len(result) == 5 for result in results[1::2])  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_an_old_answer_is_served_and_made_anew_behind_once(publish_lists: Publish, config: dict[str, Any]) -> None:
    publish_lists()

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            first = (await recommender.get_recommendations("u007", exclude=["i001"])).answer
            fresh = (await recommender.get_recommendations("u007", exclude=["i001"])).answer
            assert (first.source, fresh.source, fresh.made_at) == ("generated", "cache", first.made_at)
            made = counted(recommender)
            recommender.service._update_interval = 0.0
            asked = (recommender.get_recommendations("u007", exclude=["i001"]) for _ in range(3))
            stale = {found.answer.made_at for found in await asyncio.gather(*asked)}
            await recommender.service.settled()
            assert (stale, made) == ({first.made_at}, ["u007"])
            anew = (await recommender.get_recommendations("u007", exclude=["i001"])).answer
            assert (anew.source, anew.made_at > first.made_at) == ("cache", True)

    asyncio.run(scenario())


def test_past_its_life_and_under_a_new_generation_an_answer_counts_for_nothing(
    publish_lists: Publish, store_url: str
) -> None:
    publish_lists()

    async def scenario() -> None:
        realtime = {"redis_url": store_url, "update_interval": 0, "cache_ttl": 0.3}
        config = {"rt_config": realtime, "source_budget": LONG}
        async with HybridRecommender(config) as recommender:
            first = (await recommender.get_recommendations("u007", exclude=["i001"])).answer
            await asyncio.sleep(0.4)
            assert (await recommender.get_recommendations("u007", exclude=["i001"])).answer.source == "generated"
            newer = await asyncio.to_thread(publish_lists)
            await recommender.service.look()
            answer = (await recommender.get_recommendations("u007", exclude=["i001"])).answer
            assert (answer.source, answer.generation) == ("generated", newer.number)
            assert first.generation == newer.number - 1

    asyncio.run(scenario())


def test_hostile_bytes_in_the_store_cost_no_answer(
    publish_lists: Publish, config: dict[str, Any], store: "redis.Redis"
) -> None:
    publish_lists()
    recommender = HybridRecommender(config)
    hostile = [b"", b"null", b"[]", b'{"u": 1}', b"\xff\xfe", b'{"items": 3}', b"[" * 10_000]

    for value in hostile:
        store.hset("recommendations_answers:{events:u007}", "hybrid:10", value)
        store.set("recommendations:u007", value)
        answer = recommender.get_recommendations_sync("u007").answer
        assert len(answer.items) == 10
    recommender.close()


def test_in_a_storm_of_cancellations_nobody_gets_anothers_list(publish_lists: Publish, config: dict[str, Any]) -> None:
    generation = publish_lists()
    mine = {
        user: items[:5]
        for batch in generation.iterate()
        for user, items in zip(batch["user_id"].to_pylist(), batch["item_id"].to_pylist(), strict=True)
    }
    chosen = random.Random(7)  # noqa: S311 - no secret

    async def one(recommender: HybridRecommender, user: str) -> None:
        found = await recommender.get_recommendations(user, top_k=5)
        assert [item["id"] for item in found] == mine[user]

    async def cancel_after(task: "asyncio.Task[None]", n_turns: int) -> None:
        for _ in range(n_turns):  # turns of the loop, not seconds: the same on any machine
            await asyncio.sleep(0)
        task.cancel()

    async def storm() -> int:
        n_cancelled = 0
        async with HybridRecommender(config) as recommender:
            for _ in range(60):
                users = [chosen.choice(sorted(mine)) for _ in range(16)]
                tasks = [asyncio.create_task(one(recommender, user)) for user in users]
                await asyncio.gather(
                    *(cancel_after(task, chosen.randrange(40)) for task in tasks if chosen.random() < 0.5)
                )
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    n_cancelled += isinstance(result, asyncio.CancelledError)
                    assert result is None or isinstance(result, asyncio.CancelledError), result
        return n_cancelled

    assert asyncio.run(storm()) > 20


def test_f29_a_read_that_is_given_up_leaves_no_reply_for_the_next(
    store_url: str, store: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"u{number}" for number in range(50)]
    for user in users:
        store.set(f"recommendations:{user}", f'[{{"gen":1,"u":"{user_checksum(user)}","id":"{user}","score":1}}]')
    chosen = random.Random(7)  # noqa: S311 - no secret

    is_asked = asyncio.Event()
    send = AbstractConnection.send_packed_command

    async def send_and_tell(connection: AbstractConnection, *arguments: Any, **keywords: Any) -> None:
        await send(connection, *arguments, **keywords)
        is_asked.set()

    monkeypatch.setattr(AbstractConnection, "send_packed_command", send_and_tell)

    async def give_up(read: "asyncio.Task[UserState]", n_turns: int) -> None:
        while n_turns % 2 and not is_asked.is_set() and not read.done():
            await asyncio.sleep(0)
        for _ in range(n_turns // 2):
            await asyncio.sleep(0)
        read.cancel()

    async def storm() -> int:
        online, n_given_up = OnlineStore(store_url), 0
        try:
            await patiently(online.look)
            for _ in range(40):
                asked = chosen.sample(users, 8)
                is_asked.clear()
                reads = [asyncio.create_task(online.read_user(user)) for user in asked]
                await asyncio.gather(*(give_up(read, chosen.randrange(12)) for read in reads[::2]))
                for user, found in zip(asked, await asyncio.gather(*reads, return_exceptions=True), strict=True):
                    if isinstance(found, asyncio.CancelledError):
                        n_given_up += 1
                    elif not isinstance(found, StoreUnavailableError):
                        assert isinstance(found, UserState), found
                        assert found.published is not None, found.damage
                        assert found.published.items[0].item_id == user
        finally:
            await online.close()
        return n_given_up

    assert asyncio.run(storm()) > 20


def test_a_read_that_fails_unexpectedly_fails_whoever_waits_for_it(store_url: str) -> None:
    async def ask() -> None:
        online = OnlineStore(store_url)
        async with asyncio.timeout(20):
            await online.read_answer("{u1}", "field")

    with pytest.raises(InvalidIdError):
        asyncio.run(ask())


def test_two_requests_with_equal_answers_are_kept_under_one_name() -> None:
    narrow = Request("u1", exclude=("b", "a"), categories=("x",))

    assert Request("u1", 10).cache_field("hybrid", "") == "hybrid:10"
    assert narrow.cache_field("hybrid", "") == replace(narrow, exclude=("a", "b")).cache_field("hybrid", "")
    assert narrow.cache_field("hybrid", "") != replace(narrow, exclude=("a",)).cache_field("hybrid", "")
    assert narrow.cache_field("hybrid", "evening") != narrow.cache_field("hybrid", "")
    assert np.unique([narrow.cache_field(kind, "") for kind in ("hybrid", "content")]).size == 2
