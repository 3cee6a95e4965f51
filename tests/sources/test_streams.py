"""Streams: buffers, back-pressure, the end of a producer, and what a later run needs."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from uploader import (
    CommandReader,
    ConfigurationError,
    MemoryBuffer,
    SourceChanged,
    SourceNotRepeatable,
    SourceUnreadable,
    Spool,
    StreamSource,
    TransportError,
    UnverifiedCompletion,
    VideoMeta,
)
from uploader.devserver import Fault
from uploader.protocol.part_sizes import plan_stream
from uploader.protocol.plan import Part, Plan, Run
from uploader.sources import AnySource, Source
from uploader.sources.part_buffer import DEFAULT_MEMORY_SIZE, BufferSpace
from uploader.upload.resume import plan_of

from ..engine.harness import PART, Desk, content, until
from .kinds import pieces

KEY = "the-upload"
META = VideoMeta(file_name="movie.mp4")


class Producer:
    """An async iterator that counts what was taken from it. Mutable."""

    def __init__(self, data: bytes, *, fails_after: int | None = None) -> None:
        self.data, self.fails_after = data, fails_after
        self.given = 0
        self.waits_for: Callable[[], bool] = lambda: True
        self.is_closed = False

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            for offset in range(0, len(self.data), PART // 4):
                if self.fails_after is not None and offset >= self.fails_after:
                    await until(self.waits_for)
                    raise RuntimeError("the camera fell into the sea")
                self.given = offset + PART // 4
                yield self.data[offset : self.given]
        finally:
            self.is_closed = True


# --- back-pressure --------------------------------------------------------------------


async def test_a_producer_is_not_read_from_while_the_buffer_is_full(desk: Desk) -> None:
    buffer_size = 8 * PART
    producer = Producer(content(40 * PART))
    desk.order(Fault(action="slow", operation="UploadPart", count=None, delay_s=30))
    async with desk.uploader(concurrency=4) as up:
        source = StreamSource(producer, buffer=MemoryBuffer(buffer_size))
        task = asyncio.create_task(up.upload(source, key=KEY, meta=META))
        await until(lambda: producer.given >= buffer_size)
        await asyncio.sleep(0.1)
        assert producer.given <= buffer_size + PART // 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert producer.is_closed


async def test_a_slow_store_makes_the_producer_wait_and_loses_nothing(desk: Desk) -> None:
    desk.server.set_options(bandwidth=6e6)
    producer = Producer(content(40 * PART))
    source = StreamSource(producer, buffer=MemoryBuffer(8 * PART))
    result = await desk.push(source, key=KEY, meta=META)
    await desk.assert_stored(result, producer.data)


# --- the end --------------------------------------------------------------------------


async def test_a_producer_that_fails_completes_nothing(desk: Desk) -> None:
    producer = Producer(content(20 * PART), fails_after=12 * PART)
    producer.waits_for = lambda: desk.server.stats.parts_stored >= 8

    error = await desk.fail(producer, key=KEY, meta=META)

    assert isinstance(error, SourceUnreadable)
    assert "the camera fell into the sea" in error.message
    assert desk.server.stats.completes == 0
    assert isinstance(error.__cause__, RuntimeError)

    result = await desk.push(Producer(producer.data), key=KEY, meta=META)
    await desk.assert_stored(result, producer.data)
    assert result.resumed_part_count > 0


async def test_pieces_that_are_not_bytes_are_refused(desk: Desk) -> None:
    async def words() -> AsyncGenerator[str, None]:
        yield "text"

    error = await desk.fail(words(), meta=META)  # type: ignore[arg-type]
    assert isinstance(error, ConfigurationError)
    assert "yields str, not bytes" in error.message


def command(script: str) -> StreamSource:
    return StreamSource(CommandReader([sys.executable, "-c", script]), "movie.mp4")


WRITES = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4000); sys.stdout.flush(); "


@pytest.mark.posix
async def test_a_command_with_exit_status_0_is_stored(desk: Desk) -> None:
    result = await desk.push(command(WRITES))
    await desk.assert_stored(result, bytes(range(256)) * 4000)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("sys.exit('no camera')", "failed with exit status 1 (its last output: no camera), so"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
    ],
)
@pytest.mark.posix
async def test_a_command_that_fails_completes_nothing(desk: Desk, end: str, words: str) -> None:
    error = await desk.fail(command(WRITES + end))
    assert isinstance(error, SourceUnreadable)
    assert words in error.message
    assert desk.server.stats.completes == 0


@pytest.mark.posix
async def test_a_missing_command(desk: Desk) -> None:
    error = await desk.fail(StreamSource(CommandReader(["no-such-command-here"]), "movie.mp4"))
    assert "cannot be started (No such file or directory)" in error.message


@pytest.mark.posix
async def test_a_cancelled_upload_stops_its_command_with_all_it_started(desk: Desk) -> None:
    script = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen(['sleep', '600']);"
        "sys.stdout.buffer.write(bytes(3_000_000)); sys.stdout.flush();"
        "print(child.pid, file=sys.stderr); time.sleep(600)"
    )
    source = command(script)
    async with desk.uploader() as up:
        task = asyncio.create_task(up.upload(source))
        await until(lambda: desk.server.stats.parts_stored > 2)
        group = source._reader._command._process.pid  # type: ignore[attr-defined]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not _is_alive(group))


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# --- what a later run needs -----------------------------------------------------------


async def test_a_stream_without_a_key_is_a_separate_upload(desk: Desk) -> None:
    """Two recordings from one pipe must never be taken for the same one."""
    first = await desk.push(pieces(content(2 * PART)), meta=META)
    other = await desk.push(pieces(content(2 * PART, seed=1)), meta=META)
    assert first.video_id != other.video_id
    assert desk.server.stats.creates == 2


async def test_a_failure_names_how_to_resume(desk: Desk) -> None:
    desk.order(Fault(action="reset", operation="UploadPart", part=3, count=None))
    error = await desk.fail(pieces(content(6 * PART)), meta=META)
    assert isinstance(error, TransportError)
    record = await desk.record()
    assert f"run the producer again from its start with --key {record.key}" in error.next_step
    desk.order()

    result = await desk.push(pieces(content(6 * PART)), key=record.key)
    await desk.assert_stored(result, content(6 * PART))
    assert desk.server.stats.creates == 1


async def test_a_longer_stream_than_before_is_refused(desk: Desk) -> None:
    data = content(6 * PART)
    desk.order(Fault(action="error", operation="CompleteMultipartUpload", count=None, status=400))
    await desk.fail(pieces(data), key=KEY, meta=META)
    desk.order(Fault(action="list_lag", operation="ListParts", value=1))

    error = await desk.fail(pieces(data + b"more"), key=KEY, meta=META)

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.completes == 0


async def test_a_stream_that_ended_and_is_shorter_now_is_refused(desk: Desk) -> None:
    """Its last part is missing at OSS, and no part differs."""
    data = content(6 * PART)
    desk.order(Fault(action="error", operation="CompleteMultipartUpload", count=None, status=400))
    await desk.fail(pieces(data), key=KEY, meta=META)
    desk.order(Fault(action="list_lag", operation="ListParts", value=1))

    error = await desk.fail(pieces(data[: 5 * PART]), key=KEY, meta=META)

    assert isinstance(error, SourceChanged)
    assert f"ends at byte {5 * PART} now" in error.message
    assert desk.server.stats.completes == 0


async def test_a_stream_that_ends_before_what_was_sent_is_refused(desk: Desk) -> None:
    """At the edge of a part, so that no part differs."""
    data = content(12 * PART)
    desk.order(
        Fault(
            action="error", operation="UploadPart", part=9, count=None, status=400,
            code="InvalidArgument",
        )
    )  # fmt: skip
    await desk.fail(pieces(data), key=KEY, meta=META, concurrency=2)
    assert max(await desk.acked_part_numbers()) > 3
    desk.order()

    error = await desk.fail(pieces(data[: 3 * PART]), key=KEY, meta=META)

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.completes == 0


async def test_streams_that_share_buffer_space_stay_within_it(desk: Desk) -> None:
    desk.server.set_options(bandwidth=20e6)
    space = BufferSpace(10 * PART)
    data = [content(30 * PART, seed=seed) for seed in range(3)]
    used: list[int] = []

    async def watched(one: bytes) -> AsyncGenerator[bytes, None]:
        async for piece in pieces(one):
            used.append(space.used)
            yield piece

    async with desk.uploader() as up, asyncio.TaskGroup() as group:
        for number, one in enumerate(data):
            source = StreamSource(watched(one), buffer=MemoryBuffer(8 * PART, space=space))
            group.create_task(up.upload(source, key=f"stream-{number}", meta=META))
    assert desk.server.stats.completes == 3
    assert 0 < max(used) <= 10 * PART
    assert space.used == 0


async def spooled_to_the_end(desk: Desk, folder: Path, data: bytes) -> None:
    """A run whose producer ended, and which was cancelled before OSS had all of it."""
    source = StreamSource(pieces(data), "movie.mp4", buffer=Spool(folder, "movie.mp4"))
    await cancelled_after_its_end(desk, source, folder)


async def cancelled_after_its_end(desk: Desk, source: Source, folder: Path) -> None:
    """Cancel an upload when its spool has all of the stream, and OSS all but part 5."""
    desk.order(Fault(action="slow", operation="UploadPart", part=5, delay_s=30, count=None))

    def is_spooled() -> bool:
        return any('["end"' in journal.read_text() for journal in folder.rglob("journal"))

    async with desk.uploader() as up:
        task = asyncio.create_task(up.upload(source, meta=META))
        await until(lambda: is_spooled() and desk.server.stats.parts_stored >= 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    desk.order()


def nothing_more(folder: Path) -> StreamSource:
    """The same spool, and a producer that must not be used."""
    return StreamSource(
        Producer(b"x" * PART, fails_after=0), "movie.mp4", buffer=Spool(folder, "movie.mp4")
    )


async def test_a_spool_with_the_end_needs_no_producer(desk: Desk) -> None:
    data, folder = content(12 * PART + 1), desk.folder / "spool"
    await spooled_to_the_end(desk, folder, data)
    acked = await desk.acked_part_numbers()
    assert 0 < len(acked) < 13

    result = await desk.push(nothing_more(folder), meta=META)

    await desk.assert_stored(result, data)
    assert result.resumed_part_count == len(acked)
    assert desk.server.stats.creates == 1
    assert list(folder.iterdir()) == [], "a finished upload leaves no spool"


async def test_a_spool_without_the_end_needs_the_producer_again(desk: Desk) -> None:
    data, folder = content(12 * PART), desk.folder / "spool"
    producer = Producer(data, fails_after=8 * PART)
    producer.waits_for = lambda: desk.server.stats.parts_stored >= 4
    await desk.fail(StreamSource(producer, "movie.mp4", buffer=Spool(folder, "movie.mp4")))

    source = StreamSource(Producer(data), "movie.mp4", buffer=Spool(folder, "movie.mp4"))
    result = await desk.push(source)

    await desk.assert_stored(result, data)
    assert desk.server.stats.creates == 1, "the spool knows which upload it belongs to"
    assert result.resumed_part_count > 0


async def test_the_spool_of_an_aborted_upload_is_not_used_for_a_new_one(desk: Desk) -> None:
    folder = desk.folder / "spool"
    await spooled_to_the_end(desk, folder, content(12 * PART))
    async with desk.uploader() as up:
        await up.abort((await desk.record()).key)
    fresh = content(3 * PART, seed=2)

    source = StreamSource(pieces(fresh), "movie.mp4", buffer=Spool(folder, "movie.mp4"))
    result = await desk.push(source)

    await desk.assert_stored(result, fresh)


async def test_a_spool_left_by_a_crash_after_the_upload_hides_no_new_stream(
    desk: Desk,
) -> None:
    """The process ended between the ack and the removal of the folder."""
    data, folder = content(12 * PART), desk.folder / "spool"
    await spooled_to_the_end(desk, folder, data)
    left = desk.folder / "left"
    await asyncio.to_thread(shutil.copytree, folder, left)
    await desk.push(nothing_more(folder), meta=META)
    await asyncio.to_thread(os.rename, left, folder / "again")

    fresh = content(6 * PART, seed=3)
    for _ in range(2):  # the first finds the ack of other bytes and reports it
        source = StreamSource(
            pieces(fresh), "movie.mp4", buffer=Spool(folder / "again", "movie.mp4")
        )
        with suppress(SourceChanged):
            await desk.assert_stored(await desk.push(source, meta=META), fresh)
            break
    else:
        raise AssertionError("the folder still belongs to the finished upload")


async def test_a_damaged_spool_needs_the_producer_again(desk: Desk) -> None:
    data, folder = content(12 * PART), desk.folder / "spool"
    await spooled_to_the_end(desk, folder, data)
    damaged = max(folder.rglob("*.part"))
    damaged.write_bytes(bytes(PART))

    error = await desk.fail(nothing_more(folder), meta=META)
    assert isinstance(error, SourceNotRepeatable)
    assert desk.server.stats.completes == 0

    source = StreamSource(pieces(data), "movie.mp4", buffer=Spool(folder, "movie.mp4"))
    await desk.assert_stored(await desk.push(source), data)
    assert desk.server.stats.creates == 1


async def test_two_processes_do_not_share_a_spool(tmp_path: Path) -> None:
    first, second = Spool(tmp_path, "movie.mp4"), Spool(tmp_path, "movie.mp4")
    await first.open("one")
    with pytest.raises(SourceUnreadable, match="used by another process"):
        await second.open("one")
    await first.close(is_done=True)
    await second.open("one")
    await second.close(is_done=True)


async def test_a_spool_stays_within_its_size(desk: Desk) -> None:
    most, folder = 8 * PART, desk.folder / "spool"
    desk.order(Fault(action="slow", operation="UploadPart", count=None, delay_s=30))
    producer = Producer(content(40 * PART))
    async with desk.uploader() as up:
        source = StreamSource(producer, "movie.mp4", buffer=Spool(folder, "movie.mp4", most))
        task = asyncio.create_task(up.upload(source))
        await until(lambda: producer.given >= most)
        await asyncio.sleep(0.1)
        used = sum(path.stat().st_size for path in folder.rglob("*.part"))
        assert most - PART <= used <= most
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- limits ---------------------------------------------------------------------------


async def test_a_stream_longer_than_its_plan_is_refused(desk: Desk) -> None:
    data = content(6 * PART)
    await desk.fail(Producer(data, fails_after=3 * PART), key=KEY, meta=META)
    with closing(sqlite3.connect(desk.state_path)) as database, database:
        (text,) = database.execute("SELECT plan FROM vodup_upload").fetchone()
        first_size = plan_of(text).part(1).size
        short = Plan((Run(first_size, 5 * PART // first_size),), is_open=True)
        database.execute("UPDATE vodup_upload SET plan = ?", (short.to_text(),))

    error = await desk.fail(pieces(data), key=KEY, meta=META)

    assert isinstance(error, SourceUnreadable)
    assert f"longer than the {short.capacity} bytes" in error.message
    assert desk.server.stats.completes == 0


async def test_a_stream_longer_than_ten_thousand_parts_is_refused(desk: Desk) -> None:
    """With a plan that was cut for a tenth of it."""
    small = plan_stream(part_size=PART, largest_size=PART)
    source = StreamSource(Producer(b""), buffer=MemoryBuffer(8 * PART))
    async with source:
        await source.begin("")
        assert small.capacity == 10_000 * PART
    with pytest.raises(ConfigurationError, match="do not fit"):
        await desk.push(
            StreamSource(pieces(b"x"), buffer=MemoryBuffer(8 * PART), expected_size=2 * 10**9),
            meta=META,
        )


@pytest.mark.parametrize("make", [MemoryBuffer, lambda most: Spool("spool", "movie.mp4", most)])
def test_a_buffer_too_small_for_parts_is_refused(make: type) -> None:
    with pytest.raises(ConfigurationError, match="too few"):
        make(8 * PART - 1)


def test_sixteen_connections_have_parts_in_the_default_memory() -> None:
    assert DEFAULT_MEMORY_SIZE > 16 * 5 * 1024 * 1024


@pytest.mark.parametrize("given", [3, object()])
async def test_other_objects_are_not_sources(desk: Desk, given: AnySource) -> None:
    assert isinstance(await desk.fail(given), ConfigurationError)


async def test_text_files_are_refused(desk: Desk) -> None:
    path = desk.file(10)
    with path.open() as file:
        error = await desk.fail(file)  # type: ignore[arg-type]
    assert "open as text" in error.message


async def test_parts_come_in_order_and_once() -> None:
    source = StreamSource(pieces(content(3 * PART)), buffer=MemoryBuffer(8 * PART))
    async with source:
        await source.begin("")
        first, second = Part(1, 0, PART), Part(2, PART, PART)
        assert await source.wait_for(first) == PART
        assert await source.wait_for(first) == PART, "still buffered"
        assert await source.wait_for(second) == PART
        await source.release(first)
        with pytest.raises(SourceNotRepeatable):
            await source.wait_for(first)
        with pytest.raises(SourceNotRepeatable):
            source.body(0, PART)
        await source.release(second)


# --- what a stream cannot give again ------------------------------------------------------


async def test_a_stream_that_fills_its_last_part_is_recognized(desk: Desk) -> None:
    data = content(5 << 20)  # the first step of a stream whose size nobody knows
    first = await desk.push(Producer(data), key=KEY, meta=META)

    again = await desk.push(Producer(data), key=KEY, meta=META)

    assert (again.is_earlier_result, again.crc64) == (True, first.crc64)


async def test_parts_that_need_an_md5_and_cannot_be_read_again(desk: Desk) -> None:
    """An earlier run's parts have a CRC-64 and no MD5; this run's OSS tells ETags only."""
    producer = Producer(content(12 * PART), fails_after=8 * PART)
    producer.waits_for = lambda: desk.server.stats.parts_stored >= 4
    await desk.fail(producer, key=KEY, meta=META)
    desk.server.set_options(crc_headers=False)

    error = await desk.fail(Producer(producer.data), key=KEY, meta=META)

    assert isinstance(error, UnverifiedCompletion)
    assert desk.server.stats.completes == 1


async def test_a_part_oss_no_longer_lists_is_read_from_the_producer_again(desk: Desk) -> None:
    data = content(8 * PART + 7)
    desk.order(
        Fault(
            action="error",
            operation="CompleteMultipartUpload",
            count=None,
            status=400,
            code="InvalidArgument",
        )
    )
    await desk.fail(Producer(data), key=KEY, meta=META)
    desk.order(Fault(action="list_lag", operation="ListParts", value=1, count=None))

    result = await desk.push(Producer(data), key=KEY, meta=META)

    await desk.assert_stored(result, data)
    assert result.sent_bytes < 2 * PART
