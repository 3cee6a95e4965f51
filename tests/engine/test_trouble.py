"""A network and services that misbehave: repaired, or reported in bounded time."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from dataclasses import replace

import pytest

from uploader import (
    AccessKey,
    RequestRetried,
    RetryPolicy,
    ServiceError,
    TransportError,
    UploadLocked,
    VodProvider,
    VodupError,
)
from uploader.devserver import Fault
from uploader.protocol.signing import ApiSignature

from .harness import PART, Desk

OSS_OPERATIONS = ["InitiateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject"]
ONCE = [
    Fault(action="reset"),
    Fault(action="reset", close="fin"),
    Fault(action="reset", after_bytes=30_000),
    Fault(action="drop_answer", close="fin"),
    Fault(action="truncate_headers"),
    Fault(action="garbage"),
    Fault(action="html", status=502),
    Fault(action="error", status=500, code="InternalError"),
    Fault(action="error", status=503, code="ServiceUnavailable"),
    Fault(action="error", status=400, code="RequestTimeout"),
    Fault(action="early_answer", status=503, code="ServiceUnavailable"),
    Fault(action="stale_close"),
]


def on(fault: Fault, operation: str, **changes: object) -> Fault:
    return dataclasses.replace(fault, operation=operation, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ONCE, ids=lambda f: f"{f.action}-{f.status or f.close}")
async def test_one_failure_of_each_operation_is_repaired(desk: Desk, fault: Fault) -> None:
    desk.order(*(on(fault, operation) for operation in OSS_OPERATIONS))
    movie, small = desk.file(8 * PART), desk.file(PART, "small.mp4", seed=1)

    async with desk.uploader() as up:
        for path in (movie, small):
            result = await up.upload(path)
            assert desk.server.object_bytes(result.video_id) == path.read_bytes()

    desk.assert_faults_struck()
    assert desk.server.stats.creates == 2


async def test_a_busy_oss_gets_fewer_requests_and_the_whole_upload(desk: Desk) -> None:
    busy = Fault(action="error", status=503, code="ServiceUnavailable", every=3, count=15)
    desk.order(on(busy, "UploadPart"))
    movie = desk.file(40 * PART)

    result = await desk.push(movie, concurrency=8)

    await desk.assert_stored(result, movie)
    assert {retry.action for retry in desk.events_of(RequestRetried)} == {"SLOW_DOWN"}
    assert result.retry_count == 15


async def test_random_trouble_everywhere_ends_verified(desk: Desk) -> None:
    desk.order(
        Fault(action="reset", probability=0.08, seed=1, count=None, after_bytes=1000),
        Fault(action="drop_answer", operation="UploadPart", probability=0.08, seed=2, count=None),
        Fault(action="error", operation="UploadPart", status=503, code="SlowDown",
              probability=0.08, seed=3, count=None),
        Fault(action="flip_bit", operation="UploadPart", probability=0.05, seed=4, count=None),
        # Not at random: several dead ones in a row would be credentials that never work.
        Fault(action="expire_credentials", operation="UploadPart", every=15, count=None),
    )  # fmt: skip
    movie = desk.file(60 * PART)

    result = await desk.push(movie, retry=RetryPolicy(patience_s=20, base_s=0.01, cap_s=0.05))

    await desk.assert_stored(result, movie)
    assert desk.server.stats.creates == 1
    assert result.retry_count > 10


@pytest.mark.parametrize("operation", ["CreateUploadVideo", *OSS_OPERATIONS[:3]])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(action="reset", count=None), TransportError),
        (Fault(action="error", status=503, code="ServiceUnavailable", count=None), ServiceError),
    ],
    ids=["reset", "503"],
)
async def test_a_permanent_failure_is_reported_after_the_retry_time(
    desk: Desk, operation: str, fault: Fault, kind: type[VodupError]
) -> None:
    desk.order(on(fault, operation))
    movie = desk.file(4 * PART)
    patience = RetryPolicy(patience_s=0.5, first_contact_patience_s=0.5, base_s=0.01, cap_s=0.05)
    began = time.monotonic()

    error = await desk.fail(movie, retry=patience)

    assert time.monotonic() - began < 6
    assert isinstance(error, kind)
    assert error.is_temporary
    assert error.is_resumable
    desk.order()
    result = await desk.push(movie)
    await desk.assert_stored(result, movie)
    assert desk.server.stats.creates == 1


async def test_a_peer_that_stops_reading_is_left(desk: Desk) -> None:
    desk.order(Fault(action="stop_reading", operation="UploadPart", part=1, after_bytes=1000))
    movie = desk.file(200 * PART)

    result = await desk.push(movie, part_size=100 * PART, stall_timeout_s=1.0)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()


async def test_an_endpoint_without_a_listener_is_reported_soon(desk: Desk) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        key = AccessKey(id="LTAIxxxxxxxxxxxx", secret="none")
        dead = VodProvider(key, endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
        began = time.monotonic()

        error = await desk.fail(desk.file(PART), provider=dead)

    assert isinstance(error, TransportError)
    assert error.is_temporary
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("api_signature", ["acs3", "v2"])
@pytest.mark.parametrize("offset_s", [3600, -3600])
async def test_a_clock_that_is_wrong_is_corrected(
    desk: Desk, offset_s: int, api_signature: ApiSignature
) -> None:
    desk.server.set_options(clock_offset_s=offset_s, api_signatures=[api_signature])
    movie = desk.file(8 * PART)

    result = await desk.push(movie, provider=replace(desk.provider(), signature=api_signature))

    await desk.assert_stored(result, movie)
    codes = {retry.code for retry in desk.events_of(RequestRetried)}
    assert codes == {"InvalidTimeStamp.Expired", "RequestTimeTooSkewed"}
    assert {retry.action for retry in desk.events_of(RequestRetried)} == {"FIX_CLOCK"}
    assert desk.server.stats.refreshes <= 1


@pytest.mark.parametrize("signature", ["v1", "v4"])
async def test_a_clock_that_jumps_while_parts_are_sent_is_followed(
    desk: Desk, signature: str
) -> None:
    desk.order(Fault(action="clock_offset", operation="UploadPart", part=4, value=7200))
    movie = desk.file(8 * PART)

    result = await desk.push(movie, signature=signature)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.parts_sent_twice == 0


async def test_two_uploaders_never_work_on_one_upload(desk: Desk) -> None:
    desk.server.set_options(bandwidth=2e6)
    movie = desk.file(20 * PART)

    async with asyncio.TaskGroup() as group:
        first = group.create_task(desk.push(movie))
        while not desk.count("UploadPart"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        error = await desk.fail(movie)

    assert isinstance(error, UploadLocked)
    await desk.assert_stored(first.result(), movie)
    assert (desk.server.stats.creates, desk.server.stats.completes) == (1, 1)
    assert desk.server.stats.parts_sent_twice == 0


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_named_and_never_followed(desk: Desk, status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        location = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        for operation in ("CreateUploadVideo", "InitiateMultipartUpload", "UploadPart"):
            desk.order(
                Fault(action="redirect", operation=operation, status=status, location=location)
            )

            error = await desk.fail(desk.file(3 * PART, f"{operation}.mp4", seed=status))

            assert isinstance(error, ServiceError)
            assert "redirect" in error.message
            desk.assert_faults_struck()
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
