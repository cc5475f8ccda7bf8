import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from rec_pipeline.benchmarks.sequential import NAMES, Transitions, read_events, run
from rec_pipeline.cli.benchmark import app
from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.models.ncf_params import NCFParams
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline_tests.benchmarks import generated_sequences

CYCLE = 15


def walks(path: Path) -> Path:
    """Write users who go round the items in order, each from anywhere."""
    rng = np.random.default_rng(2)
    lines = ["user_id,item_id"]
    for user in range(80):
        first = rng.integers(CYCLE)
        lines += [f"u{user},i{(first + step) % CYCLE}" for step in range(rng.integers(4, 9))]
    path.write_text("\n".join(lines))
    return path


def test_models_of_order_foresee_what_models_of_sets_cannot(tmp_path: Path) -> None:
    facts, rows = run(
        walks(tmp_path / "events.csv"),
        ncf_params=NCFParams(embedding_dim=8, variant="gmf", epochs=2),
        sequence_params=SequenceParams(embedding_dim=16, n_layers=1, batch_events=128, learning_rate=1e-2, epochs=20),
    )

    ndcg = {str(row["name"]): float(str(row["ndcg"])) for row in rows}
    assert tuple(ndcg) == NAMES
    assert facts["n_users_tested"] == facts["n_users"] == 80
    assert ndcg["transitions"] == 1
    assert ndcg["sequence"] > 0.9 > ndcg["popularity"]


def test_the_last_event_is_tested_and_the_one_before_validated(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,timestamp\na,x,3\na,y,1\na,z,2\na,y,9\nb,x,1\nb,y,2\n")

    events = read_events(path)

    items = {"x": 0, "y": 1, "z": 2}
    assert events.n_repeated == 1
    assert events.sequences.recent(np.array([0])).tolist() == [[items["y"], items["z"], items["x"]]]
    assert events.held_out(1).toarray().tolist() == [[1, 0, 0], [0, 0, 0]]
    assert events.held_out(2).toarray().tolist() == [[0, 0, 1], [0, 0, 0]]
    assert events.without_last(1).lengths.tolist() == [2, 2]
    assert events.without_last(2).lengths.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["events.tsv", "events.txt", "events.parquet", "named.csv"])
def test_every_form_of_the_file_reads_the_same(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"user_id": [7, 7, 7, 8], "item_id": [5, 6, 4, 5], "timestamp": [3, 2, 1, 5]})
    path = tmp_path / name
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        separator = {".tsv": "\t", ".txt": " ", ".csv": ","}[path.suffix]
        table.to_csv(path, sep=separator, index=False, header=name == "named.csv")

    events = read_events(path)

    assert events.sequences.starts.tolist() == [0, 3, 4]
    assert events.sequences.item_idx.tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events.csv", "user_id,item\na,x\n", "must hold the columns user_id and item_id"),
        ("events.csv", "a,x,4,2\n", "has 4 columns and no names"),
        ("events.csv", "user_id,item_id\na,x\na,\n", "1 rows lack an id"),
        ("events.csv", "user_id,item_id\na,x\na,y\nb,x\n", "no user has 3 events"),
        ("events.json", "[]", "must end with .parquet or one of"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(ConfigurationError, match=message):
        read_events(tmp_path / name)


def test_unknown_rows_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no row 'gru'"):
        run(tmp_path / "absent.csv", only=["gru"])
    with pytest.raises(ConfigurationError, match="no such file"):
        run(tmp_path / "absent.csv")


def test_transitions_count_pairs_and_break_ties_by_popularity() -> None:
    model = Transitions.fit(UserSequences(np.array([0, 3, 5, 6]), np.array([0, 1, 2, 0, 1, 3])), n_items=4)
    users = UserBatch(np.array([-1, -1]), sp.csr_matrix((2, 4), dtype=np.float32), np.array([[0], [-1]]))

    score = model.score(users)

    assert score[0].argsort()[::-1].tolist()[:2] == [1, 0]
    assert np.floor(score[0]).tolist() == [0, 2, 0, 0]
    assert score[1].max() < 1


def test_the_command_prints_one_json_document(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["sequential", "--data", str(walks(tmp_path / "events.csv")), "--only", "popularity", "--json"]
    )

    printed = json.loads(done.stdout)
    assert printed["benchmark"] == "sequential"
    assert [row["name"] for row in printed["rows"]] == ["popularity"]


def test_the_generated_file_is_of_the_shape_of_the_published_one(tmp_path: Path) -> None:
    generated_sequences.main(tmp_path / "events.parquet", n_users=2000, n_items=6000, n_events=17_600)

    events = read_events(tmp_path / "events.parquet")

    lengths = events.sequences.lengths
    assert events.n_repeated == 0
    assert (len(lengths), int(lengths.min()), int(np.median(lengths))) == (2000, 5, 5)
    assert 17_300 < lengths.sum() <= 17_600
    assert (Transitions.fit(events.sequences, events.n_items).counts.data > 1).mean() > 0.03  # 0.015 without followers
