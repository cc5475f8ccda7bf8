import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import redis

from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.events import Event, EventRules, make_event
from rec_pipeline.engine.errors import EventsNotDrainedError
from rec_pipeline.engine.store.drain import backlog, drain
from rec_pipeline.engine.store.events import record_events
from rec_pipeline.engine.store.keys import EVENT_GROUP, EVENT_STREAM
from rec_pipeline.engine.store.reader import reader_client
from rec_pipeline_tests.fixtures.waiting import LONG

RULES = EventRules()
FIRST_DAY = datetime(2024, 2, 10, 12, tzinfo=UTC)
COLUMNS = ["user_id", "item_id", "event_type", "timestamp", "event_id"]


def make(number: int, days: int = 0) -> Event:
    when = FIRST_DAY + timedelta(days=days, seconds=number)
    return make_event(RULES, user_id=f"u{number % 50}", item_id=f"i{number}", event_type="click", timestamp=when)


def logged(log: EventLog) -> list[str]:
    return sorted(log.read(COLUMNS)["event_id"])


def test_events_go_to_the_day_they_belong_to_and_leave_the_stream(store: "redis.Redis", tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log")
    record_events(store, [make(1), make(2, days=3), make(3)])

    done = drain(store, log)
    record_events(store, [make(4, days=-2), make(1, days=3)])
    late = drain(store, log)

    assert done.n_by_day == {"2024-02-10": 2, "2024-02-13": 1}
    assert late.n_by_day == {"2024-02-08": 1, "2024-02-13": 1}
    assert log.days() == ["2024-02-08", "2024-02-10", "2024-02-13"]
    assert log.read_day("2024-02-13").table["item_id"].to_pylist() == ["i1", "i2"]
    assert backlog(store).n_entries == 0


def test_what_waits_is_counted_with_its_age(store: "redis.Redis", tmp_path: Path) -> None:
    assert backlog(store).n_entries == 0

    record_events(store, [make(1), make(2)])
    time.sleep(0.05)

    waiting = backlog(store)
    assert waiting.n_entries == 2
    assert 0.05 <= waiting.oldest_age_seconds < LONG
    drain(store, EventLog(tmp_path))
    assert backlog(store).oldest_age_seconds == 0


@pytest.mark.parametrize(
    ("phase", "batch", "writes"),
    [("read", 1, 0), ("rename", 0, 1), ("rename", 0, 5), ("written", 2, 0), ("acknowledged", 2, 0)],
)
def test_a_killed_drain_loses_nothing_and_doubles_nothing(
    store: "redis.Redis", store_url: str, tmp_path: Path, phase: str, batch: int, writes: int
) -> None:
    events = [make(number, days=number % 3) for number in range(350)]
    record_events(store, events)
    module = "rec_pipeline_tests.fixtures.dying_drain"
    command = [sys.executable, "-m", module, store_url, str(tmp_path), phase, str(batch), str(writes)]
    killed = subprocess.run(  # noqa: S603 - this interpreter
        command, timeout=LONG, check=False, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    log = EventLog(tmp_path)
    in_the_log_already = set(logged(log))

    record_events(store, [make(number) for number in range(1000, 1010)])
    drain(store, log, batch_size=70)

    assert in_the_log_already <= {event.event_id for event in events}
    assert logged(log) == sorted([event.event_id for event in events] + [make(n).event_id for n in range(1000, 1010)])
    assert store.xlen(EVENT_STREAM) == 0
    assert store.xpending(EVENT_STREAM, EVENT_GROUP)["pending"] == 0


def test_two_drains_at_once_lose_nothing_and_double_nothing(
    store: "redis.Redis", store_url: str, tmp_path: Path
) -> None:
    log = EventLog(tmp_path)
    events = [make(number, days=number % 2) for number in range(1500)]
    record_events(store, events)

    def work() -> None:
        with reader_client(store_url, 30) as client:
            drain(client, log, batch_size=100)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drain(store, log)

    assert logged(log) == sorted(event.event_id for event in events)
    assert store.xlen(EVENT_STREAM) == 0


def test_an_event_sent_again_after_its_id_was_forgotten_is_in_the_log_once(
    store: "redis.Redis", tmp_path: Path
) -> None:
    log = EventLog(tmp_path)
    for _ in range(2):
        record_events(store, [make(1), make(2)])
        store.flushall()  # the stream, the group and the ids are gone
        record_events(store, [make(1), make(2)])
        drain(store, log)

    assert len(logged(log)) == 2


def test_entries_of_other_hands_are_events_or_are_kept_apart_with_a_reason(
    store: "redis.Redis", tmp_path: Path
) -> None:
    log = EventLog(tmp_path)
    store.xadd(EVENT_STREAM, {"user_id": "u1", "item_id": "i1", "event_type": "click"}, id="1707579000000-7")
    store.xadd(EVENT_STREAM, {"user_id": "u1", "item_id": "i1", "event_type": "stare"})
    store.xadd(EVENT_STREAM, {"user_id": b"\xff", "item_id": "i1", "event_type": "click"})
    store.xadd(EVENT_STREAM, {"what": "ever"})

    done = drain(store, log)

    assert (done.n_entries, done.n_refused) == (4, 3)
    assert log.read(["timestamp"])["timestamp"].tolist() == [pd.Timestamp("2024-02-10T15:30:00Z")]
    reasons = log.read_refused()["reason"].tolist()
    assert [reason.partition(",")[0] for reason in reasons] == [
        "event_type 'stare' is unknown",
        "b'user_id' b'\\xff' is not valid UTF-8",
        "field 'what' is unknown",
    ]


def test_a_store_that_is_away_stops_the_drain_and_says_so(tmp_path: Path) -> None:
    with (
        reader_client("redis://127.0.0.1:1") as client,
        pytest.raises(EventsNotDrainedError, match="cannot be reached"),
    ):
        drain(client, EventLog(tmp_path))


def test_a_disk_that_refuses_leaves_the_events_in_the_stream(store: "redis.Redis", tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    record_events(store, [make(1)])

    with pytest.raises(OSError, match="log"):
        drain(store, EventLog(tmp_path / "log"))
    (tmp_path / "log").unlink()
    drain(store, EventLog(tmp_path / "log"))

    assert logged(EventLog(tmp_path / "log")) == [make(1).event_id]
