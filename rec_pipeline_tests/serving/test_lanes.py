import asyncio
import threading
from collections.abc import Iterator

import pytest

from rec_pipeline.serving.lanes import CALLS_AT_ONCE, Lanes, Outcome
from rec_pipeline_tests.fixtures.waiting import LONG, wait_until


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes(budget=LONG)
    yield lanes
    lanes.close()


@pytest.fixture
def hurried() -> Iterator[Lanes]:
    lanes = Lanes(budget=0.05)
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


def test_those_behind_sources_that_hang_are_answered(lanes: Lanes, hanging: threading.Event) -> None:
    def last() -> bool:
        hanging.set()
        return True

    outcomes = asyncio.run(lanes.ask({"hangs": hanging.wait, "too": hanging.wait, "quick": lambda: True, "last": last}))

    assert {name: outcome.name for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "ok")


def test_a_source_that_keeps_hanging_is_late_then_busy_and_comes_back(hurried: Lanes, hanging: threading.Event) -> None:
    begun: list[int] = []

    def hangs() -> bool:
        begun.append(1)
        return hanging.wait()

    def ask() -> Outcome[bool]:
        return asyncio.run(hurried.ask({"hangs": hangs}))["hangs"]

    first = ask()
    assert (first.name, first.failure) == ("late", "late: no answer within 50 ms")
    wait_until(lambda: ask().name == "busy")
    assert len(begun) == CALLS_AT_ONCE
    hanging.set()
    wait_until(lambda: ask().name == "ok")


def test_what_a_source_raises_is_its_own_failure(lanes: Lanes) -> None:
    def fails() -> int:
        raise ValueError("no such row")

    outcomes = asyncio.run(lanes.ask({"fails": fails, "works": lambda: 7}))

    assert (outcomes["fails"].name, outcomes["fails"].failure) == ("ValueError", "failed: ValueError")
    assert outcomes["works"].result == 7


def test_nothing_is_asked_of_nobody(lanes: Lanes) -> None:
    assert asyncio.run(lanes.ask({})) == {}
