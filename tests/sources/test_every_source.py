"""What every source promises, whatever it is: the same suite for each row of `kinds.KINDS`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from uploader import CredentialsRenewed, SourceChanged, UnverifiedCompletion, VideoMeta
from uploader.devserver import Fault
from uploader.protocol.integrity import crc64
from uploader.state import Phase

from ..engine.harness import PART, Desk, content, until
from .kinds import KINDS, Kind, Origin

KEY = "the-upload"
META = VideoMeta(file_name="movie.mp4")
SIZE = 24 * PART + 17


def broken_at(part: int) -> Fault:
    """From this part on every request is refused for good."""
    return Fault(
        action="error", operation="UploadPart", part=part, count=None, status=400,
        code="InvalidArgument",
    )  # fmt: skip


async def interrupted(desk: Desk, origin: Origin, *, part: int = 9) -> set[int]:
    """A run that fails at `part`; returns which parts OSS has confirmed."""
    desk.order(broken_at(part))
    error = await desk.fail(origin.source(), key=KEY, meta=META, concurrency=2)
    assert error.code == "InvalidArgument"
    desk.assert_faults_struck()
    desk.order()
    assert desk.server.stats.completes == 0
    acked = await desk.acked_part_numbers()
    assert len(acked) >= part // 2
    return acked


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_each_kind_is_stored(desk: Desk, kind: Kind, tmp_path: Path) -> None:
    async with kind.origin(tmp_path / "origin") as origin:
        data = origin.holds(content(3 * PART + 1))
        await desk.assert_stored(await desk.push(origin.source(), meta=META), data)


async def test_its_bytes_are_stored_and_verified(desk: Desk, origin: Origin) -> None:
    data = origin.holds(content(SIZE))

    result = await desk.push(origin.source(), key=KEY, meta=META)

    await desk.assert_stored(result, data)
    assert (result.crc64, result.verified_by) == (crc64(data), "crc64")
    assert (await desk.record()).size == SIZE


@pytest.mark.parametrize("size", [1, PART, 2 * PART])
async def test_sizes_at_the_edges_of_parts(desk: Desk, origin: Origin, size: int) -> None:
    data = origin.holds(content(size))
    await desk.assert_stored(await desk.push(origin.source(), key=KEY, meta=META), data)


async def test_an_empty_one_is_refused_and_nothing_is_completed(desk: Desk, origin: Origin) -> None:
    origin.holds(b"")
    error = await desk.fail(origin.source(), key=KEY, meta=META)
    assert "empty" in error.message
    assert desk.server.stats.completes == desk.server.stats.puts == 0


async def test_a_second_run_resumes_and_sends_the_missing_parts(desk: Desk, origin: Origin) -> None:
    """Two connections: while one part is refused, another may be stored without an answer."""
    data = origin.holds(content(SIZE))
    acked = await interrupted(desk, origin)

    result = await desk.push(origin.source(), key=KEY, meta=META)

    await desk.assert_stored(result, data)
    stats = desk.server.stats
    assert result.resumed_part_count >= len(acked)
    assert stats.parts_sent_twice <= 1
    assert (stats.creates, stats.initiates, stats.completes) == (1, 1, 1)


async def test_a_finished_upload_is_not_sent_again(desk: Desk, origin: Origin) -> None:
    origin.holds(content(SIZE))
    first = await desk.push(origin.source(), key=KEY, meta=META)

    again = await desk.push(origin.source(), key=KEY, meta=META)

    assert (again.is_earlier_result, again.video_id, again.sent_bytes) == (True, first.video_id, 0)


async def test_other_bytes_are_not_mistaken_for_a_finished_upload(
    desk: Desk, origin: Origin
) -> None:
    origin.holds(content(SIZE))
    await desk.push(origin.source(), key=KEY, meta=META)
    origin.holds(content(SIZE, seed=1))

    error = await desk.fail(origin.source(), key=KEY, meta=META)

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.completes == 1


async def test_other_bytes_do_not_resume_the_upload(desk: Desk, origin: Origin) -> None:
    origin.holds(content(SIZE))
    await interrupted(desk, origin)
    other = origin.holds(content(SIZE, seed=1))
    if origin.may_change:
        result = await desk.push(origin.source(), key=KEY, meta=META)
        await desk.assert_stored(result, other)
        return

    error = await desk.fail(origin.source(), key=KEY, meta=META)

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.completes == 0


async def test_fewer_bytes_than_were_sent_are_detected(desk: Desk, origin: Origin) -> None:
    data = origin.holds(content(SIZE))
    await interrupted(desk, origin)
    shorter = origin.holds(data[: 3 * PART + 5])
    if origin.may_change:
        result = await desk.push(origin.source(), key=KEY, meta=META)
        await desk.assert_stored(result, shorter)
        return

    error = await desk.fail(origin.source(), key=KEY, meta=META)

    assert isinstance(error, SourceChanged)
    assert desk.server.stats.completes == 0


async def test_expired_credentials_are_renewed_once(desk: Desk, origin: Origin) -> None:
    data = origin.holds(content(SIZE))
    desk.order(Fault(action="expire_credentials", operation="UploadPart", part=7, attempt=1))

    result = await desk.push(origin.source(), key=KEY, meta=META)

    await desk.assert_stored(result, data)
    desk.assert_faults_struck()
    assert len(desk.events_of(CredentialsRenewed)) == 1
    assert desk.server.stats.parts_sent_twice == 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault(action="reset", operation="UploadPart", part=3, after_bytes=40_000),
        Fault(action="drop_answer", operation="UploadPart", part=3),
        Fault(action="flip_bit", operation="UploadPart", part=3),
        Fault(action="wrong_crc", operation="UploadPart", part=25, attempt=1),
        Fault(action="error", operation="UploadPart", part=25, status=503, code="InternalError"),
        Fault(action="drop_answer", operation="CompleteMultipartUpload"),
    ],
    ids=lambda fault: f"{fault.action}-{fault.operation}-{fault.part}",
)
async def test_a_part_that_fails_is_sent_again(desk: Desk, origin: Origin, fault: Fault) -> None:
    data = origin.holds(content(SIZE))
    desk.order(fault)

    result = await desk.push(origin.source(), key=KEY, meta=META)

    desk.assert_faults_struck()
    await desk.assert_stored(result, data)


async def test_without_any_crc_the_etag_of_our_md5s_verifies(desk: Desk, origin: Origin) -> None:
    desk.server.set_options(crc_headers=False, list_crc=False)
    data = origin.holds(content(SIZE))

    result = await desk.push(origin.source(), key=KEY, meta=META)

    await desk.assert_stored(result, data)
    assert result.verified_by == "etag"


async def test_an_unverified_upload_is_an_error(desk: Desk, origin: Origin) -> None:
    desk.server.set_options(crc_headers=False, denied_operations=["HeadObject"])
    desk.order(Fault(action="missing_etag", operation="CompleteMultipartUpload"))
    origin.holds(content(SIZE))

    assert isinstance(await desk.fail(origin.source(), key=KEY, meta=META), UnverifiedCompletion)
    assert (await desk.record()).phase is not Phase.DONE


async def test_a_lost_complete_response_is_settled_without_the_source(
    desk: Desk, origin: Origin
) -> None:
    data = origin.holds(content(SIZE))
    desk.order(Fault(action="no_answer", operation="CompleteMultipartUpload", count=None))
    async with desk.uploader() as up:
        task = asyncio.create_task(up.upload(origin.source(), key=KEY, meta=META))
        await until(lambda: desk.server.stats.completes == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    desk.order()

    result = await desk.push(origin.source(), key=KEY, meta=META)

    await desk.assert_stored(result, data)
    assert (desk.server.stats.completes, desk.server.stats.parts_sent_twice) == (1, 0)


async def test_cancelling_leaves_nothing_open_and_the_next_run_resumes(
    desk: Desk, origin: Origin
) -> None:
    data = origin.holds(content(SIZE))
    desk.order(Fault(action="slow", operation="UploadPart", part=6, delay_s=30))
    async with desk.uploader() as up:
        before = len(os.listdir("/proc/self/fd"))
        tasks = asyncio.all_tasks()
        source = origin.source()
        given = len(os.listdir("/proc/self/fd")) - before  # what the caller himself opens
        task = asyncio.create_task(up.upload(source, key=KEY, meta=META))
        await until(lambda: desk.server.stats.parts_stored >= 8)
        task.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await task
        ours = [repr(t) for t in asyncio.all_tasks() - tasks if "uploader/" in repr(t)]
        assert [t for t in ours if "devserver/" not in t] == []
    left = len(os.listdir("/proc/self/fd"))
    assert left <= before + given + 1  # a connection of the server's may be closing
    desk.order()

    result = await desk.push(origin.source(), key=KEY, meta=META)

    await desk.assert_stored(result, data)
    assert result.resumed_part_count >= 4


async def test_an_upload_lost_by_oss_restarts_or_reports_that_it_cannot(
    desk: Desk, origin: Origin
) -> None:
    data = origin.holds(content(SIZE))
    desk.order(Fault(action="vanish", operation="UploadPart", part=22))
    if not origin.is_stream:
        await desk.assert_stored(await desk.push(origin.source(), key=KEY, meta=META), data)
        return
    error = await desk.fail(origin.source(), key=KEY, meta=META)
    assert type(error).__name__ == "SourceNotRepeatable"
    assert desk.server.stats.completes == 0

    result = await desk.push(origin.source(), key=KEY, meta=META)

    await desk.assert_stored(result, data)
    assert desk.server.stats.creates == 1, "the same video, once the stream came again"
