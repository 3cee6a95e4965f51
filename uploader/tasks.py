"""Tasks that run beside a block, and one error out of all of them.

`asyncio.TaskGroup` raises a bundle of errors, and on Python 3.11 and 3.12 it leaves
`Task.cancelling()` of the caller one too high when a task fails while the group waits at its end:
a timeout or a cancel scope around the group then takes a later error of its own for a
cancellation from outside. The group made here has neither fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def beside(*work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run `work` in the background of the block, and cancel it at the block's end.

    A failure in the background cancels the block and is raised in its place; see `one_error`.
    Background work that returns early changes nothing.
    """
    async with one_error() as group:
        tasks = [group.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def one_error() -> asyncio.TaskGroup:
    """A task group that raises its first error as it is, instead of an exception group.

    The first failure, of a task or of the block, cancels everything else in the group; what the
    others raise while they end is dropped. A cancellation from outside takes precedence over every
    failure. A task that ends with a `CancelledError` although it was not cancelled counts as
    failed, with a `RuntimeError`.
    """
    return _OneErrorGroup()


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, run in a task of its own.

    For code of the caller's: what it leaves in `Task.cancelling()` stays there, and its own
    cancellation that was not requested is a failure; see `one_error`.
    """
    async with one_error() as group:
        task = group.create_task(work)
    return task.result()


def cancel_count() -> int:
    """How many cancellations of the current task are pending; compare with an earlier count.

    More than at an earlier point of the same task: it was cancelled from outside since.
    """
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


class _OneErrorGroup(asyncio.TaskGroup):
    """Mutable: the running tasks, the first failure, and who waits for the end of all tasks."""

    def __init__(self) -> None:
        super().__init__()
        self._running: set[asyncio.Task[Any]] = set()
        self._first: BaseException | None = None
        self._all_ended: asyncio.Future[None] | None = None
        self._cancel_count = 0

    async def __aenter__(self) -> Self:
        self._cancel_count = cancel_count()
        return await super().__aenter__()

    def create_task(self, *args: Any, **options: Any) -> asyncio.Task[Any]:
        """Start a coroutine in the group."""
        task: asyncio.Task[Any] = super().create_task(*args, **options)
        self._running.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._add_failure(task.exception())
        elif not task.cancelling():
            self._fail_for(task)
        if self._all_ended is not None and not self._running and not self._all_ended.done():
            self._all_ended.set_result(None)

    def _fail_for(self, task: asyncio.Task[Any]) -> None:
        failure = RuntimeError("what a task awaited was cancelled, and not the task")
        try:
            task.result()
        except asyncio.CancelledError as error:
            failure.__cause__ = error
        self._add_failure(failure)
        work = _raise(failure)
        try:
            self.create_task(work)
        except RuntimeError:  # the group is ending already
            work.close()

    def _add_failure(self, error: BaseException | None) -> None:
        if self._first is None:
            self._first = error

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # Tasks end while this is still the block for TaskGroup: see the module's docstring.
            while error is None and self._running:
                self._all_ended = asyncio.get_running_loop().create_future()
                await self._all_ended
        except asyncio.CancelledError as cancellation:
            error = cancellation
        cancelled = _cancellation_in(error)
        if error is not None and error is not cancelled:
            self._add_failure(error)
        is_balanced = getattr(self, "_parent_cancel_requested", False)
        expected_count = cancel_count() - is_balanced
        with suppress(BaseExceptionGroup):  # its first error is raised below
            await super().__aexit__(type(error) if error else None, error, trace)
        failure, self._first = self._first, None
        if cancel_count() > expected_count:
            cancelled = cancelled or asyncio.CancelledError()
        if cancel_count():  # a group of Python 3.13 that failed has cancelled its caller again
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as again:
                cancelled = cancelled or again
        # Both: a plain TaskGroup in the block may have left a count without a cancellation.
        if cancelled is not None and cancel_count() > self._cancel_count:
            await asyncio.sleep(0)  # anyio's scopes cancel again, and know theirs by its message
            raise cancelled
        if failure is not None and failure is not error:
            context = failure.__context__
            try:
                raise failure
            finally:
                failure.__context__ = context  # and not what is being handled here


def _cancellation_in(error: BaseException | None) -> asyncio.CancelledError | None:
    """The cancellation that `error` is, or that was being handled when it was raised."""
    while error is not None and not isinstance(error, asyncio.CancelledError):
        error = error.__context__
    return error


async def _raise(error: Exception) -> None:
    raise error
