"""Forgetting, tracing, examining and planning, against a real server."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from rec_pipeline.engine.errors import GateRefusedError, UnknownUserError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.doctor import FAIL, OK, WARN, examine
from rec_pipeline.engine.store.forgetting import forget, remember
from rec_pipeline.engine.store.gates import require_plausible
from rec_pipeline.engine.store.publication import PublishParams
from rec_pipeline.engine.store.publisher import interrupted, plan, publish, restorable, rollback
from rec_pipeline.engine.store.reader import RecommendationReader
from rec_pipeline.engine.store.status import status
from rec_pipeline.engine.store.suppression import FILE
from rec_pipeline.engine.store.tracing import trace
from rec_pipeline_tests.fixtures.store import seal_lists

USERS = [f"u{number}" for number in range(200)]
PARAMS = PublishParams(batch_size=50)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "generations"


def test_s15_the_forgotten_are_gone_and_not_brought_back(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    store.zadd(keys.events_key("u3"), {"i1": 1})
    store.set(keys.user_version_key("u3"), 1)
    store.set(keys.stage_key("u3", 1), "waits to go live")

    done = forget(store, root, "u3")

    assert (done.n_keys, done.is_new) == (4, True)
    assert not [key for key in store.scan_iter(count=1000) if b"u3}" in key or key.endswith(b":u3")]
    reader = RecommendationReader(store)
    publication = publish(store, seal_lists(root, USERS, "b"), PARAMS)
    assert (publication.n_users, publication.n_left_out, status(store, root).n_users) == (199, 1, 199)
    assert reader.get("u3") is None
    assert reader.get("u4") is not None
    rollback(store, root, params=PARAMS)
    assert reader.get("u3") is None
    assert "u3" not in (root / FILE).read_text()


def test_the_forgotten_stay_so_when_the_store_forgets_them(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    forget(store, root, "u3")
    store.flushall()

    publish(store, restorable(store, root), PARAMS)

    assert RecommendationReader(store).get("u3") is None
    assert store.scard(keys.SUPPRESSED) == 1
    (root / FILE).unlink()
    publish(store, seal_lists(root, USERS, "b"), PARAMS)
    assert RecommendationReader(store).get("u3") is None


@pytest.mark.parametrize(("point", "user_id"), [(("stage", 50), "u150"), (("flip", 50), "u3"), (("flip", 200), "u3")])
def test_who_is_forgotten_while_lists_go_live_is_not_left_behind(
    store: "redis.Redis", root: Path, point: tuple[str, int], user_id: str
) -> None:
    def forget_late(phase: str, n_done: int, n_users: int) -> None:
        del n_users
        if (phase, n_done) == point:
            forget(store, root, user_id)

    publish(store, seal_lists(root, USERS, "a"), PARAMS, on_progress=forget_late)

    assert RecommendationReader(store).get(user_id) is None


def test_a_forgotten_user_can_be_remembered(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    forget(store, root, "u3")

    assert remember(store, root, "u3")
    assert not remember(store, root, "u3")

    publish(store, seal_lists(root, USERS, "b"), PARAMS)
    assert RecommendationReader(store).get("u3") is not None


def lists_by_the_doctor(store: "redis.Redis", root: Path) -> tuple[str, str]:
    (finding,) = (finding for finding in examine(store, root) if finding.name == "lists")
    return finding.level, finding.message


def test_who_is_no_longer_forgotten_waits_for_the_next_generation_and_the_doctor_finds_nothing_wrong(
    store: "redis.Redis", root: Path
) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    forget(store, root, "u3")
    remember(store, root, "u3")
    waits = (OK, "99 lists read back; no longer forgotten, 1 of 100 users wait for the next generation")
    assert lists_by_the_doctor(store, root) == waits
    store.delete(keys.live_key("u4"))
    assert lists_by_the_doctor(store, root)[1].startswith("1 of 100 users")

    publish(store, seal_lists(root, USERS, "b"), PARAMS)

    assert lists_by_the_doctor(store, root) == (OK, "100 lists read back")
    store.delete(keys.live_key("u3"))
    assert lists_by_the_doctor(store, root)[0] == FAIL


@pytest.mark.parametrize("is_killed", [False, True])
def test_who_is_remembered_while_lists_are_made_waits_for_the_one_after(
    store: "redis.Redis", root: Path, monkeypatch: pytest.MonkeyPatch, *, is_killed: bool
) -> None:
    def remember_late(phase: str, n_done: int, n_users: int) -> None:
        if (phase, n_done) == ("flip", n_users // 2):
            remember(store, root, "u3")

    def end(point: str, *_: int) -> None:
        if point == "history" and is_killed:
            raise KeyboardInterrupt

    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    forget(store, root, "u3")
    generation = seal_lists(root, USERS, "b")
    monkeypatch.setattr("rec_pipeline.engine.crash_points.reach", end)
    with suppress(KeyboardInterrupt):
        publish(store, generation, PARAMS, on_progress=remember_late)
    monkeypatch.undo()
    publish(store, generation, PARAMS)

    assert status(store, root).live == 2
    assert lists_by_the_doctor(store, root)[0] == OK
    assert RecommendationReader(store).get("u3") is None


def test_a_store_that_has_lost_everything_is_restored(store: "redis.Redis", root: Path) -> None:
    for tag in "ab":
        publish(store, seal_lists(root, USERS, tag), PARAMS)
    store.flushall()

    publication = publish(store, restorable(store, root), PARAMS)

    assert publication.generation == 2
    assert RecommendationReader(store).get("u3") is not None


def test_lists_lost_from_a_live_generation_are_restored_under_a_new_number(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    store.delete(keys.live_key("u3"))
    assert {finding.name for finding in examine(store, root) if finding.level == FAIL} == {"lists"}

    chosen = restorable(store, root, 1)
    assert restorable(store, root, 1).number == chosen.number
    publication = publish(store, chosen, PARAMS)

    assert publication.generation == 2
    assert RecommendationReader(store).get("u3") is not None


def test_what_was_interrupted_is_named(store: "redis.Redis", root: Path) -> None:
    assert interrupted(store) is None
    generation = seal_lists(root, USERS, "a")

    def stop(phase: str, n_done: int, n_users: int) -> None:
        if (phase, n_done) == ("flip", n_users // 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(store, generation, PARAMS, on_progress=stop)

    assert interrupted(store) == 1
    assert any(finding.name == "publication" and finding.level == FAIL for finding in examine(store, root))
    publish(store, generation, PARAMS)
    assert interrupted(store) is None


def test_a_plan_writes_nothing_and_says_what_it_takes(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")

    found = plan(store, generation, PublishParams(shards=2))

    assert store.dbsize() == 0
    assert (found.generation, found.n_users, found.refusal, found.exit_code) == (1, 200, None, 0)
    assert 150 < found.bytes_per_user < 1000
    assert found.needed_bytes > 200 * found.bytes_per_user
    assert found.seconds.keys() == {"stage", "verify", "flip"}


@pytest.mark.parametrize(("share", "n_warnings", "exit_code"), [(0.7, 0, 0), (0.8, 1, 0), (0.95, 0, 6)])
def test_a_plan_warns_over_three_quarters_and_refuses_over_nine_tenths(
    store: "redis.Redis", root: Path, share: float, n_warnings: int, exit_code: int
) -> None:
    generation = seal_lists(root, USERS, "a")
    before = plan(store, generation)
    store.config_set("maxmemory", int((before.used_bytes + before.needed_bytes) / share))

    found = plan(store, generation)

    assert (found.exit_code, sum("maxmemory" in warning for warning in found.warnings)) == (exit_code, n_warnings)


def test_a_list_is_traced_to_what_made_it(store: "redis.Redis", root: Path) -> None:
    generation = seal_lists(root, USERS, "a")
    publish(store, generation, PARAMS)

    found = trace(store, root, "u3")

    assert found["generation"]["manifest_sha256"] == generation.manifest_sha256
    assert found["origin"] == "personal"
    first = found["items"][0]
    assert (first["rank"], first["id"], first["reason"]) == (1, "a-0", "because of a")
    assert first["sources"] == [{"name": "collaborative", "rank": 1, "share": 1.0}]
    assert [entry["id"] for entry in trace(store, root, "u3", "a-2")["items"]] == ["a-2"]
    assert trace(store, root, "nobody")["origin"] == "popular"
    with pytest.raises(UnknownUserError, match="'b-0'"):
        trace(store, root, "u3", "b-0")


def test_nothing_live_cannot_be_traced(store: "redis.Redis", root: Path) -> None:
    with pytest.raises(UnknownUserError, match="nothing is live"):
        trace(store, root, "u3")


def test_the_doctor_finds_a_healthy_store_healthy(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)

    findings = {finding.name: finding for finding in examine(store, root)}

    assert not [finding for finding in findings.values() if finding.level != OK]
    assert {"version", "eviction", "persistence", "memory", "clock", "live", "artefact", "lists"} <= findings.keys()


def test_the_doctor_names_what_is_wrong(store: "redis.Redis", root: Path) -> None:
    publish(store, seal_lists(root, USERS, "a"), PARAMS)
    publish(store, seal_lists(root, USERS, "b"), PARAMS)
    rollback(store, root, params=PARAMS)
    store.config_set("maxmemory-policy", "allkeys-lru")
    store.hset(keys.CURRENT, "published_at", "2020-01-01T00:00:00+00:00")
    part = root / "00000003" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])

    findings = {finding.name: finding for finding in examine(store, root)}

    levels = {name: finding.level for name, finding in findings.items()}
    assert (levels["eviction"], levels["artefact"], levels["pin"], levels["live"]) == (FAIL, FAIL, WARN, WARN)


def test_the_doctor_says_when_nobody_answers(tmp_path: Path) -> None:
    with redis.Redis(unix_socket_path=str(tmp_path / "nobody.sock")) as client:
        (finding,) = examine(client, tmp_path)

    assert (finding.name, finding.level) == ("store", FAIL)


@pytest.mark.parametrize(
    ("n_users", "n_popular", "refused"),
    [(239, 0, ""), (241, 0, r"\+2[01]%"), (159, 0, r"-2[01]%"), (200, 181, "popular")],
)
def test_a_generation_unlike_the_last_is_refused(root: Path, n_users: int, n_popular: int, refused: str) -> None:
    last = seal_lists(root, USERS, "a")

    if refused:
        with pytest.raises(GateRefusedError, match=refused):
            require_plausible(n_users, n_popular, last, accept_variance=False)
    require_plausible(n_users, n_popular, last, accept_variance=bool(refused))


def test_generations_of_different_origins_are_not_compared(root: Path) -> None:
    sealed = seal_lists(root, USERS, "a")
    facts = {**sealed.metadata, "lineage": {"data": {"origin": "the sample"}}}
    last = replace(sealed, manifest=replace(sealed.manifest, metadata=facts))

    require_plausible(10, 0, last, origin="ml-100k", accept_variance=False)
    with pytest.raises(GateRefusedError, match="against generation"):
        require_plausible(10, 0, last, origin="the sample", accept_variance=False)
