"""The threads that wait for disks: of our own, because DNS shares asyncio's default pool."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from io import FileIO
from typing import Any, Final, ParamSpec, TypeVar

__all__ = [
    "READING_THREAD_COUNT",
    "OpeningThreads",
    "call_if_open",
    "in_reading_thread",
    "reading_threads",
]

P = ParamSpec("P")
T = TypeVar("T")

READING_THREAD_COUNT: Final = 8
"""Threads that wait for disks. Fewer starve fast disks, more only queue in the kernel."""


@functools.cache
def reading_threads() -> ThreadPoolExecutor:
    """One pool per process, so that threads do not grow with the number of files."""
    return ThreadPoolExecutor(READING_THREAD_COUNT, thread_name_prefix="vodup-read")


async def in_reading_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work in one of them. It goes on when the task that waits is cancelled."""
    return await asyncio.wrap_future(reading_threads().submit(work, *args, **kwargs))


class OpeningThreads(Executor):
    """The reading threads as one opening sees them. Mutable: its last job.

    A thread goes on opening when the task that waits for it is cancelled, and closing
    is never dropped from the queue: the file would stay open.
    """

    _job: Future[Any] | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run it in a reading thread, whatever becomes of the task that waits for it."""
        self._job = promised = Future[T]()
        promised.set_running_or_notify_cancel()  # from here on it cannot be cancelled
        job = reading_threads().submit(fn, *args, **kwargs)
        job.add_done_callback(functools.partial(_pass_on, promised))
        return promised

    def close_what_is_opened(self) -> None:
        """Close the file as soon as the thread has opened it."""
        if self._job is not None:
            self._job.add_done_callback(_close_result)


def _pass_on(promised: Future[T], job: Future[T]) -> None:
    if (error := job.exception()) is not None:
        promised.set_exception(error)
    else:
        promised.set_result(job.result())


def _close_result(job: Future[FileIO]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result().close()


def call_if_open(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """A thread may return after its loop is gone; then nobody waits for it."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
