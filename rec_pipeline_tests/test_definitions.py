"""The definitions as Dagster loads them."""

import subprocess
import sys
from pathlib import Path

import dagster as dg

from rec_pipeline.definitions import defs
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.settings import Settings


def test_every_job_resolves_to_the_stages_it_names() -> None:
    repository = defs.get_repository_def()
    keys = {
        name: {key.to_user_string() for key in repository.get_job(name).asset_layer.executable_asset_keys}
        for name in ("refresh_recommendations", "train_and_evaluate", "publish_recommendations")
    }

    assert keys["publish_recommendations"] == {"serving_bundle", "recommendations", "published_recommendations"}
    assert keys["train_and_evaluate"] == keys["refresh_recommendations"] - keys["publish_recommendations"]


def test_schedule_has_a_timezone_and_waits_to_be_switched_on() -> None:
    schedule = defs.resolve_schedule_def("nightly_refresh")

    assert schedule.execution_timezone == "UTC"
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED


def test_the_gate_blocks() -> None:
    graph = defs.resolve_asset_graph()
    key = dg.AssetCheckKey(dg.AssetKey("evaluation_report"), "hybrid_beats_popularity")

    assert graph.get_check_spec(key).blocking


def test_s06_a_secret_url_is_in_no_resource(tmp_path: Path) -> None:
    url = "redis://:hunter2@127.0.0.1:1"

    resources = resources_for(Settings(data_dir=tmp_path, redis_url=url))

    assert "hunter2" not in repr(resources)


def test_definitions_load_without_heavy_libraries_and_without_warnings() -> None:
    script = (
        "import sys, rec_pipeline.definitions;"
        "heavy = {'torch', 'faiss', 'mlflow', 'sentence_transformers', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )

    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
