"""The audits themselves: a gate that cannot close would let everything pass."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.gates import audit, mutants

ROOT = Path(__file__).parents[2]
HASH = "    --hash=sha256:22a075c9e5a3810f0c2e48f3008c94d68c65d763b9b03857924c99e57355166c"
PINNED = f"# how it was made\naiofiles==24.1.0 ; sys_platform != 'win32' \\\n{HASH}\n"


@pytest.mark.parametrize("lock", audit.LOCKS, ids=lambda lock: lock.name)
def test_locks_name_no_place_and_have_hashes(lock: Path) -> None:
    text = lock.read_text()
    assert audit.misplaced(text) == []
    assert audit.unhashed(text) == []


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://index.example/simple",
        "-f wheels",
        "-e .",
        "aiofiles @ file:///wheels/aiofiles.whl",
        "./wheels/aiofiles.whl",
        "aiofiles @ git+https://code.example/aiofiles",
    ],
)
def test_a_line_that_names_a_place_is_found(line: str) -> None:
    assert audit.misplaced(PINNED) == []
    assert audit.misplaced(f"{PINNED}{line}\n") == [line]


@pytest.mark.parametrize("entry", ["aiofiles==24.1.0", "aiofiles>=24.1 \\\n" + HASH])
def test_a_package_that_could_be_exchanged_is_found(entry: str) -> None:
    assert audit.unhashed(PINNED) == []
    assert len(audit.unhashed(f"{PINNED}{entry}\n")) == 1


def test_every_module_with_mutants_exists_and_has_tests() -> None:
    rooms = mutants.rooms([])
    assert len(rooms) > 20
    for room in rooms:
        assert (ROOT / "uploader" / f"{room.name}.py").is_file()
        assert room.tests
        assert all((ROOT / named).exists() for named in room.tests)


def test_the_score_counts_what_no_test_reaches_as_survived() -> None:
    found = mutants.Found(Counter(killed=6, timeout=1, survived=2, untested=1, skipped=90), [])
    assert (found.tried, found.killed, found.score) == (10, 7, 70.0)


def test_a_survivor_is_known_by_its_function_not_by_its_number() -> None:
    name = "uploader.protocol.plan.xǁPartPlanǁpart__mutmut_12"
    assert mutants.function_of(name) == "uploader.protocol.plan.PartPlan.part"
    assert mutants.function_of("uploader.session.x_retry__mutmut_1") == "uploader.session.retry"
    fix = "uploader.session.xǁSessionǁ_fix_clock__mutmut_1"
    assert mutants.function_of(fix) == "uploader.session.Session._fix_clock"


def test_every_explanation_of_a_survivor_is_complete() -> None:
    for (function, change), reason in mutants.explained().items():
        assert function.startswith("uploader."), function
        assert change[:2] in ("- ", "+ "), change
        assert reason.strip(), change
