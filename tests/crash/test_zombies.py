"""A worker that was frozen for longer than its lease lives, and then goes on.

Another took its upload over meanwhile. The zombie must not complete the upload, nor abort
it, and ends in `LeaseLost`.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import psycopg

from tests.engine.harness import PART, Desk, until
from tests.waiting import is_stopped
from uploader import UploadResult
from uploader.devserver import Fault
from uploader.events import UploadStarted
from uploader.state import SqlState

from .conftest import Child, Nursery, job_of

TTL_S = 0.6
SIZE = 24 * PART


async def frozen(child: Child, state: str) -> None:
    """Freeze it for longer than its lease lives, at a moment when it holds no lock.

    In mid-transaction it would keep its successor waiting: tests/state has that.
    """
    child.signal(signal.SIGSTOP)
    await until(lambda: is_stopped(child.pid))
    while await asyncio.to_thread(is_in_transaction, state):
        child.signal(signal.SIGCONT)
        await asyncio.sleep(0.003)
        child.signal(signal.SIGSTOP)
        await until(lambda: is_stopped(child.pid))
    await asyncio.sleep(1.2 * TTL_S)


def is_in_transaction(state: str) -> bool:
    """Whether a transaction is open."""
    if not state.startswith("postgresql:"):
        with closing(sqlite3.connect(state, timeout=0, isolation_level=None)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            return False
    with psycopg.connect(state) as connection:
        # A statement that is still running counts: it may leave a transaction open behind it.
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND state <> 'idle' AND pid <> pg_backend_pid()"
        )
        row = connection.execute(query).fetchone()
        return row is not None and row[0] > 0


async def take_over(desk: Desk, movie: Path, state: str) -> UploadResult:
    return await desk.push(movie, key="film", state=SqlState(state, lease_ttl_s=30.0))


async def assert_untouched(desk: Desk, successor: asyncio.Task[UploadResult], movie: Path) -> None:
    """What the successor does ends as if it were alone."""
    result = await successor
    await desk.assert_stored(result, movie)
    assert desk.server.stats.completes == 1
    assert desk.server.stats.aborts == 0
    assert desk.server.stats.creates == 1
    assert asdict(result)["resumed_part_count"] > 0


async def test_frozen_while_sending(desk: Desk, nursery: Nursery, state_url: str) -> None:
    movie = desk.file(SIZE)
    desk.server.set_options(bandwidth=1e6)
    job = job_of(desk, state_url, do="upload", source=str(movie), key="film", lease_ttl_s=TTL_S)
    zombie = nursery.start(**job)
    await until(lambda: desk.server.stats.parts_stored >= 5)
    await frozen(zombie, state_url)
    desk.server.set_options(bandwidth=0.3e6)
    async with asyncio.TaskGroup() as group:
        successor = group.create_task(take_over(desk, movie, state_url))
        await until(lambda: bool(desk.events_of(UploadStarted)))

        zombie.signal(signal.SIGCONT)
        report = await zombie.ended()

        assert report is not None
        assert report["error"] == "LeaseLost", report
        assert not successor.done()
        assert desk.count("CompleteMultipartUpload") == 0
        desk.server.set_options(bandwidth=None)
        await assert_untouched(desk, successor, movie)


async def test_frozen_while_completing(desk: Desk, nursery: Nursery, state_url: str) -> None:
    """Its request is lost while it sleeps; awake, it would send it again at once."""
    movie = desk.file(6 * PART)
    name = "CompleteMultipartUpload"
    desk.order(
        Fault(action="delay", operation=name, attempt=1, delay_s=2.5 * TTL_S),
        Fault(action="reset", operation=name, attempt=1),
        Fault(action="delay", operation=name, attempt=2, delay_s=4.0),
    )
    job = job_of(desk, state_url, do="upload", source=str(movie), key="film", lease_ttl_s=TTL_S)
    zombie = nursery.start(**job)
    await until(lambda: desk.count(name) == 1)
    await frozen(zombie, state_url)
    async with asyncio.TaskGroup() as group:
        successor = group.create_task(take_over(desk, movie, state_url))
        await until(lambda: desk.count(name) == 2)
        await until(lambda: desk.requests(name)[0].ended_at > 0)

        zombie.signal(signal.SIGCONT)
        report = await zombie.ended()

        assert report is not None
        assert report["error"] == "LeaseLost", report
        assert not successor.done()
        assert desk.count(name) == 2, "the zombie completed what is not its any more"
        await assert_untouched(desk, successor, movie)


async def test_frozen_while_aborting(desk: Desk, nursery: Nursery, state_url: str) -> None:
    """The parts it would remove are being used again."""
    movie = desk.file(SIZE)
    desk.order(Fault(action="error", operation="UploadPart", part=9, code="EntityTooLarge"))
    await desk.fail(movie, key="film", state=SqlState(state_url))
    desk.order(Fault(action="slow", operation="RefreshUploadVideo", delay_s=2.5 * TTL_S))
    desk.events.clear()
    renewals = desk.count("RefreshUploadVideo")
    zombie = nursery.start(**job_of(desk, state_url, do="abort", key="film", lease_ttl_s=TTL_S))
    await until(lambda: desk.count("RefreshUploadVideo") > renewals)
    await frozen(zombie, state_url)
    desk.server.set_options(bandwidth=0.3e6)
    async with asyncio.TaskGroup() as group:
        successor = group.create_task(take_over(desk, movie, state_url))
        await until(lambda: bool(desk.events_of(UploadStarted)))
        await until(lambda: desk.requests("RefreshUploadVideo")[renewals].ended_at > 0)

        zombie.signal(signal.SIGCONT)
        report = await zombie.ended()

        assert report is not None
        assert report["error"] == "LeaseLost", report
        assert desk.count("AbortMultipartUpload") == 0
        assert not successor.done()
        desk.server.set_options(bandwidth=None)
        await assert_untouched(desk, successor, movie)
