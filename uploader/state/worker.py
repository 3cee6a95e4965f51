"""One thread for a database that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker:
    """Runs functions one after the other in a thread of its own.

    A function that was submitted runs to its end even if nobody waits for it any more,
    so a cancelled caller never leaves half a transaction. The thread is a daemon: a
    forgotten `stop` does not keep the interpreter from exiting.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=_run_all, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` after those already submitted. It must not raise."""
        self._jobs.put(job)

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` and deliver what it returns or raises."""
        future: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                result = work()
            except BaseException as error:
                self.tell(_fail, future, error)
            else:
                self.tell(_succeed, future, result)

        self.submit(job)
        return future

    def tell(self, callback: Callable[..., object], *args: object) -> None:
        """From the thread: call `callback` in the loop, if that still runs."""
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def stop(self) -> None:
        """End the thread after what is already submitted."""
        self._jobs.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's last instructions after `stop`."""
        self._thread.join(timeout_s)


def _run_all(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # or its last arguments live until the next one comes


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
