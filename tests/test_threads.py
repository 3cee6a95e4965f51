"""Threads for blocking work: bounded, in order, new after a fork, and no hindrance at the end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from uploader.threads import DISKS, Threads, Worker, in_thread


@pytest.fixture
def two() -> Iterator[Threads]:
    threads = Threads("test-threads", 2)
    yield threads
    threads.shutdown()


def named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


async def test_work_is_done_in_a_thread_and_what_it_returns_or_raises_is_passed_on() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    assert await in_thread(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await DISKS.run(divmod, 7, 0)


async def test_there_are_no_more_threads_than_stated(two: Threads) -> None:
    await asyncio.gather(*(two.run(time.sleep, 0.001) for _ in range(50)))
    assert len(named("test-threads")) == 2


async def test_a_thread_is_started_only_when_all_others_are_busy(two: Threads) -> None:
    for _ in range(50):
        await two.run(time.sleep, 0)
    assert len(named("test-threads")) == 1


async def test_one_thread_keeps_the_order() -> None:
    one, done = Threads("test-one", 1), list[int]()
    await asyncio.gather(*(one.run(done.append, number) for number in range(100)))
    assert done == list(range(100))
    one.shutdown()


async def test_work_has_the_callers_context() -> None:
    request = contextvars.ContextVar("request", default="")
    request.set("publish 7")
    assert await in_thread(request.get) == "publish 7"


async def test_stop_iteration_does_not_wait_for_ever() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(5):
            await in_thread(next, iter(()))


async def test_begun_work_continues_when_its_task_is_cancelled_and_queued_work_is_dropped() -> None:
    one, gate, done = Threads("test-one", 1), threading.Event(), list[str]()

    def begin() -> None:
        gate.wait(5)
        done.append("begun")

    tasks = [asyncio.ensure_future(one.run(begin))]
    tasks.append(asyncio.ensure_future(one.run(done.append, "queued")))
    await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    gate.set()
    await one.run(done.append, "later")
    assert done == ["begun", "later"]
    one.shutdown()


async def test_threads_that_are_shut_down_end_and_begin_nothing_more() -> None:
    one, gate = Threads("test-shut", 1), threading.Event()
    begun = one.submit(gate.wait, 5)
    queued = one.submit(time.sleep, 0)
    one.shutdown()
    gate.set()
    assert await asyncio.wrap_future(begun)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wrap_future(queued)
    with pytest.raises(RuntimeError, match="shut down"):
        await one.run(time.sleep, 0)
    while named("test-shut"):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_idle_threads_end_and_no_work_is_lost_meanwhile() -> None:
    hasty = Threads("test-hasty", 2, idle_s=0.001)
    for pause in range(200):
        await asyncio.sleep(pause % 5 / 2000)
        async with asyncio.timeout(10):
            assert await hasty.run(divmod, pause, 7) == divmod(pause, 7)
    while named("test-hasty"):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    hasty.shutdown()


async def test_nothing_is_kept_of_work_that_is_done(two: Threads) -> None:
    class Thing:
        """Something that can be referred to weakly."""

        def fail(self) -> None:
            raise ZeroDivisionError

    thing = Thing()
    gone = weakref.ref(thing)
    with pytest.raises(ZeroDivisionError):
        await two.run(thing.fail)
    del thing
    await two.run(time.sleep, 0)
    gc.collect()
    assert gone() is None


async def test_a_worker_finishes_what_nobody_waits_for_any_more() -> None:
    worker, gate, done = Worker("test"), threading.Event(), [1]
    worker.call(lambda: gate.wait(5)).cancel()
    worker.call(done.clear).cancel()
    worker.call(lambda: 1 // 0).cancel()
    gate.set()
    assert await worker.call(lambda: 7) == 7
    assert done == []
    worker.stop()
    worker.join(5)


def test_a_worker_may_outlive_its_loop() -> None:
    gate = threading.Event()

    async def leave() -> Worker:
        worker = Worker("test")
        worker.call(lambda: gate.wait(5)).cancel()
        return worker

    worker = asyncio.run(leave())
    gate.set()
    worker.stop()
    worker.join(5)


FORK = """
import asyncio, os, sys, time
from uploader.threads import DISKS, Threads, in_thread

own = Threads("own", 1)

async def use():
    async with asyncio.timeout(10):
        for threads in (DISKS, own):
            assert await threads.run(os.getpid) == os.getpid()
        assert await in_thread(os.getpid) == os.getpid()

asyncio.run(use())
hanging = [own.submit(time.sleep, 3600) for _ in range(3)]
child = os.fork()
if child == 0:
    try:
        asyncio.run(use())
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_has_threads_of_its_own_and_hanging_ones_do_not_keep_a_process() -> None:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert (ended.stdout, ended.stderr) == ("0\n", "")
    assert time.monotonic() - began < 30
