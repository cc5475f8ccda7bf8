"""Commands about what is live: one JSON document each, the documented exit codes, and errors that say what to do."""

import os
import re
import time
from pathlib import Path

import pytest

from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.lock import PublishLock
from rec_pipeline.engine.store.publication import PublishParams
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.resources.embedded_valkey import ensure_server
from rec_pipeline.settings import settings
from rec_pipeline_tests.fixtures.cli import invoke, published_project
from rec_pipeline_tests.fixtures.project import new_project
from rec_pipeline_tests.fixtures.store import seal_lists

__all__ = ["published_project"]
NOBODY = "redis://127.0.0.1:1"
AT_FIRST = [
    ("trace u1", 2, "publish a generation first"),
    ("recommend u1", 2, "`rec-pipeline run` makes and publishes the first lists"),
    ("rollback", 6, "nothing to roll back to: live is none, "),
    ("publish", 5, "`rec-pipeline run` makes one"),
    ("publish --plan", 5, "`rec-pipeline run` makes one"),
    ("publish --from-artifact last", 5, "`rec-pipeline run` makes one"),
]


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


@pytest.mark.usefixtures("published_project")
def test_what_was_interrupted_ends_status_and_doctor_with_8_until_it_is_resumed() -> None:
    def interrupt(phase: str, *_: int) -> None:
        if phase == "flip":
            raise KeyboardInterrupt

    third = seal_lists(settings().generations_dir, ["u00001", "u00002"], "g3")
    with publisher_client(ensure_server(settings().store_dir)) as client, pytest.raises(KeyboardInterrupt):
        publish(client, third, PublishParams(batch_size=1), on_progress=interrupt)

    half_live, examined = invoke("status", "--json"), invoke("doctor", "--json")
    said = invoke("status").output
    resumed = invoke("publish", "--resume", "--json")
    found = invoke("status", "--json")

    assert (half_live.code, half_live.document["live"], half_live.document["half_live"]) == (8, 2, [3])
    assert (examined.code, examined.document["exit_code"]) == (8, 8)
    assert "half live 3: `rec-pipeline publish --resume` finishes it" in said
    assert (resumed.code, resumed.document["generation"], resumed.document["n_users"]) == (0, 3, 2)
    assert (found.code, found.document["live"], found.document["history"][0]["reason"]) == (0, 3, "resumed")
    assert invoke("doctor").code == 0


@pytest.mark.usefixtures("published_project")
def test_options_of_publish_reach_the_publication() -> None:
    seal_lists(settings().generations_dir, ["u00001", "u00002"], "g3")
    with publisher_client(ensure_server(settings().store_dir)) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

    evicting = invoke("publish", "--plan", "--shards", "8", "--json")
    allowed = invoke("publish", "--allow-eviction", "--json")
    assert invoke("rollback").code == 2

    assert (evicting.code, evicting.document["shards"]) == (2, 8)
    assert "allkeys-lru" in evicting.document["refusal"]
    assert (allowed.code, allowed.document["generation"]) == (0, 3)
    with publisher_client(ensure_server(settings().store_dir)) as client:
        client.config_set("maxmemory-policy", "noeviction")
    assert invoke("rollback", "--to", "1", "--json").document["generation"] == 5  # the one that was refused is sealed
    pinned = invoke("publish", "--generation", "3", "--plan", "--json")
    assert (pinned.code, "older than 5" in pinned.document["refusal"]) == (6, True)
    assert invoke("publish", "--from-artifact", "3", "--unpin", "--json").document["generation"] == 6
    assert invoke("status", "--json").document["pinned"] is None


@pytest.mark.usefixtures("published_project")
def test_gc_deletes_what_is_old_and_nobody_needs() -> None:
    root = settings().generations_dir
    for tag in ("g3", "g4", "g5"):
        seal_lists(root, ["u00001"], tag)

    def make_older(seconds: float) -> None:
        for path in root.rglob("*"):
            os.utime(path, (time.time() - seconds,) * 2)

    make_older(7200)
    assert invoke("gc", "--json").document == {"deleted": []}  # 1 and 2 are what was and is live, the others the newest
    make_older(0)
    assert invoke("publish").code == 0
    assert invoke("gc", "--json").document == {"deleted": []}
    make_older(7200)
    assert invoke("gc").output == "deleted generations 1\n"
    assert invoke("status", "--json").document["sealed"] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("command", "consequence"),
    [
        ("status", ""),
        ("recommend u1", ""),
        ("trace u1", ""),
        ("gc", ""),
        ("publish", "nothing went live"),
        ("publish --plan", ""),
        ("publish --resume", ""),
        ("publish --from-artifact last", ""),
        ("rollback", "nothing went live"),
        ("unpin", "what was pinned stays so"),
        ("forget u1", "left out of every publication from now on: forget them again to delete what is there"),
        ("forget u1 --undo", "the user stays forgotten"),
    ],
)
def test_without_a_server_it_ends_with_6_and_what_that_means_and_the_doctor_with_1(
    command: str, consequence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REC_REDIS_URL", NOBODY)
    monkeypatch.setattr("rec_pipeline.engine.store.connection.PATIENCE_SECONDS", 0)
    settings.cache_clear()
    seal_lists(settings().generations_dir, ["u1"], "g1")

    done, examined = invoke(*command.split(), "--json"), invoke("doctor", "--json")

    settings.cache_clear()
    assert (done.code, done.output) == (6, ""), done
    assert "cannot be reached" in done.error
    assert done.error.endswith(consequence) if consequence else "live" not in done.error
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

        said = {command: invoke(*command.split(), "--json") for command, *_ in AT_FIRST}

        assert client.hgetall(keys.CURRENT) == {}
    settings.cache_clear()
    assert {command: (done.code, done.output) for command, done in said.items()} == {
        command: (code, "") for command, code, _ in AT_FIRST
    }
    assert [command for command, _, message in AT_FIRST if message not in said[command].error] == []
