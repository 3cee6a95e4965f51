"""When a row that failed is tried again, and a database that dies during a query."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from typing import Any

import pytest
from procrastinate.exceptions import ConnectorException

from tests.cluster.conftest import Cluster
from tests.cluster.test_fence import queue_on
from tests.postgres import temporary_postgres
from uploader.bulk.ledger import KnownRow
from uploader.bulk.rows import Row
from uploader.bulk.runner import CheckedRow
from uploader.cluster.database import upgrade
from uploader.cluster.worker import _NO_FAILURE, WorkerOptions, _retry_after_s, _TakenRow
from uploader.errors import (
    CallerNotAuthenticated,
    IntegrityError,
    LeaseLost,
    SourceChanged,
    SourceUnreadable,
    StateUnavailable,
    TransportError,
    UnsupportedState,
    UploadLocked,
    VodupError,
)

OPTIONS = WorkerOptions(heartbeat_s=10, tries=10)


def retry_after_s(error: VodupError, **taken: Any) -> float | None:
    values: dict[str, Any] = {"failure_count": 0, "is_shared": True}
    row = _TakenRow("00", CheckedRow(Row("m", 1), KnownRow()), **values | taken)
    return _retry_after_s(error, row, OPTIONS)


@pytest.mark.parametrize("kind", [UploadLocked, LeaseLost])
@pytest.mark.parametrize("failures", [0, 500])
def test_a_row_that_another_worker_has_is_given_back_and_never_fails(
    kind: type[VodupError], failures: int
) -> None:
    assert retry_after_s(kind("x"), failure_count=failures) == OPTIONS.heartbeat_s
    assert issubclass(kind, _NO_FAILURE)


@pytest.mark.parametrize("kind", [CallerNotAuthenticated, UnsupportedState])
def test_an_error_that_stops_the_worker_fails_no_row(kind: type[VodupError]) -> None:
    assert retry_after_s(kind("x"), failure_count=500) == 0
    assert issubclass(kind, _NO_FAILURE)


@pytest.mark.parametrize("error", [TransportError("x", is_sent=True), StateUnavailable("x")])
def test_a_temporary_failure_is_retried_ever_later_and_fails_in_the_end(error: VodupError) -> None:
    waits = [retry_after_s(error, failure_count=count) for count in range(10)]
    assert waits[-1] is None
    times = [wait for wait in waits if wait is not None]
    assert len(times) == 9
    assert times[0] < 7
    assert all(wait <= 600 * 1.25 for wait in times)
    assert times[5] > times[0] * 8


@pytest.mark.parametrize("error", [SourceChanged("x"), IntegrityError("x"), VodupError("x")])
def test_a_permanent_failure_ends_the_row_at_once(error: VodupError) -> None:
    assert retry_after_s(error) is None


def test_a_shared_file_that_is_missing_here_is_left_to_others_twice() -> None:
    missing = SourceUnreadable("x")
    ends = [retry_after_s(missing, failure_count=n) is None for n in range(3)]
    assert ends == [False, False, True]
    assert retry_after_s(missing, is_shared=False) is None


async def test_a_query_during_which_the_database_dies_is_repeated() -> None:
    with temporary_postgres(restart_pause_s=0.1) as database:
        upgrade(database.url)
        async with AsyncExitStack() as stack:
            queue = await queue_on(database.url, stack)
            execute = queue.connector.execute_query_all_async
            running = asyncio.ensure_future(execute("SELECT pg_sleep(0.7)::text, 1 AS one"))
            await asyncio.sleep(0.3)
            pid = int((database.folder / "data" / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGQUIT)
            assert [row["one"] for row in await running] == [1]


async def test_a_wrong_query_is_not_repeated() -> None:
    with temporary_postgres() as database:
        upgrade(database.url)
        async with AsyncExitStack() as stack:
            queue = await queue_on(database.url, stack)
            async with asyncio.timeout(4):  # less than its patience
                with pytest.raises(ConnectorException):
                    await queue.connector.execute_query_all_async("SELECT * FROM no_such_table")


def test_a_command_runs_after_each_row_and_its_failure_is_reported(cluster: Cluster) -> None:
    cluster.files(3, size=1000)
    cluster.enqueue()
    note = cluster.folder / "note.sh"
    note.write_text('echo "$VODUP_STATUS $VODUP_VIDEO_ID" >> notes; exit 7\n')

    worker = cluster.worker("--drain", "--on-finished", "sh note.sh")

    assert worker.ended() == 0
    assert worker.output.count("sh failed with exit status 7") == 3
    cluster.check(3, size=1000, resent=0)
    notes = (cluster.folder / "notes").read_text().splitlines()
    assert sorted(notes) == sorted(f"verified {r['video_id']}" for r in cluster.records())
