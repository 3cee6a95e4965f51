"""Cancelling an upload wherever it can be cancelled: at every resumption of any of its tasks.

The tasks are counted from the outside, by what drives their coroutines. A first run counts
how many resumptions there are; then one run for each of them is cancelled there.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from uploader import UploadResult
from uploader.devserver import DevServerOptions, ThreadedDevServer
from uploader.state import Phase, open_state

from ..engine.harness import Desk
from .processes import KEY, Disk, File, OpenFile, Process
from .virtual import VirtualClock, VirtualLoop
from .world import PART, Call, Fate, World

T = TypeVar("T")
Decide = Callable[[Call], Awaitable[Fate]]

DATA = random.Random(3).randbytes(6 * PART - 11)
GRACE_S = 1.0


class Resumptions:
    """Counts the resumptions of all tasks of a loop. Mutable: the count, whom to cancel.

    Used as the loop's task factory. `at` is where `victim` is cancelled; 0: nowhere.
    """

    def __init__(self, at: int = 0) -> None:
        self.count, self._at = 0, at
        self.victim: asyncio.Task[Any] | None = None

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T] | Generator[Any, Any, T],
        **named: Any,
    ) -> asyncio.Task[T]:
        return asyncio.Task(_Driven(work, self), loop=loop, **named)

    def note(self) -> None:
        """A task goes on."""
        if self.victim is None or self.victim.done():
            return
        self.count += 1
        if self.count == self._at:
            self.victim.cancel()


class _Driven(Coroutine[Any, Any, T]):
    """A coroutine whose resumptions are counted."""

    def __init__(
        self, work: Coroutine[Any, Any, T] | Generator[Any, Any, T], points: Resumptions
    ) -> None:
        self._work, self._points = work, points

    def send(self, value: object) -> object:
        self._points.note()
        return self._work.send(value)

    def throw(self, *error: Any) -> object:
        self._points.note()
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        raise NotImplementedError("tasks only send and throw")


# --- in memory: every point -----------------------------------------------------------------


async def _all_is_well(call: Call) -> Fate:
    await asyncio.sleep(0.001)
    return Fate()


class Troubled:
    """Credentials expire after the third part; the answer to Complete is lost. Mutable."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    async def __call__(self, call: Call) -> Fate:
        await asyncio.sleep(0.001)
        count = self._seen[call.operation] = self._seen.get(call.operation, 0) + 1
        if call.operation == "UploadPart" and count == 3:
            call.line.world.expire_all()
        if call.operation == "UploadPart" and count == 8:
            return Fate(is_applied=False, refusal=(503, "SlowDown"))
        return Fate(is_lost=call.operation == "CompleteMultipartUpload" and count == 1)


@dataclass
class Stage:
    """A world with one disk and one file, created for each run."""

    loop: VirtualLoop
    world: World
    disk: Disk
    file: File
    clock: VirtualClock

    @classmethod
    def set(cls, data: bytes, decide: Decide) -> Stage:
        loop = VirtualLoop()
        clock = VirtualClock(loop)
        world, disk = World(clock, decide), Disk(clock)
        world.has_ack = disk.has_ack
        return cls(loop, world, disk, File(data), clock)

    def upload(self) -> Coroutine[Any, Any, UploadResult]:
        process = Process(self.loop, self.clock, self.world, self.disk)
        return process.upload(OpenFile(self.file))

    def run(self, points: Resumptions) -> asyncio.Task[UploadResult]:
        """Run one upload, cancelled where `points` says, and return its task when it is over."""
        self.loop.set_task_factory(points)
        task = points.victim = self.loop.create_task(self.upload())
        began_s = -1.0
        while not task.done():
            self.loop.settle()
            if task.cancelling() and began_s < 0:
                began_s = self.loop.time()
            if began_s >= 0:
                assert self.loop.time() - began_s < GRACE_S, "cancelling takes long"
            pause_s = self.loop.next_timer_s()
            if not task.done():
                assert pause_s is not None, "an upload waits for ever"
                self.loop.skip(pause_s)
        return task

    def prepared(self) -> None:
        """A first run that died in the middle: what follows is a resumption."""
        process = Process(self.loop, self.clock, self.world, self.disk)
        process.start(self.file)
        for _ in range(4):
            self.loop.skip(0.001)
        process.kill()
        assert self.disk.acks()


SCENARIOS: dict[str, tuple[bytes, Callable[[], Decide], bool]] = {
    "plain": (DATA, lambda: _all_is_well, False),
    "one part": (DATA[:999], lambda: _all_is_well, False),
    "resumed": (DATA, lambda: _all_is_well, True),
    "troubled": (DATA, Troubled, False),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_upload_can_be_cancelled_anywhere(name: str) -> None:
    total = _sweep_point(name, 0)
    # A small file waits for the disk once before its PutObject, and for little else.
    assert total >= (12 if name == "one part" else 20)

    for at in range(1, total + 1):
        _sweep_point(name, at)

    print(f"{name}: cancelled at {total} points")


def _sweep_point(name: str, at: int) -> int:
    """Cancel one run at a point and let another end it; return how many points there were."""
    data, decide, is_resumed = SCENARIOS[name]
    stage = Stage.set(data, decide())
    if is_resumed:
        stage.prepared()
    points = Resumptions(at)

    task = stage.run(points)

    acked = dict(stage.disk.acks())
    if at:
        assert task.cancelled() or _is_last_moment(task, points, at), task
    assert not asyncio.all_tasks(stage.loop), "a task was left behind"
    assert stage.loop.next_timer_s() is None, "a timer was left behind"
    assert not stage.disk.is_claimed(KEY), "the lease was left behind"

    stage.loop.set_task_factory(None)
    result = stage.loop.run_until_complete(stage.upload())

    held = stage.world.object_of(result.video_id)
    assert held is not None
    assert held.data == data
    assert len(stage.world.videos) == 1
    assert not stage.world.breaches, stage.world.breaches
    assert acked.items() <= stage.disk.acks().items(), "the checkpoint was not kept"
    stage.loop.close()
    return points.count


def _is_last_moment(task: asyncio.Task[UploadResult], points: Resumptions, at: int) -> bool:
    """A task that is resumed for the last time ends before it can be cancelled."""
    return task.exception() is None and points.count == at


# --- over sockets: a sample --------------------------------------------------------------------


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_an_upload_over_sockets_can_be_cancelled_anywhere(tmp_path: Path, share: int) -> None:
    """At every `share`-th point."""
    with ThreadedDevServer(DevServerOptions()) as threaded:
        desk = Desk(threaded.server, tmp_path)
        total = _cancelled_over_sockets(desk, "all.mp4", 0)
        _cancelled_over_sockets(desk, "warm.mp4", total // 2)
        before = _descriptors()
        points = range(1, total + 1, share)

        for at in points:
            _cancelled_over_sockets(desk, f"{at}.mp4", at)

        gc.collect()
        assert _descriptors() == before
    print(f"over sockets: cancelled at {len(points)} of {total} points")


def _cancelled_over_sockets(desk: Desk, name: str, at: int) -> int:
    movie = desk.file(6 * PART - 11, name, seed=at)
    points = Resumptions(at)
    open_before = desk.server.open_upload_count

    async def run() -> bool:
        points.victim = asyncio.ensure_future(desk.push(movie))
        async with asyncio.timeout(20):
            await asyncio.wait([points.victim])
        assert at == 0 or points.victim.cancelled() or points.victim.exception() is None
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "a task was left behind"
        await _claimed_at_once(desk)
        is_unheard = await _waits_for_its_upload_id(desk, movie)
        result = await desk.push(movie)
        assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
        return is_unheard

    with asyncio.Runner() as runner:
        runner.get_loop().set_task_factory(points)
        is_unheard = runner.run(run())
    # Cancelled while Initiate was under way, the UploadId was not received: OSS's lifecycle
    # rules remove that one. Wherever it was recorded, nothing may be left.
    assert desk.server.open_upload_count - open_before <= int(is_unheard)
    return points.count


async def _waits_for_its_upload_id(desk: Desk, movie: Path) -> bool:
    async with open_state(desk.state_path) as store:
        records = [s.record async for s in store.uploads() if s.record.source == str(movie)]
    return any(r.phase is Phase.UPLOADING and r.upload_id is None for r in records)


async def _claimed_at_once(desk: Desk) -> None:
    async with open_state(desk.state_path) as store:
        keys = [status.record.key async for status in store.uploads()]
        for key in keys:
            async with store.claim(key):
                pass


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
