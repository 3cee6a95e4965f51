"""Orders of events that once broke a promise, each as short as it can be."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

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


def resumed(url: Callable[[World], str]) -> tuple[Process, list[str]]:
    """A run after one that was killed while it completed; VOD returns this URL of the object.

    Also the URLs it requested with GET.
    """
    loop = VirtualLoop()
    clock = VirtualClock(loop)
    urls: list[str] = []

    async def decide(call: Call) -> Fate:
        if call.operation == "GetObject":
            urls.append(call.url)
        return await _complete_never_answers(call)

    world, disk, file = World(clock, decide), Disk(clock), File(DATA)
    first = Process(loop, clock, world, disk)
    first.start(file)
    for _ in range(8):
        loop.skip(0.1)
    first.kill()
    record = disk.record()
    assert record is not None
    assert record.phase is Phase.COMPLETING
    world.file_url = url(world)

    second = Process(loop, clock, world, disk)
    second.start(file)
    for _ in range(8):
        loop.skip(0.1)
    loop.close()
    return second, urls


@pytest.mark.parametrize("url", ["https://[broken", "https://b.oss-cn-x.aliyuncs.com:x/k", "k"])
def test_a_broken_url_of_vod_is_no_proof(url: str) -> None:
    second, urls = resumed(lambda _: url)
    assert isinstance(second.error, UnverifiedCompletion)
    assert urls == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_vods_url_is_requested_over_tls_whatever_it_says(scheme: str) -> None:
    """VOD's URLs are plain; a query may hold another URL, which is left as it is."""
    rest = "?Expires=1&Signature=url&x=http://y"

    def url_of(world: World) -> str:
        (video,) = world.videos.values()
        return f"{scheme}://{video.bucket}.oss-cn-shanghai.aliyuncs.com/{video.object_key}{rest}"

    second, urls = resumed(url_of)

    assert second.error is None
    assert second.result is not None
    assert second.result.verified_by == "crc64-url"
    (url,) = urls
    assert url.startswith(f"https://{second.result.bucket}.oss-cn-shanghai.aliyuncs.com/")
    assert url.endswith(rest)
