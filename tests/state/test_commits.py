"""How acks share commits; the commit itself is a function of the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from uploader.errors import StateUnavailable
from uploader.state import PartAck
from uploader.state.commits import AckWrite, GroupCommit
from uploader.threads import Worker

Commit = Callable[[Sequence[AckWrite]], Sequence[bool]]


def write(number: int) -> AckWrite:
    return AckWrite(epoch=1, upload=1, part=PartAck(number, 1, "E", 1))


def no_answer() -> StateUnavailable:
    return StateUnavailable("no answer.")


@asynccontextmanager
async def committing(commit: Commit, timeout_s: float = 10) -> AsyncIterator[GroupCommit]:
    worker = Worker("test-commits")
    yield GroupCommit(worker, commit, no_answer, timeout_s)
    worker.stop()
    worker.join(5)


async def test_writes_that_wait_for_a_commit_share_the_next_one() -> None:
    batches: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def commit(writes: Sequence[AckWrite]) -> Sequence[bool]:
        batches.append(len(writes))
        begun.set()
        go_on.wait(5)
        return [True] * len(writes)

    async with committing(commit) as commits:
        first = commits.write(write(1))
        assert await asyncio.to_thread(begun.wait, 5)
        others = [commits.write(write(number)) for number in range(2, 102)]
        await asyncio.sleep(0.01)
        go_on.set()
        assert await first
        assert all([await other for other in others])
    assert batches == [1, 100]


async def test_each_writer_learns_its_own_outcome() -> None:
    def commit(writes: Sequence[AckWrite]) -> Sequence[bool]:
        return [entry.part.number % 2 == 0 for entry in writes]

    async with committing(commit) as commits:
        futures = [commits.write(write(number)) for number in range(10)]
        assert [await future for future in futures] == [True, False] * 5


async def test_a_failed_commit_fails_its_writers_and_no_later_ones() -> None:
    failures = iter([StateUnavailable("full."), None])

    def commit(writes: Sequence[AckWrite]) -> Sequence[bool]:
        failure = next(failures)
        if failure is not None:
            raise failure
        return [True] * len(writes)

    async with committing(commit) as commits:
        with pytest.raises(StateUnavailable, match="full"):
            await commits.write(write(1))
        assert await commits.write(write(2))


async def test_no_writer_waits_longer_than_the_deadline() -> None:
    go_on = threading.Event()

    def commit(writes: Sequence[AckWrite]) -> Sequence[bool]:
        go_on.wait(5)
        return [True] * len(writes)

    async with committing(commit, timeout_s=0.05) as commits:
        with pytest.raises(StateUnavailable, match="no answer"):
            await commits.write(write(1))
        go_on.set()


async def test_a_cancelled_writer_takes_nobody_elses_write_with_it() -> None:
    written: list[int] = []

    def commit(writes: Sequence[AckWrite]) -> Sequence[bool]:
        written.extend(entry.part.number for entry in writes)
        return [True] * len(writes)

    async with committing(commit) as commits:
        leader, follower = commits.write(write(1)), commits.write(write(2))
        leader.cancel()
        assert await follower
    assert written == [1, 2]


async def test_patient_writes_wait_for_company_and_leave_with_who_is_in_a_hurry() -> None:
    batches: list[list[int]] = []

    def commit(writes: Sequence[AckWrite]) -> Sequence[bool]:
        batches.append([entry.part.number for entry in writes])
        return [True] * len(writes)

    async with committing(commit) as commits:
        patient = [commits.write(write(number), patience_s=3600) for number in (1, 2)]
        await asyncio.sleep(0.05)
        assert batches == []
        assert await commits.write(write(3))
        assert all([await one for one in patient])
        assert await commits.write(write(4), patience_s=0.01)
    assert batches == [[1, 2, 3], [4]]


async def test_enough_patient_writes_wait_no_longer() -> None:
    batches: list[int] = []

    def commit(writes: Sequence[AckWrite]) -> Sequence[bool]:
        batches.append(len(writes))
        return [True] * len(writes)

    async with committing(commit) as commits:
        patient = [commits.write(write(number), patience_s=3600) for number in range(1, 65)]
        assert all([await one for one in patient])
    assert batches == [64]
