"""Artefacts, the event log and inputs on object storage: a real S3 server, and a folder where there is none."""

import importlib.util
import logging
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from rec_pipeline.engine import mirrors
from rec_pipeline.engine.artifacts import CURRENT, MANIFEST, VERSIONS_KEPT
from rec_pipeline.engine.data import event_log
from rec_pipeline.engine.data.event_log import EVENT_SCHEMA
from rec_pipeline.engine.data.quarantine import write_quarantine
from rec_pipeline.engine.data.remote_event_log import RemoteEventLog, open_event_log
from rec_pipeline.engine.data.source import SourceParams, open_source
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.embeddings.item_embeddings import EmbeddingCache, embed_items
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError, InputRejectedError
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.remote import RemoteArtifactStore, RemoteFolder, open_store
from rec_pipeline.engine.store import suppression
from rec_pipeline.engine.store.generation import (
    delete_old_generations,
    find_generation,
    list_generations,
    renumber,
)
from rec_pipeline.settings import Settings
from rec_pipeline_tests.engine.embeddings.test_item_embeddings import HashEncoder
from rec_pipeline_tests.fixtures.s3 import SECRET, bucket, s3_server
from rec_pipeline_tests.fixtures.store import seal_lists

__all__ = ["bucket", "s3_server"]


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/rec"
    if request.param == "memory":
        return f"memory://{tmp_path.name}/rec"
    (tmp_path / "storage").mkdir()
    return (tmp_path / "storage").as_uri()


def machine(tmp_path: Path, name: str, url: str) -> RemoteArtifactStore:
    store = open_store(tmp_path / name, url)
    assert isinstance(store, RemoteArtifactStore)
    return store


def writer(text: str) -> Callable[[Path], None]:
    def save(directory: Path) -> None:
        (directory / "part").mkdir()
        (directory / "part" / "a.txt").write_text(text)
        (directory / "b.txt").write_text("the same")

    return save


def put(url: str, name: str, content: bytes) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
    fs.pipe_file(f"{root}/{name}", content)


def test_what_one_machine_writes_another_reads_verified(tmp_path: Path, url: str) -> None:
    one, other = machine(tmp_path, "one", url), machine(tmp_path, "other", url)

    manifest = one.write("items", writer("first"), kind="Text", metadata={"run": "r1"})

    assert (other.path("items") / "part" / "a.txt").read_text() == "first"
    assert other.manifest("items").metadata == {"run": "r1"}
    again = other.write("items", writer("first"), kind="Text", metadata={"run": "r2"})
    assert again.version == manifest.version
    assert one.manifest("items").metadata == {"run": "r2"}
    assert one.uri("items", again.version).startswith(url)


def test_an_artefact_never_written_says_what_to_do(tmp_path: Path, url: str) -> None:
    with pytest.raises(ArtifactIntegrityError, match="materialise 'items' first"):
        machine(tmp_path, "one", url).path("items")


def test_a_damaged_object_is_refused_and_a_damaged_copy_is_fetched_again(tmp_path: Path, url: str) -> None:
    one, other = machine(tmp_path, "one", url), machine(tmp_path, "other", url)
    version = one.write("items", writer("first"), kind="Text").version
    copy = one.path("items") / "b.txt"
    copy.write_text("the SAME")
    assert (one.path("items") / "b.txt").read_text() == "the same"

    put(url, f"items/{version}/b.txt", b"the SAME")

    with pytest.raises(ArtifactIntegrityError, match="does not match its manifest"):
        other.path("items")
    one.write("items", writer("first"), kind="Text")
    assert (other.path("items") / "b.txt").read_text() == "the same"


def test_a_file_that_is_gone_is_named(tmp_path: Path, url: str) -> None:
    version = machine(tmp_path, "one", url).write("items", writer("first"), kind="Text").version
    RemoteFolder(url).delete(f"items/{version}/b.txt")

    with pytest.raises(ArtifactIntegrityError, match="lacks a file"):
        machine(tmp_path, "other", url).path("items")


def test_old_versions_go_but_for_the_protected(tmp_path: Path, url: str) -> None:
    store = machine(tmp_path, "one", url)
    first = store.write("items", writer("first"), kind="Text").version

    for number in range(2 + VERSIONS_KEPT):
        newest = store.write("items", writer(str(number)), kind="Text", protected={first}).version

    kept = RemoteFolder(url).names("items")
    assert {CURRENT, first, newest} < set(kept)
    assert len(kept) == VERSIONS_KEPT + 2


KILLED = """
    import sys
    from pathlib import Path
    from rec_pipeline.engine import crash_points
    from rec_pipeline.engine.remote import open_store

    crash_points.arm(crash_points.CrashPoint.parse(sys.argv[3]))
    open_store(Path(sys.argv[1]), sys.argv[2]).write("items", lambda to: [
        (to / name).write_text("new") for name in ("a.txt", "b.txt")
    ], kind="Text")
"""


@pytest.mark.parametrize("point", ["uploaded-items", "pushed-items"])
def test_an_upload_killed_half_way_leaves_what_was_current(tmp_path: Path, bucket: str, point: str) -> None:
    one, other = machine(tmp_path, "one", bucket), machine(tmp_path, "other", bucket)
    old = one.write("items", writer("old"), kind="Text")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "two"), bucket]

    killed = subprocess.run([*command, f"{point}:1:KILL"], env=os.environ, check=False)  # noqa: S603 - this interpreter
    assert killed.returncode == -9
    assert (other.path("items") / "part" / "a.txt").read_text() == "old"
    begun = set(RemoteFolder(bucket).names("items")) - {CURRENT, old.version}
    assert [MANIFEST in RemoteFolder(bucket).names(f"items/{version}") for version in begun] == [point[0] == "p"]

    subprocess.run([*command, "nowhere:1:KILL"], env=os.environ, check=True)  # noqa: S603 - as above
    assert (other.path("items") / "a.txt").read_text() == "new"


def test_no_secret_is_logged_or_kept(tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        machine(tmp_path, "one", bucket).write("items", writer("first"), kind="Text")
        with pytest.raises(ArtifactIntegrityError) as refused:
            machine(tmp_path, "one", bucket).path("other")

    assert caplog.records
    assert SECRET not in caplog.text + str(refused.value)
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert not any(SECRET.encode() in content for content in kept)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="holds a password") as refused:
        RemoteFolder(f"s3://tester:{SECRET}@bucket/rec")
    assert SECRET not in str(refused.value)


def events(*ids: str) -> pa.Table:
    rows = [
        {
            "received_at": pd.Timestamp("2024-03-01T10:00", tz="UTC"),
            "entry": number,
            "user_id": f"u-{event_id}",
            "item_id": "i",
            "event_type": "click",
            "timestamp": pd.Timestamp("2024-03-01T09:00", tz="UTC"),
            "event_id": event_id,
        }
        for number, event_id in enumerate(ids)
    ]
    return pa.Table.from_pylist(rows, EVENT_SCHEMA)


def ids_of(log: RemoteEventLog | event_log.EventLog) -> list[str]:
    return sorted(log.read(["event_id"])["event_id"].tolist())


def test_a_log_is_written_compacted_and_forgotten_in_by_several_machines(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (open_event_log(tmp_path / name, url) for name in ("one", "other"))
    assert ids_of(one) == []
    assert one.append(events("a", "b")) == {"2024-03-01": 2}
    other.append(events("b", "c"))
    assert ids_of(one) == ids_of(other) == ["a", "b", "c"]

    monkeypatch.setattr(event_log, "COMPACT_ABOVE", 1)
    one.compact("2024-03-01")
    assert len(RemoteFolder(url).names("2024-03-01")) == 1
    assert ids_of(other) == ["a", "b", "c"]

    assert one.forget("u-b") == 1
    assert ids_of(other) == ["a", "c"]
    assert len(list((tmp_path / "other" / "2024-03-01").iterdir())) == 1  # the copy with the forgotten is gone as well


def test_inputs_are_copied_once_for_each_state_and_held_to_their_checksums(tmp_path: Path, url: str) -> None:
    header, row = b"user_id,item_id,timestamp\n", b"u1,i1,2024-01-01\n"
    params = SourceParams(dataset="files", interactions=f"{url}/in/events.csv", download_dir=str(tmp_path / "copies"))
    with pytest.raises(ConfigurationError, match="there is no file"):
        open_source(params)

    put(url, "in/events.csv", header + row)
    first = open_source(params)
    assert first.read_interactions()["user_id"].tolist() == ["u1"]
    assert open_source(params).fingerprint() == first.fingerprint()

    put(url, "in/events.csv", header + row + b"u2,i1,2024-01-01\n")
    second = open_source(params)
    assert second.read_interactions()["user_id"].tolist() == ["u1", "u2"]
    assert second.fingerprint() != first.fingerprint()

    put(url, "in/events.csv", header + row + row)
    assert len(open_source(params).read_interactions()) == 2
    assert len(list((tmp_path / "copies").glob("*/*"))) == 2

    put(url, "in/events.csv.sha256", b"0" * 64 + b"  events.csv\n")
    with pytest.raises(InputRejectedError, match="sha256"):
        open_source(params).read_interactions()


def test_a_folder_of_parquet_is_an_input_too(tmp_path: Path, url: str) -> None:
    for number in range(2):
        buffer = pa.BufferOutputStream()
        table = pa.table({"user_id": [f"u{number}"], "item_id": ["i"], "timestamp": [pd.Timestamp("2024-01-01")]})
        pa.parquet.write_table(table, buffer)
        put(url, f"in/{number}.parquet", buffer.getvalue().to_pybytes())

    params = SourceParams(dataset="files", interactions=f"{url}/in", download_dir=str(tmp_path / "copies"))

    assert open_source(params).read_interactions()["user_id"].tolist() == ["u0", "u1"]


def test_a_manifest_alone_is_no_artefact(tmp_path: Path, url: str) -> None:
    put(url, f"items/0123456789abcdef/{MANIFEST}", b"{}")
    put(url, f"items/{CURRENT}", b"0123456789abcdef")

    with pytest.raises(ArtifactIntegrityError, match="is not a manifest"):
        machine(tmp_path, "one", url).path("items")


def test_storage_of_google_is_opened_by_its_own_library() -> None:
    folder = RemoteFolder("gs://bucket/rec")
    if importlib.util.find_spec("gcsfs"):
        fs, root = folder._opened
        assert (fs.protocol[0], root) == ("gs", "bucket/rec")
        return
    with pytest.raises(ConfigurationError, match="gcsfs"):
        folder.names()


@pytest.fixture
def on_machine(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make this process one of several machines, each with a data folder of its own, all with one storage."""

    def be(name: str) -> Path:
        monkeypatch.setattr(mirrors, "_mirrors", {})
        settings = Settings(data_dir=tmp_path / name, artifacts_url=url)
        mirrors.use_mirrors(settings.mirrors)
        return settings.data_dir

    return be


USERS = [f"u{number}" for number in range(30)]


def test_a_generation_sealed_on_one_machine_is_read_numbered_and_deleted_on_another(
    on_machine: Callable[[str], Path], url: str
) -> None:
    root = on_machine("one") / "generations"
    sealed = seal_lists(root, USERS, "a")

    root = on_machine("other") / "generations"
    (found,) = list_generations(root)
    assert found.manifest_sha256 == sealed.manifest_sha256
    assert [path.name for path in found.directory.iterdir()] == [MANIFEST]
    groups = pickle.loads(pickle.dumps(found.row_groups()))  # noqa: S301 - ours: they travel to workers
    shutil.rmtree(found.directory)
    assert pa.Table.from_batches([group.read() for group in groups]) == pa.Table.from_batches(sealed.iterate())
    second = seal_lists(root, USERS, "b")
    third = renumber(found, after=0)
    assert [second.number, third.number] == [2, 3]

    root = on_machine("one") / "generations"
    assert [generation.number for generation in list_generations(root)] == [1, 2, 3]
    assert find_generation(root, 3).content_number == 1
    assert delete_old_generations(root, {3}, keep=1, min_age_seconds=0) == [1, 2]
    on_machine("other")
    assert [generation.number for generation in list_generations(root)] == [3]

    put(url, "generations/00000003/part-00000.parquet", b"damaged")
    root = on_machine("third") / "generations"
    with pytest.raises(ArtifactIntegrityError, match="it is not used"):
        find_generation(root, 3).verify()


SEALED = """
    import sys
    from pathlib import Path
    from rec_pipeline.engine import crash_points, mirrors
    from rec_pipeline_tests.fixtures.store import seal_lists

    crash_points.arm(crash_points.CrashPoint.parse(sys.argv[3]))
    root = Path(sys.argv[1])
    mirrors.use_mirrors({root: sys.argv[2]})
    seal_lists(root, ["u1", "u2"], "a")
"""


def test_a_generation_killed_on_its_way_is_no_generation(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_mirrors", {})
    command = [sys.executable, "-c", textwrap.dedent(SEALED), str(tmp_path / "two"), f"{bucket}/generations"]

    killed = subprocess.run([*command, "uploaded-00000001:1:KILL"], env=os.environ, check=False)  # noqa: S603 - as above
    assert killed.returncode == -9
    assert RemoteFolder(bucket).names("generations/00000001")
    mirrors.use_mirrors({tmp_path / "three": f"{bucket}/generations"})
    assert list_generations(tmp_path / "three") == []

    assert seal_lists(tmp_path / "three", USERS, "b").number == 1
    assert [len(group.read()) for group in list_generations(tmp_path / "three")[0].row_groups()] == [len(USERS)]


def test_training_goes_on_elsewhere_from_its_checkpoint(on_machine: Callable[[str], Path]) -> None:
    history = sp.csr_matrix((np.arange(12)[:, None] + np.arange(8)) % 2 == 0, dtype=np.float32)
    params = NCFParams(embedding_dim=2, linear_dim=2, mlp_dim=2, layers=[2], pretrain_epochs=2, epochs=0)
    options = TrainingOptions(seed=1, n_threads=1, device="cpu", checkpoint_seconds=0)
    seen: list[int] = []
    for name in ("one", "other"):
        folder = on_machine(name) / "artifacts" / "ncf_model" / "checkpoints"
        fit_ncf(history, params, options, checkpoint_dir=folder, on_epoch=lambda metrics: seen.append(metrics.epoch))

    assert seen == [1, 2]


def test_texts_encoded_on_one_machine_are_not_encoded_on_another(on_machine: Callable[[str], Path]) -> None:
    items = pd.DataFrame({"item_id": ["a", "b"], "title": ["Snow", "A heist"]})

    counts = [
        embed_items(items, HashEncoder(), EmbeddingCache(on_machine(name) / "artifacts" / "text_vectors"))[1]
        for name in ("one", "other")
    ]

    assert [(count.n_encoded, count.n_reused) for count in counts] == [(2, 0), (0, 2)]


def test_refused_rows_and_the_forgotten_are_on_the_storage_too(on_machine: Callable[[str], Path], url: str) -> None:
    refused = pd.DataFrame({"row_number": [3], "reason": ["no user"], "user_id": [""]})
    write_quarantine(on_machine("one") / "quarantine" / "run1", "interactions", Table((refused,)), {"n_rows_in": 9})
    assert RemoteFolder(url).names("quarantine/run1/interactions") == ["no-user.jsonl", "report.json"]

    suppression._write(on_machine("one") / "generations", ["0" * 32])
    assert suppression.suppressed_on_disk(on_machine("other") / "generations") == {"0" * 32}
