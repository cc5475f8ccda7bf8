"""Fixtures shared by every test."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from rec_pipeline_tests.fixtures.project import project, sample_project
from rec_pipeline_tests.fixtures.store import own_store, store, store_url

__all__ = ["own_store", "project", "sample_project", "store", "store_url"]

# The same examples every time, however busy the machine.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

PROJECT_ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Put files with slow tests first, and those last that only look at the sample's run.

    Files are dealt to the processes in this order: none is left alone with a long one at the end, or waits for the run.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def place(file: Path) -> int:
        if all("sample_project" in getattr(item, "fixturenames", ()) for item in files[file]):
            return 2
        return 0 if any(item.get_closest_marker("slow") for item in files[file]) else 1

    items[:] = [item for file in sorted(files, key=place) for item in files[file]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240210)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the folder of a real data set, or skip the test saying where it was looked for."""
    root = Path(os.environ.get("REC_TEST_DATA", PROJECT_ROOT.parent / "shared" / "data"))

    def folder(name: str) -> Path:
        path = root / name
        if not path.is_dir():
            pytest.skip(f"real data set {name!r} is not at {path} (set REC_TEST_DATA to its parent folder)")
        return path

    return folder
