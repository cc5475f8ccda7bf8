"""The whole lineage on the bundled sample, as `make run` runs it: once, looked at from several sides."""

import sqlite3

import pytest

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
from rec_pipeline.engine.evaluation.report import EvaluationReport
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.champion import find_champion
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.settings import Settings
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

    assert set(ndcg) == {"popularity", "item_knn", "trending", "sequence", "content", "ncf", "hybrid"}
    assert ndcg["ncf"] > 1.3 * ndcg["popularity"]
    assert ndcg["hybrid"] > 1.3 * ndcg["popularity"]


def test_the_model_behind_what_is_live_is_found_again_as_the_champion(sample_project: SampleRun) -> None:
    data = sample_project.project.folder / "data"
    resources = resources_for(Settings(data_dir=data))
    artifacts: Artifacts = resources["artifacts"]
    split = artifacts.load("interaction_split", InteractionSplit)
    popularity = artifacts.load("popularity_model", PopularityModel)

    found = find_champion(resources["redis_store"], artifacts, split)

    assert found.ranker is not None, found.note
    params = EvaluationParams(max_users=50, n_resamples=100)
    report = evaluate_recommenders(
        [ScoreRanker("popularity", popularity, serves_everyone=True), found.ranker], split, params=params
    )
    evaluated = artifacts.load("evaluation_report", EvaluationReport)
    of_hybrid = evaluated.per_user["recommender"] == "hybrid"
    users = evaluated.per_user.loc[of_hybrid, "user_id"]
    hybrid = dict(zip(users, evaluated.user_values("hybrid", "ndcg@10"), strict=True))
    drawn = report.per_user.loc[report.per_user["recommender"] == "champion", "user_id"]
    assert report.user_values("champion", "ndcg@10").tolist() == pytest.approx([hybrid[user] for user in drawn])


def test_all_checks_ran_and_none_that_blocks_failed(sample_project: SampleRun) -> None:
    document = sample_project.document

    assert document["n_checks_passed"] >= 32
    assert not [check for check in document["checks_failed"] if check["blocking"]]


def test_a_plain_reader_finds_the_published_list(sample_project: SampleRun) -> None:
    first = sample_project.document["examples"][0]

    found = sample_project.project.json("recommend", first["user_id"], "--top-k", "5")

    assert [item["id"] for item in found["items"]] == [item["id"] for item in first["items"]][:5]
    assert all(item["title"] and item["reason"] and item["sources"] for item in found["items"])


def test_what_is_live_is_traced_to_runs_models_data_code_and_what_put_each_item_there(
    sample_project: SampleRun,
) -> None:
    user_id = sample_project.document["examples"][0]["user_id"]

    traced = sample_project.project.json("trace", user_id)

    assert traced["generation"]["number"] >= 1
    assert len(traced["generation"]["manifest_sha256"]) == 64
    assert traced["dagster_run_url"].endswith(traced["lineage"]["dagster_run_id"])
    assert traced["mlflow_runs"].keys() >= {"serving_bundle", "ncf_model", "evaluation_report"}
    lineage, digests = traced["lineage"]["lineage"], traced["lineage"]["bundle_files"]
    assert lineage["mlflow_run_id"] in traced["mlflow_runs"]["serving_bundle"]
    assert digests.keys() >= {"ncf/network.safetensors", "content_index/index.faiss", "collaborative_index/index.faiss"}
    assert {len(digest) for digest in digests.values()} == {64}
    assert lineage["data"].keys() == {"n_interactions", "first", "last", "digest", "origin"}
    assert lineage["data"]["origin"].startswith("the bundled sample")
    assert lineage["data"]["digest"] == lineage["versions"]["interactions"]
    assert lineage["code"].keys() == {"version", "commit"}
    sources = [source for item in traced["items"] for source in item["sources"]]
    assert {source["name"] for source in sources} & lineage["weights"].keys()
    assert all(source["rank"] >= 1 and isinstance(source["share"], float) for source in sources)


def test_no_mlflow_run_is_left_open_and_children_know_their_parent(sample_project: SampleRun) -> None:
    with sqlite3.connect(sample_project.project.folder / "data" / "mlflow" / "mlflow.db") as database:
        statuses = {row[0] for row in database.execute("select status from runs")}
        parents = {row[0] for row in database.execute("select value from tags where key = 'mlflow.parentRunId'")}
        aliases = {row[0] for row in database.execute("select alias from registered_model_aliases")}
    database.close()

    assert statuses == {"FINISHED"}
    assert len(parents) == 1
    assert "champion" in aliases
