"""What a worker does to a job that is not its own any more: nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from tests.cluster.conftest import Cluster
from uploader.cluster.database import open_pool
from uploader.cluster.queue import Ending, Queue, make_queue

pytest.importorskip("procrastinate")

from procrastinate.jobs import Job, Status

RECORD = {"id": "00", "status": "done", "who": "the right one"}
WRONG = {"id": "00", "status": "failed", "who": "the frozen one"}


@dataclass
class Desk:
    """Two workers' queues, and one job that was taken from the first by the second."""

    cluster: Cluster
    frozen: Queue
    right: Queue
    old: Job
    new: Job

    def state(self) -> tuple[object, ...] | None:
        import psycopg

        with psycopg.connect(self.cluster.url) as connection:
            return connection.execute(
                "SELECT status, worker_id, attempts FROM procrastinate_jobs"
            ).fetchone()

    def record(self) -> object:
        import psycopg

        with psycopg.connect(self.cluster.url) as connection:
            row = connection.execute("SELECT record::text FROM vodup_job").fetchone()
        return json.loads(row[0]) if row and row[0] else None


async def queue_on(url: str, stack: AsyncExitStack) -> Queue:
    pool = await stack.enter_async_context(open_pool(url))
    app, queue = make_queue(10)
    await app.connector.open_async(pool)
    return queue


async def taken(queue: Queue, worker: int) -> Job:
    job = await queue.fetch_job(None, worker)
    assert job is not None
    return job


@pytest.fixture
def queued(cluster: Cluster) -> Cluster:
    """One row; queued before there is a loop, for the command has its own."""
    cluster.files(1, size=1)
    cluster.enqueue()
    return cluster


@pytest.fixture
async def desk(queued: Cluster) -> AsyncIterator[Desk]:
    cluster = queued
    async with AsyncExitStack() as stack:
        frozen = await queue_on(cluster.url, stack)
        right = await queue_on(cluster.url, stack)
        first, second = await frozen.register_worker(), await right.register_worker()
        old = await taken(frozen, first)
        cluster.execute(
            "UPDATE procrastinate_workers SET last_heartbeat = 'epoch' WHERE id = %s", first
        )
        assert await right.sweep(silent_s=30) == [old.id]
        new = await taken(right, second)
        assert new.id == old.id
        yield Desk(cluster, frozen, right, old, new)


def row_id(job: Job) -> str:
    return str(job.task_kwargs["id"])


async def test_a_frozen_worker_cannot_end_the_job(desk: Desk) -> None:
    before = desk.state()
    desk.frozen.endings[desk.old.id or 0] = Ending(row_id(desk.old), WRONG)
    await desk.frozen.finish_job(desk.old, Status.SUCCEEDED, True)
    assert desk.state() == before
    assert desk.record() is None


async def test_a_frozen_worker_cannot_give_the_job_back(desk: Desk) -> None:
    before = desk.state()
    await desk.frozen.retry_job(desk.old)
    assert desk.state() == before


async def test_a_frozen_worker_cannot_overwrite_the_record(desk: Desk) -> None:
    desk.right.endings[desk.new.id or 0] = Ending(row_id(desk.new), RECORD)
    await desk.right.finish_job(desk.new, Status.SUCCEEDED, True)
    desk.frozen.endings[desk.old.id or 0] = Ending(row_id(desk.old), WRONG)
    await desk.frozen.finish_job(desk.old, Status.SUCCEEDED, True)
    assert desk.state() is None
    assert desk.record() == RECORD


async def test_the_same_worker_in_an_earlier_attempt_is_fenced_too(desk: Desk) -> None:
    worker = desk.new.worker_id or 0
    await desk.right.retry_job(desk.new)
    again = await taken(desk.right, worker)
    before = desk.state()
    await desk.right.retry_job(desk.new)
    assert desk.state() == before
    assert again.attempts == desk.new.attempts + 1


async def test_jobs_of_a_live_worker_are_not_given_back(desk: Desk) -> None:
    assert await desk.frozen.sweep(silent_s=30) == []
    assert await desk.frozen.sweep(silent_s=30, lost=[desk.old]) == []


async def test_a_lost_job_of_a_live_worker_is_given_back(desk: Desk) -> None:
    held = await desk.right.held_jobs(desk.new.worker_id or 0)
    assert [job.id for job in held] == [desk.new.id]
    assert await desk.right.sweep(silent_s=30, lost=held) == [desk.new.id]
    assert await desk.right.held_jobs(desk.new.worker_id or 0) == []


async def test_a_worker_whose_registration_was_deleted_continues(desk: Desk) -> None:
    """Whoever starts removes silent workers; one that was frozen takes jobs again."""
    worker = desk.old.worker_id or 0
    desk.cluster.execute("DELETE FROM procrastinate_workers WHERE id = %s", worker)
    await desk.frozen.update_heartbeat(worker)
    await desk.right.retry_job(desk.new)
    assert (await taken(desk.frozen, worker)).id == desk.old.id
