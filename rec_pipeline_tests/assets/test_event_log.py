"""Events recorded online, drained, and learnt from."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import redis

from rec_pipeline.automation.sensors import DRAIN_FROM_EVENTS, event_log_sensor
from rec_pipeline.definitions import defs
from rec_pipeline.engine.data.events import EventRules, make_event
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.evaluation.online import OnlineMetrics
from rec_pipeline.engine.store.events import record_events
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.settings import Settings

# tabulate does it to the preview of a table
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray that drops timezone")

TODAY = datetime.now(UTC)
YESTERDAY = TODAY - timedelta(days=1)


@pytest.fixture
def resources(tmp_path: Path, store: "redis.Redis", store_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    del store
    monkeypatch.setenv("REC_REDIS_URL", store_url)
    return resources_for(Settings(data_dir=tmp_path))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def record(store: "redis.Redis", *clicks: tuple[str, str, datetime], event_type: str = "click") -> None:
    made = [
        make_event(EventRules(), user_id=user, item_id=item, event_type=event_type, timestamp=when)
        for user, item, when in clicks
    ]
    record_events(store, made)


def materialize(
    instance: dg.DagsterInstance, resources: dict[str, Any], *keys: str, **more: Any
) -> dg.ExecuteInProcessResult:
    chosen = [defs.get_assets_def(key) for key in keys]
    checks = [check for check in defs.asset_checks or [] if check.check_key.asset_key.path[-1] in keys]
    return dg.materialize([*chosen, *checks], instance=instance, resources=resources, selection=list(keys), **more)


def partitions(result: dg.ExecuteInProcessResult) -> dict[str | None, Any]:
    events = [event for event in result.all_events if event.event_type_value == "ASSET_MATERIALIZATION"]
    return {
        event.partition: event.step_materialization_data.materialization.metadata["dagster/partition_row_count"].value
        for event in events
        if event.asset_key is not None and event.asset_key.path == ["event_log"]
    }


def test_a_partition_run_drains_everything_into_the_days_it_belongs_to(
    store: "redis.Redis", instance: dg.DagsterInstance, resources: dict[str, Any]
) -> None:
    record(store, ("u1", "i1", TODAY), ("u1", "i2", YESTERDAY), ("u1", "i3", YESTERDAY))
    today, yesterday = f"{TODAY:%Y-%m-%d}", f"{YESTERDAY:%Y-%m-%d}"

    first = materialize(instance, resources, "event_log", partition_key=today)
    again = materialize(instance, resources, "event_log", partition_key=yesterday)

    assert partitions(first) == {today: 1, yesterday: 2}
    assert partitions(again) == {yesterday: 2}
    assert instance.get_materialized_partitions(dg.AssetKey("event_log")) == {today, yesterday}
    assert all(check.passed for check in first.get_asset_check_evaluations())


def test_clicks_are_drained_become_interactions_and_are_trained_on(
    store: "redis.Redis", instance: dg.DagsterInstance, resources: dict[str, Any]
) -> None:
    clicks = [("a new user", f"i{number:04}", YESTERDAY + timedelta(seconds=number)) for number in range(1, 31)]
    record(store, *clicks, ("a new user", "no such item", YESTERDAY))
    record(store, ("a new user", "i0999", YESTERDAY), event_type="impression")
    keys = ("raw_interactions", "raw_items", "items", "event_log", "interactions", "interaction_split")

    done = materialize(instance, resources, *keys)

    assert done.success
    interactions = resources["artifacts"].load("interactions", ValidatedTable)
    found = interactions.table[interactions.table["user_id"] == "a new user"]
    assert sorted(found["item_id"]) == sorted(item for _, item, _ in clicks)
    assert set(found["weight"]) == {1.0}
    assert interactions.quarantine["item_id"].tolist() == ["no such item"]
    split = resources["artifacts"].load("interaction_split", InteractionSplit)
    assert split.users.to_idx(["a new user"])[0] in set(split.test["user_idx"])  # what is served is fitted to all parts


def test_a_forgotten_user_is_gone_from_the_stream_and_the_log(store: "redis.Redis", resources: dict[str, Any]) -> None:
    stream, redis_store = resources["event_stream"], resources["redis_store"]
    record(store, ("u1", "i1", YESTERDAY))
    stream.drain(redis_store)
    record(store, ("u1", "i2", TODAY), ("u2", "i2", TODAY))

    assert stream.forget(redis_store, "u1") == 2

    assert stream.log.read(["user_id"])["user_id"].tolist() == ["u2"]


def test_online_metrics_are_made_of_the_log_and_checked(
    store: "redis.Redis", instance: dg.DagsterInstance, resources: dict[str, Any]
) -> None:
    record(store, ("u1", "i1", YESTERDAY), ("u1", "i2", YESTERDAY), event_type="impression")
    record(store, ("u1", "i1", TODAY - timedelta(hours=23)))

    done = materialize(instance, resources, "event_log", "online_metrics")

    table = resources["artifacts"].load("online_metrics", OnlineMetrics).table
    assert table.iloc[0][["n_impressions", "n_clicked"]].tolist() == [2, 1]
    assert [check.passed for check in done.get_asset_check_evaluations()] == [True] * 4


def test_the_sensor_drains_by_count_and_not_twice_at_a_time(
    store: "redis.Redis", instance: dg.DagsterInstance, resources: dict[str, Any]
) -> None:
    def look() -> Any:
        with dg.build_sensor_context(instance=instance, resources=resources, definitions=defs) as context:
            return event_log_sensor(context)

    record(store, ("u1", "i1", TODAY))
    assert "1 events wait" in look().skip_message
    record(store, *(("u1", f"i{number}", TODAY) for number in range(DRAIN_FROM_EVENTS)))

    request = look()

    assert request.partition_key == f"{datetime.now(UTC):%Y-%m-%d}"
    instance.create_run_for_job(defs.resolve_job_def("drain_events"), status=dg.DagsterRunStatus.STARTED)
    assert look().skip_message == "a drain is under way"


def test_the_sensor_drains_by_age(
    store: "redis.Redis", instance: dg.DagsterInstance, resources: dict[str, Any]
) -> None:
    store.xadd("events_stream", {"user_id": "u1"}, id="1707579000000-0")

    with dg.build_sensor_context(instance=instance, resources=resources, definitions=defs) as context:
        assert isinstance(event_log_sensor(context), dg.RunRequest)
