"""MLflow down, silent or wrong (F23): a run goes on, waits ten seconds at most, and MLflow is told once it answers."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from mlflow import MlflowClient

from rec_pipeline.engine.errors import TrackingUnavailableError
from rec_pipeline.resources.mlflow_spool import Patience
from rec_pipeline.resources.mlflow_tracker import PATIENCE_SECONDS, MLflowTracker
from rec_pipeline_tests.resources.test_mlflow_tracker import migrated_store, runs

__all__ = ["migrated_store"]

pytestmark = [
    # mlflow 3.17 on sqlalchemy 2.1: its own mappers use a loader that is deprecated there.
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning"),
]
N_EPOCHS = 5


@dg.asset(group_name="training")
def ncf_model(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> dg.MaterializeResult[Any]:
    with tracker.child(context, name="ncf") as run:
        run.log_params({"embedding_dim": 8})
        for epoch in range(N_EPOCHS):
            run.log_metrics({"ndcg@10": epoch / 10}, step=epoch)
        run.log_dataset("interaction_split", "abc", "training", 7)
        run.log_text("report.md", "# Report")
        run.log_table("summary.json", pd.DataFrame({"recommender": ["ncf"], "ndcg": [0.2]}))
    return dg.MaterializeResult(metadata={"mlflow_run": run.link})


@dg.asset(group_name="training", deps=[ncf_model])
def item_knn_model(context: dg.AssetExecutionContext, tracker: MLflowTracker) -> None:
    with tracker.child(context, name="knn") as run:
        run.log_metrics({"ndcg@10": 0.3})


def materialize(tracker: MLflowTracker) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [ncf_model, item_knn_model], instance=instance, resources={"tracker": tracker}, raise_on_error=False
        )


@contextmanager
def server(answer: bytes | None, pause: float = 0) -> Iterator[str]:
    """Listen and answer every connection with ``answer``, a byte every ``pause`` seconds; never, when it is None."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    threading.Thread(target=drip, args=(connection, answer), daemon=True).start()

        def drip(connection: socket.socket, answer: bytes) -> None:
            with connection:
                connection.recv(65536)
                step = 1 if pause else len(answer)
                for start in range(0, len(answer), step):
                    try:
                        connection.sendall(answer[start : start + step])
                    except OSError:
                        return
                    time.sleep(pause)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{port}"
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def assert_told_once(tracker: MLflowTracker) -> None:
    tracked = runs(tracker)
    assert set(tracked) == {"refresh", "ncf", "knn"}
    assert {run.info.status for run in tracked.values()} == {"FINISHED"}
    ncf = tracked["ncf"]
    assert ncf.data.params == {"embedding_dim": "8"}
    history = tracker.client.get_metric_history(ncf.info.run_id, "ndcg_10")
    assert [(metric.step, metric.value) for metric in history] == [(epoch, epoch / 10) for epoch in range(N_EPOCHS)]
    assert {file.path for file in tracker.client.list_artifacts(ncf.info.run_id)} == {"report.md", "summary.json"}
    table = Path(tracker.folder) / "artifacts" / ncf.info.run_id / "artifacts" / "summary.json"
    assert json.loads(table.read_text()) == {"columns": ["recommender", "ndcg"], "data": [["ncf", 0.2]]}
    assert len(ncf.inputs.dataset_inputs) == 1
    experiment = tracker.client.get_experiment_by_name("rec_pipeline")
    assert experiment is not None
    found = tracker.client.search_runs([experiment.experiment_id], "tags.`dagster.asset_key` LIKE '%model'")
    assert len(found) == 2
    assert len({run.data.tags["mlflow.parentRunId"] for run in found}) == 1


def recovered(tmp_path: Path, migrated_store: Path) -> MLflowTracker:
    """MLflow is back, on this machine's disk, with the same spool."""
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    return MLflowTracker(folder=str(tmp_path))


def tell(tracker: MLflowTracker) -> None:
    _ = tracker.client
    tracker._tell_spooled()


GARBAGE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\nnot json!"
REFUSAL = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "pause"),
    [(None, 0), (GARBAGE, 0), (REFUSAL, 0), (b"HTTP/1.1 200 OK\r\n" + b"x" * 1000, 0.5)],
    ids=["silent", "wrong", "failing", "dripping"],
)
def test_f23_a_run_goes_on_without_mlflow_and_tells_it_later_once(
    tmp_path: Path,
    migrated_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes | None,
    pause: float,
) -> None:
    monkeypatch.setattr("rec_pipeline.resources.mlflow_tracker.PATIENCE_SECONDS", 3.0)
    with server(answer, pause) as url:
        started = time.monotonic()
        result = materialize(MLflowTracker(folder=str(tmp_path), tracking_uri=url))
        waited = time.monotonic() - started

    assert result.success
    assert waited < 200  # 3 s of patience, and Dagster; MLflow's own retries take 245 s a call
    assert len(list((tmp_path / "spool").glob("*.jsonl"))) == 2
    tracker = recovered(tmp_path, migrated_store)
    tell(tracker)
    assert_told_once(tracker)
    assert not list((tmp_path / "spool").glob("*.jsonl"))


def test_f23_with_a_closed_port_the_next_run_tells_what_this_one_could_not(
    tmp_path: Path, migrated_store: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = closing.getsockname()[1]
    result = materialize(MLflowTracker(folder=str(tmp_path), tracking_uri=f"http://u:hunter2@127.0.0.1:{port}"))
    assert result.success
    (materialization,) = result.asset_materializations_for_node("ncf_model")
    assert materialization.metadata["mlflow_run"].value == f"http://***@127.0.0.1:{port}"

    tracker = recovered(tmp_path, migrated_store)
    with dg.DagsterInstance.ephemeral() as instance:
        next_run = dg.materialize([item_knn_model], instance=instance, resources={"tracker": tracker})

    assert next_run.success
    statuses = [run.info.status for run in tracker.client.search_runs(["1"])]
    assert statuses == ["FINISHED"] * 5  # two parents, and three assets
    assert not list((tmp_path / "spool").glob("*.jsonl"))


def test_f23_telling_again_after_being_killed_in_the_middle_changes_nothing(
    tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(REFUSAL) as url:
        materialize(MLflowTracker(folder=str(tmp_path), tracking_uri=url))
    tracker = recovered(tmp_path, migrated_store)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # everything of the first file was told, and it is still there
            tell(tracker)

    tell(tracker)

    assert_told_once(tracker)


def test_f23_mlflow_lost_in_the_middle_of_a_run_hears_the_rest_later(
    tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = recovered(tmp_path, migrated_store)
    real, n_calls = MlflowClient.log_batch, []

    def failing(self: MlflowClient, *arguments: Any, **keywords: Any) -> None:
        n_calls.append(1)
        if len(n_calls) > 3:
            raise OSError("the disk of the store went away")
        real(self, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", failing)
        assert materialize(tracker).success
    assert len(n_calls) == 4  # asked no more once it was lost

    later = MLflowTracker(folder=str(tmp_path))
    tell(later)

    assert_told_once(later)


def test_what_mlflow_refuses_is_set_aside_and_the_rest_is_told(tmp_path: Path, migrated_store: Path) -> None:
    tracker = recovered(tmp_path, migrated_store)
    header = {"key": "0-bad", "run_id": "no-such-run"}
    tracker.spool.append(header, {"tell": "params", "params": {"a": "1"}})
    tracker.spool.append(header, {"tell": "end", "status": "FINISHED", "end_time": 1})
    with server(REFUSAL) as url:
        materialize(MLflowTracker(folder=str(tmp_path), tracking_uri=url))

    tell(tracker)

    assert_told_once(tracker)
    assert [path.name for path in (tmp_path / "spool").glob("0-*")] == ["0-bad.refused"]


def test_a_half_written_line_of_a_killed_run_is_left_out(tmp_path: Path, migrated_store: Path) -> None:
    with server(REFUSAL) as url:
        materialize(MLflowTracker(folder=str(tmp_path), tracking_uri=url))
    path = min((tmp_path / "spool").glob("*-ncf.jsonl"))
    whole = path.read_text()
    path.write_text(whole + '{"tell": "par')

    tracker = recovered(tmp_path, migrated_store)
    tell(tracker)

    assert_told_once(tracker)


def test_patience_is_for_all_calls_of_a_run_together() -> None:
    patience = Patience(2)
    started = time.monotonic()
    patience.call(time.sleep, 0.1)

    with pytest.raises(TrackingUnavailableError, match="in the time a run may wait"):
        patience.call(time.sleep, 100)
    with pytest.raises(TrackingUnavailableError, match="given up"):
        patience.call(time.sleep, 0)

    assert time.monotonic() - started < 100
    assert PATIENCE_SECONDS <= 10
