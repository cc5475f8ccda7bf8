import threading
from pathlib import Path

import pyarrow as pa
import pytest

from rec_pipeline.engine.data.event_log import COMPACT_ABOVE, EVENT_SCHEMA, EventLog
from rec_pipeline.engine.errors import ArtifactIntegrityError

NOON = 1707566400000  # 2024-02-10T12:00:00Z
DAY_MS = 86_400_000


def events(*rows: tuple[str, int, int], user_id: str = "u1", event_type: str = "click") -> pa.Table:
    """Rows of (event id, arrival, milliseconds after noon)."""
    whole = [
        {
            "received_at": received,
            "entry": 0,
            "user_id": user_id,
            "item_id": f"item of {event_id}",
            "event_type": event_type,
            "timestamp": NOON + at,
            "event_id": event_id,
            **dict.fromkeys(("device", "location", "sources", "experiment", "variant"), ""),
        }
        for event_id, received, at in rows
    ]
    return pa.Table.from_pylist(whole, EVENT_SCHEMA)


def ids(log: EventLog, day: str = "2024-02-10") -> list[str]:
    found: list[str] = log.read_day(day).table["event_id"].to_pylist()
    return found


def test_an_empty_log_has_no_days_and_no_events(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "none")

    assert log.days() == []
    assert log.read_day("2024-02-10").table.num_rows == 0
    assert list(log.read(["user_id", "item_id"]).columns) == ["user_id", "item_id"]


def test_a_day_is_in_order_of_time_and_holds_each_event_as_it_came_first(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(events(("b", 2, 20), ("c", 3, 10)))
    log.append(events(("b", 1, 30), ("a", 4, 5)))

    day = log.read_day("2024-02-10")

    assert ids(log) == ["a", "c", "b"]
    assert day.table["timestamp"].cast(pa.int64()).to_pylist()[-1] == NOON + 30
    assert (day.n_repeated, day.n_segments) == (1, 2)


def test_midnight_belongs_to_the_day_it_begins(tmp_path: Path) -> None:
    half = DAY_MS // 2

    counts = EventLog(tmp_path).append(events(("a", 1, half - 1), ("b", 2, half), ("c", 3, -half)))

    assert counts == {"2024-02-10": 2, "2024-02-11": 1}


def test_the_same_rows_are_written_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path)

    for _ in range(3):
        log.append(events(("a", 1, 1), ("b", 2, 2)))

    assert log.read_day("2024-02-10").n_segments == 1


def test_a_damaged_segment_is_not_read(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(events(("a", 1, 1)))
    (path,) = (tmp_path / "2024-02-10").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(ArtifactIntegrityError, match="is damaged"):
        ids(log)


def test_compacting_changes_the_files_and_not_the_events(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number in range(COMPACT_ABOVE + 1):
        log.append(events((f"e{number}", number, number), ("again", 100 + number, 0)))
    before = log.read_day("2024-02-10")

    log.compact("2024-02-10")

    after = log.read_day("2024-02-10")
    assert (before.n_segments, after.n_segments, after.n_repeated) == (COMPACT_ABOVE + 1, 1, 0)
    assert after.table.equals(before.table)
    assert after.digest == before.digest


def test_compactions_beside_writers_and_readers_lose_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    stop = threading.Event()
    shrunk: list[int] = []

    def compact() -> None:
        while not stop.is_set():
            log.compact("2024-02-10")

    def read() -> None:
        seen = 0
        while not stop.is_set():
            found = len(ids(log))
            if found < seen:
                shrunk.append(found)
            seen = found

    workers = [threading.Thread(target=work) for work in (compact, compact, read)]
    for worker in workers:
        worker.start()
    for number in range(80):
        log.append(events((f"e{number:03}", number, number)))
    stop.set()
    for worker in workers:
        worker.join()

    assert ids(log) == [f"e{number:03}" for number in range(80)]
    assert not shrunk


def test_reading_the_log_takes_the_types_columns_and_days_asked_for(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(events(("a", 1, 1), ("late", 9, -DAY_MS)))
    log.append(events(("b", 2, 2), event_type="impression"))

    clicks = log.read(["item_id"], event_types=["click"], since="2024-02-10")

    assert clicks.to_dict("list") == {"item_id": ["item of a"]}


def test_a_forgotten_user_is_gone_from_every_day(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(pa.concat_tables([events(("a", 1, 1), ("b", 2, DAY_MS)), events(("c", 3, 3), user_id="u2")]))

    assert log.forget("u1") == 2

    assert log.read(["user_id"])["user_id"].tolist() == ["u2"]
    assert log.forget("u1") == 0
