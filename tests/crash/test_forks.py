"""An application that forks while an upload is under way: the child has nothing to do with it."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.engine.harness import PART, Desk, until
from uploader import Uploader


def own_locks() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "/locks/" in (link := os.readlink(f"/proc/self/fd/{name}")):
                found.append(link)
    return found


def in_the_child(up: Uploader, movie: Path) -> int:
    """What an application's child may do; each step's failure has a code of its own."""
    if own_locks():
        return 43
    turn = up.state.find(key="film")
    try:
        turn.send(None)
    except Exception as error:
        return 42 if "fork" in str(error) else 44
    return 45


def forked(up: Uploader, movie: Path) -> int:
    """Fork in this thread, as any thread of an application may; the child's code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = in_the_child(up, movie)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def multiprocessed(up: Uploader, movie: Path) -> int:
    """The same through multiprocessing, whose child runs exit handlers and collects garbage."""
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = context.Process(target=_leave, args=(up, movie))
        child.start()
    child.join()
    return child.exitcode or 0


def _leave(up: Uploader, movie: Path) -> None:
    raise SystemExit(in_the_child(up, movie))


async def forked_in_a_thread(up: Uploader, movie: Path) -> int:
    return await asyncio.to_thread(forked, up, movie)


async def forked_here(up: Uploader, movie: Path) -> int:
    # Not from a thread: there CPython itself loses the exit code of multiprocessing's child.
    return multiprocessed(up, movie)


@pytest.mark.parametrize("fork", [forked_in_a_thread, forked_here])
async def test_a_fork_in_mid_upload_changes_nothing(
    desk: Desk, fork: Callable[[Uploader, Path], Awaitable[int]]
) -> None:
    movie = desk.file(16 * PART)
    async with desk.uploader() as up, asyncio.TaskGroup() as group:
        task = group.create_task(up.upload(movie, key="film"))
        for parts in (3, 7, 11):
            desk.server.set_options(bandwidth=1.2e6)
            await until(lambda parts=parts: desk.server.stats.parts_stored >= parts)  # type: ignore[misc]
            desk.server.set_options(bandwidth=0.05e6)  # a fork may take longer than the rest
            assert await fork(up, movie) == 42
            with pytest.raises(Exception, match="is already being uploaded by"):
                async with up.state.claim("film"):
                    pass
        desk.server.set_options(bandwidth=None)
        result = await task

    await desk.assert_stored(result, movie)
    stats = desk.server.stats
    assert (stats.creates, stats.completes, stats.bytes_sent_twice) == (1, 1, 0)
    assert result.retry_count == 0, "a connection was touched"
