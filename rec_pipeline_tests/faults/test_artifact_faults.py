"""Faults of artefacts: no room (F24), damaged indexes (F26), parts of two bundles (F22)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rec_pipeline.engine.artifacts import ArtifactStore, read_manifest
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.engine.index.vector_index import IndexParams, VectorIndex, build_index

REPOSITORY = Path(__file__).parents[2]
N_MUTATIONS = int(os.environ.get("REC_TEST_MUTATIONS", "340"))  # of each of three types
FULL_DISK = """
import os, sys
from pathlib import Path
from rec_pipeline.engine.artifacts import ArtifactStore, read_manifest
from rec_pipeline.engine.errors import StorageFullError
store = ArtifactStore(Path(sys.argv[1]) / "artifacts")
first = store.write("key", lambda folder: (folder / "a").write_bytes(b"x" * 8000), kind="K")
try:
    store.write("key", lambda folder: (folder / "a").write_bytes(b"x" * 200_000), kind="K")
except StorageFullError as error:
    print(error)
assert store.path("key").name == first.version
assert sorted(os.listdir(store.root / "key")) == sorted([first.version, "current"])
"""


def in_child(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", f"rec_pipeline_tests.fixtures.{module}", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_f24_no_file_short_of_up_to_8_kb_is_taken_for_whole(tmp_path: Path) -> None:
    done = in_child("short_of_space", str(tmp_path), os.environ.get("REC_TEST_SHORTFALL_STEP", "16"))

    assert done.returncode == 0, done.stderr
    for library in ("faiss", "numpy"):  # the guards have something to guard against
        assert f"unnoticed by {library}'s own writer" in done.stdout


def test_f24_a_full_disk_leaves_the_current_artefact(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=64k none $1 && exec $2 -c "$3" $1'
    own_mounts = ["unshare", "-Urm", "sh", "-c"]
    if subprocess.run([*own_mounts, "true"], check=False, capture_output=True).returncode != 0:  # noqa: S603
        pytest.skip("users may not mount a disk of their own here; the sweep above does not need one")

    done = subprocess.run(  # noqa: S603 - system tools and our own interpreter
        [*own_mounts, script, "sh", str(tmp_path), sys.executable, FULL_DISK],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "is full" in done.stdout
    assert "what was current stays current" in done.stdout


def test_f26_a_damaged_index_is_refused_before_faiss_parses_it(tmp_path: Path) -> None:
    done = in_child("mutated_indexes", str(tmp_path), str(N_MUTATIONS), "verified")

    assert done.returncode == 0, done.stderr  # a crash would be a negative signal number
    counts = json.loads(done.stdout)
    assert counts["refused"] > 0.95 * 3 * N_MUTATIONS  # some overwrite a byte with itself
    assert counts["refused"] + counts.get("unchanged", 0) == 3 * N_MUTATIONS


def test_f26_without_the_digests_faiss_takes_damaged_indexes_for_sound_or_crashes(tmp_path: Path) -> None:
    done = in_child("mutated_indexes", str(tmp_path), "100", "unverified")

    assert done.returncode < 0 or json.loads(done.stdout)["accepted"] > 30


def index_of(scale: float) -> VectorIndex:
    vectors = scale * np.eye(8, dtype=np.float32)
    ids = IdMap(np.array([f"i{row}" for row in range(8)], dtype=object))
    return build_index(ItemEmbeddings(ids, vectors, np.ones(8, dtype=bool), "s"), IndexParams())


def parts_are_mixed(root: Path) -> None:
    store = ArtifactStore(root)
    store.write("bundle", index_of(1).save, kind="Bundle")
    loaded, old = VectorIndex.load(store.path("bundle")), store.path("bundle")
    store.write("bundle", index_of(2).save, kind="Bundle")

    (store.path("bundle") / "index.faiss").write_bytes((old / "index.faiss").read_bytes())

    with pytest.raises(ArtifactIntegrityError, match=r"index\.faiss does not match its manifest") as refused:
        store.path("bundle")
    assert refused.value.exit_code == 5
    assert loaded.search(np.eye(8, dtype=np.float32)[:1], 1).item_idx.tolist() == [[0]]
    assert store.path("bundle", old.name) == old


def test_f22_parts_of_two_versions_are_refused_and_the_loaded_one_keeps_answering(tmp_path: Path) -> None:
    parts_are_mixed(tmp_path)


def test_f22_without_the_digests_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_pipeline.engine.artifacts.verify_directory", read_manifest)

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        parts_are_mixed(tmp_path)
