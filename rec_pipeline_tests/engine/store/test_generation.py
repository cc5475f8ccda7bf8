import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from rec_pipeline.engine.artifacts import MANIFEST
from rec_pipeline.engine.errors import ArtifactIntegrityError, GateRefusedError
from rec_pipeline.engine.pseudonyms import pseudonym
from rec_pipeline.engine.recommenders.list_schema import POPULAR_USER_ID
from rec_pipeline.engine.store.generation import (
    LIST_SCHEMA,
    Generation,
    GenerationWriter,
    check_lists,
    delete_old_generations,
    find_generation,
    list_generations,
    renumber,
)
from rec_pipeline_tests.fixtures.store import make_lists, seal_lists

USERS = [f"u{number}" for number in range(10)]


def popular() -> pa.RecordBatch:
    return make_lists([POPULAR_USER_ID], "p")


def test_what_is_sealed_is_read_back(tmp_path: Path) -> None:
    generation = seal_lists(tmp_path, USERS, "a", rows_per_group=4)

    rows = [row for batch in generation.iterate(batch_size=3) for row in batch.to_pylist()]

    assert rows == make_lists(USERS, "a").to_pylist()
    assert (generation.number, generation.n_users, generation.n_items, generation.n_popular_users) == (1, 10, 3, 0)
    assert generation.metadata["tag"] == "a"
    assert generation.popular().to_pylist() == make_lists([""], "a").to_pylist()


def test_batches_are_never_larger_than_asked(tmp_path: Path) -> None:
    generation = seal_lists(tmp_path, USERS, "a", rows_per_group=4)

    assert [len(batch) for batch in generation.iterate(batch_size=3)] == [3, 1, 3, 1, 2]


def test_a_frame_is_accepted(tmp_path: Path) -> None:
    frame = pd.DataFrame(make_lists(USERS, "a").to_pylist())

    with GenerationWriter(tmp_path) as writer:
        writer.add(frame)
        generation = writer.seal({}, popular=popular())

    assert next(iter(generation.iterate())).to_pylist() == make_lists(USERS, "a").to_pylist()


def test_a_user_can_be_looked_up(tmp_path: Path) -> None:
    generation = seal_lists(tmp_path, USERS, "a", rows_per_group=4)

    assert generation.find("u7") == make_lists(["u7"], "a").to_pylist()[0]
    assert generation.find("nobody") is None


def break_list(**changes: Any) -> pa.RecordBatch:
    rows = make_lists(["fine", "broken"], "a").to_pylist()
    rows[1] |= changes
    return pa.RecordBatch.from_pylist(rows, LIST_SCHEMA)


SOURCE = {"name": "s", "rank": 1, "share": 1.0}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"item_id": ["a", "b", "a"]}, "repeat"),
        ({"item_id": ["a", None, "b"]}, "item id is null"),
        ({"item_id": ["a", "b\n", "c"]}, "not an id"),
        ({"item_id": None}, "column is null"),
        ({"item_id": [], "score": [], "sources": [], "reason": []}, "list length"),
        ({"score": [1.0, 0.9]}, "differ in length"),
        ({"score": [1.0, 0.9, float("nan")]}, "not finite"),
        ({"score": [1.0, None, 0.5]}, "not finite"),
        ({"score": [float("inf"), 0.9, 0.8]}, "not finite"),
        ({"score": [0.5, 0.6, 0.4]}, "increase"),
        ({"reason": ["x", None, "y"]}, "reason is null"),
        ({"sources": [[SOURCE], [], [SOURCE]]}, "no source"),
        ({"sources": [[SOURCE], None, [SOURCE]]}, "no source"),
        ({"sources": [[SOURCE], [SOURCE | {"name": None}], [SOURCE]]}, "no name"),
        ({"sources": [[SOURCE], [SOURCE | {"share": float("nan")}], [SOURCE]]}, "finite share"),
        ({"sources": [[SOURCE], [None], [SOURCE]]}, "no name"),
        ({"origin": "elsewhere"}, "origin"),
    ],
)
def test_a_list_that_breaks_a_rule_is_refused_by_name(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(GateRefusedError, match=f"{pseudonym('broken')}.*{rule}.*1 of 2"):
        check_lists(break_list(**changes))


def test_sound_lists_pass_wherever_the_batch_is_cut() -> None:
    check_lists(make_lists(USERS, "a"))
    check_lists(make_lists(USERS, "a").slice(3, 4))


def test_a_rule_broken_outside_the_slice_does_not_count() -> None:
    check_lists(break_list(score=[0.5, 0.6, 0.4]).slice(0, 1))

    with pytest.raises(GateRefusedError, match="1 of 1"):
        check_lists(break_list(score=[0.5, 0.6, 0.4]).slice(1))


@pytest.mark.parametrize("batch_size", [2, 1])
def test_a_user_with_two_lists_is_refused(tmp_path: Path, batch_size: int) -> None:
    with pytest.raises(GateRefusedError, match=pseudonym("twice")):
        seal_lists(tmp_path, ["twice", "twice"], "a", rows_per_group=batch_size)


@pytest.mark.parametrize("user_id", ["", "a\nb", "a{b"])
def test_a_text_that_cannot_be_a_user_id_is_refused(tmp_path: Path, user_id: str) -> None:
    with GenerationWriter(tmp_path) as writer, pytest.raises(GateRefusedError, match="user id"):
        writer.add(make_lists(["fine", user_id], "a"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with GenerationWriter(tmp_path) as writer, pytest.raises(GateRefusedError, match="reason"):
        writer.add(make_lists(USERS, "a").drop_columns(["reason"]))


def test_an_empty_generation_is_refused(tmp_path: Path) -> None:
    with GenerationWriter(tmp_path) as writer:
        writer.add(make_lists([], "a"))
        with pytest.raises(GateRefusedError, match="no users"):
            writer.seal({}, popular=popular())

    assert list_generations(tmp_path) == []


@pytest.mark.parametrize("wrong", [make_lists(["u1"], "p"), make_lists(["", ""], "p")])
def test_the_popular_list_is_one_row_under_no_user(tmp_path: Path, wrong: pa.RecordBatch) -> None:
    with GenerationWriter(tmp_path) as writer:
        writer.add(make_lists(USERS, "a"))
        with pytest.raises(GateRefusedError, match="popular"):
            writer.seal({}, popular=wrong)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GateRefusedError), GenerationWriter(tmp_path) as writer:
        writer.add(pa.concat_batches([make_lists(USERS, "a"), break_list(origin="elsewhere")]))

    assert list(tmp_path.iterdir()) == []


def test_two_writers_never_share_a_number(tmp_path: Path) -> None:
    with GenerationWriter(tmp_path) as first, GenerationWriter(tmp_path) as second:
        for writer in (second, first):
            writer.add(make_lists(USERS, "a"))
            writer.seal({}, popular=popular())

    assert [generation.number for generation in list_generations(tmp_path)] == [1, 2]
    assert first.number != second.number


def test_a_number_is_above_what_the_store_remembers(tmp_path: Path) -> None:
    assert seal_lists(tmp_path, USERS, "a", after=41).number == 42
    assert seal_lists(tmp_path, USERS, "a", after=7).number == 43


def test_the_number_of_a_damaged_generation_is_not_used_again(tmp_path: Path) -> None:
    (seal_lists(tmp_path, USERS, "a").directory / MANIFEST).unlink()

    assert seal_lists(tmp_path, USERS, "b").number == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_before_the_first_list(tmp_path: Path, damage: str) -> None:
    generation = seal_lists(tmp_path, USERS, "a")
    part = generation.directory / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        part.unlink()
    else:
        part.write_bytes(content if damage == "flip" else content[:-1])

    with pytest.raises(ArtifactIntegrityError, match="part-00000"):
        next(generation.iterate())


def test_a_popular_list_of_another_generation_is_refused(tmp_path: Path) -> None:
    generation, other = (seal_lists(tmp_path, ["u1"], tag) for tag in ("a", "b"))
    (generation.directory / "popular.parquet").write_bytes((other.directory / "popular.parquet").read_bytes())

    with pytest.raises(ArtifactIntegrityError, match=r"popular\.parquet does not match its manifest"):
        generation.popular()


def test_a_directory_without_manifest_is_no_generation(tmp_path: Path) -> None:
    generation = seal_lists(tmp_path, USERS, "a")
    (generation.directory / MANIFEST).unlink()

    assert list_generations(tmp_path) == []
    with pytest.raises(ArtifactIntegrityError, match="generation 1 is not sealed"):
        find_generation(tmp_path, 1)


def test_a_renumbered_generation_has_the_same_lists_under_a_new_number(tmp_path: Path) -> None:
    first = seal_lists(tmp_path, USERS, "a")
    seal_lists(tmp_path, USERS, "b")

    again = renumber(renumber(first, after=2), after=9)

    assert (again.number, again.content_number, again.n_users) == (10, 1, 10)
    assert next(again.iterate()).to_pylist() == next(first.iterate()).to_pylist()
    assert [generation.number for generation in list_generations(tmp_path)] == [1, 2, 3, 10]


def test_a_reference_is_stored_and_loaded(tmp_path: Path) -> None:
    generation = seal_lists(tmp_path / "root", USERS, "a")
    (tmp_path / "artefact").mkdir()

    generation.save(tmp_path / "artefact")

    assert Generation.load(tmp_path / "artefact") == generation


def test_a_reference_to_something_else_by_now_is_refused(tmp_path: Path) -> None:
    generation = seal_lists(tmp_path / "root", USERS, "a")
    (tmp_path / "artefact").mkdir()
    generation.save(tmp_path / "artefact")
    manifest = generation.directory / MANIFEST
    manifest.write_text(manifest.read_text().replace('"tag": "a"', '"tag": "b"'))

    with pytest.raises(ArtifactIntegrityError, match="manifest differs"):
        Generation.load(tmp_path / "artefact")


def age(path: Path, seconds: float) -> None:
    for entry in [*path.iterdir(), path]:
        stat = entry.stat()
        os.utime(entry, (stat.st_atime - seconds, stat.st_mtime - seconds))


def test_only_old_unprotected_generations_beyond_the_last_three_are_deleted(tmp_path: Path) -> None:
    generations = [seal_lists(tmp_path, USERS, "a") for _ in range(6)]
    for generation in generations[1:]:
        age(generation.directory, 2 * 3600)
    (tmp_path / ".writing-00000099").mkdir()
    (tmp_path / ".writing-00000098").mkdir()
    age(tmp_path / ".writing-00000099", 2 * 3600)

    deleted = delete_old_generations(tmp_path, protected={2})

    assert deleted == [3]  # 1 is young, 2 protected, 4 to 6 the last three
    assert [generation.number for generation in list_generations(tmp_path)] == [1, 2, 4, 5, 6]
    assert [path.name for path in tmp_path.glob(".writing-*")] == [".writing-00000098"]
