import signal

import pyarrow as pa
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec_pipeline.engine.store.commands import pack, send


def replies(client: "redis.Redis", commands: pa.Array, batch_size: int = 2) -> list[object]:
    return [reply for batch in send(client, commands, batch_size) for reply in batch]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=6))
def test_any_text_arrives_as_it_was(store: "redis.Redis", texts: list[str]) -> None:
    values = pa.array(texts)

    echoed = replies(store, pack("ECHO", values))

    assert echoed == [text.encode() for text in texts]


def test_a_slice_sends_its_own_rows_only(store: "redis.Redis") -> None:
    commands = pack("ECHO", pa.array(["a", "bb", "ccc", "d"]))

    assert replies(store, commands.slice(1, 2)) == [b"bb", b"ccc"]


def test_an_error_reply_stands_in_its_place(store: "redis.Redis") -> None:
    store.set("text", "x")

    found = replies(store, pack("INCR", pa.array(["a", "text", "b"])), batch_size=3)

    assert (found[0], found[2]) == (1, 1)
    assert isinstance(found[1], redis.ResponseError)


def test_leaving_early_leaves_no_reply_for_the_next_command(store: "redis.Redis") -> None:
    batches = send(store, pack("ECHO", pa.array(["a", "b", "c", "d"])), 2)

    next(batches)
    batches.close()

    assert store.echo("mine") == b"mine"


def test_an_interrupted_wait_leaves_no_reply_for_the_next_command(store: "redis.Redis") -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            replies(store, pack("BLPOP", pa.array(["absent", "missing"]), "2"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert store.echo("mine") == b"mine"


def test_a_server_that_is_gone_raises_its_connection_error() -> None:
    client = redis.Redis(unix_socket_path="/nonexistent.sock", retry=None)

    with pytest.raises(redis.ConnectionError):
        replies(client, pack("PING", pa.array(["a"])))
