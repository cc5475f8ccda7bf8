import json
import re
import signal
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

import dagster as dg
import pytest
import redis

from rec_pipeline.cli.execution import instance_ref
from rec_pipeline.cli.pipeline import merged, read_run_config, source_config
from rec_pipeline.cli.summary import published_titles
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.store.generation import list_generations
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.embedded_valkey import EmbeddedServer, is_running, running_server
from rec_pipeline_tests.fixtures.project import Project, SampleRun
from rec_pipeline_tests.fixtures.store import seal_lists
from rec_pipeline_tests.fixtures.waiting import LONG

COMMANDS = (
    "run",
    "recommend",
    "ui",
    "status",
    "trace",
    "publish",
    "rollback",
    "unpin",
    "doctor",
    "forget",
    "gc",
    "stop",
)
CONTROL_CODE = re.compile(r"\x1b|\r")


def write_interactions(path: Path, n_rows: int = 400, n_bad: int = 0) -> Path:
    """Write interactions of 20 users with 19 items under foreign column names, the first ``n_bad`` without a time."""
    rows = [f"u{row % 20},i{row % 19},{'' if row < n_bad else 1_700_000_000 + 1000 * row}" for row in range(n_rows)]
    path.write_text("\n".join(["reviewer,product,when", *rows]) + "\n")
    return path


MAPPING = ("--column", "user_id=reviewer", "--column", "item_id=product", "--column", "timestamp=when")


def runs_of(project: Project) -> list[dg.DagsterRun]:
    # The paths in dagster.yaml are relative to the folder a process is in.
    with chdir(project.folder), dg.DagsterInstance.from_ref(instance_ref(project.folder)) as instance:
        return list(instance.get_runs())


# --- help and errors before anything runs ---


def test_help_lists_every_command_and_the_exit_codes(project: Project) -> None:
    done = project.run("--help")

    assert done.returncode == 0
    assert all(re.search(rf"│ {command} ", done.stdout) for command in COMMANDS)
    assert "3 input rejected" in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(project: Project, command: str) -> None:
    done = project.run(command, "--help")

    assert done.returncode == 0
    assert f"Example: rec-pipeline {command}" in done.stdout


def test_outside_a_project_folder_the_error_says_where_to_go(project: Project) -> None:
    (project.folder / "dagster.yaml").unlink()

    done = project.run("run")

    assert done.returncode == 2
    assert done.stderr == (
        f"error: {project.folder} has no dagster.yaml: change to the project folder, where that file is\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--job", "nightly"], "there is no job 'nightly', only backtest, drain_events, publish_recommendations"),
        (["--dataset", "netflix"], "--dataset 'netflix' is unknown, expected one of sample, "),
    ],
)
def test_options_that_make_no_sense_exit_with_2_and_start_no_run(
    project: Project, options: list[str], message: str
) -> None:
    done = project.run("run", *options)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert runs_of(project) == []


def test_a_misspelt_key_of_the_run_config_exits_with_2_and_names_it(project: Project) -> None:
    config = project.folder / "config.yaml"
    config.write_text("ops: {ncf_model: {config: {params: {embeding_dim: 8}}}}")

    done = project.run("run", "--config", str(config))

    assert done.returncode == 2
    assert '"embeding_dim" at path root:ops:ncf_model:config:params' in done.stderr


# --- options of the data set ---


def test_without_options_the_settings_decide() -> None:
    assert source_config(None, None, None, None, []) == {}


def test_files_are_meant_when_interactions_are_given_and_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_interactions(tmp_path / "events.csv")

    config = source_config(None, None, Path("events.csv"), None, ["user_id=reviewer", "item_id=a=b"])

    assert config == {
        "dataset": "files",
        "data_dir": None,
        "interactions": str(tmp_path / "events.csv"),
        "items": None,
        "columns": {"user_id": "reviewer", "item_id": "a=b"},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("files", None, None, None, []), "go together, but the data set is 'files'"),
        (("sample", None, Path("x.csv"), None, []), "go together, but the data set is 'sample'"),
        (("sample", Path(), None, None, []), "--data-dir is the folder of a MovieLens set"),
        ((None, None, None, Path("x.csv"), []), "--interactions is missing"),
        ((None, None, None, None, ["user_id=reviewer"]), "--interactions is missing"),
        ((None, None, Path("/no/such.csv"), None, []), "--interactions /no/such.csv: there is no such file"),
        ((None, None, Path("/"), None, ["user_id"]), "'user_id' is not of the form ours=theirs"),
        ((None, None, Path("/"), None, ["=reviewer"]), "'=reviewer' is not of the form ours=theirs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: tuple[str | None, Path | None, Path | None, Path | None, list[str]], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        source_config(*options)


def test_layers_of_run_config_are_merged_and_the_later_wins() -> None:
    options = {"loggers": {"progress": {}}, "ops": {"a": {"config": {"x": 1, "y": 2}}}}
    own = {"ops": {"a": {"config": {"y": 3}}, "b": {}}}

    result = merged(options, own)

    assert result == {"loggers": {"progress": {}}, "ops": {"a": {"config": {"x": 1, "y": 3}}, "b": {}}}
    assert own == {"ops": {"a": {"config": {"y": 3}}, "b": {}}}


@pytest.mark.parametrize("content", ["- a list", "a: [unclosed", "just text"])
def test_run_config_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)

    with pytest.raises(ConfigurationError, match=re.escape(f"--config {path}")):
        read_run_config(path)


# --- runs that fail ---


@pytest.mark.slow
def test_rejected_input_exits_with_3_and_the_run_stands_in_the_list_as_failed(project: Project) -> None:
    events = write_interactions(project.folder / "events.csv", n_rows=400, n_bad=40)

    done = project.run("run", "--interactions", events.name, *MAPPING, "--json")

    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert document["error"] == "InputRejectedError"
    assert document["message"].startswith("step interactions: 40 of 400 interactions are refused")
    assert document["exit_code"] == 3
    assert document["served"] == "Nothing is live yet."
    assert f"error: {document['message']}\nNothing is live yet.\n" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = runs_of(project)
    assert run.run_id == document["run_id"]
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.run_config["resources"]["source"]["config"] == {
        "dataset": "files",
        "data_dir": None,
        "interactions": str(events),
        "items": None,
        "columns": {"user_id": "reviewer", "item_id": "product", "timestamp": "when"},
    }


@pytest.mark.slow
def test_verbose_shows_the_stack_of_a_failure(project: Project) -> None:
    events = write_interactions(project.folder / "events.csv")

    done = project.run("run", "--interactions", events.name, "--verbose")

    assert done.returncode == 3
    assert "column 'user_id' is missing, found 'reviewer', 'product', 'when'" in done.stderr
    assert "Stack Trace:" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGINT, "content_embeddings"),
        (signal.SIGTERM, "raw_items"),
        (signal.SIGTERM, "reading items from"),  # within a step that is tried again when it fails
    ],
)
def test_an_interrupted_run_is_cancelled_and_exits_with_130(project: Project, number: int, step: str) -> None:
    process = project.start("run")
    assert process.stderr is not None
    for line in process.stderr:
        if step in line:
            break

    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LONG)

    assert process.returncode == 130
    (run,) = runs_of(project)
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert f"error: run {run.run_id} was cancelled\nNothing is live yet.\n" in stderr
    assert "interrupted" in stderr
    assert "is live:" not in stdout


# --- the sample, run once ---


@pytest.mark.slow
def test_the_run_reports_rows_metrics_gate_generation_and_three_lists(sample_project: SampleRun) -> None:
    document = sample_project.document

    rows = document["rows"]["interactions"]
    assert 60_000 <= rows["n_read"] <= 100_000
    assert rows["n_read"] == rows["n_kept"] + rows["n_duplicates"] + rows["n_quarantined"]
    assert {"popularity", "item_knn", "content", "ncf", "hybrid"} <= document["metrics"].keys()
    ndcg = document["metrics"]["hybrid"]["ndcg@10"]
    assert ndcg["low"] < ndcg["mean"] < ndcg["high"]
    gates = {gate["check"]: gate for gate in document["gates"]}
    assert all(gate["passed"] for gate in gates.values())
    assert "ndcg@10 of hybrid" in gates["hybrid_beats_popularity"]["verdict"]
    assert "no champion" in gates["not_worse_than_the_champion"]["verdict"]
    assert document["generation"]["number"] == 1
    assert len({example["user_id"] for example in document["examples"]}) == 3
    for item in (item for example in document["examples"] for item in example["items"]):
        assert item["title"]
        assert item["sources"]
        assert item["reason"]


@pytest.mark.slow
def test_the_run_shows_steps_losses_and_checks_as_plain_lines(sample_project: SampleRun) -> None:
    stderr = sample_project.stderr

    assert re.search(r"^ ?\d+/\d+ raw_interactions$", stderr, re.MULTILINE)
    assert re.search(r"^    epoch 1 .*loss \d", stderr, re.MULTILINE)
    assert re.search(r"^    ✓ hybrid_beats_popularity  ndcg@10 of hybrid", stderr, re.MULTILINE)
    assert re.search(r"^    done in \d+\.\d s, [\d,]+ rows$", stderr, re.MULTILINE)
    assert not CONTROL_CODE.search(stderr)


@pytest.mark.slow
def test_the_run_belongs_to_its_code_location_and_is_never_repeated_by_the_daemon(sample_project: SampleRun) -> None:
    run = next(run for run in runs_of(sample_project.project) if run.run_id == sample_project.document["run_id"])

    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.job_name == "refresh_recommendations"
    assert run.remote_job_origin is not None
    assert run.remote_job_origin.repository_origin.get_label() == "__repository__@rec_pipeline"
    assert run.tags["dagster/max_retries"] == "0"


@pytest.mark.slow
def test_everything_made_lies_under_data(sample_project: SampleRun) -> None:
    names = {path.name for path in sample_project.project.folder.iterdir()}

    assert names == {"dagster.yaml", "workspace.yaml", "data"}


@pytest.mark.slow
def test_recommend_prints_the_published_list_with_titles(sample_project: SampleRun) -> None:
    example = sample_project.document["examples"][0]

    document = sample_project.project.json("recommend", example["user_id"], "--top-k", "3")

    assert document["origin"] == "personal"
    assert [item["id"] for item in document["items"]] == [item["id"] for item in example["items"][:3]]
    assert [item["title"] for item in document["items"]] == [item["title"] for item in example["items"][:3]]


@pytest.mark.slow
def test_titles_are_those_of_what_is_live_whatever_catalogue_was_read_since(
    sample_project: SampleRun, tmp_path: Path
) -> None:
    data = sample_project.project.folder / "data"
    (tmp_path / "serving_bundle").symlink_to(data / "artifacts" / "serving_bundle")  # and no items beside it
    example = sample_project.document["examples"][0]["items"][0]
    generation = list_generations(data / "generations")[0]

    assert published_titles(Artifacts(root=str(tmp_path)), generation)[example["id"]] == example["title"]
    assert published_titles(Artifacts(root=str(tmp_path / "elsewhere")), generation) == {}
    assert published_titles(Artifacts(root=str(tmp_path)), None) == {}


@pytest.mark.slow
def test_recommend_as_a_table_shows_titles_sources_and_reasons(sample_project: SampleRun) -> None:
    example = sample_project.document["examples"][0]

    done = sample_project.project.run("recommend", example["user_id"])

    assert done.returncode == 0
    first = example["items"][0]
    assert all(part in done.stdout for part in (first["title"], first["sources"][0], "Because you liked"))
    assert not CONTROL_CODE.search(done.stdout)


@pytest.mark.slow
def test_recommend_gives_the_popular_list_to_somebody_unknown_and_says_so(sample_project: SampleRun) -> None:
    done = sample_project.project.run("recommend", "nobody", "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["origin"] == "popular"
    said = sample_project.project.run("recommend", "nobody").stderr
    assert said == "no list is published for 'nobody': this is the popular list\n"


@pytest.mark.slow
def test_an_impossible_user_id_exits_with_2(sample_project: SampleRun) -> None:
    assert sample_project.project.run("recommend", "with\nnewline").returncode == 2


@pytest.mark.slow
def test_publish_of_what_is_live_does_nothing(sample_project: SampleRun) -> None:
    document = sample_project.project.json("publish")

    assert document["already_live"]
    assert document["generation"] == sample_project.project.json("status")["live"]


@pytest.mark.slow
def test_an_unknown_generation_exits_with_5(sample_project: SampleRun) -> None:
    done = sample_project.project.run("rollback", "--to", "99")

    assert done.returncode == 5
    assert "generation 99 is not sealed" in done.stderr


@pytest.mark.slow
def test_a_rollback_pins_and_unpin_lets_go(sample_project: SampleRun) -> None:
    project = sample_project.project
    live = project.json("status")["live"]

    rolled_back = project.json("rollback", "--to", "1")
    pinned = project.json("status")

    assert rolled_back["generation"] > live
    assert (pinned["live"], pinned["pinned"]) == (rolled_back["generation"], rolled_back["generation"])
    assert project.json("unpin") == {"unpinned": rolled_back["generation"]}
    assert project.json("unpin") == {"unpinned": None}
    assert project.json("status")["pinned"] is None


@pytest.mark.slow
def test_gc_deletes_nothing_young(sample_project: SampleRun) -> None:
    assert sample_project.project.json("gc") == {"deleted": []}


# --- the store ---


@pytest.mark.slow
def test_before_the_first_run_nothing_is_live_and_recommend_says_what_to_do(project: Project) -> None:
    status = project.json("status")
    done = project.run("recommend", "u1")

    assert (status["live"], status["sealed"]) == (None, [])
    assert done.returncode == 2
    assert done.stderr == "error: nothing is published yet: `rec-pipeline run` makes and publishes the first lists\n"


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_exits_with_6_and_hides_the_password(project: Project) -> None:
    done = project.run("recommend", "u1", REC_REDIS_URL="redis://:hunter2@127.0.0.1:1")

    assert done.returncode == 6
    assert "the server cannot be reached" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


@pytest.mark.slow
def test_stop_ends_the_embedded_store_and_its_process(project: Project) -> None:
    project.json("status")
    server = running_server(project.folder / "data" / "store")
    assert server is not None

    first, second = project.json("stop"), project.json("stop")

    assert (first, second) == ({"stopped": True}, {"stopped": False})
    assert not is_running(server.pid)


# --- publishing by hand, on lists that no model made ---


@pytest.mark.slow
def test_publishing_by_hand_from_the_plan_to_the_restoration(project: Project) -> None:
    root, users = project.folder / "data" / "generations", [f"u{number}" for number in range(50)]
    seal_lists(root, users, "a")

    plan = project.json("publish", "--plan")
    assert (plan["n_users"], plan["refusal"]) == (50, None)
    assert project.json("publish")["generation"] == 1
    traced = project.json("trace", "u3", "--item", "a-1")
    assert [(entry["rank"], entry["id"]) for entry in traced["items"]] == [(2, "a-1")]
    nothing_else = {"n_events": 0, "n_interactions": 0}
    assert project.json("forget", "u3") == {"forgotten": True, "n_keys": 1, **nothing_else, "is_new": True}

    with redis.Redis.from_url(running_store(project).url) as client:
        client.flushall()
    assert project.json("publish", "--from-artifact", "last")["n_users"] == 49
    findings = {entry["name"]: entry["level"] for entry in project.json("doctor")["findings"]}
    assert findings["artefact"] == findings["eviction"] == "ok"
    materialisations = runless_materialisations(project)
    assert [entry["generation"].value for entry in materialisations] == [1, 1]


def running_store(project: Project) -> EmbeddedServer:
    server = running_server(project.folder / "data" / "store")
    assert server is not None
    return server


def runless_materialisations(project: Project) -> list[Mapping[str, dg.MetadataValue]]:
    with chdir(project.folder), dg.DagsterInstance.from_ref(instance_ref(project.folder)) as instance:
        records = instance.fetch_materializations(dg.AssetKey("published_recommendations"), limit=10).records
    return [record.asset_materialization.metadata for record in records if record.asset_materialization is not None]
