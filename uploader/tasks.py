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
from contextvars import Context
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

__all__ = ["beside", "cancel_count", "in_own_task", "one_error"]

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
    failure. A task that ends with a `CancelledError` although nobody has cancelled it counts as
    failed, with a `RuntimeError`.
    """
    return _OneErrorGroup()


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, run in a task of its own.

    For code of the caller's: what it leaves in `Task.cancelling()` stays there, and its own
    cancellation, which nobody has requested, is a failure; see `one_error`.
    """
    async with one_error() as group:
        task = group.create_task(work)
    return task.result()


def cancel_count() -> int:
    """How many cancellations of the current task are pending; compare with an earlier count.

    More than at an earlier point of the same task: somebody outside has cancelled it since.
    """
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


class _OneErrorGroup(asyncio.TaskGroup):
    """Mutable: the running tasks and the first failure."""

    def __init__(self) -> None:
        super().__init__()
        self._running: set[asyncio.Task[Any]] = set()
        self._first: BaseException | None = None
        self._cancel_count = 0

    async def __aenter__(self) -> Self:
        self._cancel_count = cancel_count()
        return await super().__aenter__()

    def create_task(  # type: ignore[override]  # it need not take generators
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Start `coro` in the group."""

        def on_done(task: asyncio.Task[T]) -> None:
            self._running.discard(task)
            coro.close()  # not begun, where the task was cancelled before its first step

        task = super().create_task(self._watched(coro), name=name, context=context)
        self._running.add(task)
        task.add_done_callback(on_done)
        return task

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except asyncio.CancelledError as error:
            if cancel_count():
                raise
            failure = RuntimeError("what a task awaited was cancelled, and not the task")
            self._add_failure(failure)
            raise failure from error
        except BaseException as error:
            self._add_failure(error)
            raise

    def _add_failure(self, error: BaseException) -> None:
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
            while self._running and error is None:
                await asyncio.wait(self._running)
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
            _raise_again(failure)


def _cancellation_in(error: BaseException | None) -> asyncio.CancelledError | None:
    """The cancellation that `error` is, or that was being handled when it was raised."""
    while error is not None and not isinstance(error, asyncio.CancelledError):
        error = error.__context__
    return error


def _raise_again(error: BaseException) -> NoReturn:
    """Raise it with the context that it has, not with what is being handled here."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
