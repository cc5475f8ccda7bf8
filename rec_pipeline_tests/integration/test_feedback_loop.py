"""From a click to the data of the next training: on what the sample's run made."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from rec_pipeline.definitions import defs
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.evaluation.online import OnlineMetrics
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.keys import EVENT_STREAM
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.settings import Settings
from rec_pipeline_tests.fixtures.waiting import wait_until
from rec_pipeline_tests.serving.running import Running, served_sample

__all__ = ["served_sample"]
NIGHTLY = ("raw_interactions", "raw_items", "items", "event_log", "interactions", "online_metrics")

# tabulate does it to the preview of a table
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray that drops timezone")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_a_click_changes_the_list_and_is_in_the_training_data_of_the_night(
    served_sample: Running,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = served_sample.client
    before = client.get("/recommendations/u0182").json()
    clicked = before["items"][1]
    served = {"sources": clicked["sources"], "generation": before["generation"], "position": 2}
    event = {"user_id": "u0182", "item_id": clicked["id"], "event_type": "click", "served": served}

    assert client.post("/events", json=event).json()["recorded"] == 1
    after = client.get("/recommendations/u0182").json()
    assert (before["source"], after["source"]) == ("cache", "generated")
    assert [item["id"] for item in after["items"]] != [item["id"] for item in before["items"]]
    assert clicked["id"] not in {item["id"] for item in after["items"]}

    with publisher_client(store_url) as store:
        # The click, and two lists that are recorded behind their answers.
        wait_until(lambda: store.xlen(EVENT_STREAM) >= 3)
    monkeypatch.setenv("REC_REDIS_URL", store_url)
    resources = resources_for(Settings(data_dir=tmp_path))
    assets = [defs.get_assets_def(key) for key in NIGHTLY]
    assert dg.materialize(assets, instance=instance, resources=resources, selection=list(NIGHTLY)).success

    table = resources["artifacts"].load("interactions", ValidatedTable).table
    of_user = table[(table["user_id"] == "u0182") & (table["item_id"] == clicked["id"])]
    assert len(of_user) == 1
    assert pd.Timestamp.now("UTC") - of_user["timestamp"].iloc[0] < pd.Timedelta(minutes=10)
    through = resources["artifacts"].load("online_metrics", OnlineMetrics).table.set_index(["slice", "bucket"])
    assert through.loc[("all", "all"), ["n_impressions", "n_clicked"]].tolist() == [20, 1]
    assert through.loc[("generation", str(before["generation"])), "n_clicked"] == 1
