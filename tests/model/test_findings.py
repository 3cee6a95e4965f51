"""Orders of events that once broke a promise, each as short as it can be."""

from __future__ import annotations

import asyncio
import random

import pytest

from uploader import UnverifiedCompletion
from uploader.state import Phase

from .processes import Disk, File, Process
from .virtual import VirtualClock, VirtualLoop
from .world import PART, Call, Fate, World

DATA = random.Random(9).randbytes(2 * PART + 5)


async def _complete_never_answers(call: Call) -> Fate:
    await asyncio.sleep(0.001)
    if call.operation == "CompleteMultipartUpload":
        call.line.world.carry_out(call, Fate())
        await asyncio.Event().wait()
    return Fate()


@pytest.mark.parametrize("url", ["https://[broken", "https://b.oss-cn-x.aliyuncs.com:x/k", "k"])
def test_a_broken_url_of_vod_is_no_proof(url: str) -> None:
    loop = VirtualLoop()
    clock = VirtualClock(loop)
    world, disk, file = World(clock, _complete_never_answers), Disk(clock), File(DATA)
    first = Process(loop, clock, world, disk)
    first.start(file)
    for _ in range(8):
        loop.skip(0.1)
    first.kill()
    record = disk.record()
    assert record is not None
    assert record.phase is Phase.COMPLETING
    world.file_url = url

    second = Process(loop, clock, world, disk)
    second.start(file)
    for _ in range(8):
        loop.skip(0.1)

    assert isinstance(second.error, UnverifiedCompletion)
    loop.close()
