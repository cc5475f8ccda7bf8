"""Commands about what is live: one JSON document each, the documented exit codes, and errors that say what to do."""

import re
from pathlib import Path

import pytest

from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.lock import PublishLock
from rec_pipeline.resources.embedded_valkey import ensure_server
from rec_pipeline.settings import settings
from rec_pipeline_tests.fixtures.cli import invoke, published_project
from rec_pipeline_tests.fixtures.project import new_project

__all__ = ["published_project"]
NOBODY = "redis://127.0.0.1:1"


@pytest.mark.usefixtures("published_project")
def test_every_command_prints_one_document_and_history_says_what_was_live_when_and_why() -> None:
    documents = {
        command: invoke(*command.split(), "--json").document  # which fails on anything besides the document
        for command in (
            "status",
            "doctor",
            "publish",
            "publish --plan",
            "publish --resume",
            "publish --from-artifact last",
            "rollback",
            "trace u00001",
            "trace u00001 --item g1-1",
            "trace nobody",
            "unpin",
            "gc",
            "forget u00002",
            "forget u00002 --undo",
        )
    }
    found = invoke("status", "--json").document

    assert documents["publish"]["already_live"]
    assert documents["publish --resume"] == {"resumed": None}
    assert [entry["gen"] for entry in found["history"]] == [4, 3, 2, 1]
    assert [entry["reason"] for entry in found["history"]] == ["rollback to 1", "restored 2", "publish", "publish"]
    assert [entry["content"] for entry in found["history"]] == [1, 2, 2, 1]
    assert documents["trace u00001"]["generation"]["reason"] == "rollback to 1"
    said = invoke("status").output
    assert re.findall(r"^history +(\d) since \S+: (.*), by", said, re.MULTILINE)[0] == ("4", "rollback to 1")


@pytest.mark.usefixtures("published_project")
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("publish --generation 9", 5, r"generation 9 is not sealed .* \[1, 2\]"),
        ("publish --generation 1", 6, "generation 1 is older than 2, .* roll back to it"),
        ("publish --from-artifact newest", 2, "'newest' is neither `last` nor the number of a generation"),
        ("publish --resume --generation 1", 2, "each choose a generation: give one of them"),
        ("rollback --to 9", 5, r"generation 9 is not sealed"),
        ("trace u00001 --item other", 2, "'other' is not in the list .* which holds 3 others, 'g2-0' first"),
        ("trace a{b", 2, "'a{b' holds '{', which ids may not"),
        ("forget a{b", 2, "'a{b' holds '{', which ids may not"),
    ],
)
def test_wrong_input_gets_its_exit_code_and_what_was_found_and_expected(command: str, code: int, message: str) -> None:
    done = invoke(*command.split(), "--json")

    assert (done.code, done.output) == (code, "")
    assert re.search(message, done.error), done.error


@pytest.mark.usefixtures("published_project")
def test_while_another_publishes_and_after_a_rollback_it_is_refused_with_what_to_do() -> None:
    with (
        publisher_client(ensure_server(settings().store_dir)) as client,
        PublishLock(client, "somebody", lease_seconds=60),
    ):
        locked = invoke("rollback", "--json")
    assert (locked.code, locked.output) == (7, "")
    assert re.search(r"publisher 'somebody' on \S+ \(pid \d+\) .* expires in", locked.error)

    assert invoke("rollback", "--json").code == 0
    pinned = invoke("publish", "--from-artifact", "2", "--json")
    assert (pinned.code, pinned.output) == (6, "")
    assert "a rollback has pinned generation" in pinned.error
    assert "unpin" in pinned.error


@pytest.mark.parametrize("command", ["status", "publish", "rollback", "unpin", "gc", "forget u1", "trace u1"])
def test_without_a_server_it_ends_with_6_and_the_doctor_with_1(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REC_REDIS_URL", NOBODY)
    monkeypatch.setattr("rec_pipeline.engine.store.connection.PATIENCE_SECONDS", 0)
    settings.cache_clear()

    done, examined = invoke(*command.split(), "--json"), invoke("doctor", "--json")

    settings.cache_clear()
    assert (done.code, done.output) == ((2, "") if command == "publish" else (6, "")), done
    assert re.search("cannot be reached|`rec-pipeline run` makes one", done.error), done.error
    assert (examined.code, examined.document["exit_code"]) == (1, 1)


def test_before_the_first_publication_it_says_what_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_url: str
) -> None:
    new_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REC_REDIS_URL", store_url)
    settings.cache_clear()
    with publisher_client(store_url) as client:
        client.flushall()

        said = {command: invoke(*command.split(), "--json") for command in ("trace u1", "rollback", "publish")}
        restored = invoke("publish", "--from-artifact", "last", "--json")

        assert client.get(keys.CURRENT) is None
    settings.cache_clear()
    assert {command: done.code for command, done in said.items()} == {"trace u1": 2, "rollback": 6, "publish": 2}
    assert "publish a generation first" in said["trace u1"].error
    assert "no generation is live" in said["rollback"].error
    assert "`rec-pipeline run` makes one" in said["publish"].error
    assert (restored.code, "make recommendations first" in restored.error) == (5, True)
