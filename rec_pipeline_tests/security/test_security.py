"""Security requirements S01, S02 and S05: nothing is unpickled, no known hole is installed, no id leaves its key."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version
from redis.crc import key_slot

from rec_pipeline.engine.data.ids import is_valid_id
from rec_pipeline.engine.errors import InvalidIdError
from rec_pipeline.engine.store import keys
from rec_pipeline_tests.fixtures.project import REPOSITORY

# The lowest version without a known way in, and that way.
FLOORS = {
    "torch": ("2.10", "CVE-2026-24747: memory corruption although weights_only"),
    "faiss-cpu": ("1.15", "memory corruption while reading index files"),
    "sentence-transformers": ("6.0", "trust_remote_code=False ignored for local folders"),
    "redis": ("5", "one caller answered with another caller's value"),
    "mlflow": ("3.10", "CVE-2026-2614 and the path traversals before it"),
}


def load_everything(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "rec_pipeline_tests.security.load_everything", str(folder), *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_s01_no_load_path_unpickles(tmp_path: Path) -> None:
    done = load_everything(tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "9 kinds loaded, nothing unpickled\n"


def test_s01_the_watch_sees_an_array_of_objects(tmp_path: Path) -> None:
    done = load_everything(tmp_path, "--teeth")

    assert done.returncode == 66
    assert "unpickled" in done.stderr
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("package", FLOORS)
def test_s02_what_is_asked_for_and_installed_is_above_the_known_holes(package: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = {entry.name: entry for entry in map(Requirement, project["dependencies"])}
    (floor,) = [clause.version for clause in required[package].specifier if clause.operator in (">=", "==")]

    assert Version(floor) >= Version(FLOORS[package][0]), FLOORS[package][1]
    assert Version(version(package)) >= Version(floor)


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ["*", "a:b", "x?[y]", "../../etc", "recommendations:u", ":", "u\r", "meta:current", "{a}", "a}b{"]
)


@given(ids, ids)
def test_s05_two_users_never_share_a_key_and_no_user_has_a_key_of_another_kind(first: str, second: str) -> None:
    own = {getattr(keys, name) for name in ("CURRENT", "LOCK", "JOB", "HISTORY", "PIN", "POPULAR", "LAST_GENERATION")}
    made = {}
    for user_id in {first, second}:
        if not is_valid_id(user_id):
            with pytest.raises(InvalidIdError):
                keys.live_key(user_id)
            continue
        live, stage, events = keys.live_key(user_id), keys.stage_key(user_id, 7), keys.events_key(user_id)
        assert key_slot(live.encode()) == key_slot(stage.encode())
        for key in (live, stage, events):
            assert key not in own
            assert made.setdefault(key, user_id) == user_id
            assert not set(key) & set("\r\n\0")
