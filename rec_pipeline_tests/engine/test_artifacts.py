import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.artifacts import (
    MANIFEST,
    VERSIONS_KEPT,
    ArtifactStore,
    read_array,
    read_json,
    read_table,
    seal_directory,
    verify_directory,
    write_array,
    write_atomically,
    write_json,
    write_table,
)
from rec_pipeline.engine.errors import ArtifactIntegrityError


def writer(text: str):  # noqa: ANN201 - a local closure
    return lambda directory: (directory / "a.txt").write_text(text)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_what_was_written_is_read_back_verified(store: ArtifactStore) -> None:
    manifest = store.write("items", writer("one"), kind="Text", metadata={"run": "r1"})

    directory = store.path("items")

    assert (directory / "a.txt").read_text() == "one"
    assert manifest.n_bytes == 3
    assert store.manifest("items").metadata == {"run": "r1"}


def test_equal_content_has_an_equal_version_and_new_metadata(store: ArtifactStore) -> None:
    first = store.write("items", writer("one"), kind="Text", metadata={"run": "r1"})
    second = store.write("items", writer("one"), kind="Text", metadata={"run": "r2"})

    assert first.version == second.version
    assert store.manifest("items").metadata == {"run": "r2"}


def test_another_kind_with_the_same_bytes_is_another_version(store: ArtifactStore) -> None:
    assert store.write("a", writer("one"), kind="A").version != store.write("a", writer("one"), kind="B").version


def test_an_older_version_stays_readable_until_enough_newer_ones_exist(store: ArtifactStore) -> None:
    first = store.write("items", writer("0"), kind="Text")
    for number in range(1, VERSIONS_KEPT):
        store.write("items", writer(str(number)), kind="Text")
    assert (store.path("items", first.version) / "a.txt").read_text() == "0"

    store.write("items", writer("last"), kind="Text")

    with pytest.raises(ArtifactIntegrityError, match="no sealed artefact"):
        store.path("items", first.version)


def test_a_key_never_written_says_what_to_do(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactIntegrityError, match="materialise 'items' first"):
        store.path("items")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("onX"),
        lambda path: path.write_text("on"),
        lambda path: path.unlink(),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_a_damaged_file_is_refused_before_anyone_parses_it(store: ArtifactStore, damage) -> None:  # noqa: ANN001
    store.write("items", writer("one"), kind="Text")
    damage(store.path("items") / "a.txt")

    with pytest.raises(ArtifactIntegrityError, match="manifest"):
        store.path("items")


def test_a_damaged_version_is_replaced_by_a_new_write_of_the_same_content(store: ArtifactStore) -> None:
    store.write("items", writer("one"), kind="Text")
    (store.path("items") / "a.txt").write_text("onX")

    store.write("items", writer("one"), kind="Text")

    assert (store.path("items") / "a.txt").read_text() == "one"


def test_a_writer_that_fails_leaves_the_current_version_and_no_litter(store: ArtifactStore) -> None:
    store.write("items", writer("one"), kind="Text")

    def fails(directory: Path) -> None:
        (directory / "a.txt").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.write("items", fails, kind="Text")

    assert (store.path("items") / "a.txt").read_text() == "one"
    assert not list((store.root / "items").glob(".writing-*"))


def test_a_writer_killed_half_way_leaves_the_current_version(store: ArtifactStore) -> None:
    store.write("items", writer("one"), kind="Text")
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from rec_pipeline.engine.artifacts import ArtifactStore
        def save(directory):
            (directory / "a.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        ArtifactStore(Path({str(store.root)!r})).write("items", save, kind="Text")
        """
    )

    killed = subprocess.run([sys.executable, "-c", script], check=False)  # noqa: S603 - our own interpreter

    assert killed.returncode == -signal.SIGKILL
    assert (store.path("items") / "a.txt").read_text() == "one"


def test_an_empty_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactIntegrityError, match="holds no files"):
        seal_directory(tmp_path, "Nothing")


def test_something_else_in_place_of_a_manifest_is_refused(tmp_path: Path) -> None:
    for content in ("[]", "{", json.dumps({"kind": "x"})):
        (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(ArtifactIntegrityError, match="not a manifest"):
            verify_directory(tmp_path)


def test_a_manifest_of_a_part_is_content_of_the_whole(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "a").write_text("a")
    seal_directory(part, "Part")

    manifest = seal_directory(tmp_path, "Whole")

    assert set(manifest.files) == {"part/a", f"part/{MANIFEST}"}


def test_tables_arrays_and_json_come_back_as_they_were(tmp_path: Path) -> None:
    table = pd.DataFrame({"item_id": ["007", "7", "NA", "ünïcödé 🎬"], "weight": np.float32([1, 2, 3, 4])})
    array = np.arange(6, dtype=np.float32).reshape(2, 3)

    write_table(tmp_path / "t.parquet", table)
    write_array(tmp_path / "a.npy", array)
    write_json(tmp_path / "j.json", {"a": [1, None]})

    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), table)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), array)
    assert read_json(tmp_path / "j.json") == {"a": [1, None]}


def test_objects_and_nan_are_refused_at_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        write_array(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "j.json", {"a": float("nan")})


def test_an_atomic_write_that_cannot_finish_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "keep").write_text("x")

    with pytest.raises(OSError, match="folder"):
        write_atomically(target, "content")

    assert os.listdir(tmp_path) == ["folder"]  # noqa: PTH208 - names are what is compared
