"""Artefacts, the event log and inputs on object storage: a real S3 server, and a folder where there is none."""

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pytest

from rec_pipeline.engine.artifacts import CURRENT, MANIFEST, VERSIONS_KEPT
from rec_pipeline.engine.data import event_log
from rec_pipeline.engine.data.event_log import EVENT_SCHEMA
from rec_pipeline.engine.data.remote_event_log import RemoteEventLog, open_event_log
from rec_pipeline.engine.data.source import SourceParams, open_source
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError, InputRejectedError
from rec_pipeline.engine.remote import RemoteArtifactStore, RemoteFolder, open_store
from rec_pipeline_tests.fixtures.s3 import SECRET, bucket, s3_server

__all__ = ["bucket", "s3_server"]


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/rec"
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
