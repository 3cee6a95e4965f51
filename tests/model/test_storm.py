"""Many uploads whose credentials end in the same second, and a VOD that cannot take it all."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from uploader import (
    AccessKey,
    BytesSource,
    MemoryState,
    Uploader,
    UploadOptions,
    UploadResult,
    VideoMeta,
    VodProvider,
)

from .virtual import VirtualClock, VirtualLoop
from .world import PART, Call, Fate, World

DATA = random.Random(5).randbytes(2 * PART + 77)
VOD_QPS = 80


@dataclass
class Storm:
    """One uploader with many uploads. Mutable: when parts may arrive, what has finished."""

    loop: VirtualLoop
    pace: float = 20.0
    finished_at: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = VirtualClock(self.loop)
        self.world = World(self.clock, self._decide)
        self.world.vod_qps = VOD_QPS
        self.world.expected_part_count = 3
        self.gate = asyncio.Event()

    async def _decide(self, call: Call) -> Fate:
        if call.operation == "UploadPart":
            await self.gate.wait()
        await asyncio.sleep(0.02)
        return Fate()

    def uploader(self) -> Uploader:
        return Uploader(
            VodProvider(AccessKey(id="LTAI-caller", secret="caller-secret")),
            state=MemoryState(clock=self.clock),
            options=UploadOptions(part_size=PART, concurrency=32, vod_calls_per_s=self.pace),
            transport=self.world.line(),
            clock=self.clock,
        )

    async def upload(self, up: Uploader, number: int) -> UploadResult:
        meta = VideoMeta(title=f"Film {number}", file_name="film.mp4")
        result = await up.upload(BytesSource(DATA, "film.mp4"), key=f"film-{number}", meta=meta)
        self.finished_at[number] = self.loop.time()
        return result

    async def until_all_wait(self, count: int) -> None:
        """Every upload has credentials; all slots are held by parts that wait."""
        while len(self.world.credentials) < count:  # noqa: ASYNC110 - the world sends no event
            await asyncio.sleep(0.5)
        await asyncio.sleep(1.0)

    def assert_all_stored(self, results: list[UploadResult]) -> None:
        assert len({result.video_id for result in results}) == len(results)
        for result in results:
            held = self.world.object_of(result.video_id)
            assert held is not None
            assert held.data == DATA
        assert not self.world.uploads
        assert not self.world.breaches, self.world.breaches

    def busiest_second(self) -> int:
        """The most calls to VOD that any second of the clock saw."""
        return max(Counter(int(at) for at, _ in self.world.vod_calls).values())


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


def test_a_thousand_expiries_in_one_second_renew_once_each(loop: VirtualLoop) -> None:
    count = 1000
    storm = Storm(loop, pace=60.0)

    results = loop.run_until_complete(_expire_together(storm, count))

    storm.assert_all_stored(results)
    refresh_count = storm.world.counts["RefreshUploadVideo"]
    assert count <= refresh_count <= 1.2 * count
    assert storm.world.counts["CreateUploadVideo"] == count
    # A fifth of a second's calls may go out at once.
    assert storm.busiest_second() <= 60 * 1.2 + 1
    assert all(result.renewal_count == 1 for result in results)
    print(
        f"{count} expiries: {refresh_count} refresh calls, at most {storm.busiest_second()} calls "
        f"a second, over after {loop.time():.0f} s"
    )


def test_calls_above_the_quota_are_repeated_until_all_finish(loop: VirtualLoop) -> None:
    """The configured pace is above the account's quota."""
    storm = Storm(loop, pace=200.0)

    results = loop.run_until_complete(_expire_together(storm, 300))

    storm.assert_all_stored(results)
    assert storm.busiest_second() > VOD_QPS, "nothing was throttled"
    assert all(result.renewal_count == 1 for result in results)


async def _expire_together(storm: Storm, count: int) -> list[UploadResult]:
    async with storm.uploader() as up, asyncio.TaskGroup() as group:
        tasks = [group.create_task(storm.upload(up, number)) for number in range(count)]
        await storm.until_all_wait(count)
        storm.world.expire_all()
        storm.gate.set()
    return [task.result() for task in tasks]


def test_an_outage_of_vod_stops_only_those_whose_credentials_end(loop: VirtualLoop) -> None:
    count = 80
    storm = Storm(loop)
    began: dict[str, float] = {}

    async def run() -> list[UploadResult]:
        async with storm.uploader() as up, asyncio.TaskGroup() as group:
            tasks = [group.create_task(storm.upload(up, number)) for number in range(count)]
            await storm.until_all_wait(count)
            storm.world.is_vod_down = True
            began["s"] = loop.time()
            _expire_half(storm.world)
            storm.gate.set()
            await asyncio.sleep(600.0)
            began["up again"] = loop.time()
            storm.world.is_vod_down = False
        return [task.result() for task in tasks]

    results = loop.run_until_complete(run())

    storm.assert_all_stored(results)
    during = [n for n, at in storm.finished_at.items() if at < began["s"] + 60]
    assert sorted(during) == [n for n in range(count) if results[n].renewal_count == 0]
    assert len(during) == count // 2, "an upload with valid credentials waited for VOD"
    assert storm.busiest_second() <= 20 * 1.2 + 1
    last_s = max(storm.finished_at.values()) - began["up again"]
    assert last_s < 120
    outage = [at for at, _ in storm.world.vod_calls if began["s"] <= at < began["up again"]]
    print(f"outage: {len(outage)} calls in 600 s, all finished {last_s:.0f} s after it")


def _expire_half(world: World) -> None:
    kept: dict[str, Any] = {}
    for number, (token, credential) in enumerate(world.credentials.items()):
        if number % 2:
            kept[token] = credential
    world.expire_all()
    world.credentials |= kept
