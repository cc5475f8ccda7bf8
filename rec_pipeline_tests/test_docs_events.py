"""The examples of docs/EVENTS.md do what the page says."""

import json
import re
import shlex
from pathlib import Path

import redis

from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.events import EventRules, make_event
from rec_pipeline.engine.store.drain import drain
from rec_pipeline.engine.store.events import record_events
from rec_pipeline.engine.store.keys import events_key, user_version_key

PAGE = (Path(__file__).parents[1] / "docs" / "EVENTS.md").read_text()


def blocks(language: str) -> list[str]:
    return [text for found, text in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL) if found == language]


def test_the_examples_record_what_they_say(store: "redis.Redis", tmp_path: Path) -> None:
    names = {"client": store}
    for code in blocks("python"):
        exec(code, names)  # noqa: S102 - the page's own examples
    http, *cli = blocks("")
    body = json.loads(http.partition("\n")[2])
    assert record_events(store, [make_event(EventRules(), **body)]) == [True]  # of another id than the Python example
    pipeline = store.pipeline(transaction=False)
    for line in "".join(cli).splitlines():
        pipeline.execute_command(*shlex.split(line))
    pipeline.execute()

    done = drain(store, EventLog(tmp_path))

    items = EventLog(tmp_path).read(["item_id"])["item_id"]
    assert sorted(items) == ["i0007", "i0008", "i0042", "i0042", "i0043", "i0044", "i0050", "i0050"]
    assert done.n_refused == 0
    assert store.zscore(events_key("u0001"), "i0044") == 1707579060000
    assert store.get(user_version_key("u0001")) == b"5"
