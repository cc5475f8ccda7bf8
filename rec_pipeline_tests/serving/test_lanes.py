import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from rec_pipeline.serving.lanes import CALLS_AT_ONCE, Lanes


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes(budget=0.3)
    yield lanes
    lanes.close()


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """What a source hangs on until the test ends."""
    event = threading.Event()
    yield event
    event.set()


def test_sources_that_are_quick_are_answered_by_one_thread_in_their_order(lanes: Lanes) -> None:
    order: list[tuple[str, str]] = []

    def source(name: str) -> str:
        order.append((name, threading.current_thread().name))
        return name.upper()

    outcomes = asyncio.run(lanes.ask({"a": lambda: source("a"), "b": lambda: source("b"), "c": lambda: source("c")}))

    assert {name: (outcome.name, outcome.result) for name, outcome in outcomes.items()} == {
        "a": ("ok", "A"),
        "b": ("ok", "B"),
        "c": ("ok", "C"),
    }
    assert [name for name, _ in order] == ["a", "b", "c"]
    assert len({thread for _, thread in order}) == 1


def test_those_behind_a_source_that_hangs_are_answered_and_it_is_late(lanes: Lanes, hanging: threading.Event) -> None:
    started = time.monotonic()
    ended: list[float] = []

    def quick() -> int:
        ended.append(time.monotonic() - started)
        return 1

    outcomes = asyncio.run(lanes.ask({"hangs": hanging.wait, "too": hanging.wait, "quick": quick, "other": quick}))

    assert [outcome.name for outcome in outcomes.values()] == ["late", "late", "ok", "ok"]
    assert outcomes["hangs"].failure == "late: no answer within 300 ms"
    assert max(ended) < 0.25


def test_a_source_that_keeps_hanging_is_busy_and_comes_back(lanes: Lanes, hanging: threading.Event) -> None:
    def ask() -> list[str]:
        outcomes = asyncio.run(lanes.ask({"hangs": hanging.wait, "quick": lambda: True}))
        return [outcome.name for outcome in outcomes.values()]

    assert [ask() for _ in range(CALLS_AT_ONCE)] == [["late", "ok"]] * CALLS_AT_ONCE
    assert ask() == ["busy", "ok"]

    hanging.set()
    deadline = time.monotonic() + 10
    while ask() != ["ok", "ok"]:
        assert time.monotonic() < deadline


def test_what_a_source_raises_is_its_own_failure(lanes: Lanes) -> None:
    def fails() -> int:
        raise ValueError("no such row")

    outcomes = asyncio.run(lanes.ask({"fails": fails, "works": lambda: 7}))

    assert (outcomes["fails"].name, outcomes["fails"].failure) == ("ValueError", "failed: ValueError")
    assert outcomes["works"].result == 7


def test_nothing_is_asked_of_nobody(lanes: Lanes) -> None:
    assert asyncio.run(lanes.ask({})) == {}
