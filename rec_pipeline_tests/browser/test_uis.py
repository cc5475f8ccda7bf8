"""The two UIs as a person uses them: materialise by clicking, wait for green, find the run in MLflow."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, expect

from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.events import record_event
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.resources.embedded_valkey import ensure_server
from rec_pipeline.settings import Settings
from rec_pipeline_tests.browser.conftest import needs_chromium
from rec_pipeline_tests.fixtures.project import REPOSITORY, Project
from rec_pipeline_tests.fixtures.waiting import LONG, free_port

RUN_SECONDS = 900

pytestmark = needs_chromium


def part_of_the_sample(folder: Path) -> dict[str, str]:
    """Write three categories and every other user of the sample to ``folder``; return the settings that name them."""
    items = pd.read_parquet(REPOSITORY / "data/sample/items.parquet")
    interactions = pd.read_parquet(REPOSITORY / "data/sample/interactions.parquet")
    items = items[items["categories"].isin(["Adventure", "Cooking", "History"])]
    users = sorted(interactions["user_id"].unique())[::2]
    interactions = interactions[interactions["item_id"].isin(items["item_id"]) & interactions["user_id"].isin(users)]
    items.to_parquet(folder / "items.parquet")
    interactions.to_parquet(folder / "interactions.parquet")
    return {
        "REC_DATASET": "files",
        "REC_ITEMS": str(folder / "items.parquet"),
        "REC_INTERACTIONS": str(folder / "interactions.parquet"),
    }


@pytest.fixture
def addresses(project: Project) -> Iterator[dict[str, str]]:
    """Both UIs of a project in which nothing was made yet, until the test ends."""
    ports = ("--dagster-port", str(free_port()), "--mlflow-port", str(free_port()))
    process = project.start("ui", *ports, **part_of_the_sample(project.folder))
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline().split() for _ in range(2)]
        yield {name.lower(): address for name, address in lines}
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LONG)


def test_the_graph_is_made_by_clicking_and_its_run_is_in_mlflow(
    browser: Browser, addresses: dict[str, str], project: Project
) -> None:
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.set_default_timeout(LONG * 1000)
    clicked = pd.read_parquet(project.folder / "items.parquet")["item_id"].iloc[:3].tolist()
    with publisher_client(ensure_server(project.folder / "data" / "store")) as store:
        assert all(record_event(store, "Zoë", item, "click") for item in clicked)

    page.goto(f"{addresses['dagster']}/asset-groups")
    page.get_by_role("button", name="Materialize all").click()
    # One asset is partitioned by day, so the UI asks for a day: today's.
    page.get_by_role("button", name="Latest").click()
    page.get_by_role("button", name=re.compile("^Launch")).click()
    expect(page.get_by_text(re.compile("Launched|Starting")).first).to_be_visible()
    page.goto(f"{addresses['dagster']}/runs")
    expect(page.get_by_text("Success").first).to_be_visible(timeout=RUN_SECONDS * 1000)

    page.goto(f"{addresses['dagster']}/assets/published_recommendations")
    expect(page.get_by_text("published_bytes").first).to_be_visible()
    page.goto(f"{addresses['dagster']}/assets/evaluation_report")
    expect(page.get_by_text("hybrid_ndcg_10").first).to_be_visible()
    page.get_by_text(re.compile(r"/#/experiments/1/runs/")).first.scroll_into_view_if_needed()
    run_address = page.locator("a[href*='/#/experiments/1/runs/']").first.get_attribute("href")
    assert run_address is not None

    page.goto(run_address)
    expect(page.get_by_text("hybrid/ndcg_10").first).to_be_visible()
    page.goto(f"{run_address}/artifacts")
    expect(page.get_by_text("plots").first).to_be_visible()

    # Somebody who is in no file, only in the events recorded before: learnt from, and recommended to.
    artifacts = resources_for(Settings(data_dir=project.folder / "data"))["artifacts"]
    table = artifacts.load("interactions", ValidatedTable).table
    assert set(table.loc[table["user_id"] == "Zoë", "item_id"]) == set(clicked)
    with publisher_client(ensure_server(project.folder / "data" / "store")) as store:
        published = json.loads(store.get("recommendations:Zoë") or "[]")
    assert len(published) == 50
    assert {item["id"] for item in published}.isdisjoint(clicked)
