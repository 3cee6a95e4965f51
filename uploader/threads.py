"""Threads for work that blocks, at most so many for each kind of work.

| threads | at most | for |
|---|---|---|
| `DISKS` | 8 per process | reads, looks at files |
| `in_thread` | 8 per process | short work: ledgers, lists, certificates, AccessKeys |
| `Threads` elsewhere | 1 per stream or file object, 32 per process for fsspec | foreign readers |
| `Threads` of hooks | 1,024 per process | the caller's functions, which may hang |
| a `Worker` | 1 per open state store | transactions, in order |

asyncio's own pool is left alone: the lookup of host names uses it, and `asyncio.run` waits for
its threads. All threads here are daemons, so one that never returns (a dead file server, a pipe
without a writer) does not keep the interpreter from exiting. A forked child has none of its
parent's threads; `Threads` start again there when they are next used. Idle ones end.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final, ParamSpec, TypeVar

from uploader.portable import after_fork

P = ParamSpec("P")
T = TypeVar("T")

_Jobs = SimpleQueue[Callable[[], None] | None]


class Threads(Executor):
    """Daemon threads that take functions in the order of submission. Mutable.

    Args:
        name: what the threads are called.
        most: how many threads there are at most; each is started when all others are busy.
        idle_s: how long a thread waits for work. Too short: nearly every call starts one. Too
            long: what a burst of calls has started stays.
    """

    def __init__(self, name: str, most: int, *, idle_s: float = 10.0) -> None:
        self._name, self._most, self._idle_s = name, most, idle_s
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._jobs: _Jobs = SimpleQueue()
        self._thread_count = self._unfinished_count = 0
        self._is_shut_down = False

    @property
    def is_exhausted(self) -> bool:
        """Whether all threads are busy, so that more work has to wait."""
        return self._unfinished_count >= self._most

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns, with the caller's context variables.

        Work that a thread has begun continues when the waiting task is cancelled.
        """
        call = partial(contextvars.copy_context().run, work, *args, **kwargs)
        return await asyncio.wrap_future(self.submit(call))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` in one of the threads."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError(f"the {self._name} threads have been shut down")
            self._jobs.put(partial(self._carry_out, future, partial(fn, *args, **kwargs)))
            self._unfinished_count += 1
            if self._thread_count < min(self._unfinished_count, self._most):
                _start(self._name, self._run_jobs)
                self._thread_count += 1
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """End the threads. Cancels what no thread has begun, and never waits."""
        with self._lock:
            self._is_shut_down = True
            for _ in range(self._thread_count):
                self._jobs.put(None)
            self._thread_count = 0

    def _run_jobs(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_s)
            except Empty:
                with self._lock:
                    if self._jobs.empty():  # nothing was submitted meanwhile
                        self._thread_count -= 1
                        return
                continue
            if job is None:
                return
            job()
            del job  # or its last arguments live until the next one comes

    def _carry_out(self, future: Future[T], work: Callable[[], T]) -> None:
        if self._is_shut_down:
            future.cancel()
        is_wanted = future.set_running_or_notify_cancel()
        settle = _outcome(future, work) if is_wanted else None
        with self._lock:
            self._unfinished_count -= 1  # before the caller gets the result and submits again
        if settle is not None:
            settle()


def _outcome(future: Future[T] | asyncio.Future[T], work: Callable[[], T]) -> Callable[[], None]:
    try:
        return partial(future.set_result, work())
    except StopIteration as error:  # asyncio's futures refuse it, and would wait for ever
        return partial(future.set_exception, RuntimeError(f"StopIteration: {error}"))
    except BaseException as error:
        return partial(future.set_exception, error)
    finally:
        del future, work  # a failure refers to this frame


_ALL: Final = weakref.WeakSet[Threads]()


def _begin_all() -> None:
    """In a forked child: forget threads that only the parent has, and what they were to do."""
    for threads in list(_ALL):
        threads._begin()


after_fork(_begin_all)

DISKS: Final = Threads("vodup-disk", 8)
"""Threads that wait for disks. Fewer starve fast disks, more only queue in the kernel."""

_WORK: Final = Threads("vodup-work", 8)
"""Fewer: one slow lookup delays the others. More: of no use, such work is short and rare."""

in_thread: Final = _WORK.run
"""`Threads.run` for short work. What waits for a peer or a producer has threads of its own."""


class Worker:
    """Runs functions one after the other in one thread. Mutable.

    A function that was submitted runs to its end even if its caller stops waiting,
    so a cancelled caller never leaves half a transaction.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: _Jobs = SimpleQueue()
        self._thread = _start(name, self._run_jobs)

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` after those already submitted. It must not raise."""
        self._jobs.put(job)

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` and deliver what it returns or raises."""
        future: asyncio.Future[T] = self._loop.create_future()

        def settle(deliver: Callable[[], None]) -> None:
            if not future.done():
                deliver()

        self.submit(lambda: self.call_soon(settle, _outcome(future, work)))
        return future

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """From the thread: call `callback` in the loop, if that still runs."""
        with suppress(RuntimeError):  # the loop is closed: no caller waits
            self._loop.call_soon_threadsafe(callback, *args)

    def _run_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job

    def stop(self) -> None:
        """End the thread after what is already submitted."""
        self._jobs.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's last instructions after `stop`."""
        self._thread.join(timeout_s)


def _start(name: str, run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
