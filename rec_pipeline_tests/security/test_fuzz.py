"""S12: hostile bytes get the documented errors; `make fuzz` looks for longer and leaves what it finds in `corpus`."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_pipeline.engine.errors import RecPipelineError
from rec_pipeline_tests.security import fuzz
from rec_pipeline_tests.security.fuzz import CORPUS, TARGETS, Target, corpus_of, explore, feed, mutated

SLOW = {"csv", "tsv", "gzip", "parquet", "entry", "event"}


@pytest.mark.parametrize("name", TARGETS)
def test_s12_the_seeds_are_taken_and_what_failed_once_fails_no_more(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].feed(seed)
    for data in corpus_of(name):
        feed(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_s12_hostile_bytes_get_the_documented_errors(name: str) -> None:
    inputs = corpus_of(name)

    @settings(max_examples=10 if name in SLOW else 60)
    @given(st.binary(max_size=200) | st.integers().map(lambda seed: changed(seed, inputs)))
    def one(data: bytes) -> None:
        feed(name, data)

    one()


def changed(seed: int, inputs: list[bytes]) -> bytes:
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    return mutated(rng.choice(inputs), rng, inputs)


def test_s12_every_folder_of_the_corpus_is_of_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= TARGETS.keys()


def test_s12_what_fails_becomes_a_file_that_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError("not documented")

    monkeypatch.setattr(fuzz, "CORPUS", tmp_path)
    monkeypatch.setitem(TARGETS, "fragile", Target(fragile, RecPipelineError, (b"sound",)))

    n_fed, failures = explore("fragile", 0.3, random.Random(3))  # noqa: S311 - repeatable, not secret

    assert n_fed > 1
    assert len(failures) == 1
    (path,) = (tmp_path / "fragile").iterdir()
    with pytest.raises(KeyError):
        feed("fragile", path.read_bytes())
    assert corpus_of("fragile") == [b"sound", path.read_bytes()]


def test_s12_the_command_says_what_it_fed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rec_pipeline_tests.security.fuzz", "--minutes", "0.005", "--target", "id"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
    assert "0 failures" in done.stdout
