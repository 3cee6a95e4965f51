"""Every field of the events and the result of an upload, and of the notification for OSS."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from uploader import (
    CredentialsRenewed,
    PartsAdopted,
    PartStored,
    UploadFinished,
    UploadProgress,
    UploadRestarted,
    UploadResult,
    UploadStarted,
    VideoMeta,
)
from uploader.devserver import Fault
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Response, SignedRequest
from uploader.state import open_state
from uploader.transport import AiohttpTransport
from uploader.upload.request import default_key

from .harness import PART, Desk, content, foreign_part, until
from .test_complete import COMPLETE


def etag_of(movie: Path, part_count: int) -> str:
    """As OSS forms it: of the MD5s of the parts, or of the whole where there are none."""
    data = movie.read_bytes()
    if part_count == 1:
        return hashlib.md5(data, usedforsecurity=False).hexdigest().upper()
    parts = [data[begin : begin + PART] for begin in range(0, len(data), PART)]
    digests = "".join(hashlib.md5(p, usedforsecurity=False).hexdigest().upper() for p in parts)
    joined = hashlib.md5(digests.encode(), usedforsecurity=False).hexdigest().upper()
    return f"{joined}-{part_count}"


def expected(desk: Desk, movie: Path, result: UploadResult, **changes: object) -> UploadResult:
    """All that can be known of a result from outside."""
    (video,) = desk.server.videos.values()
    data = movie.read_bytes()
    whole = UploadResult(
        key=default_key(desk.provider().scope, str(movie)),
        video_id=video.video_id,
        upload_id=result.upload_id,
        bucket=video.bucket,
        object_key=video.object_key,
        size=len(data),
        crc64=crc64(data),
        etag=etag_of(movie, 1),
        part_count=1,
        resumed_part_count=0,
        renewal_count=0,
        retry_count=0,
        sent_bytes=len(data),
        verified_by="crc64",
        seconds=result.seconds,
        endpoint=desk.server.oss_endpoint,
        congestion=result.congestion,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


async def test_the_result_of_one_request(desk: Desk) -> None:
    movie = desk.file(PART)
    began_s = time.monotonic()
    result = await desk.push(movie)
    assert result == expected(desk, movie, result, upload_id=None)
    assert 0 < result.seconds <= time.monotonic() - began_s
    assert result.congestion in {"cubic", "bbr", "reno"}


async def test_the_result_of_parts_that_took_trouble(desk: Desk) -> None:
    movie = desk.file(5 * PART)
    record = await desk.interrupted(movie, after=2)
    desk.order(
        Fault(action="error", operation="UploadPart", part=4, status=503, code="SlowDown"),
        Fault(action="drop_answer", operation=COMPLETE),
    )
    result = await desk.push(movie, concurrency=1)
    assert result == expected(
        desk,
        movie,
        result,
        upload_id=record.upload_id,
        etag=etag_of(movie, 5),
        part_count=5,
        resumed_part_count=2,
        renewal_count=1,
        retry_count=result.retry_count,
        sent_bytes=3 * PART,
        verified_by="crc64-head",
    )
    assert result.retry_count >= 2
    (renewed,) = desk.events_of(CredentialsRenewed)
    assert renewed.renewal_count == 1
    assert 0 < renewed.seconds < 20


async def test_without_a_crc_from_oss_a_part_is_sent_once_and_its_md5_kept(desk: Desk) -> None:
    desk.server.set_options(crc_headers=False)
    movie = desk.file(5 * PART)
    record = await desk.interrupted(movie, after=3)
    data = movie.read_bytes()
    async with open_state(desk.state_path) as store, store.claim(record.key) as checkpoint:
        kept = {number: ack.md5 for number, ack in checkpoint.acks.items()}
    assert kept == {
        number: hashlib.md5(data[(number - 1) * PART : number * PART], usedforsecurity=False)
        .hexdigest()
        .upper()
        for number in (1, 2, 3)
    }
    assert desk.count("UploadPart") == 3 + 1, "the last of them was refused"

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.sent_bytes == 2 * PART
    assert desk.count("UploadPart") == 4 + 2


async def test_the_events_of_parts(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    result = await desk.push(movie, concurrency=1)
    who: dict[str, Any] = {"key": result.key, "video_id": result.video_id}

    (started,) = desk.events_of(UploadStarted)
    assert started == UploadStarted(
        **who,
        source=str(movie),
        size=3 * PART,
        part_count=3,
        done_bytes=0,
        resumed_part_count=0,
        upload_id=result.upload_id,
        is_resumed=False,
    )
    stored = desk.events_of(PartStored)
    assert [replace(event, seconds=0.0) for event in stored] == [
        PartStored(**who, part_number=number, size=PART, seconds=0.0) for number in (1, 2, 3)
    ]
    assert all(0 < event.seconds < 20 for event in stored)
    assert desk.events_of(UploadFinished) == [UploadFinished(**who, result=result)]


async def test_the_events_of_one_request(desk: Desk) -> None:
    result = await desk.push(desk.file(PART))
    (started,) = desk.events_of(UploadStarted)
    (stored,) = desk.events_of(PartStored)
    assert (started.upload_id, started.part_count, started.is_resumed) == (None, 1, False)
    assert (stored.part_number, stored.size) == (1, PART)
    assert 0 < stored.seconds < 20
    assert desk.events[-1] == UploadFinished(
        key=result.key, video_id=result.video_id, result=result
    )


async def test_what_a_later_run_begins_with(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    record = await desk.interrupted(movie, after=4)
    await desk.push(movie)
    resumed = desk.events_of(UploadStarted)[1]
    assert resumed == UploadStarted(
        key=record.key,
        video_id=record.video_id,
        source=str(movie),
        size=6 * PART,
        part_count=6,
        done_bytes=4 * PART,
        resumed_part_count=4,
        upload_id=record.upload_id,
        is_resumed=True,
    )


async def test_a_run_that_has_a_target_but_no_upload_id_is_a_resumed_one(desk: Desk) -> None:
    desk.order(Fault(action="error", operation="InitiateMultipartUpload", count=None, status=400,
                     code="InvalidArgument"))  # fmt: skip
    movie = desk.file(3 * PART)
    await desk.fail(movie)
    desk.order()
    await desk.push(movie)
    (started,) = desk.events_of(UploadStarted)
    assert started.is_resumed
    assert (started.resumed_part_count, started.done_bytes) == (0, 0)


async def test_how_far_an_upload_is(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    await desk.interrupted(movie, after=2)
    desk.events.clear()
    desk.order(Fault(action="slow", operation="UploadPart", part=5, delay_s=0.7))

    result = await desk.push(movie, concurrency=1)

    during_part_5 = [e for e in desk.events_of(UploadProgress) if e.acked_part_count == 4]
    assert during_part_5
    seen = during_part_5[-1]
    assert PART * 4 <= seen.done_bytes <= PART * 5
    assert seen == UploadProgress(
        key=result.key,
        video_id=result.video_id,
        done_bytes=seen.done_bytes,
        size=6 * PART,
        acked_part_count=4,
        part_count=6,
        renewal_count=1,
        retry_count=0,
    )


@pytest.mark.parametrize("size", [PART, 3 * PART])
async def test_before_the_end_all_of_it_is_done(size: int, desk: Desk) -> None:
    """Also where an earlier run had sent it."""
    movie = desk.file(size)
    for _ in range(2):
        result = await desk.push(movie)
        progress, finished = desk.events[-2:]
        assert finished == UploadFinished(key=result.key, video_id=result.video_id, result=result)
        assert progress == UploadProgress(
            key=result.key,
            video_id=result.video_id,
            done_bytes=size,
            size=size,
            acked_part_count=result.part_count,
            part_count=result.part_count,
            renewal_count=0,
            retry_count=0,
        )


async def test_how_far_a_stream_is_that_has_not_ended(desk: Desk) -> None:
    async def producing() -> AsyncIterator[bytes]:
        yield content(3 * PART)
        await until(lambda: len(desk.events_of(UploadProgress)) > 1)

    result = await desk.push(producing(), key="mine", meta=VideoMeta(file_name="movie.mp4"))

    seen = desk.events_of(UploadProgress)[1]
    assert seen == UploadProgress(
        key="mine",
        video_id=result.video_id,
        done_bytes=seen.done_bytes,
        size=0,
        acked_part_count=seen.acked_part_count,
        part_count=0,
        renewal_count=0,
        retry_count=0,
    )
    (started,) = desk.events_of(UploadStarted)
    assert (started.size, started.part_count) == (0, 0)
    assert (result.size, result.part_count) == (3 * PART, 3)


async def test_parts_that_are_found(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    desk.order(Fault(action="no_answer", operation="UploadPart", part=4))
    async with desk.uploader(concurrency=1) as up:
        task = asyncio.create_task(up.upload(movie))
        await until(lambda: desk.server.stats.parts_stored == 4)
        task.cancel()
        await asyncio.wait([task])
    desk.order()

    result = await desk.push(movie)

    who = {"key": result.key, "video_id": result.video_id}
    assert desk.events_of(PartsAdopted) == [PartsAdopted(**who, part_count=1)]
    assert result.resumed_part_count == 4
    assert result.sent_bytes == 2 * PART


async def test_what_was_lost_with_an_upload_id(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    record = await desk.interrupted(movie, after=4)
    desk.server.backend.storage.remove_upload(record.upload_id or "")
    sent_count = desk.count("UploadPart")
    result = await desk.push(movie)
    assert desk.count("UploadPart") == sent_count + 6, "none of them to the UploadId that is gone"
    assert desk.events_of(UploadRestarted) == [
        UploadRestarted(
            key=result.key,
            video_id=result.video_id,
            reason="OSS does not know the UploadId any more",
            lost_bytes=4 * PART,
        )
    ]
    last = desk.events_of(UploadStarted)[-1]
    assert (last.done_bytes, last.upload_id) == (0, result.upload_id)
    assert result.sent_bytes == 6 * PART


async def test_a_part_that_was_overwritten_is_not_adopted(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    await desk.interrupted(movie, after=3)
    await foreign_part(desk, 2)
    desk.events.clear()
    result = await desk.push(movie)
    (started,) = desk.events_of(UploadStarted)
    assert (started.resumed_part_count, started.done_bytes) == (2, 2 * PART)
    assert result.resumed_part_count == 2
    assert result.sent_bytes == 4 * PART


@pytest.mark.parametrize("notification", ["eyJ9", None])
async def test_the_notification_of_vod_is_sent_to_oss(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, notification: str | None
) -> None:
    sent: list[tuple[str, str | None]] = []
    send = AiohttpTransport.send

    async def recorded(
        self: AiohttpTransport, request: SignedRequest, *given: Any, **more: Any
    ) -> Response:
        if request.url.startswith(desk.server.oss_endpoint):
            query = urlsplit(request.url).query.partition("=")[0]
            sent.append((f"{request.method} {query}", request.headers.get("x-oss-notification")))
        return await send(self, request, *given, **more)

    monkeypatch.setattr(AiohttpTransport, "send", recorded)
    await desk.push(desk.file(2 * PART), concurrency=1, notification=notification)
    await desk.push(desk.file(PART, "small.mp4"), notification=notification)

    assert sent == [
        ("POST uploads", notification),
        ("PUT partNumber", None),
        ("PUT partNumber", None),
        ("POST uploadId", notification),
        ("PUT ", notification),
    ]
