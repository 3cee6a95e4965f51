"""The power goes, at every moment of many uploads: whatever the disk kept, the next run ends well.

What SQLite guarantees is taken as given: after a loss of power its log holds a prefix of the
commits, at least up to the last one that was waited for (PRAGMA synchronous). Acks are not
waited for. So at every moment, for every prefix that may be left of the commits since the last
barrier, a run begins from that state, with the services as they were at that moment. It ends
verified, under the same VideoId, and sends no part that OSS holds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest

from uploader import UploadResult, VodupError
from uploader.state import PartAck, UploadRecord
from uploader.state.journal import UploadClaim
from uploader.state.records import Orphan, Phase

from .processes import KEY, Disk, File, OpenFile, Process, Stepwise
from .virtual import VirtualClock, VirtualLoop
from .world import PART, Call, Fate, Upload, World

QUICK_STATES, LONG_RUN_STATES = 5_000, 200_000
DATA = random.Random(11).randbytes(12 * PART)
SIZES = [700, 2 * PART + 1, 5 * PART, 9 * PART - 3, 12 * PART]
FATES = [
    Fate(is_lost=True),
    Fate(is_applied=False, is_lost=True),
    Fate(is_applied=False, refusal=(503, "SlowDown")),
    Fate(is_applied=False, refusal=(403, "SecurityTokenExpired")),
    Fate(refusal=(500, "InternalError")),
]


# --- a disk that knows what it was made to wait for -------------------------------------------


@dataclass(frozen=True)
class Content:
    """What is on the disk after a commit."""

    record: UploadRecord
    acks: dict[int, PartAck]
    orphans: dict[str, Orphan]

    def key(self) -> object:
        record = replace(self.record, created_at=None, updated_at=None)
        return record, tuple(sorted(self.acks)), tuple(sorted(self.orphans))


class PowerDisk(Disk):
    """Mutable: the commits in their order, and how many of them are certainly on the disk."""

    def __init__(self, clock: VirtualClock, content: Content | None = None) -> None:
        super().__init__(clock)
        self.commits: list[Content | None] = [content]
        self.durable_count = 1
        self.on_commit: Callable[[], None] = lambda: None
        if content is not None:
            self._put(content.record, dict(content.acks))
            self._orphans.update(content.orphans)

    def stepwise(self, claim: UploadClaim) -> Stepwise:
        return Logged(claim, self)

    def committed(self) -> int:
        entry = self._entries[KEY]
        self.commits.append(Content(entry.record, dict(entry.acks), dict(self._orphans)))
        self.on_commit()
        return len(self.commits)


class Logged(Stepwise):
    """Notes each commit where it takes effect, and a barrier where its caller may go on."""

    _disk: PowerDisk

    async def add_ack(self, ack: PartAck, *, patience_s: float = 0.0) -> None:
        await asyncio.sleep(0)
        await self._inner.add_ack(ack)
        self._disk.committed()
        await asyncio.sleep(0)

    async def _keep(self, write: Coroutine[Any, Any, datetime]) -> datetime:
        with closing(write):
            await asyncio.sleep(0)
            time = await write
        count = self._disk.committed()
        await asyncio.sleep(0)
        self._disk.durable_count = max(self._disk.durable_count, count)
        return time


# --- services that can be put back --------------------------------------------------------------


@dataclass(frozen=True)
class Services:
    """OSS and VOD as they are at one moment."""

    values: dict[str, Any]

    @classmethod
    def of(cls, world: World) -> Services:
        uploads = {
            name: Upload(upload.bucket, upload.object_key, dict(upload.parts))
            for name, upload in world.uploads.items()
        }
        videos = {name: replace(video) for name, video in world.videos.items()}
        kept = {"credentials": dict(world.credentials), "objects": dict(world.objects)}
        return cls({**kept, "uploads": uploads, "videos": videos, "_serial": world._serial})

    def put_into(self, world: World) -> None:
        again = World(world.clock)
        for name, value in self.values.items():
            setattr(again, name, value)
        for name, value in Services.of(again).values.items():
            setattr(world, name, value)

    def stored_numbers(self, upload_id: str | None) -> set[int]:
        upload = self.values["uploads"].get(upload_id)
        return set(upload.parts) if upload else set()

    def key(self) -> object:
        uploads = self.values["uploads"]
        parts = tuple((name, tuple(sorted(u.parts))) for name, u in sorted(uploads.items()))
        videos = tuple((v.video_id, v.status) for v in self.values["videos"].values())
        return parts, tuple(sorted(self.values["objects"])), videos


# --- the enumeration ------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was seen. Mutable."""

    states: int = 0
    moments: int = 0
    seen: set[object] = field(default_factory=set)
    ended: dict[str, int] = field(default_factory=dict)
    most_sent_again: int = 0


class Troubled:
    """Answers in an order of its own, and now and then with some trouble. Mutable."""

    def __init__(self, draw: random.Random, trouble: float, look: Callable[[], None]) -> None:
        self._draw, self._trouble, self._look = draw, trouble, look

    async def __call__(self, call: Call) -> Fate:
        self._look()
        await asyncio.sleep(self._draw.uniform(0.001, 0.02))
        is_hit = self._draw.random() < self._trouble
        fate = self._draw.choice(FATES) if is_hit else Fate()
        asyncio.get_running_loop().call_soon(self._look)  # once it was carried out
        return fate


def enumerate_states(seed: int, tally: Tally) -> None:
    """One upload; at each of its moments every state a loss of power may leave is gone on from."""
    draw = random.Random(seed)
    file = File(DATA[: draw.choice(SIZES)])
    loop = VirtualLoop()
    clock = VirtualClock(loop)
    disk = PowerDisk(clock)
    moments: list[tuple[Services, int, int]] = []

    def look() -> None:
        moments.append((Services.of(world), disk.durable_count, len(disk.commits)))

    world = World(clock, Troubled(draw, draw.choice([0.0, 0.0, 0.1, 0.25]), look))
    disk.on_commit = look
    process = Process(loop, clock, world, disk)
    try:
        loop.finish(process.upload(OpenFile(file)))
    except VodupError:
        pass  # a run that fails leaves states, too
    finally:
        loop.close()
    for services, durable_count, commit_count in moments:
        tally.moments += 1
        for count in range(durable_count, commit_count + 1):
            tally.states += 1
            content = disk.commits[count - 1]
            key = (seed, services.key(), content.key() if content else None)
            if key not in tally.seen:
                tally.seen.add(key)
                go_on(services, content, file, tally)


def go_on(services: Services, content: Content | None, file: File, tally: Tally) -> None:
    """The machine is up again, and the same command is run."""
    loop = VirtualLoop()
    clock = VirtualClock(loop)
    world, disk = World(clock), PowerDisk(clock, content)
    services.put_into(world)
    before = Services.of(world)
    process = Process(loop, clock, world, disk)
    try:
        result = loop.finish(process.upload(OpenFile(file)))
    finally:
        loop.close()
    judge(before, content, world, disk, file, result)
    judge_rework(before, content, world, result, tally)


def judge(
    before: Services,
    content: Content | None,
    world: World,
    disk: PowerDisk,
    file: File,
    result: UploadResult,
) -> None:
    assert world.objects[result.bucket, result.object_key].data == file.data
    record = disk.record()
    assert record is not None
    assert record.phase is Phase.DONE
    assert not world.breaches
    if content is not None:
        if content.record.video_id is not None:
            assert result.video_id == content.record.video_id
        same = [v for v in world.videos.values() if v.reference_id == record.reference_id]
        assert len(same) == 1, "the video was made twice"
    if before.values["videos"]:
        assert len(world.videos) == len(before.values["videos"]), "another video was made"


def judge_rework(
    before: Services, content: Content | None, world: World, result: UploadResult, tally: Tally
) -> None:
    """What OSS holds of the recorded upload is not sent again, with acks or without."""
    if content is None or content.record.upload_id != result.upload_id or result.is_earlier_result:
        return
    held = before.stored_numbers(content.record.upload_id)
    if result.upload_id in before.values["uploads"]:
        sent_count = world.counts["UploadPart"]
        assert sent_count <= result.part_count - len(held), "a part that OSS holds was sent again"
        lost = held - content.acks.keys()
        tally.most_sent_again = max(tally.most_sent_again, len(lost))


def run_until(state_count: int) -> Tally:
    tally = Tally()
    for seed in range(10_000):
        enumerate_states(seed, tally)
        if tally.states >= state_count:
            print(
                f"{seed + 1} uploads, {tally.moments} moments, {tally.states} states, ",
                f"{len(tally.seen)} different; up to {tally.most_sent_again} acks lost",
            )
            return tally
    raise AssertionError("too few states")


def test_a_loss_of_power_costs_nothing_but_time() -> None:
    tally = run_until(QUICK_STATES)
    assert tally.most_sent_again > 0, "no ack was ever lost: nothing was tested"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_loss_of_power_costs_nothing_but_time_in_a_long_run() -> None:
    run_until(LONG_RUN_STATES)
