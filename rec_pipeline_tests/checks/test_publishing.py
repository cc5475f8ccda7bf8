"""Each check of what goes live fails for what it is there to find."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import redis

from rec_pipeline.checks import publishing
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.recommenders.list_schema import LIST_SCHEMA, POPULAR_USER_ID
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.forgetting import forget
from rec_pipeline.engine.store.generation import Generation, GenerationWriter
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.redis_store import URL_VARIABLE, RedisStore
from rec_pipeline_tests.fixtures.store import make_lists, seal_lists

USERS = ["u1", "u2", "u3"]


@pytest.fixture
def generation(tmp_path: Path) -> Generation:
    """Lists of the items a-0, a-1 and a-2."""
    return seal_lists(tmp_path / "generations", USERS, "a")


@pytest.fixture
def redis_store(store: "redis.Redis", store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RedisStore:
    assert store.dbsize() == 0
    monkeypatch.setenv(URL_VARIABLE, store_url)
    return RedisStore(
        url_variable=URL_VARIABLE, embedded_dir=str(tmp_path / "none"), generations_dir=str(tmp_path / "generations")
    )


def validated(table: pd.DataFrame) -> ValidatedTable:
    return ValidatedTable(Table((table,)), Table((pd.DataFrame({"row_number": [], "reason": []}),)), len(table), 0)


def interactions(item_id: str) -> ValidatedTable:
    return validated(pd.DataFrame({"user_id": ["u2"], "item_id": [item_id]}))


def test_a_seen_item_in_a_list_is_refused(generation: Generation, tmp_path: Path) -> None:
    artifacts = Artifacts(root=str(tmp_path / "artifacts"))

    assert publishing.no_seen_item_is_recommended(generation, interactions("other"), artifacts=artifacts).passed
    assert not publishing.no_seen_item_is_recommended(generation, interactions("a-1"), artifacts=artifacts).passed


@pytest.mark.parametrize(
    "catalogue",
    [
        {"item_id": ["a-0", "a-1"], "available": [True, True]},
        {"item_id": ["a-0", "a-1", "a-2"], "available": [True, True, False]},
    ],
)
def test_an_item_that_is_gone_or_unavailable_is_refused(
    generation: Generation, catalogue: dict[str, list[object]]
) -> None:
    complete = pd.DataFrame({"item_id": ["a-0", "a-1", "a-2"], "available": [True] * 3})

    assert publishing.no_unavailable_item_is_recommended(generation, validated(complete)).passed
    assert not publishing.no_unavailable_item_is_recommended(generation, validated(pd.DataFrame(catalogue))).passed


def test_lists_that_are_mostly_popular_are_noticed(tmp_path: Path, generation: Generation) -> None:
    lists = make_lists(USERS, "b")
    position = LIST_SCHEMA.get_field_index("origin")
    mostly_popular = lists.set_column(position, "origin", pa.array(["popular", "popular", "personal"]))
    with GenerationWriter(tmp_path / "popular") as writer:
        writer.add(mostly_popular)
        impersonal = writer.seal({}, popular=make_lists([POPULAR_USER_ID], "b"))

    assert publishing.most_lists_are_personal(generation).passed
    assert not publishing.most_lists_are_personal(impersonal).passed


def test_a_store_that_serves_something_else_is_noticed(
    generation: Generation, redis_store: RedisStore, store: "redis.Redis"
) -> None:
    publish(store, generation)
    as_sealed = [
        publishing.the_live_generation_is_the_sealed_one(generation, redis_store).passed,
        publishing.lists_read_back_as_sealed(generation, redis_store).passed,
    ]

    forget(store, redis_store.generations, "u3")
    as_sealed.append(publishing.lists_read_back_as_sealed(generation, redis_store).passed)
    store.delete(keys.live_key("u2"))
    n_equal = publishing.lists_read_back_as_sealed(generation, redis_store).metadata["n_equal"].value
    publish(store, seal_lists(generation.directory.parent, USERS, "b"))

    assert as_sealed == [True, True, True]
    assert n_equal == 1
    assert not publishing.the_live_generation_is_the_sealed_one(generation, redis_store).passed
    assert not publishing.lists_read_back_as_sealed(generation, redis_store).passed
