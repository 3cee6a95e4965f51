"""The audits themselves: a gate that cannot close would let everything pass."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.gates import audit, modules, mutants

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


def test_every_module_of_the_core_exists_and_has_tests() -> None:
    spaces = mutants.workspaces([])
    assert len(spaces) > 20
    for space in spaces:
        assert (ROOT / "uploader" / f"{space.name}.py").is_file()
        assert space.tests
        assert [test for test in space.tests if not (ROOT / test).is_file()] == [], space.name


def test_every_exception_names_a_module_of_the_core() -> None:
    names = {module.replace("/", ".") for module in modules.core_files()}
    packages = {name.partition(".")[0] for name in names}
    assert set(modules.JUDGED_BY) <= names | packages


def test_the_coverage_gate_includes_every_module_of_the_core() -> None:
    patterns = modules.core_patterns()
    for module in modules.core_files():
        assert any(fnmatch(f"uploader/{module}.py", pattern) for pattern in patterns)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("session", "tests/test_session.py"),
        ("state/leases", "tests/state/test_leases.py"),
        ("protocol/plan", "tests/protocol/test_plan.py"),
        ("credentials/live", "tests/engine/test_providers.py"),
    ],
)
def test_a_module_is_judged_by_the_tests_of_its_package(module: str, expected: str) -> None:
    assert expected in modules.tests_of(module)


def test_the_score_counts_what_no_test_reaches_as_survived() -> None:
    found = mutants.Found(Counter(killed=6, timeout=1, survived=2, untested=1, skipped=90), [])
    assert (found.tried, found.killed, found.score) == (10, 7, 70.0)


def test_a_survivor_is_known_by_its_function_not_by_its_number() -> None:
    name = "uploader.protocol.plan.xǁPlanǁpart__mutmut_12"
    assert mutants.function_of(name) == "uploader.protocol.plan.Plan.part"
    assert mutants.function_of("uploader.session.x_retry__mutmut_1") == "uploader.session.retry"
    fix = "uploader.session.xǁSessionǁ_fix_clock__mutmut_1"
    assert mutants.function_of(fix) == "uploader.session.Session._fix_clock"


def test_survivors_are_listed_with_their_change_and_pinned_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "SURVIVORS", tmp_path / "survivors.tsv")
    found = mutants.Found(Counter(killed=9, survived=1), ["uploader.session.x_retry__mutmut_1"])
    monkeypatch.setattr(mutants.Workspace, "found", lambda self: found)
    monkeypatch.setattr(mutants.Workspace, "change", lambda self, mutant: "- a < b + a <= b")
    assert mutants.report([mutants.Workspace("session", [])]) == 0
    assert mutants.SURVIVORS.read_text() == "uploader.session.retry\t- a < b + a <= b\n"
    assert "90.0 % (at least 85.0)" in capsys.readouterr().out


def test_a_low_score_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "SURVIVORS", tmp_path / "survivors.tsv")
    for counts in (Counter(killed=84, untested=16), Counter(killed=90, open=1)):
        found = mutants.Found(counts, [])
        monkeypatch.setattr(mutants.Workspace, "found", lambda self, found=found: found)
        assert mutants.report([mutants.Workspace("session", [])]) == 1
