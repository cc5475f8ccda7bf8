"""A project folder's worth of what serving reads: a sealed bundle, a published generation, a real store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.lists import popular_list, recommend_all
from rec_pipeline.engine.store.generation import Generation, GenerationWriter
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.settings import settings
from rec_pipeline_tests.engine.recommenders.conftest import bundle
from rec_pipeline_tests.fixtures.store import be_patient
from rec_pipeline_tests.fixtures.waiting import LONG

__all__ = ["bundle"]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The store is waited for, however busy the machine is; called, for as many seconds and no longer."""
    be_patient(monkeypatch)
    return lambda seconds: be_patient(monkeypatch, seconds)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder that the settings of this process point to."""
    monkeypatch.setenv("REC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("REC_REDIS_URL", raising=False)
    settings.cache_clear()
    yield tmp_path / "data"
    settings.cache_clear()


@pytest.fixture
def sealed(bundle: ServingBundle, data_dir: Path) -> ServingBundle:
    """The planted bundle as the project's current one."""
    ArtifactStore(data_dir / "artifacts").write("serving_bundle", bundle.save, kind="ServingBundle")
    return bundle


@pytest.fixture
def publish_lists(sealed: ServingBundle, data_dir: Path, store: "redis.Redis") -> Callable[[], Generation]:
    """Publish what the bundle recommends as one more generation."""

    def make() -> Generation:
        version = ArtifactStore(data_dir / "artifacts").manifest("serving_bundle").version
        with GenerationWriter(data_dir / "generations") as writer:
            for lists in recommend_all(sealed, top_k=20):
                writer.add(lists)
            generation = writer.seal({"bundle": version}, popular=popular_list(sealed, top_k=20))
        publish(store, generation)
        return generation

    return make


@pytest.fixture
def config(store_url: str) -> dict[str, Any]:
    """Configuration of a recommender on the session's store, whose sources are waited for."""
    return {"rt_config": {"redis_url": store_url}, "source_budget": LONG}
