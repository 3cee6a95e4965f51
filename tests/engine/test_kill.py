"""SIGKILL at any moment, over and over: the same upload ends verified, and little is sent twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uploader import IntegrityError
from uploader.devserver import Fault
from uploader.state import Phase

from .child import stream_of
from .harness import PART, Desk, content, until

CONCURRENCY = 4
SIZE = 60 * PART
STREAM_FAULTS = (
    Fault(action="expire_credentials", operation="UploadPart", part=2),
    Fault(action="drop_answer", operation="CompleteMultipartUpload"),
)
PACKAGE_FAULTS = (STREAM_FAULTS[0], Fault(action="drop_answer", operation="PutObject", every=5))


class Nursery:
    """A process that forks uploaders, for all tests of this module: its start takes long."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def close(self) -> None:
        self._process.communicate(timeout=30)

    async def start(
        self,
        desk: Desk,
        movie: Path,
        *,
        kill_after: int | None = None,
        is_stream: bool = False,
        key: str | None = None,
    ) -> int:
        """Start an upload; returns the pid of its process.

        `kill_after`: so many commits of the journal. `is_stream`: from a producer.
        """
        job = {
            "access_key_id": desk.server.access_key_id,
            "access_key_secret": desk.server.access_key_secret,
            "vod_endpoint": desk.server.vod_endpoint,
            "state": str(desk.state_path),
            "source": str(movie),
            "concurrency": CONCURRENCY,
            "kill_after": kill_after,
            "is_stream": is_stream,
            "key": key,
        }
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return int((await self._line())["pid"])

    async def end(self) -> dict[str, Any] | None:
        """Wait until it has ended; return its report, or None if it could not write one."""
        report: dict[str, Any] | None = None
        while "ended" not in (line := await self._line()):
            report = line
        return report

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        assert line, "the nursery has died"
        return dict(json.loads(line))


@pytest.fixture(scope="module")
def children() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


async def killed_again_and_again(
    desk: Desk, children: Nursery, *, kill_count: int, seed: int
) -> None:
    """Parts come through between the kills, and too many remain for the upload to end early."""
    draw = random.Random(seed)
    size = 3 * kill_count * PART
    movie = desk.file(size)
    # A run starts within 50 ms, when the parts of the killed one still take their share of this.
    desk.server.set_options(bandwidth=3e6)
    upload_ids: set[str] = set()
    for _ in range(kill_count):
        before = desk.server.stats.requests.total()
        pid = await children.start(desk, movie)
        if draw.random() < 0.75:  # the others do not get as far as a request
            await requested_again(desk, before)
        await asyncio.sleep(draw.uniform(0.0, 0.3))
        os.kill(pid, signal.SIGKILL)
        await children.end()
        upload_ids |= await recorded_upload_ids(desk)
    desk.server.set_options(bandwidth=None)
    await children.start(desk, movie)
    report = await children.end()

    assert report is not None
    result = report["result"]
    assert desk.server.object_bytes(result["video_id"]) == movie.read_bytes()
    stats = desk.server.stats
    assert stats.creates == len(desk.server.videos) == 1
    assert stats.completes == 1
    assert kill_count / 4 <= result["resumed_part_count"] < 3 * kill_count
    assert stats.overwrite_refreshes == 0
    assert upload_ids == {result["upload_id"]}, "recorded once, then never changed"
    assert sum(stats.bytes_by_part.values()) <= size + kill_count * CONCURRENCY * PART
    assert stats.bytes_sent_twice <= kill_count * CONCURRENCY * PART


async def requested_again(desk: Desk, count: int) -> None:
    """The server has had more requests than that."""
    await until(lambda: desk.server.stats.requests.total() > count)


async def recorded_upload_ids(desk: Desk) -> set[str]:
    """Opening it as the next run does; a kill may have come before there was a record."""
    async with desk.uploader() as up:
        records = [status.record async for status in up.state.uploads()]
    return {record.upload_id for record in records if record.upload_id is not None}


@pytest.mark.timeout(300)
async def test_sixty_kills_cost_what_was_under_way(desk: Desk, children: Nursery) -> None:
    await killed_again_and_again(desk, children, kill_count=60, seed=20)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 6))
async def test_five_hundred_kills_cost_what_was_under_way(
    desk: Desk, children: Nursery, seed: int
) -> None:
    """A hundred for each upload."""
    await killed_again_and_again(desk, children, kill_count=100, seed=seed)


@pytest.mark.parametrize(
    "operation",
    ["CreateUploadVideo", "InitiateMultipartUpload", "UploadPart", "CompleteMultipartUpload"],
)
async def test_a_kill_while_an_answer_is_on_its_way(
    desk: Desk, children: Nursery, operation: str
) -> None:
    """The request was carried out, and no process was left to read the answer."""
    movie = desk.file(6 * PART)
    desk.order(Fault(action="no_answer", operation=operation))
    pid = await children.start(desk, movie)
    await until(lambda: applied(desk, operation))
    os.kill(pid, signal.SIGKILL)
    await children.end()
    desk.order()
    await children.start(desk, movie)
    report = await children.end()

    assert report is not None
    result = report["result"]
    assert desk.server.object_bytes(result["video_id"]) == movie.read_bytes()
    assert (desk.server.stats.creates, desk.server.stats.completes) == (1, 1)
    assert desk.server.stats.overwrite_refreshes == 0
    assert (await desk.record()).phase is Phase.DONE
    assert desk.server.stats.bytes_sent_twice <= CONCURRENCY * PART


def applied(desk: Desk, operation: str) -> bool:
    stats = desk.server.stats
    counts = {
        "CreateUploadVideo": stats.creates,
        "InitiateMultipartUpload": stats.initiates,
        "UploadPart": stats.parts_stored,
        "CompleteMultipartUpload": stats.completes,
    }
    return counts[operation] > 0


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        (3 * PART, None),
        (PART, None),
        (3 * PART, Fault(action="rot", operation="UploadPart", part=2)),
    ],
    ids=["parts", "put", "damaged_parts"],
)
async def test_a_kill_after_any_commit_leaves_enough_for_the_next_run(
    desk: Desk, children: Nursery, size: int, fault: Fault | None
) -> None:
    """Commit by commit, until a run ends before it is killed."""
    for commit_count in range(1, 30):
        movie = desk.file(size, f"movie-{commit_count}.mp4", seed=commit_count)
        desk.order(*filter(None, (fault,)))
        await children.start(desk, movie, kill_after=commit_count)
        ended = await children.end()
        desk.order()
        try:
            result = await desk.push(movie)
        except IntegrityError:  # damaged before the kill, and found by this run
            assert fault is not None
            result = await desk.push(movie)
        assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
        assert desk.server.stats.creates == len(desk.server.videos) == commit_count
        if ended is not None:
            break
    assert ended is not None
    assert commit_count > (5 if size > PART else 3)


@pytest.mark.parametrize(
    "fault", [None, *(pytest.param(f, marks=pytest.mark.slow) for f in STREAM_FAULTS)]
)
async def test_a_stream_ends_verified_after_a_kill_at_any_commit(
    desk: Desk, children: Nursery, fault: Fault | None
) -> None:
    """The producer starts again; what OSS has is compared."""
    movie = desk.file(2 * PART + 7)
    for commit_count in range(1, 30):
        key = f"stream-{commit_count}"
        desk.order(*filter(None, (fault,)))
        await children.start(desk, movie, kill_after=commit_count, is_stream=True, key=key)
        ended = await children.end()
        desk.order()
        result = await desk.push(stream_of(movie), key=key)
        assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
        assert desk.server.stats.creates == len(desk.server.videos) == commit_count
        if ended is not None:
            break
    assert ended is not None
    assert commit_count > 5


@pytest.mark.parametrize(
    "fault", [None, *(pytest.param(f, marks=pytest.mark.slow) for f in PACKAGE_FAULTS)]
)
async def test_a_package_ends_verified_after_a_kill_at_any_commit(
    desk: Desk, children: Nursery, fault: Fault | None
) -> None:
    """One of its files goes in parts, under a record of its own."""
    main = small_package(desk.folder / "package", large_size=2 * PART + 5)
    for commit_count in range(1, 40):
        key = f"package-{commit_count}"
        desk.order(*filter(None, (fault,)))
        await children.start(desk, main, kill_after=commit_count, key=key)
        ended = await children.end()
        desk.order()
        result = await desk.push(main, key=key)
        folder = result.object_key.rpartition("/")[0]
        stored = {
            name.removeprefix(f"{folder}/"): data
            for name, data in desk.server.objects(result.video_id).items()
            if name.startswith(f"{folder}/")
        }
        assert stored.pop(result.object_key.rpartition("/")[2]) == main.read_bytes()
        assert stored == {path.name: path.read_bytes() for path in main.parent.glob("*.ts")}
        # One that was initiated beside the commit of another file may be left, unrecorded.
        assert desk.server.open_upload_count <= commit_count
        assert desk.server.stats.creates == len(desk.server.videos) == commit_count
        if ended is not None:
            break
    assert ended is not None
    assert commit_count > 10


def small_package(folder: Path, *, large_size: int) -> Path:
    """A playlist of three segments, the second of which is large."""
    folder.mkdir()
    for number, size in enumerate((700, large_size, 900)):
        (folder / f"{number}.ts").write_bytes(content(size, seed=number))
    lines = [f"#EXTINF:4.0,\n{number}.ts\n" for number in range(3)]
    main = folder / "index.m3u8"
    main.write_text("".join(["#EXTM3U\n", *lines, "#EXT-X-ENDLIST\n"]))
    return main


async def test_the_next_run_starts_at_once_after_a_kill(desk: Desk, children: Nursery) -> None:
    movie = desk.file(SIZE)
    desk.server.set_options(bandwidth=1e6)
    pid = await children.start(desk, movie)
    await until(lambda: desk.server.stats.parts_stored >= 5)
    os.kill(pid, signal.SIGKILL)
    desk.server.set_options(bandwidth=None)

    async with asyncio.timeout(10):  # less than a lease lives
        result = await desk.push(movie)

    await children.end()
    await desk.assert_stored(result, movie)
    assert result.resumed_part_count >= 4
