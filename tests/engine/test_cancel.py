"""Stopping: nothing is left running, nothing is lost, and an abort removes the parts."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys

import pytest

from uploader import ConfigurationError, StateUnavailable, UploadLocked
from uploader.devserver import Fault
from uploader.state import Phase

from .harness import PART, Desk, until

STAGES = ["CreateUploadVideo", "InitiateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]


def open_files() -> set[str]:
    """What this process has open: files by name, sockets and pipes by kind and number."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("stage", STAGES)
async def test_cancelling_keeps_the_checkpoint_and_leaves_nothing_behind(
    desk: Desk, stage: str
) -> None:
    movie = desk.file(8 * PART)
    desk.order(Fault(action="slow", operation=stage, delay_s=5.0))
    async with desk.uploader() as up:
        tasks_before = asyncio.all_tasks()
        task = asyncio.create_task(up.upload(movie))
        await until(lambda: desk.count(stage) > 0)
        await asyncio.sleep(0.05)
        task.cancel()
        async with asyncio.timeout(3):
            with pytest.raises(asyncio.CancelledError):
                await task
        left = [repr(task) for task in asyncio.all_tasks() - tasks_before]
        assert [task for task in left if "uploader/" in task and "devserver/" not in task] == []
        assert str(movie) not in open_files()
    assert not [name for name in open_files() if name.startswith(str(desk.folder / "state"))]
    desk.order()

    result = await desk.push(movie)

    assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
    assert (desk.server.stats.creates, desk.server.stats.completes) == (1, 1)
    assert desk.server.stats.overwrite_refreshes == 0
    # An UploadId whose answer was lost is recorded nowhere; OSS's lifecycle rules remove it.
    assert desk.server.open_upload_count == (stage == "InitiateMultipartUpload")


async def test_an_upload_cancelled_at_any_moment_can_be_resumed(desk: Desk) -> None:
    movie = desk.file(30 * PART)
    desk.server.set_options(bandwidth=1.5e6)
    delay_s = 0.0
    cancelled_count = 0
    while True:
        task = asyncio.create_task(desk.push(movie))
        await asyncio.sleep(delay_s)
        task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            cancelled_count += 1
            delay_s += 0.06
            continue
        break

    await desk.assert_stored(result, movie)
    assert cancelled_count > 2
    assert (desk.server.stats.creates, desk.server.stats.completes) == (1, 1)
    assert desk.server.stats.bytes_sent_twice <= cancelled_count * 4 * PART


async def test_descriptors_do_not_grow_with_uploads(desk: Desk) -> None:
    movies = [desk.file(2 * PART, f"{n}.mp4", seed=n) for n in range(12)]
    async with desk.uploader() as up:
        await up.upload(movies[0])
        before = len(os.listdir("/proc/self/fd"))
        for movie in movies[1:]:
            await up.upload(movie)
        assert len(os.listdir("/proc/self/fd")) <= before + 4


async def test_abort_removes_the_parts(desk: Desk) -> None:
    movie = desk.file(8 * PART)
    before = await desk.interrupted(movie, after=4)
    assert desk.server.open_upload_count == 1

    async with desk.uploader() as up:
        await up.abort(before.key)

    assert desk.server.open_upload_count == 0
    assert (await desk.record()).phase is Phase.ABORTED
    result = await desk.push(movie)
    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 0


async def test_abort_works_when_the_file_is_gone(desk: Desk) -> None:
    movie = desk.file(8 * PART)
    record = await desk.interrupted(movie, after=4)
    os.remove(movie)

    async with desk.uploader() as up:
        await up.abort(record.key)

    assert desk.server.open_upload_count == 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault(action="error", status=503, code="ServiceUnavailable", count=3),
        Fault(action="drop_answer"),
        Fault(action="vanish"),
    ],
    ids=lambda fault: fault.action,
)
async def test_abort_is_repeated_until_it_is_done(desk: Desk, fault: Fault) -> None:
    record = await desk.interrupted(desk.file(8 * PART), after=4)
    desk.order(dataclasses.replace(fault, operation="AbortMultipartUpload"))

    async with desk.uploader() as up:
        await up.abort(record.key)

    assert desk.server.open_upload_count == 0
    assert (await desk.record()).phase is Phase.ABORTED


async def test_a_running_or_finished_upload_cannot_be_aborted(desk: Desk) -> None:
    desk.server.set_options(bandwidth=2e6)
    movie = desk.file(10 * PART)
    async with desk.uploader() as up, asyncio.TaskGroup() as group:
        task = group.create_task(up.upload(movie, key="mine"))
        await until(lambda: desk.count("UploadPart") > 0)
        async with desk.uploader() as other:
            with pytest.raises(UploadLocked):
                await other.abort("mine")
    await desk.assert_stored(task.result(), movie)

    async with desk.uploader() as up:
        with pytest.raises(ConfigurationError, match="finished"):
            await up.abort("mine")
        with pytest.raises(ConfigurationError, match="no upload"):
            await up.abort("another")


FILL = """
import asyncio, resource, sys
from pathlib import Path
from tests.engine.harness import LOOPBACK, options
from uploader import AccessKey, Uploader, VodProvider, VodupError

async def main(endpoint, key_id, secret, state, source, room):
    provider = VodProvider(AccessKey(id=key_id, secret=secret), endpoint=endpoint)
    async with Uploader(provider, state=state, options=options(), trust=LOOPBACK) as up:
        used = Path(state + "-wal").stat().st_size if Path(state + "-wal").exists() else 0
        most = max(used, Path(state).stat().st_size) + int(room)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            result = await up.upload(source)
        except VodupError as error:
            print(type(error).__name__)
        else:
            print(result.verified_by)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("room", [0, 60_000])
async def test_a_full_disk_is_reported_and_the_next_run_completes(desk: Desk, room: int) -> None:
    movie = desk.file(60 * PART)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FILL, desk.server.vod_endpoint, desk.server.access_key_id,
        desk.server.access_key_secret, str(desk.state_path), str(movie), str(room),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()

    assert output.decode().strip() == StateUnavailable.__name__
    result = await desk.push(movie)
    await desk.assert_stored(result, movie)
    assert desk.server.stats.creates <= 1 + (room == 0)
