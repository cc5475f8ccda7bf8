"""What was recommended comes back as events; users are dealt to variants; whoever asked to be forgotten is."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import redis

from rec_pipeline import HybridRecommender
from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.experiment import Experiment
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.evaluation.online import OnlineParams, online_metrics
from rec_pipeline.engine.store.drain import drain
from rec_pipeline.engine.store.forgetting import forget, remember
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline_tests.serving.running import running

Publish = Callable[[], Generation]
EXPERIMENT = Experiment(
    name="fusion", shares={"control": 0.5, "words": 0.5}, params={"words": {"weights": {"collaborative": 0}}}
)


@pytest.fixture
def recommender(publish_lists: Publish, config: dict[str, Any]) -> HybridRecommender:
    publish_lists()
    return HybridRecommender({**config, "experiment": EXPERIMENT, "impressions": True})


def users_of(variant: str) -> list[str]:
    return [user for user in (f"u{number:03}" for number in range(58)) if EXPERIMENT.variant(user) == variant]


def test_what_is_served_and_clicked_is_the_click_through_of_generation_source_and_variant(
    publish_lists: Publish, config: dict[str, Any], store: "redis.Redis", tmp_path: Path
) -> None:
    generation = publish_lists()
    with running({**config, "experiment": EXPERIMENT, "impressions": True}) as service:
        for user in ("u001", "u002", "u003", "u004"):
            answer = service.client.get(f"/recommendations/{user}", params={"top_k": 5}).json()
            assert answer["variant"] == EXPERIMENT.variant(user)
        clicked = answer["items"][2]
        served = {"sources": clicked["sources"], "generation": generation.number, "position": 3}
        event = {"user_id": "u004", "item_id": clicked["id"], "event_type": "click", "served": served}
        service.client.post("/events", json=event)

    done = drain(store, EventLog(tmp_path))
    metrics = online_metrics(EventLog(tmp_path), EXPERIMENT, OnlineParams(), pd.Timestamp.now("UTC"))

    assert (done.n_entries, done.n_refused, sum(done.n_by_day.values())) == (5, 0, 21)
    table = metrics.table.set_index(["slice", "bucket"])
    assert table.loc[("all", "all"), ["n_impressions", "n_clicked"]].tolist() == [20, 1]
    assert table.loc[("generation", str(generation.number)), "n_impressions"] == 20
    variants = {EXPERIMENT.variant(user) for user in ("u001", "u002", "u003", "u004")}
    assert {bucket for name, bucket in table.index if name == "experiment/variant"} == {f"fusion/{v}" for v in variants}
    assert table.loc[("experiment/variant", f"fusion/{EXPERIMENT.variant('u004')}"), "n_clicked"] == 1
    assert {bucket for name, bucket in table.index if name == "source"} >= set(clicked["sources"])
    assert table["low"].lt(table["mean"]).any()
    assert (metrics.n_matched, metrics.n_misdealt) == (1, 0)
    positions = EventLog(tmp_path).read(["position"], event_types=["impression"])["position"]
    assert sorted(positions) == sorted([1, 2, 3, 4, 5] * 4)


def test_the_variants_of_an_experiment_answer_by_their_own_fusion(recommender: HybridRecommender) -> None:
    control = recommender.get_recommendations_sync(users_of("control")[0], top_k=8)
    words = [recommender.get_recommendations_sync(users_of("words")[0], top_k=8) for _ in range(2)]
    recommender.close()

    assert (control.answer.variant, control.answer.source) == ("control", "cache")
    assert [(one.answer.variant, one.answer.source) for one in words] == [("words", "generated"), ("words", "cache")]
    assert "collaborative" in {source for item in control for source in item["sources"]}
    assert "collaborative" not in {source for item in words[0] for source in item["sources"]}


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"clairvoyance": 1}}, "clairvoyance"),
        ({"rank_constant": 0}, "rank_constant"),
        ({"wieghts": {}}, "wieghts"),
    ],
)
def test_a_variant_that_does_not_fit_the_bundle_is_refused_at_the_start(
    config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    experiment = Experiment(params={"control": changes})

    with pytest.raises(ConfigurationError, match=message):
        HybridRecommender({**config, "experiment": experiment})


def test_impressions_give_way_to_clicks_and_cost_no_answer(
    recommender: HybridRecommender,
    store: "redis.Redis",
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recommender.service._impressions, "_max_backlog", 4)

    async def ask() -> list[int]:
        lengths = []
        for user in ("u001", "u002", "u003", "u004", "u005", "u006"):
            if user == "u005":
                store.delete("events_stream")
            assert len(await recommender.get_recommendations(user, top_k=5)) == 5
            await recommender.service.settled()
            lengths.append(store.xlen("events_stream"))
        await recommender.aclose()
        return lengths

    lengths = asyncio.run(ask())

    assert lengths == [1, 2, 2, 2, 1, 2]
    assert [record.message for record in caplog.records if record.name.endswith("impressions")] == [
        "lists are not recorded as impressions: 2 entries wait to be drained",
        "lists are recorded as impressions again; 2 were not",
    ]


def test_a_forgotten_user_is_a_stranger_at_once_and_nothing_of_them_is_kept(
    publish_lists: Publish, config: dict[str, Any], store: "redis.Redis", data_dir: Path
) -> None:
    publish_lists()
    with running({**config, "impressions": True}) as service:
        before = service.client.get("/recommendations/u010").json()

        forget(store, data_dir / "generations", "u010")
        after = service.client.get("/recommendations/u010").json()
        event = {"user_id": "u010", "item_id": "i001", "event_type": "click"}
        recorded = service.client.post("/events", json={"events": [event, {**event, "user_id": "u011"}]}).json()
        history = service.client.get("/users/u010/history").json()
        stranger = service.client.get("/recommendations/nobody").json()
        remember(store, data_dir / "generations", "u010")
        again = service.client.get("/recommendations/u010").json()

    assert (before["source"], after["source"]) == ("cache", "popular")
    assert [item["id"] for item in after["items"]] == [item["id"] for item in stranger["items"]]
    assert recorded == {"recorded": 1, "duplicates": 0, "forgotten": 1}
    assert history == {"user_id": "u010", "is_known": False, "items": []}
    assert again["source"] == "generated"
    kept = {key.decode() for key in store.scan_iter("*u010*")}
    assert kept == {"recommendations_answers:{events:u010}"}  # of after they were remembered
    log = EventLog(data_dir / "log")
    drain(store, log)
    assert log.read(["user_id", "event_type"], event_types=["click"])["user_id"].tolist() == ["u011"]


def test_a_forgotten_user_is_a_stranger_while_the_store_is_down(
    publish_lists: Publish, store: "redis.Redis", data_dir: Path
) -> None:
    publish_lists()
    forget(store, data_dir / "generations", "u010")
    nowhere = HybridRecommender({"rt_config": {"redis_host": "127.0.0.1", "redis_port": 1}})

    found, other = (nowhere.get_recommendations_sync(user) for user in ("u010", "u012"))
    stranger = nowhere.get_recommendations_sync("nobody")
    nowhere.close()

    assert list(found) == list(stranger)
    assert list(other) != list(stranger)
