"""The fault matrix: every site of an upload, hit by every failure, once, twice and for ever.

Each run ends verified or with a typed error that a run without faults completes, within
its time, without a leak, and without a secret in any output. The table of cells and the list
of those that do not exist are in `table`.

    pytest tests/faults -n 2 -m "not slow"     one hit at every kind of site
    pytest tests/faults -n 2                   the whole matrix
    FAULT_RUNS="part-*/T1?/once" pytest …      only runs whose names fit (shell patterns)
    VODUP_FAULT_FIGURES=figures.json pytest …  what was played and how it ended, as JSON
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest

from uploader.devserver import DevServer, DevServerOptions, ThreadedDevServer

from .child import forkserver
from .figures import PROPERTY
from .player import Matrix, Outcome
from .table import (
    FAILURES,
    NOT_APPLICABLE,
    SITES,
    Group,
    Run,
    brief_runs,
    cells,
    groups,
    other_runs,
    reason_against,
)

SIDE_BY_SIDE = 8

SINK_COUNT = 25
"""Places looked through for secrets, at least, in every group of runs."""

LOGGED = ("log: message", "log: attributes", "log: with traceback")

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def server() -> Iterator[DevServer]:
    forkserver()  # it keeps descriptors of its own
    options = DevServerOptions(list_page_size=3, request_log_size=5000)
    with ThreadedDevServer(options) as threaded:
        yield threaded.server


@pytest.fixture
def matrix(server: DevServer, tmp_path: Path) -> Matrix:
    return Matrix(server, tmp_path)


def named(group: Group) -> str:
    return group.name.replace(" ", "-")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", groups(brief_runs()), ids=named)
async def test_one_hit(matrix: Matrix, group: Group, record_property: Record) -> None:
    await _play(matrix, group, record_property)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", groups(other_runs()), ids=named)
async def test_more_hits(matrix: Matrix, group: Group, record_property: Record) -> None:
    await _play(matrix, group, record_property)


async def _play(matrix: Matrix, group: Group, record: Record) -> None:
    wanted = os.environ.get("FAULT_RUNS", "*").split()
    runs = [run for run in group.runs if any(fnmatch(run.name, w) for w in wanted)]
    before = _descriptor_count()
    outcomes: list[Outcome] = []
    turn = asyncio.Semaphore(SIDE_BY_SIDE)
    with _listening() as log:
        async with matrix.open(), asyncio.TaskGroup() as players:
            for run in runs:
                players.create_task(_play_one(matrix, run, turn, outcomes))
    record(PROPERTY, [(o.run.name, o.ended, round(o.seconds, 2)) for o in outcomes])
    for outcome in outcomes:  # shown by pytest -s, and where the test fails
        print(f"{outcome.run.name:40} {outcome.ended:22} {outcome.seconds:6.2f}")
    report = [f"{o.run.name}: {'; '.join(o.faults)}" for o in outcomes if not o.is_good]
    assert not report, "\n".join(report)
    assert matrix.visited_elsewhere == 0
    _assert_no_secret_was_exposed(matrix, log)
    await _assert_nothing_is_left(before)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Everything that is logged, at every level, by anybody in this process."""
    log: list[str] = []
    plain = logging.Formatter()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log.append(f"{record.getMessage()} {vars(record)} {plain.format(record)}")

    root, listener = logging.getLogger(), Listener(logging.DEBUG)
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        root.removeHandler(listener)
        root.setLevel(level)


async def _play_one(
    matrix: Matrix, run: Run, turn: asyncio.Semaphore, outcomes: list[Outcome]
) -> None:
    async with turn:
        outcomes.append(await matrix.play(run))


def _assert_no_secret_was_exposed(matrix: Matrix, log: list[str]) -> None:
    """No secret in any error, event or log record, whatever it was called."""
    assert len(matrix.sinks) + len(LOGGED) >= SINK_COUNT, sorted(matrix.sinks)
    exposed = "\n".join([*(text for _, text in matrix.read), *log])
    secrets = matrix.new_secrets()
    found = [secret for secret in secrets if secret in exposed]
    where = {name for name, text in matrix.read if any(secret in text for secret in found)}
    assert not found, f"{len(found)} secrets were exposed: {where or 'in a log record'}"
    assert "OSS4-HMAC-SHA256" not in exposed


async def _assert_nothing_is_left(descriptors_before: int) -> None:
    """No task runs on, no descriptor stays open."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for _ in range(100):
        if _descriptor_count() <= descriptors_before:
            return
        gc.collect()
        await asyncio.sleep(0.05)
    links = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")[:200]]
    raise AssertionError(f"{_descriptor_count()} descriptors, {descriptors_before} before: {links}")


def _descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_matrix_does_not_shrink() -> None:
    cell_count = len(list(cells()))
    assert cell_count >= 420
    assert 3 * cell_count >= 1250


def test_what_is_not_applicable_has_a_reason_and_is_needed() -> None:
    for row in NOT_APPLICABLE:
        assert row.why
        covered = [(s, i) for s in SITES for i in FAILURES if row.covers(s, i)]
        assert covered, f"{row} covers nothing"
    assert reason_against(SITES[0], FAILURES[0]) is None
