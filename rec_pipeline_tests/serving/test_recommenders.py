import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import redis
import torch

import rec_pipeline
from rec_pipeline import (
    CollaborativeFilter,
    ContentBasedRecommender,
    HybridRecommender,
    RealtimeRecommender,
    RecommenderMetrics,
)
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError, InvalidIdError, UnknownUserError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.serving.service import NothingToServeError
from rec_pipeline.settings import settings
from rec_pipeline_tests.fixtures.waiting import LONG

Publish = Callable[[], Generation]
HOSTILE_IDS = ["", "a\nb", "a}b", "{events:u1}", "\ud800", "x" * 257, " u1", "u1\r\nDEL recommendations:u2"]


async def example(config: dict[str, Any], ground_truth_items: list[str]) -> tuple[Any, dict[str, float]]:
    recommender = HybridRecommender(config)
    recommendations = await recommender.get_recommendations(
        "u007", {"time": "2024-02-10T15:30:00", "location": "New York", "device": "mobile"}, top_k=10
    )
    performance = RecommenderMetrics().evaluate([rec["id"] for rec in recommendations], ground_truth_items)
    await recommender.aclose()
    return recommendations, performance


def test_the_example_of_the_design_works_as_written(publish_lists: Publish, store_url: str) -> None:
    publish_lists()
    config = {
        "cf_config": {"num_users": 60, "num_items": 40, "embedding_dim": 8, "learning_rate": 0.001},
        "cb_config": {"feature_extractor": "all-MiniLM-L6-v2", "embedding_dim": 3},
        "rt_config": {"redis_url": store_url, "update_interval": 300, "cache_ttl": 3600},
    }

    recommendations, performance = asyncio.run(example(config, ["i001", "i003"]))

    assert len(recommendations) == 10
    assert all(rec.keys() == {"id", "score", "sources", "reason"} for rec in recommendations)
    assert np.mean([int(rec["id"][1:]) % 2 for rec in recommendations]) >= 0.9  # u007 likes odd items
    assert {"precision", "recall", "ndcg", "diversity"} <= performance.keys()
    assert all(type(value) is float for value in performance.values())


def test_host_and_port_are_enough_to_find_the_store(publish_lists: Publish, store: "redis.Redis") -> None:
    publish_lists()
    port = store.config_get("port")["port"]

    with_address = HybridRecommender({"rt_config": {"redis_host": "127.0.0.1", "redis_port": int(port)}})

    assert with_address.get_recommendations_sync("u007").answer.source == "cache"
    with_address.close()


def test_published_lists_are_served_as_they_are(publish_lists: Publish, config: dict[str, Any]) -> None:
    generation = publish_lists()
    published = generation.find("u010")
    recommender = HybridRecommender(config)

    found = recommender.get_recommendations_sync("u010", top_k=5)
    again = recommender.get_recommendations_sync("u010", top_k=5)
    recommender.close()

    assert published is not None
    assert [rec["id"] for rec in found] == published["item_id"][:5]
    assert list(again) == list(found)
    assert (found.answer.source, found.answer.generation, found.answer.degraded) == ("cache", generation.number, False)


def test_an_event_changes_the_next_answer(publish_lists: Publish, config: dict[str, Any], store: "redis.Redis") -> None:
    publish_lists()
    recommender = HybridRecommender(config)
    before = recommender.get_recommendations_sync("u010", top_k=5)

    store.zadd("events:u010", {before[0]["id"]: 4e12})
    store.incr("events_version:{events:u010}")
    after = recommender.get_recommendations_sync("u010", top_k=5)
    recommender.close()

    assert before[0]["id"] not in {rec["id"] for rec in after}
    assert len(after) == 5
    assert after.answer.source == "generated"


def test_an_event_counts_though_an_answer_without_it_is_still_being_made(
    publish_lists: Publish, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_lists()

    async def scenario() -> None:
        async with HybridRecommender(config) as recommender:
            store, live = recommender.service.store, recommender.service.live
            make, may_go_on, is_made = live.answer, asyncio.Event(), asyncio.Event()

            async def slow(*arguments: Any, **named: Any) -> Any:
                is_made.set()
                await may_go_on.wait()
                return await make(*arguments, **named)

            await recommender.record_event("u010", "i003", "click")
            liked = (await recommender.get_recommendations("u010"))[0]["id"]
            monkeypatch.setattr(live, "answer", slow)
            await recommender.record_event("u010", "i005", "click")
            first = asyncio.create_task(recommender.get_recommendations("u010", top_k=20))
            await is_made.wait()
            monkeypatch.setattr(live, "answer", make)
            await recommender.record_event("u010", liked, "click")
            reads = 0
            read = store.read_answer

            async def counted(user_id: str, field: str) -> tuple[int, bytes | None]:
                nonlocal reads
                reads += 1
                return await read(user_id, field)

            monkeypatch.setattr(store, "read_answer", counted)
            second = await asyncio.wait_for(recommender.get_recommendations("u010", top_k=20), LONG)
            assert not reads  # what is kept cannot count
            may_go_on.set()
            kept = await recommender.get_recommendations("u010", top_k=20)

            assert liked not in {rec["id"] for rec in second}
            assert liked in {rec["id"] for rec in await first}
            assert (second.answer.source, kept.answer.source, reads) == ("generated", "cache", 1)
            assert list(kept) == list(second)

    asyncio.run(scenario())


def test_a_user_nobody_knows_gets_what_is_popular(publish_lists: Publish, config: dict[str, Any]) -> None:
    publish_lists()
    recommender = HybridRecommender(config)

    found = recommender.get_recommendations_sync("stranger", top_k=4)
    recommender.close()

    assert len(found) == 4
    assert found.answer.source == "popular"
    assert {source for rec in found for source in rec["sources"]} == {"popularity"}


@pytest.mark.usefixtures("sealed")
def test_a_session_without_id_is_known_by_its_items(config: dict[str, Any]) -> None:
    recommender = HybridRecommender(config)

    found = recommender.get_recommendations_sync(None, items=["i003", "i005", "i009"], top_k=5)
    recommender.close()

    assert {int(rec["id"][1:]) % 2 for rec in found} == {1}
    assert not {"i003", "i005", "i009"} & {rec["id"] for rec in found}


@pytest.mark.usefixtures("sealed")
def test_excluded_items_are_not_in_the_answer_and_it_is_as_long(config: dict[str, Any]) -> None:
    recommender = HybridRecommender(config)
    first = [rec["id"] for rec in recommender.get_recommendations_sync("u012", top_k=6)]

    second = [rec["id"] for rec in recommender.get_recommendations_sync("u012", top_k=6, exclude=first[:3])]
    recommender.close()

    assert not set(first[:3]) & set(second)
    assert len(set(second)) == 6


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize("kind", [HybridRecommender, CollaborativeFilter, ContentBasedRecommender])
def test_categories_narrow_the_answer_of_each_recommender(kind: Any, config: dict[str, Any]) -> None:
    recommender = kind(config)

    odd = recommender.get_recommendations_sync("u001", categories=["strange"], top_k=5)
    even = recommender.get_recommendations_sync("u001", without_categories=["odd"], top_k=5)
    none = recommender.get_recommendations_sync("u001", categories=["strange"], without_categories=["odd"], top_k=5)
    recommender.close()

    assert [{int(rec["id"][1:]) % 2 for rec in found} for found in (odd, even, none)] == [{1}, {0}, set()]
    assert len(odd) == len(even) == 5


@pytest.mark.usefixtures("data_dir")
def test_a_filter_that_cannot_be_kept_is_refused(publish_lists: Publish, config: dict[str, Any]) -> None:
    publish_lists()
    shutil.rmtree(settings().artifacts_dir)
    recommender = HybridRecommender(config)

    assert len(recommender.get_recommendations_sync("u001", top_k=5)) == 5
    with pytest.raises(NothingToServeError, match="nothing is known of categories"):
        recommender.get_recommendations_sync("u001", without_categories=["horror"])
    recommender.close()
    new = CollaborativeFilter({"cf_config": {"num_users": 2, "num_items": 3}})
    with pytest.raises(ConfigurationError, match="knows no categories"):
        new.get_recommendations_sync("1", categories=["horror"])


@pytest.mark.usefixtures("sealed")
def test_context_changes_the_answer_and_is_kept_under_its_bucket(config: dict[str, Any], store: "redis.Redis") -> None:
    recommender = HybridRecommender(config)

    def ask(**context: str) -> list[str]:
        return [rec["id"] for rec in recommender.get_recommendations_sync("u059", context, top_k=10)]

    store.zadd("events:u059", {"i000": 1e12, "i001": 1e12})
    morning, evening = ask(time="2024-02-10T07:30:00"), ask(time="2024-02-10T19:30:00")
    without = ask()
    unknown = ask(time="2024-02-10T03:00:00", device="fridge")
    again = recommender.get_recommendations_sync("u059", {"time": "2024-03-01T11:59:00", "device": "-"}, top_k=10)
    recommender.close()

    share = [np.mean([int(item[1:]) % 2 for item in items]) for items in (morning, without, evening)]
    assert share[0] >= share[1] > share[2]
    assert unknown == without
    assert [rec["id"] for rec in again] == morning
    assert again.answer.source == "cache"
    assert store.hlen(keys.answers_key("u059")) == 3


def test_what_expires_leaves_published_and_kept_answers(
    publish_lists: Publish, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_lists()
    recommender = HybridRecommender(config)
    before = [[rec["id"] for rec in recommender.get_recommendations_sync(user, top_k=5)] for user in ("u010", "nobody")]

    loaded = recommender.bundles.current
    assert loaded is not None
    facts = loaded.bundle.facts
    expires = facts.expires_at.copy()
    expires[loaded.bundle.items.to_idx([items[0] for items in before])] = int(time.time()) + 1
    time.sleep(1.01)
    monkeypatch.setitem(facts.__dict__, "expires_at", expires)
    monkeypatch.setitem(loaded.__dict__, "expiries", sorted(expires.tolist()))
    after = [[rec["id"] for rec in recommender.get_recommendations_sync(user, top_k=5)] for user in ("u010", "nobody")]
    recommender.close()

    gone = {items[0] for items in before}
    assert [len(items) for items in after] == [5, 5]
    assert not gone & {item for items in after for item in items}


@pytest.mark.parametrize("kind", [CollaborativeFilter, ContentBasedRecommender, RealtimeRecommender])
def test_each_recommender_stands_alone(kind: Any, publish_lists: Publish, config: dict[str, Any]) -> None:
    publish_lists()

    async def ask() -> Any:
        async with kind(config) as recommender:
            return await recommender.get_recommendations("u009", top_k=5)

    found = asyncio.run(ask())

    assert len(found) == 5
    assert {int(rec["id"][1:]) % 2 for rec in found} == {1}


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize("user_id", HOSTILE_IDS)
def test_an_id_that_cannot_be_one_is_refused_before_the_store_is_asked(user_id: str) -> None:
    nowhere = HybridRecommender({"rt_config": {"redis_host": "127.0.0.1", "redis_port": 1}})

    with pytest.raises(InvalidIdError):
        nowhere.get_recommendations_sync(user_id)
    with pytest.raises(InvalidIdError):
        nowhere.get_recommendations_sync("u001", exclude=[user_id])
    assert nowhere.service.store._clients == {}


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"cf_config": {"num_items": 41}}, "num_items is 41 but the bundle has 40"),
        ({"cb_config": {"embedding_dim": 384}}, "embedding_dim is 384 but the bundle has 3"),
        ({"rt_config": {"cache_tll": 3}}, "cache_tll"),
        ({"top_k": 3}, "top_k"),
    ],
)
def test_configuration_that_does_not_fit_is_named(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        HybridRecommender(part)


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize("top_k", [0, 101])
def test_a_list_length_out_of_range_is_refused(config: dict[str, Any], top_k: int) -> None:
    with pytest.raises(ConfigurationError, match=f"top_k is {top_k}, expected 1 to 100"):
        HybridRecommender(config).get_recommendations_sync("u001", top_k=top_k)


@pytest.mark.usefixtures("sealed")
def test_a_bundle_is_found_from_every_folder_around_it_and_by_url(data_dir: Path, config: dict[str, Any]) -> None:
    versions = data_dir / "artifacts" / "serving_bundle"
    version = (versions / "current").read_text()
    memory = fsspec.filesystem("memory")
    memory.put(str(versions), "/bucket/serving_bundle", recursive=True)
    places = [data_dir, data_dir / "artifacts", versions, versions / version, f"file://{data_dir}", "memory://bucket"]

    loaded = [HybridRecommender.from_bundle(place, config).bundles.current for place in places]
    memory.rm("/bucket", recursive=True)

    assert {one.version for one in loaded if one} == {version}
    assert len([one for one in loaded if one]) == len(places)


@pytest.mark.usefixtures("sealed")
def test_a_bundle_that_is_not_there_or_damaged_is_refused(data_dir: Path) -> None:
    with pytest.raises(ArtifactIntegrityError, match="no serving bundle at /nowhere"):
        HybridRecommender.from_bundle("/nowhere")
    damaged = next((data_dir / "artifacts").rglob("network.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactIntegrityError, match="does not match its manifest"):
        HybridRecommender.from_bundle(data_dir)
    with pytest.raises(ConfigurationError, match="no place a bundle can be read from"):
        HybridRecommender.from_bundle("nosuchscheme://bucket")


@pytest.mark.usefixtures("data_dir")
def test_a_new_network_learns_what_it_is_shown() -> None:
    users, items = np.meshgrid(np.arange(12), np.arange(10), indexing="ij")
    pairs = np.stack([users.ravel(), items.ravel()], axis=1)
    pairs = pairs[(pairs[:, 0] + pairs[:, 1] // 2) % 5 > 0]  # a fifth of the pairs is never shown
    label = (pairs[:, 0] % 2 == pairs[:, 1] % 2).astype(np.float32)
    dataset = torch.utils.data.TensorDataset(*(torch.tensor(column) for column in (*pairs.T, label)))
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True, generator=torch.manual_seed(0))
    sizes = {"num_users": 12, "num_items": 10, "embedding_dim": 8, "learning_rate": 0.02}
    cf = CollaborativeFilter({"cf_config": sizes})

    losses = [cf.train_epoch(loader) for _ in range(15)]
    found = cf.get_recommendations_sync("3", top_k=1)

    assert losses[-1] < losses[0] / 2
    assert int(found[0]["id"]) % 2 == 1
    assert found[0]["id"] not in {str(item) for user, item in pairs.tolist() if user == 3}
    with pytest.raises(UnknownUserError):
        cf.get_recommendations_sync("12")


@pytest.mark.usefixtures("sealed")
def test_training_goes_on_from_the_bundle_without_changing_it() -> None:
    cf = CollaborativeFilter()
    before = cf.bundles.load().bundle.ncf.item_vectors().copy()
    row = cf.bundles.load().bundle.users.to_idx(["u004"])
    target = cf.get_recommendations_sync("u004", top_k=40)[-1]["id"]
    item = cf.bundles.load().bundle.items.to_idx([target])
    others = np.setdiff1d(np.arange(40), item)
    user_idx, item_idx = torch.tensor(np.repeat(row, 40)), torch.tensor(np.concatenate([item, others]))
    label = torch.tensor([0.9] + [0.0] * 39)

    for _ in range(5):
        cf.train_epoch([(user_idx, item_idx, label)])

    assert np.array_equal(cf.bundles.load().bundle.ncf.item_vectors(), before)
    assert target not in {rec["id"] for rec in cf.get_recommendations_sync("u004", top_k=40)}  # seen by now
    with pytest.raises(ValueError, match="user rows must lie in"):
        cf.train_epoch([(torch.tensor([60]), torch.tensor([0]), torch.tensor([1.0]))])


@pytest.mark.usefixtures("sealed")
def test_metrics_are_those_of_the_report() -> None:
    found = RecommenderMetrics().evaluate(["i001", "i002", "i003", "i004"], ["i002", "i030"])

    assert found["precision"] == 1 / 4
    assert found["recall"] == 1 / 2
    assert found["ndcg"] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    assert 0.3 < found["diversity"] < 1


@pytest.mark.usefixtures("data_dir")
def test_diversity_is_undefined_without_vectors_and_lists_are_checked() -> None:
    assert np.isnan(RecommenderMetrics().evaluate(["a", "b"], ["b"])["diversity"])
    assert RecommenderMetrics().evaluate(["a", "b"], ["b"], cutoff=1)["precision"] == 0
    with pytest.raises(ConfigurationError, match="without repeats"):
        RecommenderMetrics().evaluate(["a", "a"], ["b"])


def test_the_package_is_imported_without_the_heavy_libraries() -> None:
    code = (
        "import sys, rec_pipeline; print({'torch', 'dagster', 'mlflow', 'redis'} & set(sys.modules)); "
        "rec_pipeline.HybridRecommender; print({'dagster', 'mlflow', 'torch'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 # our own code

    assert done.stdout == "set()\nset()\n"
    with pytest.raises(AttributeError, match="no attribute 'Recommender'"):
        _ = rec_pipeline.Recommender
