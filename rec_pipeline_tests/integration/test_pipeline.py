"""The whole lineage on the bundled sample, as `make run` runs it: once, looked at from several sides."""

import sqlite3

import pytest

from rec_pipeline_tests.fixtures.project import SampleRun

pytestmark = pytest.mark.slow


def test_every_row_of_the_sample_is_accounted_for(sample_project: SampleRun) -> None:
    rows = sample_project.document["rows"]

    for counts in rows.values():
        assert counts["n_read"] == counts["n_kept"] + counts["n_duplicates"] + counts["n_quarantined"]
    assert rows["items"]["n_kept"] == 1500
    assert 60_000 <= rows["interactions"]["n_kept"] <= 100_000


def test_every_recommender_stands_beside_the_baseline_and_the_models_beat_it(sample_project: SampleRun) -> None:
    ndcg = {name: values["ndcg@10"]["mean"] for name, values in sample_project.document["metrics"].items()}

    assert set(ndcg) == {"popularity", "item_knn", "content", "ncf", "hybrid"}
    assert ndcg["ncf"] > 1.3 * ndcg["popularity"]
    assert ndcg["hybrid"] > 1.3 * ndcg["popularity"]


def test_all_checks_ran_and_none_that_blocks_failed(sample_project: SampleRun) -> None:
    document = sample_project.document

    assert document["n_checks_passed"] >= 32
    assert not [check for check in document["checks_failed"] if check["blocking"]]


def test_a_plain_reader_finds_the_published_list(sample_project: SampleRun) -> None:
    first = sample_project.document["examples"][0]

    found = sample_project.project.json("recommend", first["user_id"], "--top-k", "5")

    assert [item["id"] for item in found["items"]] == [item["id"] for item in first["items"]][:5]
    assert all(item["title"] and item["reason"] and item["sources"] for item in found["items"])


def test_no_mlflow_run_is_left_open_and_children_know_their_parent(sample_project: SampleRun) -> None:
    with sqlite3.connect(sample_project.project.folder / "data" / "mlflow" / "mlflow.db") as database:
        statuses = {row[0] for row in database.execute("select status from runs")}
        parents = {row[0] for row in database.execute("select value from tags where key = 'mlflow.parentRunId'")}
        aliases = {row[0] for row in database.execute("select alias from registered_model_aliases")}
    database.close()

    assert statuses == {"FINISHED"}
    assert len(parents) == 1
    assert "champion" in aliases
