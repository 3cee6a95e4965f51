"""A kill after every commit of an upload: what it leaves is enough for the next run to verify.

For each kind of upload, the first run is stopped after its first commit, then (in a new world)
after its second, and so on. A stopped process writes and sends nothing more, as after SIGKILL.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from uploader import IntegrityError, ServiceError, UploadResult, VodupError
from uploader.state import PartAck, Phase
from uploader.state.journal import UploadClaim

from .processes import Disk, File, OpenFile, Process, Stepwise
from .virtual import VirtualClock, VirtualLoop
from .world import PART, Call, Fate, World, at_once

DATA = random.Random(31).randbytes(4 * PART + 5)
TINY = DATA[:700]


class StoppingDisk(Disk):
    """Stops its process after a number of commits. Mutable: how many there were."""

    def __init__(self, clock: VirtualClock, *, stop_after: int | None) -> None:
        super().__init__(clock)
        self.commit_count, self.stop_after = 0, stop_after

    def stepwise(self, claim: UploadClaim) -> Stepwise:
        return Stopping(claim, self)

    async def committed(self) -> None:
        self.commit_count += 1
        if self.commit_count == self.stop_after:
            await asyncio.Event().wait()


class Stopping(Stepwise):
    """Counts commits."""

    _disk: StoppingDisk

    async def add_ack(self, ack: PartAck, *, patience_s: float = 0.0) -> None:
        await super().add_ack(ack)
        await self._disk.committed()

    async def _keep(self, write: Coroutine[Any, Any, datetime]) -> datetime:
        time = await super()._keep(write)
        await self._disk.committed()
        return time


Decide = Callable[[Call], Awaitable[Fate]]


def once(operation: str, action: Callable[[Call], Fate | None], *, part: int = 0) -> Decide:
    """Do something to the first request of one operation."""
    is_left = True

    async def decide(call: Call) -> Fate:
        nonlocal is_left
        fate = await at_once(call)
        if is_left and call.operation == operation and call.part_number == part:
            is_left = False
            return action(call) or fate
        return fate

    return decide


def drop_uploads(call: Call) -> None:
    call.line.world.drop_uploads()


def drop_second_part(call: Call) -> None:
    for upload in call.line.world.uploads.values():
        upload.parts.pop(2, None)


def move(call: Call) -> None:
    call.line.world.refresh_moves = True
    call.line.world.expire_all()


def damage_and_lose_the_answer(call: Call) -> Fate:
    call.line.world.is_rotten = True
    return Fate(is_lost=True)


@dataclass(frozen=True)
class Scenario:
    """One kind of upload. `decide` makes the fates of one world."""

    decide: Callable[[], Decide] = lambda: at_once
    data: bytes = DATA
    world: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


SCENARIOS = {
    "parts": Scenario(),
    "one_request": Scenario(data=TINY),
    "damaged_object": Scenario(world={"is_rotten": True}),
    "damaged_object_of_one_request": Scenario(data=TINY, world={"is_rotten": True}),
    "damaged_object_behind_a_lost_answer": Scenario(
        lambda: once("CompleteMultipartUpload", damage_and_lose_the_answer)
    ),
    "upload_id_vanishes": Scenario(lambda: once("UploadPart", drop_uploads, part=3)),
    "upload_id_vanishes_at_complete": Scenario(
        lambda: once("CompleteMultipartUpload", drop_uploads)
    ),
    "part_vanishes_at_complete": Scenario(
        lambda: once("CompleteMultipartUpload", drop_second_part)
    ),
    "target_moves": Scenario(
        lambda: once("UploadPart", move, part=2), options={"on_target_change": "restart"}
    ),
    "target_of_one_request_moves": Scenario(
        lambda: once("PutObject", move), data=TINY, options={"on_target_change": "restart"}
    ),
}


def run_stopped(scenario: Scenario, *, stop_after: int | None) -> int:
    """Run until the commit, kill the process, run again; returns the commits of the first run."""
    loop = VirtualLoop()
    clock = VirtualClock(loop)
    world = World(clock, scenario.decide())
    for name, value in scenario.world.items():
        setattr(world, name, value)
    disk, file = StoppingDisk(clock, stop_after=stop_after), File(scenario.data)
    first = Process(loop, clock, world, disk, **scenario.options)
    first.start(file)
    for _ in range(300):
        if first.is_over or disk.commit_count == stop_after:
            break
        loop.skip(0.1)
    first.kill()
    commit_count, disk.stop_after = disk.commit_count, None
    is_damage_to_come = world.is_rotten

    def run_again() -> UploadResult:
        process = Process(loop, clock, world, disk, **scenario.options)
        return loop.finish(process.upload(OpenFile(file)))

    try:
        result = run_again()
    except IntegrityError:
        assert is_damage_to_come
        result = run_again()
    finally:
        loop.close()
    assert world.objects[result.bucket, result.object_key].data == scenario.data
    assert len(world.videos) == 1
    assert not world.breaches
    record = disk.record()
    assert record is not None
    assert record.phase is Phase.DONE
    return commit_count


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_next_run_ends_verified_after_a_kill_at_any_commit(name: str) -> None:
    scenario = SCENARIOS[name]
    commit_count = run_stopped(scenario, stop_after=None)
    for number in range(1, commit_count + 1):
        try:
            run_stopped(scenario, stop_after=number)
        except (VodupError, AssertionError) as error:
            raise AssertionError(f"killed after commit {number} of {commit_count}") from error


def test_an_object_that_is_damaged_again_and_again_is_replaced_by_the_next_run() -> None:
    """The run that fails leaves permission to overwrite: the damaged object is ours."""
    damaged_count = 0

    async def decide(call: Call) -> Fate:
        nonlocal damaged_count
        fate = await at_once(call)
        is_open = call.params.get("uploadId") in call.line.world.uploads
        if call.operation == "CompleteMultipartUpload" and is_open and damaged_count < 3:
            damaged_count += 1
            return damage_and_lose_the_answer(call)
        return fate

    loop = VirtualLoop()
    clock = VirtualClock(loop)
    world, disk, file = World(clock, decide), StoppingDisk(clock, stop_after=None), File(DATA)
    try:
        with pytest.raises(ServiceError) as caught:
            loop.finish(Process(loop, clock, world, disk).upload(OpenFile(file)))
        record = disk.record()
        result = loop.finish(Process(loop, clock, world, disk).upload(OpenFile(file)))
    finally:
        loop.close()
    assert caught.value.code == "NoSuchUpload"
    assert damaged_count == 3
    assert record is not None
    assert (record.phase, record.is_overwrite) == (Phase.UPLOADING, True)
    assert world.objects[result.bucket, result.object_key].data == DATA
