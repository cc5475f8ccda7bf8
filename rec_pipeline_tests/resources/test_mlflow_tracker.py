import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
import redis
import scipy.sparse as sp

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings, sequence_embeddings
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError, TrackingUnavailableError
from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.sequence_training import fit_sequence
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.filters import ItemFacts
from rec_pipeline.engine.recommenders.list_schema import POPULAR_USER_ID
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.store.generation import GenerationWriter
from rec_pipeline.engine.store.keys import CURRENT
from rec_pipeline.engine.store.publisher import publish, rollback
from rec_pipeline.resources.mlflow_tracker import RUN_ID_TAG, MLflowTracker
from rec_pipeline.resources.model_registry import MODEL_NAME
from rec_pipeline.resources.provenance import git_commit
from rec_pipeline.resources.release import align_aliases
from rec_pipeline_tests.engine.recommenders.planted import sequences_of
from rec_pipeline_tests.fixtures.store import make_lists
from rec_pipeline_tests.fixtures.waiting import LONG, free_port

pytestmark = [
    # mlflow 3.17 on sqlalchemy 2.1: its own mappers use a loader that is deprecated there.
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning"),
    # mlflow 3.17 on pandas 3.1: its check of an input example compares columns with a range.
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty store whose schema exists, because making one takes more than a second."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def tracker(tmp_path: Path, migrated_store: Path) -> MLflowTracker:
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    return MLflowTracker(folder=str(tmp_path))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def materialize(
    instance: dg.DagsterInstance, tracker: MLflowTracker, *assets: dg.AssetsDefinition
) -> dg.ExecuteInProcessResult:
    return dg.materialize(assets, instance=instance, resources={"tracker": tracker}, raise_on_error=False)


def runs(tracker: MLflowTracker) -> dict[str, Any]:
    """Return every run by the first word of its name; the parent is ``refresh``."""
    experiment = tracker.client.get_experiment_by_name("rec_pipeline")
    assert experiment is not None
    return {run.info.run_name.split("-")[0]: run for run in tracker.client.search_runs([experiment.experiment_id])}


@dg.asset(group_name="ingestion")
def interaction_split() -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(data_version=dg.DataVersion("abc123"))


@dg.asset(group_name="training", deps=[interaction_split])
def ncf_model(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> dg.MaterializeResult[Any]:
    with tracker.child(context, name="ncf") as run:
        run.log_params({"embedding_dim": 8, "learning_rate": 0.01})
        for epoch in range(3):
            run.log_metrics({"val_ndcg@10": 0.1 * epoch}, step=epoch)
        run.log_dataset("interaction_split", "abc123", context="training", n_rows=7)
        run.log_text("report.md", "# Report")
        run.log_bytes("plots/loss.png", b"\x89PNG")
        run.log_table("metrics.json", pd.DataFrame({"recommender": ["ncf"], "ndcg_10": [0.2]}))
    return dg.MaterializeResult(metadata={"mlflow_run": dg.MetadataValue.url(run.url)})


@dg.asset(group_name="evaluation", deps=[ncf_model])
def evaluation_report(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> None:
    with tracker.child(context, name="evaluation") as run:
        run.log_metrics({"test/ndcg_10": 0.2})


def test_tracked_assets_of_one_dagster_run_are_children_of_one_parent(
    tracker: MLflowTracker, instance: dg.DagsterInstance
) -> None:
    result = materialize(instance, tracker, interaction_split, ncf_model, evaluation_report)

    tracked = runs(tracker)
    assert set(tracked) == {"refresh", "ncf", "evaluation"}
    assert {run.info.status for run in tracked.values()} == {"FINISHED"}
    assert tracked["refresh"].info.run_name.endswith(f"-{result.run_id[:8]}")
    for name in ("ncf", "evaluation"):
        assert tracked[name].data.tags["mlflow.parentRunId"] == tracked["refresh"].info.run_id


def test_parts_of_an_op_are_children_of_its_dagster_run(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    @dg.op
    def search(context: dg.OpExecutionContext, tracker: MLflowTracker) -> None:
        for name in ("good", "bad"):
            with suppress(ValueError), tracker.child(context, name):
                if name == "bad":
                    raise ValueError(name)

    @dg.job
    def tune() -> None:
        search()

    result = tune.execute_in_process(instance=instance, resources={"tracker": tracker})

    tracked = runs(tracker)
    assert {name: run.info.status for name, run in tracked.items()} == {
        "tune": "FAILED",
        "good": "FINISHED",
        "bad": "FAILED",
    }
    assert {tracked[name].data.tags["mlflow.parentRunId"] for name in ("good", "bad")} == {tracked["tune"].info.run_id}
    assert tracked["good"].data.tags["dagster.run_id"] == result.run_id


def test_each_dagster_run_has_its_own_parent(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    first, second = (materialize(instance, tracker, interaction_split, ncf_model) for _ in range(2))

    parents = {instance.get_run_by_id(result.run_id).tags[RUN_ID_TAG] for result in (first, second)}  # type: ignore[union-attr]  # both exist
    assert len(parents) == 2


def test_params_metrics_datasets_and_artefacts_arrive(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    materialize(instance, tracker, interaction_split, ncf_model)

    run = runs(tracker)["ncf"]
    assert run.data.params == {"embedding_dim": "8", "learning_rate": "0.01"}
    history = tracker.client.get_metric_history(run.info.run_id, "val_ndcg_10")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == (
        "interaction_split",
        "abc123",
        "training",
    )
    paths = {file.path for file in tracker.client.list_artifacts(run.info.run_id)}
    assert paths == {"report.md", "plots", "metrics.json"}
    image = Path(tracker.folder) / "artifacts" / run.info.run_id / "artifacts" / "plots" / "loss.png"
    assert image.read_bytes() == b"\x89PNG"


def test_run_ids_are_linked_both_ways(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    result = materialize(instance, tracker, interaction_split, ncf_model)

    tracked = runs(tracker)
    tags = tracked["ncf"].data.tags
    assert tags["dagster.run_id"] == result.run_id
    assert tags["dagster.run_url"] == f"http://127.0.0.1:3000/runs/{result.run_id}"
    assert tags["dagster.asset_key"] == "ncf_model"
    assert tags["stage"] == "training"
    assert tags["data.version"] == "interaction_split=abc123"
    dagster_run = instance.get_run_by_id(result.run_id)
    assert dagster_run is not None
    assert dagster_run.tags[RUN_ID_TAG] == tracked["refresh"].info.run_id
    (materialization,) = result.asset_materializations_for_node("ncf_model")
    url = materialization.metadata["mlflow_run"].value
    assert url == f"http://127.0.0.1:5000/#/experiments/1/runs/{tracked['ncf'].info.run_id}"


def test_links_lead_to_the_server_where_a_server_keeps_the_runs() -> None:
    tracker = MLflowTracker(folder="unused", tracking_uri="https://mlflow.example.org/")

    assert tracker.run_url("7", "abc") == "https://mlflow.example.org/#/experiments/7/runs/abc"


@pytest.mark.parametrize("error", [ValueError("diverged"), KeyboardInterrupt()])
def test_no_run_is_left_open_when_an_asset_raises(
    error: BaseException, tracker: MLflowTracker, instance: dg.DagsterInstance
) -> None:
    @dg.asset(group_name="training")
    def failing(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> None:
        with tracker.child(context, name="failing"):
            raise error

    try:
        result = materialize(instance, tracker, failing)
        assert not result.success
    except KeyboardInterrupt:
        assert isinstance(error, KeyboardInterrupt)

    tracked = runs(tracker)
    assert {name: run.info.status for name, run in tracked.items()} == {"refresh": "FAILED", "failing": "FAILED"}


def test_parent_is_finished_when_a_retry_succeeds(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    @dg.asset(group_name="training", retry_policy=dg.RetryPolicy(max_retries=1))
    def flaky(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> None:
        with tracker.child(context, name=f"try{context.retry_number}"):
            if context.retry_number == 0:
                raise ConnectionError("once")

    materialize(instance, tracker, flaky)

    statuses = {name: run.info.status for name, run in runs(tracker).items()}
    assert statuses == {"refresh": "FINISHED", "try0": "FAILED", "try1": "FINISHED"}


def test_artefacts_stay_in_the_folder_wherever_the_process_runs(
    tracker: MLflowTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    relative = MLflowTracker(folder=".")
    experiment = relative.client.get_experiment_by_name("rec_pipeline")

    monkeypatch.chdir(elsewhere)

    assert experiment is not None
    assert experiment.artifact_location == (tmp_path / "artifacts").as_uri()
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "mlflow.note.content" in experiment.tags
    assert tracker.client.get_experiment_by_name("rec_pipeline").experiment_id == experiment.experiment_id  # type: ignore[union-attr]  # it exists


def test_experiment_deleted_in_the_ui_is_restored(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    experiment = tracker.client.get_experiment_by_name("rec_pipeline")
    assert experiment is not None
    tracker.client.delete_experiment(experiment.experiment_id)

    result = materialize(instance, MLflowTracker(folder=tracker.folder), interaction_split, ncf_model)

    assert result.success


PROCESS = """
import os, signal, sys, time
from pathlib import Path
import dagster as dg
from mlflow import MlflowClient
from mlflow.store.tracking import sqlalchemy_store
from rec_pipeline.resources.mlflow_tracker import MLflowTracker

folder, name = Path(sys.argv[1]), sys.argv[2]

@dg.asset(group_name="training")
def model(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> None:
    with tracker.child(context, name=name):
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)

(folder / f"{name}.ready").touch()
while len(list(folder.glob("*.ready"))) < 2:
    time.sleep(0.001)
with dg.DagsterInstance.ephemeral() as instance:
    dg.materialize([model], instance=instance, resources={"tracker": MLflowTracker(folder=str(folder / "mlflow"))})
"""


def test_two_processes_create_the_store_at_once_and_what_one_of_them_leaves_open_is_closed(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    processes = {
        name: subprocess.Popen(  # noqa: S603 - this interpreter runs the text above
            [sys.executable, "-c", PROCESS, str(tmp_path), name], stderr=subprocess.PIPE, text=True
        )
        for name in ("killed", "finished")
    }
    errors = {name: process.communicate()[1] for name, process in processes.items()}
    tracker = MLflowTracker(folder=str(tmp_path / "mlflow"))
    assert processes["finished"].returncode == 0, errors["finished"]
    assert processes["killed"].returncode == -9, errors["killed"]

    materialize(instance, tracker, interaction_split, ncf_model)

    tracked = runs(tracker)
    assert tracked["killed"].info.status == "KILLED"
    assert {tracked[name].info.status for name in ("finished", "ncf", "refresh")} == {"FINISHED"}


def test_run_of_a_living_process_is_left_open(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    @dg.asset(group_name="training")
    def outer(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> None:
        with tracker.child(context, name="outer"):
            materialize(instance, tracker, interaction_split, ncf_model)
            assert runs(tracker)["outer"].info.status == "RUNNING"

    assert materialize(instance, tracker, outer).success


def test_run_whose_dagster_run_is_over_is_closed(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    first = materialize(instance, tracker, interaction_split, ncf_model)
    left_open = runs(tracker)["ncf"].info.run_id
    tracker.client.update_run(left_open, status="RUNNING")

    materialize(instance, tracker, interaction_split, evaluation_report)

    assert tracker.client.get_run(left_open).info.status == "KILLED"
    assert tracker.client.get_run(left_open).data.tags["dagster.run_id"] == first.run_id


def test_closed_port_fails_at_once_with_the_address(tmp_path: Path) -> None:
    port, started = free_port(), time.monotonic()

    with pytest.raises(TrackingUnavailableError, match=f"http://127.0.0.1:{port}"):
        _ = MLflowTracker(folder=str(tmp_path), tracking_uri=f"http://127.0.0.1:{port}").client

    assert time.monotonic() - started < 200  # MLflow's own retries take 245 s


def test_silent_server_costs_two_timeouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        tracker = MLflowTracker(folder=str(tmp_path), tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}")

        with pytest.raises(TrackingUnavailableError):
            _ = tracker.client

        server.setblocking(False)
        for _ in range(2):
            server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()


def test_git_commit_is_none_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert git_commit.__wrapped__() is None


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    script = "import sys, rec_pipeline.resources.mlflow_tracker; sys.exit('mlflow' in sys.modules)"

    process = subprocess.run([sys.executable, "-c", script], check=False)  # noqa: S603 - this interpreter

    assert process.returncode == 0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sealed bundle of users u0..u9 who each have seven of the eight items of their parity."""
    users, items = IdMap.from_ids(f"u{n}" for n in range(10)), IdMap.from_ids(f"i{n:02}" for n in range(16))
    dense = np.array([[(u + i) % 2 == 0 and i // 2 != u // 2 for i in range(16)] for u in range(10)], dtype=np.float32)
    history = sp.csr_matrix(dense)
    params = NCFParams(embedding_dim=8, mlp_dim=4, layers=[8], pretrain_epochs=1, epochs=1)
    ncf = fit_ncf(history, params, TrainingOptions(device="cpu", n_threads=1)).model
    sequence_params = SequenceParams(embedding_dim=8, n_layers=1, epochs=1)
    sequence = fit_sequence(sequences_of(history), 16, sequence_params, TrainingOptions(n_threads=1)).model
    parity = np.array([[i % 2 == 0, i % 2 == 1] for i in range(16)], dtype=np.float32)
    has_vector = np.ones(16, dtype=np.bool_)
    content = ItemEmbeddings(items, parity, has_vector, space="parity")
    collaborative = ItemEmbeddings(items, ncf.item_vectors(), has_vector, space="ncf")
    facts = ItemFacts.of(pd.DataFrame({"item_id": items.ids}))
    counts = np.bincount(history.indices, minlength=16).astype(np.float32)
    made = ServingBundle(
        users=users,
        items=items,
        history=history,
        sequences=sequences_of(history),
        titles=items.ids,
        facts=facts,
        lifts=ContextLifts.fit(pd.DataFrame(), np.zeros(0, dtype=np.int64), facts.in_category),
        ncf=ncf,
        sequence=sequence,
        popularity=PopularityModel.fit(history),
        trending=TrendingModel(counts, 7.0, counts, 7.0),
        content_embeddings=content,
        content_index=build_index(content, IndexParams()),
        collaborative_index=build_index(collaborative, IndexParams()),
        sequence_index=build_index(
            sequence_embeddings(items, sequence.item_vectors(), sequence.is_fitted_item), IndexParams()
        ),
        params=HybridParams(),
        metadata={},
    )
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    store.write("serving_bundle", made.save, kind="ServingBundle")
    return store.path("serving_bundle")


def register(tracker: MLflowTracker, instance: dg.DagsterInstance, bundle: Path) -> dg.ExecuteInProcessResult:
    @dg.asset(group_name="publishing")
    def serving_bundle(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> dg.MaterializeResult[Any]:
        with tracker.child(context, name="bundle") as run:
            version = tracker.register_ncf(
                run, bundle, ["u0", "u1"], "Hybrid of test", {"gate": "passed", "ndcg_10": 0.2}
            )
        return dg.MaterializeResult(metadata={"version": version})

    return materialize(instance, tracker, serving_bundle)


@pytest.fixture
def registered(tracker: MLflowTracker, instance: dg.DagsterInstance, bundle: Path) -> MLflowTracker:
    assert register(tracker, instance, bundle).success
    return tracker


def test_champion_loads_by_alias_and_recommends_what_the_bundle_does(
    registered: MLflowTracker, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered.registry.promote("1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)
    made = ServingBundle.load(bundle)
    (users,) = made.batches(np.array([5, 0]), 2)
    expected = made.recommender().recommend(users, 3)

    model = mlflow.pyfunc.load_model(f"models:/{MODEL_NAME}@champion")
    top = model.predict(pd.DataFrame({"user_id": ["u5", "u0"]}), params={"top_k": 3})

    assert top["user_id"].tolist() == ["u5"] * 3 + ["u0"] * 3
    assert top["rank"].tolist() == [1, 2, 3] * 2
    assert top["item_id"].tolist() == made.items.to_ids(expected.item_idx.ravel()).tolist()
    np.testing.assert_allclose(top["score"], expected.score.ravel())


def test_lists_are_ten_long_by_default_and_end_with_the_catalogue(
    registered: MLflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)
    model = mlflow.pyfunc.load_model(f"models:/{MODEL_NAME}@challenger")

    assert len(model.predict(pd.DataFrame({"user_id": ["nobody"]}))) == 10
    everything = model.predict(pd.DataFrame({"user_id": ["u0"]}), params={"top_k": 50})
    assert everything["rank"].tolist() == list(range(1, 16 - 7 + 1))
    assert len(model.predict(pd.DataFrame({"user_id": pd.Series([], dtype="str")}))) == 0


def test_unknown_user_gets_a_list_without_anybodys_history_taken_out(
    registered: MLflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)
    model = mlflow.pyfunc.load_model(f"models:/{MODEL_NAME}@challenger")

    ranking = model.predict(pd.DataFrame({"user_id": ["nobody"]}), params={"top_k": 16})

    assert sorted(ranking["item_id"]) == [f"i{n:02}" for n in range(16)]


def test_damaged_bundle_is_refused_before_it_is_read(
    registered: MLflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)
    (weights,) = Path(registered.folder).rglob("ncf/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")

    with pytest.raises(ArtifactIntegrityError, match="safetensors"):
        mlflow.pyfunc.load_model(f"models:/{MODEL_NAME}@challenger")


def test_registered_version_says_what_it_is_and_holds_no_pickle(
    registered: MLflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)

    version = registered.client.get_model_version(MODEL_NAME, "1")

    assert version.tags == {"gate": "passed", "ndcg_10": "0.2"}
    assert version.description == "Hybrid of test"
    assert version.run_id == runs(registered)["bundle"].info.run_id
    model = mlflow.models.get_model_info(f"models:/{MODEL_NAME}/1")
    assert model.signature is not None
    assert model.signature.inputs.input_names() == ["user_id"]
    assert model.saved_input_example_info is not None
    assert model.saved_input_example_info["type"] == "dataframe"
    suffixes = {path.suffix for path in Path(registered.folder, "artifacts").rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}


def test_promotion_keeps_the_champion_it_replaces_as_previous(
    registered: MLflowTracker, instance: dg.DagsterInstance, bundle: Path
) -> None:
    def aliases() -> dict[str, str]:
        return {
            name: str(version) for name, version in registered.client.get_registered_model(MODEL_NAME).aliases.items()
        }

    assert aliases() == {"challenger": "1"}
    registered.registry.promote("1")
    assert aliases() == {"champion": "1"}
    register(registered, instance, bundle)
    assert aliases() == {"champion": "1", "challenger": "2"}
    for _ in range(2):
        registered.registry.promote("2")
        assert aliases() == {"champion": "2", "previous": "1"}


def test_aliases_name_what_is_live_and_was_before_over_a_rollback_too(
    registered: MLflowTracker, store: "redis.Redis", tmp_path: Path
) -> None:
    client = registered.client
    client.set_model_version_tag(MODEL_NAME, "1", "bundle", "digest1")
    client.create_model_version(
        MODEL_NAME, source=client.get_model_version(MODEL_NAME, "1").source, tags={"bundle": "digest2"}
    )

    def aligned() -> dict[str, str]:
        assert align_aliases(store, registered) is None
        found = client.get_registered_model(MODEL_NAME).aliases
        return {name: str(version) for name, version in found.items() if name != "challenger"}

    seen = []
    for digest in ("digest1", "digest2"):
        with GenerationWriter(tmp_path / "generations") as writer:
            writer.add(make_lists(["u1"], digest))
            sealed = writer.seal({"bundle": digest}, popular=make_lists([POPULAR_USER_ID], digest))
        publish(store, sealed)
        seen.append(aligned())
    rollback(store, tmp_path / "generations")

    assert seen == [{"champion": "1"}, {"champion": "2", "previous": "1"}]
    assert aligned() == aligned() == {"champion": "1", "previous": "2"}
    store.hset(CURRENT, "bundle", "never registered")
    assert "`rec-pipeline doctor` tries again" in str(align_aliases(store, registered))


def test_failed_registration_leaves_no_version(
    tracker: MLflowTracker, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    result = register(tracker, instance, tmp_path / "absent")

    assert not result.success
    assert tracker.client.search_model_versions(f"name = '{MODEL_NAME}'") == []
    (logged,) = tracker.client.search_logged_models(["1"])
    assert logged.status == "FAILED"
    assert runs(tracker)["bundle"].info.status == "FAILED"


def test_ui_command_serves_the_store_on_loopback(tracker: MLflowTracker, instance: dg.DagsterInstance) -> None:
    materialize(instance, tracker, interaction_split, ncf_model)
    run_id = runs(tracker)["ncf"].info.run_id
    port = free_port()
    argv, variables = tracker.ui_command(port)

    server = subprocess.Popen(  # noqa: S603 - the command under test
        argv, env=os.environ | variables, cwd=tracker.folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        page = read_when_up(f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={run_id}", server)
        image = read_when_up(f"http://127.0.0.1:{port}/get-artifact?path=plots/loss.png&run_id={run_id}", server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate()

    assert json.loads(page)["run"]["info"]["status"] == "FINISHED"
    assert image == b"\x89PNG"


def read_when_up(url: str, server: "subprocess.Popen[str]") -> bytes:
    deadline = time.monotonic() + LONG
    while True:
        try:
            with urllib.request.urlopen(url, timeout=LONG) as response:  # noqa: S310 - an http address made above
                return bytes(response.read())
        except urllib.error.URLError as error:
            still_starting = isinstance(error.reason, ConnectionRefusedError) and server.poll() is None
            if not still_starting or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_ui_command_is_refused_where_a_server_keeps_the_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"mlflow\.example\.org"):
        MLflowTracker(folder=str(tmp_path), tracking_uri="https://mlflow.example.org").ui_command()
