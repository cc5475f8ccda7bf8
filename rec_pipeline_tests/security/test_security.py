"""
Security requirements of which no other test is nearer to the code.

Also: S03 ``engine/test_artifacts.py``, S04 ``engine/embeddings/test_encoder.py``, S06 ``test_secrets.py``, S07 and S10
``test_ui.py``, S08 ``test_access.py``, S11 ``serving/test_http.py``, S12 ``test_fuzz.py``, S16
``test_docs_operations.py``.
"""

import ast
import os
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version
from redis.crc import key_slot

from rec_pipeline.engine.artifacts import ArtifactStore, read_array, read_json, read_table, write_table
from rec_pipeline.engine.data.ids import is_valid_id
from rec_pipeline.engine.errors import ArtifactIntegrityError, InvalidIdError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.doctor import server_findings
from rec_pipeline.engine.store.server import StoreFacts
from rec_pipeline_tests.fixtures.project import REPOSITORY, SampleRun
from rec_pipeline_tests.fixtures.waiting import LONG
from rec_pipeline_tests.security.load_everything import Canary

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
        timeout=LONG,
    )


def test_s01_no_load_path_unpickles(tmp_path: Path) -> None:
    done = load_everything(tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "9 kinds loaded, nothing unpickled\n"


def test_s01_nothing_that_a_run_makes_is_unpickled_when_it_is_loaded(sample_project: SampleRun) -> None:
    made = sample_project.project.folder / "data" / "artifacts"
    keys_made = {path.parent.name for path in made.glob("*/current")}

    done = load_everything(made, "--made")

    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == keys_made
    assert {"serving_bundle", "interaction_split", "evaluation_report", "recommendations", "ncf_model"} <= keys_made


def test_s01_the_watch_sees_an_array_of_objects(tmp_path: Path) -> None:
    done = load_everything(tmp_path, "--teeth")

    assert done.returncode == 66
    assert "unpickled" in done.stderr
    assert not (tmp_path / "canary").exists()


def test_s01_planted_files_are_refused_and_run_nothing(tmp_path: Path) -> None:
    store, canary = ArtifactStore(tmp_path / "artifacts"), tmp_path / "canary"
    store.write("table", lambda folder: write_table(folder / "table.parquet", pd.DataFrame({"a": [1]})), kind="Table")
    folder, hostile = store.path("table"), pickle.dumps(Canary(canary))

    for name in ("weights.pt", "model.pkl", "MLmodel", "modules.json"):
        (folder / name).write_bytes(hostile)
        with pytest.raises(ArtifactIntegrityError, match="is not named in its manifest"):
            store.path("table")
        (folder / name).unlink()
    for name in ("table.parquet", "table.npy", "table.json"):
        (tmp_path / name).write_bytes(hostile)
    for read, name in ((read_table, "table.parquet"), (read_array, "table.npy"), (read_json, "table.json")):
        with pytest.raises((ValueError, OSError)):
            read(tmp_path / name)
    assert not canary.exists()
    pickle.loads(hostile)  # noqa: S301 - the twin: unpickled, the canary would be there
    assert canary.is_dir()


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


def texts_of_the_package() -> dict[str, str]:
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in (REPOSITORY / "rec_pipeline").rglob("*.py")}


def test_s05_no_pattern_is_ever_made_of_an_id() -> None:
    for name, text in texts_of_the_package().items():
        assert not re.search(r"\.(scan|scan_iter|keys)\([^)]*match|\bSCAN\b|'KEYS'", text), name


@pytest.mark.parametrize(
    ("name", "version", "is_safe"),
    [
        ("redis", "6.2.19", False), ("redis", "6.2.20", True), ("redis", "7.0.15", False), ("redis", "7.2.10", False),
        ("redis", "7.2.11", True), ("redis", "7.4.6", True), ("redis", "8.0.3", False), ("redis", "8.2.2", True),
        ("redis", "8.4.0", True), ("valkey", "8.0.5", False), ("valkey", "8.1.4", True), ("valkey", "9.1.2", True),
    ],
)  # fmt: skip
def test_s09_the_doctor_knows_the_servers_whose_scripts_are_a_way_in(
    store: "redis.Redis", name: str, version: str, is_safe: bool
) -> None:
    facts = replace(StoreFacts.ask(store).servers[0], name=name, version=version)

    findings = {finding.name: finding for finding in server_findings(facts)}

    assert findings["version"].level == ("ok" if is_safe else "warn")
    assert ("CVE-2025-49844" in findings["version"].message) != is_safe


def test_s09_scripts_are_constants_and_ids_only_their_arguments() -> None:
    calls = {"eval", "register_script", "script_load"}
    for name, text in texts_of_the_package().items():
        for node in ast.walk(ast.parse(text)):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr in calls and node.args:
                given = node.args[0]
                stem = given.attr if isinstance(given, ast.Attribute) else getattr(given, "id", "")
                assert stem.isupper() or stem == "script", f"{name}:{node.lineno} makes a script"


def test_s10_no_model_is_loaded_from_mlflow_and_its_guard_is_never_switched_off() -> None:
    for name, text in texts_of_the_package().items():
        called = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        assert "SECURITY_MIDDLEWARE" not in text, name
        assert not [node for node in called if isinstance(node, ast.Attribute) and node.attr == "load_model"], name


def test_s13_nothing_that_a_run_makes_is_open_to_others(sample_project: SampleRun) -> None:
    data = sample_project.project.folder / "data"
    open_to_others = {path.name for path in data.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o007}

    assert open_to_others - {"valkey.sock", "appendonlydir"} <= {"pyfunc_model.py"}  # the project's own code, a copy
    quarantine = [path for path in data.rglob("*") if path.parent.name == "quarantine" and path.is_file()]
    assert quarantine
    assert not [path for path in quarantine if path.stat().st_mode & 0o077]


def test_s14_every_version_is_pinned() -> None:
    pins = (REPOSITORY / ".ci" / "constraints.txt").read_text().split()

    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.+!-]+", pin)] == []


def test_s14_the_files_that_may_be_installed_are_those_of_the_pinned_versions() -> None:
    pins = (REPOSITORY / ".ci" / "constraints.txt").read_text().split()
    hashed = (REPOSITORY / ".ci" / "hashes.txt").read_text().splitlines()

    found = [re.fullmatch(r"([\w.-]+==[\w.!-]+)(?:\+cpu)? --hash=sha256:[0-9a-f]{64}", line) for line in hashed]
    versions = [match.group(1) for match in found if match is not None]

    assert len(versions) == len(hashed)
    assert [version for version in versions if not version.startswith("setuptools==")] == pins


KNOWN = "echo jinja2 2.4.1 PYSEC-2014-8; exit 1"


@pytest.mark.parametrize(
    ("found", "code", "message"),
    [
        (f"case $* in *known_bad*) {KNOWN};; *) echo no holes;; esac", 0, "no holes"),
        (KNOWN, 2, "PYSEC-2014-8"),
        ("echo no holes", 2, "not audited: the advisories cannot be reached"),
        ("exit 1", 2, "not audited: the advisories cannot be reached"),
    ],
    ids=["no holes", "a hole", "no advisories", "no network"],
)
def test_s14_an_audit_that_could_not_look_anything_up_has_not_passed(
    tmp_path: Path, found: str, code: int, message: str
) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / ".ci", tmp_path / ".ci")
    tools = tmp_path / ".venv" / "audit" / "bin"
    tools.mkdir(parents=True)
    for tool, script in (("pip", "exit 0"), ("pip-audit", found)):
        (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
        (tools / tool).chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()

    command = [shutil.which("make") or "make", "audit", "PYTHON=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603 - our own

    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr


def test_s15_users_are_in_no_log_and_mlflow_knows_them_from_the_model_alone(sample_project: SampleRun) -> None:
    data = sample_project.project.folder / "data"
    user = re.compile(rb"\bu\d{4,5}\b")

    assert not user.search(sample_project.stderr.encode())
    assert [path.name for path in (data / "dagster").rglob("*.out") if user.search(path.read_bytes())] == []
    assert [path.name for path in (data / "dagster").rglob("*.err") if user.search(path.read_bytes())] == []
    known = {path.name for path in (data / "mlflow").rglob("*") if path.is_file() and user.search(path.read_bytes())}
    assert known <= {"ids.parquet", "input_example.json", "serving_input_example.json"}
    assert "ids.parquet" in known
