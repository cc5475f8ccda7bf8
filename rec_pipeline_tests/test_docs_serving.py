"""The examples of docs/SERVING.md do what the page says."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.serving import live
from rec_pipeline.serving.lanes import Lanes
from rec_pipeline.settings import Settings, settings
from rec_pipeline_tests.engine.recommenders.conftest import bundle
from rec_pipeline_tests.fixtures.waiting import LONG
from rec_pipeline_tests.serving.conftest import config, data_dir, patience, publish_lists, sealed
from rec_pipeline_tests.serving.running import Running, running

__all__ = ["bundle", "config", "data_dir", "patience", "publish_lists", "sealed"]
PAGE = (Path(__file__).parents[1] / "docs" / "SERVING.md").read_text()
Publish = Callable[[], Generation]


def blocks(heading: str, language: str) -> list[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [text for found, text in re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL) if found == language]


@pytest.fixture
def service(publish_lists: Publish, config: dict[str, Any]) -> Iterator[Running]:
    publish_lists()
    with running(config) as service:
        yield service


def test_the_redis_examples_print_the_list_the_popular_list_and_the_generation(
    publish_lists: Publish, store: "redis.Redis"
) -> None:
    generation = publish_lists()

    replies = [store.execute_command(*shlex.split(line)[3:]) for line in blocks("Redis", "sh")[0].splitlines()]

    own, popular, number = replies
    assert [item["id"] for item in json.loads(own)] == generation.find("u007")["item_id"]  # type: ignore[index]
    assert len(json.loads(popular)) > 0
    assert int(number) == generation.number


def test_the_python_examples_print_what_they_say(
    publish_lists: Publish, store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = publish_lists()
    monkeypatch.setenv("REC_REDIS_URL", store_url)
    monkeypatch.setattr(live, "Lanes", lambda _: Lanes(LONG))
    settings.cache_clear()

    for code in blocks("Python", "python"):
        exec(code, {})  # noqa: S102 - the page's own examples

    five, origin, ndcg, three, session = capsys.readouterr().out.splitlines()
    assert len(re.findall(r"'i\d+'", five.replace("'i001'", ""))) == 5
    assert "'i001'" not in five
    assert origin == f"generated {generation.number} False"
    assert 0 <= float(ndcg) <= 1
    assert three.count("'id'") == session.count("'id'") == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_http_examples_answer(service: Running) -> None:
    commands = blocks("HTTP", "sh")[0].splitlines()

    replies = [
        subprocess.run(  # noqa: S603 - the page's own examples
            ["/bin/sh", "-c", command], env={"SERVICE": service.url}, capture_output=True, text=True, check=True
        ).stdout
        for command in commands
    ]

    by_id, by_items, similar, event, trending, health = map(json.loads, replies[:-1])
    assert len(by_id["items"]) == len(by_items["items"]) == len(trending["items"]) == 3
    assert "shares" in by_id["items"][0]
    assert similar["item_id"] == "i003"
    assert event == {"recorded": 1, "duplicates": 0, "forgotten": 0}
    assert health["status"] == "ok"
    assert "rec_answer_seconds" in replies[-1]


def test_the_example_of_an_experiment_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = blocks("Two configurations on live traffic", "sh")[0].replace("\nexport", "")
    for assignment in shlex.split(text)[1:]:
        monkeypatch.setenv(*assignment.split("=", 1))

    experiment = Settings().running_experiment

    assert experiment.name == "fusion"
    assert experiment.shares == {"control": 0.5, "sequence": 0.5}
    assert experiment.params["sequence"]["weights"] == {"sequence": 0.6, "collaborative": 0.2}
