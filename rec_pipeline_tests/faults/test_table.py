"""The tables in docs/RELIABILITY.md name every fault and requirement, and only tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

from rec_pipeline_tests.faults.test_twins import TWINS

REPOSITORY = Path(__file__).parents[2]
FAULTS = {f"F{number:02d}" for number in range(1, 33)} - {"F07"} | {"F07a", "F07b"}
ROW = re.compile(r"^\| (F\d\d[ab]?) [^|]*\| ([^|]*)\| ([^|]*)\|$", re.MULTILINE)
NAME = re.compile(r"`(test_\w+)`")


PAGE = (REPOSITORY / "docs" / "RELIABILITY.md").read_text()
REQUIREMENT = re.compile(r"^\| (S\d\d) [^|]*\| ([^|]*)\|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, str]]:
    return {fault: (tests, twins) for fault, tests, twins in ROW.findall(PAGE)}


@cache
def names_of_tests() -> set[str]:
    files = (REPOSITORY / "rec_pipeline_tests").rglob("test_*.py")
    trees = [ast.parse(path.read_bytes()) for path in files]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_row_and_a_test() -> None:
    found = rows()

    assert found.keys() == FAULTS
    assert [fault for fault, (tests, _) in found.items() if not NAME.search(tests)] == []


def test_every_requirement_of_security_has_a_row_and_a_test() -> None:
    found = dict(REQUIREMENT.findall(PAGE))

    assert found.keys() == {f"S{number:02d}" for number in range(1, 17)}
    assert [number for number, tests in found.items() if f"{number.lower()}_" not in tests] == []


def test_every_promise_of_serving_is_held_against_something() -> None:
    table = PAGE.partition("## Serving")[2].partition("###")[0]

    assert set(re.findall(r"\bP\d\d\b", table)) == {f"P{number:02d}" for number in range(1, 13)}


def test_every_test_that_is_named_exists() -> None:
    assert set(NAME.findall(PAGE)) - names_of_tests() == set()


def test_every_test_by_number_is_named() -> None:
    numbered = {name for name in names_of_tests() if re.match(r"test_f\d\d", name)}
    named = {name for cells in rows().values() for cell in cells for name in NAME.findall(cell)}

    assert numbered - named == set()


def test_the_guards_of_the_table_are_those_of_the_twins() -> None:
    listed = {
        (fault, guard.strip())
        for fault, (_, twins) in rows().items()
        for guard in twins.partition("`test_without_its_guard_it_fails`: ")[2].split(";")
        if guard.strip()
    }

    assert listed == {(twin.fault, twin.guard) for twin in TWINS}
