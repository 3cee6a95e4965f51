"""The source is read while others may write to it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from uploader import SourceChanged, SourceError, SourceUnreadable, VideoMeta
from uploader.devserver import Fault
from uploader.state import Phase

from .harness import PART, Desk, content, until


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncated(path: Path) -> None:
    os.truncate(path, 7 * PART)


def edited_in_secret(path: Path) -> None:
    """Other content, the old time: only ctime differs."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"\0" * 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(content(8 * PART, seed=9))
    other.replace(path)


def touched(path: Path) -> None:
    os.utime(path, (1, 1))


def given_a_new_change_time(path: Path) -> None:
    path.chmod(0o640)


def copied(path: Path) -> None:
    other = path.with_suffix(".copy")
    shutil.copyfile(path, other)
    other.replace(path)


CHANGES = [grown, truncated, edited_in_secret, replaced]


@pytest.mark.parametrize("change", CHANGES)
async def test_another_content_between_runs_is_refused(
    desk: Desk, change: Callable[[Path], None]
) -> None:
    movie = desk.file(8 * PART)
    before = await desk.interrupted(movie, after=4)
    change(movie)
    sent = desk.count("UploadPart")

    error = await desk.fail(movie)

    assert isinstance(error, SourceChanged)
    assert desk.count("UploadPart") == sent
    assert desk.server.stats.completes == 0
    desk.file(8 * PART)  # the original is put back
    result = await desk.push(movie)
    await desk.assert_stored(result, movie)
    assert (result.upload_id, result.resumed_part_count) == (before.upload_id, 4)


@pytest.mark.parametrize("change", [touched, copied])
async def test_the_same_bytes_go_on(desk: Desk, change: Callable[[Path], None]) -> None:
    movie = desk.file(8 * PART)
    before = await desk.interrupted(movie, after=4)
    change(movie)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert (result.upload_id, result.resumed_part_count) == (before.upload_id, 4)


@pytest.mark.parametrize("change", [touched, edited_in_secret])
async def test_where_nothing_was_cut_yet_any_bytes_of_that_size_will_do(
    desk: Desk, change: Callable[[Path], None]
) -> None:
    """The run ended before it had a grant, so there is nothing they could contradict."""
    desk.order(Fault(action="error", operation="CreateUploadVideo", status=403,
                     code="Forbidden.RAM", count=None))  # fmt: skip
    movie = desk.file(8 * PART)
    await desk.fail(movie)
    desk.assert_faults_struck()
    desk.order()
    change(movie)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)


@pytest.mark.parametrize("change", [touched, copied])
async def test_the_same_bytes_still_have_their_result(
    desk: Desk, change: Callable[[Path], None]
) -> None:
    movie = desk.file(8 * PART)
    first = await desk.push(movie)
    change(movie)
    sent = desk.server.stats.requests.total()

    again = await desk.push(movie)

    assert again.is_earlier_result
    assert again.video_id == first.video_id
    assert desk.server.stats.requests.total() == sent


@pytest.mark.parametrize("change", CHANGES)
async def test_other_bytes_have_no_result(desk: Desk, change: Callable[[Path], None]) -> None:
    movie = desk.file(8 * PART)
    await desk.push(movie)
    change(movie)

    error = await desk.fail(movie)

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.creates == 1


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_while_it_is_sent_completes_nothing(
    desk: Desk, change: Callable[[Path], None]
) -> None:
    movie = desk.file(8 * PART)
    desk.server.set_options(connection_bandwidth=200e3)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(desk.fail(movie, concurrency=1))
        await until(lambda: desk.count("UploadPart") == 1)
        change(movie)

    assert isinstance(task.result(), SourceChanged)
    assert desk.server.stats.completes == 0
    assert (await desk.record()).phase is not Phase.DONE


async def test_a_change_after_the_last_part_completes_nothing(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    desk.order(Fault(action="slow", operation="UploadPart", part=3, delay_s=0.3))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(desk.fail(movie, concurrency=1))
        await until(lambda: desk.server.stats.parts_stored == 3)
        edited_in_secret(movie)

    assert isinstance(task.result(), SourceChanged)
    assert desk.count("CompleteMultipartUpload") == 0


async def test_after_an_edit_under_the_old_times_the_same_command_sends_the_file_again(
    desk: Desk,
) -> None:
    """Some acked parts hold the former bytes, some the new ones."""
    movie = desk.file(8 * PART)
    desk.server.set_options(connection_bandwidth=200e3)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(desk.fail(movie, concurrency=1))
        await until(lambda: desk.server.stats.parts_stored == 2)
        edited_in_secret(movie)
    assert isinstance(task.result(), SourceChanged)
    desk.server.set_options(connection_bandwidth=None)

    async with desk.uploader() as up:
        result = await up.upload(movie)
        (orphan,) = await up.state.orphans()  # `vodup clean --orphans` removes it

    assert (
        await desk.server.object_sha256(result.video_id) == sha256(movie.read_bytes()).hexdigest()
    )
    assert result.video_id == orphan.video_id == task.result().video_id
    assert (result.resumed_part_count, desk.server.open_upload_count) == (0, 1)


async def test_a_new_change_time_alone_changes_nothing(desk: Desk) -> None:
    """A backup that sets an attribute must not end an upload of hours."""
    movie = desk.file(8 * PART)
    desk.server.set_options(connection_bandwidth=200e3)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(desk.push(movie, concurrency=1))
        await until(lambda: desk.count("UploadPart") == 1)
        given_a_new_change_time(movie)

    await desk.assert_stored(task.result(), movie)
    assert desk.server.stats.parts_sent_twice == 0
    sent = desk.server.stats.requests.total()
    assert (await desk.push(movie)).is_earlier_result
    assert desk.server.stats.requests.total() == sent


async def test_a_file_that_is_touched_again_and_again_completes_nothing(desk: Desk) -> None:
    """While it changes, what was compared may be what it was, or what it is."""
    movie = desk.file(3 * PART)
    stopped = asyncio.Event()

    async def scribble() -> None:
        while not stopped.is_set():
            given_a_new_change_time(movie)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(scribble())
        error = await desk.fail(movie)
        stopped.set()

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.completes == 0


async def test_what_cannot_be_sent_is_refused_before_a_video_is_made(desk: Desk) -> None:
    empty, folder, pipe = desk.file(0), desk.folder / "folder.mp4", desk.folder / "pipe.mp4"
    folder.mkdir()
    os.mkfifo(pipe)

    for path in (empty, folder, pipe, desk.folder / "missing.mp4"):
        async with asyncio.timeout(5):
            assert isinstance(await desk.fail(path), SourceUnreadable)
    assert isinstance(await desk.fail(b""), SourceUnreadable)

    assert desk.server.stats.requests.total() == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/proc/version", "is empty"),  # of no size, and full of text
        ("/dev/zero", "a device"),
        pytest.param(
            "/sys/kernel/vmcoreinfo",  # of a page's size, and shorter
            "vmcoreinfo",
            marks=pytest.mark.skipif(not os.path.exists("/sys/kernel/vmcoreinfo"), reason="none"),
        ),
    ],
)
async def test_what_the_kernel_makes_up_is_no_video(desk: Desk, path: str, words: str) -> None:
    error = await desk.fail(Path(path), meta=VideoMeta(file_name="movie.mp4"))

    assert isinstance(error, SourceError)
    assert words in error.message
    assert desk.server.stats.completes == 0
    assert not any(desk.server.objects(video) for video in desk.server.videos)
