import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec_pipeline.engine.artifacts import (
    MANIFEST,
    VERSIONS_KEPT,
    ArtifactStore,
    read_array,
    read_json,
    read_table,
    seal_directory,
    use_signer,
    verify_directory,
    write_array,
    write_atomically,
    write_json,
    write_table,
)
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError, StorageFullError
from rec_pipeline.engine.signing import Signer, read_signer


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

    with pytest.raises(StorageFullError, match=r"4 bytes of 'items' were written, .*No space"):
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


def test_s13_files_are_closed_to_others_and_a_closed_one_stays_closed(store: ArtifactStore) -> None:
    def save(directory: Path) -> None:
        (directory / "part").mkdir()
        for name, mode in (("part/open", 0o666), ("closed", 0o600)):
            (directory / name).write_text(name)
            (directory / name).chmod(mode)

    store.write("items", save, kind="Text")

    directory = store.path("items")
    modes = {path.name: path.stat().st_mode & 0o777 for path in [directory, *directory.rglob("*")]}
    expected = {directory.name: 0o750, "part": 0o750, "open": 0o640, "closed": 0o600, MANIFEST: 0o640}
    assert modes == expected
    assert (store.root / "items" / "current").stat().st_mode & 0o777 == 0o640


def test_a_file_that_the_manifest_does_not_name_is_refused(store: ArtifactStore) -> None:
    store.write("items", writer("one"), kind="Text")
    (store.path("items") / "profile.json").write_text("{}")

    with pytest.raises(ArtifactIntegrityError, match=r"profile\.json is not named in its manifest"):
        store.path("items")


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname"])
def test_s13_a_manifest_cannot_lead_out_of_its_directory(store: ArtifactStore, name: str) -> None:
    store.write("items", writer("one"), kind="Text")
    path = store.path("items") / MANIFEST
    path.write_text(path.read_text().replace("a.txt", name))

    with pytest.raises(ArtifactIntegrityError, match="leads out of its directory"):
        store.path("items")


@pytest.fixture
def signed() -> Iterator[Callable[[Signer], None]]:
    yield use_signer
    use_signer(Signer())


def test_s03_a_changed_file_with_a_matching_manifest_is_refused_where_manifests_are_signed(
    store: ArtifactStore, signed: Callable[[Signer], None]
) -> None:
    def tamper() -> None:
        """What somebody with write access but without the key can do: seal another content in its place."""
        signed(Signer())
        store.write("items", writer("evil"), kind="Text")

    signed(Signer(b"k" * 32))
    store.write("items", writer("one"), kind="Text")
    assert store.manifest("items").kind == "Text"
    tamper()

    signed(Signer(b"k" * 32, required=True))
    with pytest.raises(ArtifactIntegrityError, match="is not signed, which is required here"):
        store.path("items")
    signed(Signer(b"K" * 32))
    store.write("items", writer("evil too"), kind="Text")
    signed(Signer(b"k" * 32))
    with pytest.raises(ArtifactIntegrityError, match="not signed by this installation's key, or was changed"):
        store.path("items")


def test_s03_an_edited_manifest_is_refused_where_it_is_signed(
    store: ArtifactStore, signed: Callable[[Signer], None]
) -> None:
    signed(Signer(b"k" * 32))
    store.write("items", writer("one"), kind="Text", metadata={"gate": "refused"})
    path = store.path("items") / MANIFEST
    path.write_text(path.read_text().replace("refused", "passed"))

    with pytest.raises(ArtifactIntegrityError, match="or was changed"):
        store.path("items")


def test_s13_a_signing_key_must_be_secret_and_long(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="5 bytes, expected at least 32: openssl rand"):
        read_signer(path, required=False)
    path.write_text("s3cr3t" * 8)
    assert read_signer(path, required=True).sign(b"x")
    assert "s3cr3t" not in repr(read_signer(path, required=True))
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="open to others: chmod 600"):
        read_signer(path, required=False)
    with pytest.raises(ConfigurationError, match="names no key"):
        read_signer(None, required=True)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        read_signer(tmp_path / "absent", required=False)


def test_too_little_room_for_the_next_version_is_told_before_anything_is_written(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("items", writer("one"), kind="Text")
    monkeypatch.setattr("rec_pipeline.engine.artifacts.SPACE_FACTOR", 10**18)

    with pytest.raises(StorageFullError, match=r"bytes free, 'items' needs about 3000000000000000000"):
        store.write("items", writer("two"), kind="Text")

    assert (store.path("items") / "a.txt").read_text() == "one"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
members = st.sampled_from(["kind", "version", "files", "metadata", "signature", "extra"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.dictionaries(members, json_values, max_size=6).map(json.dumps))
def test_whatever_stands_in_place_of_a_manifest_is_refused_in_one_way(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content.encode() if isinstance(content, str) else content)

    try:
        files = verify_directory(tmp_path).files
    except ArtifactIntegrityError:
        return
    assert files == {}  # a manifest of nothing, by chance


def test_a_manifest_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("[" * 100_000)

    with pytest.raises(ArtifactIntegrityError, match="not a manifest"):
        verify_directory(tmp_path)
