"""Files that are uploaded while they are written: their end, and what changes after it was sent."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from uploader import FollowedFile, SourceChanged, SourceUnreadable, Until, UploadResult
from uploader.devserver import Fault

from ..engine.harness import PART, Desk, content, until

SIZE = 12 * PART + 345
DATA = content(SIZE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recording.mp4"
    file.touch()
    return file


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@asynccontextmanager
async def uploading(
    desk: Desk, source: FollowedFile, **given: Any
) -> AsyncIterator[asyncio.Task[UploadResult]]:
    """An upload that runs while the block writes."""
    async with desk.uploader(**given) as up:
        task = asyncio.create_task(up.upload(source))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])


async def sent_at_least(desk: Desk, count: int) -> None:
    await until(lambda: len(sent_numbers(desk)) >= count)


def sent_numbers(desk: Desk) -> list[int]:
    return [one.part_number or 0 for one in desk.requests("UploadPart") if one.is_body_complete]


async def test_parts_are_sent_while_the_file_grows_and_the_first_one_last(
    desk: Desk, path: Path
) -> None:
    source = FollowedFile(path)
    async with uploading(desk, source, concurrency=2) as task:
        for offset in range(0, SIZE, PART):
            append(path, DATA[offset : offset + PART])
            await sent_at_least(desk, offset // PART - 1)
        assert desk.server.stats.completes == 0
        overwrite(path, 0, b"header")  # as a muxer does when it knows the length
        source.finish()
        result = await task
    await desk.assert_stored(result, b"header" + DATA[6:])
    numbers = sent_numbers(desk)
    assert numbers[-1] == 1
    assert sorted(numbers) == list(range(1, 14)), "each one once"


async def test_a_part_that_changed_after_it_was_sent_is_sent_again(desk: Desk, path: Path) -> None:
    source = FollowedFile(path)
    async with uploading(desk, source) as task:
        append(path, DATA)
        await until(lambda: len(sent_numbers(desk)) >= 10)
        overwrite(path, 5 * PART + 7, b"index")
        source.finish()
        result = await task
    expected = DATA[: 5 * PART + 7] + b"index" + DATA[5 * PART + 12 :]
    await desk.assert_stored(result, expected)
    assert sent_numbers(desk).count(6) == 2


async def test_a_change_while_the_changes_are_sent_is_not_missed(desk: Desk, path: Path) -> None:
    source = FollowedFile(path)
    desk.order(Fault(action="slow", operation="UploadPart", part=1, delay_s=0.4))
    append(path, DATA)
    async with uploading(desk, source) as task:
        source.finish()
        await until(lambda: 1 in sent_numbers(desk))
        overwrite(path, 3 * PART, b"late")
        result = await task
    await desk.assert_stored(result, DATA[: 3 * PART] + b"late" + DATA[3 * PART + 4 :])


async def test_a_file_that_never_stops_changing_completes_nothing(desk: Desk, path: Path) -> None:
    append(path, DATA)
    source = FollowedFile(path, Until(marker=path))
    stopped = asyncio.Event()

    async def scribble() -> None:
        while not stopped.is_set():
            overwrite(path, 2 * PART, os.urandom(8))
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        group.create_task(scribble())
        error = await desk.fail(source)
        stopped.set()
    assert isinstance(error, SourceChanged)
    assert "keeps changing" in error.message
    assert desk.server.stats.completes == 0


# --- the end --------------------------------------------------------------------------


def marker(path: Path) -> tuple[Until, Callable[[], object]]:
    done = path.with_suffix(".done")
    return Until(marker=done), done.touch


def idle(path: Path) -> tuple[Until, Callable[[], object]]:
    return Until(idle_s=0.7), lambda: None


def writer(path: Path) -> tuple[Until, Callable[[], object]]:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    return Until(pid=process.pid), lambda: process.communicate()


@pytest.mark.parametrize("make", [marker, idle, writer])
async def test_its_end_is_recognized_by(
    desk: Desk, path: Path, make: Callable[[Path], tuple[Until, Callable[[], object]]]
) -> None:
    ending, end = make(path)
    async with uploading(desk, FollowedFile(path, ending)) as task:
        for offset in range(0, SIZE, 4 * PART):
            append(path, DATA[offset : offset + 4 * PART])
            await asyncio.sleep(0.15)
        assert not task.done()
        assert desk.server.stats.completes == 0
        await asyncio.to_thread(end)
        async with asyncio.timeout(15):
            result = await task
    await desk.assert_stored(result, DATA)


async def test_a_writer_that_does_not_exist_has_finished(desk: Desk, path: Path) -> None:
    append(path, DATA)
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    result = await desk.push(FollowedFile(path, Until(pid=process.pid)))
    await desk.assert_stored(result, DATA)


async def test_a_writer_is_watched_where_many_files_are_open(desk: Desk, path: Path) -> None:
    """`select` takes no descriptor above 1,023."""
    append(path, DATA)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    ending, end = writer(path)
    try:
        async with uploading(desk, FollowedFile(path, ending)) as task:
            await sent_at_least(desk, 4)
            await asyncio.to_thread(end)
            result = await task
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await desk.assert_stored(result, DATA)


async def test_a_file_that_stays_empty_is_refused_at_its_end(desk: Desk, path: Path) -> None:
    error = await desk.fail(FollowedFile(path, Until(idle_s=0.1)))
    assert isinstance(error, SourceUnreadable)
    assert "empty" in error.message


async def test_a_missing_file_is_reported_at_once(desk: Desk, tmp_path: Path) -> None:
    error = await desk.fail(FollowedFile(tmp_path / "gone.mp4", Until(idle_s=60)))
    assert isinstance(error, SourceUnreadable)


# --- a later run ----------------------------------------------------------------------


async def test_an_interrupted_upload_resumes(desk: Desk, path: Path) -> None:
    append(path, DATA[: 8 * PART])
    async with uploading(desk, FollowedFile(path)) as task:
        await until(lambda: len(sent_numbers(desk)) >= 7)
        await asyncio.sleep(0.05)
        task.cancel()
    append(path, DATA[8 * PART :])
    overwrite(path, 0, b"header")

    result = await desk.push(FollowedFile(path, Until(marker=path)))

    await desk.assert_stored(result, b"header" + DATA[6:])
    assert result.resumed_part_count >= 6
    assert desk.server.stats.bytes_sent_twice == 0


async def test_a_complete_file_is_an_ordinary_file_afterwards(desk: Desk, path: Path) -> None:
    append(path, DATA)
    first = await desk.push(FollowedFile(path, Until(marker=path)))
    again = await desk.push(path)
    assert (again.is_earlier_result, again.video_id) == (True, first.video_id)


async def test_another_file_under_its_name_is_another_upload(desk: Desk, path: Path) -> None:
    append(path, DATA[: 8 * PART])
    async with uploading(desk, FollowedFile(path)) as task:
        await until(lambda: len(sent_numbers(desk)) >= 7)
        await asyncio.sleep(0.05)
        task.cancel()
    fresh = path.with_suffix(".new")
    fresh.write_bytes(DATA[::-1])
    fresh.rename(path)

    error = await desk.fail(FollowedFile(path, Until(marker=path)))

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.completes == 0


async def test_data_after_the_end_is_detected_before_completing(desk: Desk, path: Path) -> None:
    append(path, DATA)
    desk.order(Fault(action="error", operation="CompleteMultipartUpload", count=None, status=400))
    await desk.fail(FollowedFile(path, Until(marker=path)))
    desk.order()
    append(path, b"more")

    error = await desk.fail(FollowedFile(path, Until(marker=path)))

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.completes == 0
