"""Tasks beside a block: one error comes out, and cancellations are counted right."""

# ruff: noqa: PT012 - what a block of several tasks raises is what is tested

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest

from tests.clocks import settled
from uploader.tasks import beside, cancel_count, one_error


class Boom(Exception):
    """What fails here."""


async def fail(delay_s: float = 0.0) -> None:
    await asyncio.sleep(delay_s)
    raise Boom


async def forever(ended: list[str] | None = None) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        if ended is not None:
            ended.append("ended")


async def fail_when_cancelled() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise ZeroDivisionError


# --- one error -------------------------------------------------------------------------


async def test_the_first_failure_is_raised_as_it_is_and_ends_the_others() -> None:
    ended: list[str] = []
    with pytest.raises(Boom) as caught:
        async with one_error() as group:
            group.create_task(forever(ended))
            group.create_task(fail())
    assert ended == ["ended"]
    assert caught.value.__context__ is None


async def test_what_others_raise_while_they_end_does_not_hide_the_cause() -> None:
    with pytest.raises(Boom):
        async with one_error() as group:
            group.create_task(fail_when_cancelled())
            group.create_task(fail())
    with pytest.raises(Boom):
        async with one_error() as group:
            group.create_task(fail_when_cancelled())
            await asyncio.sleep(0)
            raise Boom
    with pytest.raises(Boom):
        async with one_error() as group:
            group.create_task(fail())
            await fail_when_cancelled()


async def test_a_failure_keeps_its_own_cause_and_context() -> None:
    async def fail_in_two_steps() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise Boom  # noqa: B904 - its context is looked at

    with pytest.raises(Boom) as caught:
        async with one_error() as group:
            group.create_task(fail_in_two_steps())
            await asyncio.Event().wait()
    assert isinstance(caught.value.__context__, KeyError)


async def test_an_exception_group_of_somebody_elses_stays_whole() -> None:
    theirs = ExceptionGroup("theirs", [Boom(), KeyError()])

    async def fail_twice() -> None:
        raise theirs

    for in_block in (False, True):
        with pytest.raises(ExceptionGroup) as caught:
            async with one_error() as group:
                if in_block:
                    raise theirs
                group.create_task(fail_twice())
        assert caught.value is theirs


async def test_all_results_are_there_at_the_end_of_the_block() -> None:
    async def seven(delay_s: float) -> int:
        await asyncio.sleep(delay_s)
        return 7

    async with one_error() as group:
        tasks = [group.create_task(seven(delay / 1000)) for delay in range(3)]
    assert [task.result() for task in tasks] == [7, 7, 7]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_the_end_of_the_process_is_no_failure_of_a_task(kind: type[BaseException]) -> None:
    async def leave() -> None:
        raise kind

    async def run() -> None:
        async with one_error() as group:
            group.create_task(leave())
            await asyncio.sleep(1)

    with pytest.raises(kind):
        asyncio.run(run())


# --- beside ----------------------------------------------------------------------------


async def test_background_work_ends_with_the_block() -> None:
    ended: list[str] = []
    async with beside(forever(ended), forever(ended)):
        await asyncio.sleep(0)
        assert ended == []
    assert ended == ["ended", "ended"]


async def test_background_work_that_returns_early_changes_nothing() -> None:
    async with beside(asyncio.sleep(0)):
        await settled()


async def test_work_that_never_began_is_not_complained_about() -> None:
    async with beside(forever()):
        pass
    gc.collect()  # a coroutine that was never awaited warns, and warnings are errors here


async def test_a_failure_in_the_background_ends_the_block() -> None:
    with pytest.raises(Boom):
        async with beside(fail()):
            await asyncio.Event().wait()


async def test_a_failure_of_the_block_is_raised_as_it_is() -> None:
    ended: list[str] = []
    with pytest.raises(Boom):
        async with beside(forever(ended), fail_when_cancelled()):
            await fail()
    assert ended == ["ended"]


async def test_an_iterator_may_be_closed_in_the_block() -> None:
    ended: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        async with beside(forever(ended)):
            await settled()
            yield 1
            yield 2

    iterator = numbers()
    assert await anext(iterator) == 1
    await iterator.aclose()  # type: ignore[attr-defined]
    assert ended == ["ended"]


# --- cancellation ----------------------------------------------------------------------


async def fails_in_the_block() -> None:
    async with one_error() as group:
        group.create_task(fail())
        await asyncio.Event().wait()


async def fails_at_the_end() -> None:
    """Where asyncio's own group leaves a cancellation behind on Python 3.11 and 3.12."""
    async with one_error() as group:
        group.create_task(forever())
        group.create_task(fail(0.001))


async def fails_in_a_group_of_groups() -> None:
    async with beside(forever()), one_error() as group:
        group.create_task(fails_at_the_end())
        group.create_task(fails_in_the_block())


FAILING = pytest.mark.parametrize(
    "failing", [fails_in_the_block, fails_at_the_end, fails_in_a_group_of_groups]
)
Failing = Callable[[], Awaitable[None]]


@FAILING
async def test_a_failure_leaves_no_cancellation_behind(failing: Failing) -> None:
    with pytest.raises(Boom):
        await failing()
    assert cancel_count() == 0
    await asyncio.sleep(0)


@FAILING
async def test_timeouts_work_after_a_failure(failing: Failing) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            with pytest.raises(Boom):
                await failing()
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError), anyio.fail_after(0.1):
        with pytest.raises(Boom):
            await failing()
        await asyncio.Event().wait()
    with anyio.move_on_after(0.1) as scope:
        with pytest.raises(Boom):
            await failing()
        await asyncio.Event().wait()
    assert scope.cancelled_caught
    assert cancel_count() == 0


@FAILING
async def test_a_failure_is_no_timeout(failing: Failing) -> None:
    with pytest.raises(Boom):
        async with asyncio.timeout(10):
            await failing()
    with pytest.raises(Boom), anyio.fail_after(10):
        await failing()


async def wait_in_a_group() -> None:
    async with beside(forever()), one_error() as group:
        group.create_task(forever())


async def wait_and_fail_when_cancelled() -> None:
    """A failure and a cancellation at once: the group would let the failure win."""
    async with beside(fail_when_cancelled()), one_error() as group:
        group.create_task(fail_when_cancelled())
        await asyncio.Event().wait()


async def end_slowly() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.2)


async def be_cancelled_while_a_failure_ends_the_others() -> None:
    async with one_error() as group:
        group.create_task(end_slowly())
        group.create_task(fail())


async def be_cancelled_while_a_failure_of_the_block_ends_the_others() -> None:
    async with one_error() as group:
        group.create_task(end_slowly())
        await asyncio.sleep(0)
        raise Boom


async def fail_while_it_is_cancelled() -> None:
    async with beside(forever()):
        try:
            await asyncio.Event().wait()
        finally:
            raise Boom


WAITING = pytest.mark.parametrize(
    "waiting",
    [
        wait_in_a_group,
        wait_and_fail_when_cancelled,
        be_cancelled_while_a_failure_ends_the_others,
        be_cancelled_while_a_failure_of_the_block_ends_the_others,
        fail_while_it_is_cancelled,
    ],
)


@WAITING
async def test_a_cancellation_from_outside_is_never_swallowed(waiting: Failing) -> None:
    task = asyncio.ensure_future(waiting())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@WAITING
async def test_a_timeout_around_a_group_stays_one(waiting: Failing) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await waiting()
    assert cancel_count() == 0
    with pytest.raises(TimeoutError), anyio.fail_after(0.02):
        await waiting()
    assert cancel_count() == 0
    with anyio.move_on_after(0.02) as scope:
        await waiting()
    assert scope.cancelled_caught
    assert cancel_count() == 0
    await asyncio.sleep(0)


async def test_a_cancellation_that_somebody_swallowed_before_does_not_count() -> None:
    """Careless callers catch a CancelledError and leave `cancelling()` at one for ever."""
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(1)
    for failing in (fails_in_the_block, fails_at_the_end, fails_in_a_group_of_groups):
        with pytest.raises(Boom):
            await failing()
        assert cancel_count() == 1
    async with beside(forever()):
        await asyncio.sleep(0)
    asyncio.current_task().uncancel()  # type: ignore[union-attr]


async def use_a_plain_group() -> None:
    """Somebody else's code; on Python 3.11 and 3.12 it leaves a count of one."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(forever())
            group.create_task(fail(0.001))
    except* Boom:
        pass


async def test_what_a_plain_group_in_the_block_leaves_behind_is_no_cancellation() -> None:
    async with beside(forever()):
        await use_a_plain_group()
    with pytest.raises(KeyError):
        async with beside(forever()):
            await use_a_plain_group()
            raise KeyError
    with pytest.raises(Boom):
        async with one_error() as group:
            group.create_task(forever())
            await use_a_plain_group()
            await fail()


async def wait_for_something_cancelled() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def test_a_task_that_nobody_cancelled_has_failed() -> None:
    with pytest.raises(RuntimeError, match="and not the task") as caught:
        async with one_error() as group:
            group.create_task(wait_for_something_cancelled())
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    with pytest.raises(RuntimeError, match="and not the task"):
        async with beside(wait_for_something_cancelled()):
            await asyncio.Event().wait()


async def test_others_may_clean_up_without_being_cancelled_again() -> None:
    cleaned: list[str] = []

    async def clean_up(delay_s: float) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(delay_s)
            cleaned.append("cleaned")
            raise ZeroDivisionError

    with pytest.raises(Boom):
        async with beside(clean_up(0.01), clean_up(0.02), clean_up(0.03)):
            await fail(0.001)
    with pytest.raises(Boom):
        async with one_error() as group:
            for delay in range(3):
                group.create_task(clean_up(delay / 100))
            group.create_task(fail(0.001))
    assert len(cleaned) == 6


async def test_a_cancellation_and_a_failure_in_the_same_moment_is_a_cancellation() -> None:
    for cancel_first in (False, True):
        begin = asyncio.Event()

        async def fail_now(begin: asyncio.Event = begin) -> None:
            await begin.wait()
            raise Boom

        async def wait(work: Callable[[], Coroutine[Any, Any, None]] = fail_now) -> None:
            async with one_error() as group:
                group.create_task(work())
                await asyncio.Event().wait()

        task = asyncio.ensure_future(wait())
        await settled()
        if cancel_first:
            task.cancel()
        begin.set()
        await asyncio.sleep(0)
        if not cancel_first:
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_task_that_the_block_cancels_has_not_failed() -> None:
    async with one_error() as group:
        task = group.create_task(forever())
        await asyncio.sleep(0)
        task.cancel()
        early = group.create_task(forever())
        early.cancel()
    assert task.cancelled()
    assert early.cancelled()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_tasks_may_begin_at_once() -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    try:
        async with one_error() as group:
            done = group.create_task(asyncio.sleep(0, 7))
        assert done.result() == 7
        for failing in (fails_at_the_end, fails_in_a_group_of_groups):
            with pytest.raises(Boom):
                await failing()
            assert cancel_count() == 0
    finally:
        loop.set_task_factory(None)
