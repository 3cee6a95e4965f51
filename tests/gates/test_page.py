"""docs/reliability.md names tests, situations and figures: all of them must be there."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
MODES = ROOT / "docs" / "failure-modes.md"
_NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)(?:::(?P<test>\w+))?`")
_PROMISES = [f"P{number}" for number in range(1, 12)]


def named(page: str) -> list[tuple[str, str]]:
    """The tests a page names, as (file, name); the name is empty for a whole file."""
    return sorted({(found["file"], found["test"] or "") for found in _NAMED.finditer(page)})


def sections(page: str) -> dict[str, str]:
    """The page's parts by heading."""
    parts = re.split(r"^##+ ", page, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: part for part in parts}


@cache
def functions(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds))


@pytest.mark.parametrize(("file", "test"), named(PAGE.read_text() + MODES.read_text()))
def test_every_test_that_the_pages_name_exists(file: str, test: str) -> None:
    assert (ROOT / file).is_file()
    if test:
        assert test in functions(ROOT / file)


def test_a_test_that_does_not_exist_would_be_found() -> None:
    page = "`tests/gates/test_page.py::test_of_nothing` and `tests/gates/test_page.py`"
    assert named(page) == [
        ("tests/gates/test_page.py", ""),
        ("tests/gates/test_page.py", "test_of_nothing"),
    ]
    assert "test_of_nothing" not in functions(Path(__file__))


@pytest.mark.parametrize("promise", _PROMISES)
def test_every_promise_has_tests_that_prove_it(promise: str) -> None:
    (part,) = [
        part
        for title, part in sections(PAGE.read_text()).items()
        if title.startswith(f"{promise} ")
    ]
    assert len([test for _, test in named(part) if test]) >= 3


def test_what_others_do_is_what_was_measured() -> None:
    """The column "before" says of each library what `benchmarks.before` has seen."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "before.json").read_text())[
        "situations"
    ]
    rows = re.findall(r"^\| (P\d+|-) \| ([^|]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    table = {
        title.strip(): [cell.strip(" *") for cell in cells.split("|")] for _, title, cells in rows
    }
    assert len(table) >= 12
    words = {True: "kept", False: "broken", None: "-"}
    seen = [
        [words[outcome["is_kept"]] for outcome in outcomes.values()]
        for outcomes in measured.values()
    ]
    assert sorted(table.values()) == sorted(seen)


def test_sixty_failure_modes_have_tests() -> None:
    rows = re.findall(r"^\| (F\d\d) \|.*$", MODES.read_text(), re.MULTILINE)
    assert rows == [f"F{number:02}" for number in range(1, 61)]
    for row in re.findall(r"^\| F\d\d \|.*$", MODES.read_text(), re.MULTILINE):
        assert named(row), row
