"""A refreshed UploadAddress that names another place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uploader import TrustPolicy, UntrustedEndpoint, UploadRestarted, UploadTargetChanged
from uploader.devserver import Fault

from .harness import PART, Desk

EXPIRE = Fault(action="expire_credentials", operation="UploadPart", part=4, attempt=1)


@pytest.mark.parametrize("differs", ["key", "bucket", "endpoint"])
@pytest.mark.parametrize("scope", ["both", "original"])
async def test_the_first_target_is_kept(desk: Desk, differs: str, scope: str) -> None:
    desk.server.set_options(refresh_target=differs, refresh_scope=scope)
    desk.order(EXPIRE)
    movie = desk.file(8 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    subjects = {r.subject for r in desk.server.stats.log if r.service == "oss"}
    assert subjects == {result.object_key}
    assert desk.server.stats.initiates == 1
    assert desk.server.stats.parts_sent_twice == 0


@pytest.mark.parametrize("differs", ["key", "bucket"])
async def test_a_first_target_that_is_refused_is_reported(desk: Desk, differs: str) -> None:
    desk.server.set_options(refresh_target=differs, refresh_scope="refreshed")
    desk.order(EXPIRE)
    movie = desk.file(8 * PART)

    error = await desk.fail(movie)

    assert isinstance(error, UploadTargetChanged)
    assert error.is_resumable
    assert "restart" in error.next_step
    assert desk.server.stats.completes == 0
    record = await desk.record()
    video = desk.server.videos[record.video_id or ""]
    assert (record.bucket, record.object_key) == (video.bucket, video.object_key)


@pytest.mark.parametrize("differs", ["key", "bucket"])
async def test_restarting_there_keeps_the_video(desk: Desk, differs: str) -> None:
    desk.server.set_options(refresh_target=differs, refresh_scope="refreshed")
    desk.order(EXPIRE)
    movie = desk.file(8 * PART)

    result = await desk.push(movie, on_target_change="restart", concurrency=1)

    (restarted,) = desk.events_of(UploadRestarted)
    assert restarted.lost_bytes == 3 * PART
    assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
    assert desk.server.stats.creates == 1
    record = await desk.record()
    assert (record.bucket, record.object_key) == (result.bucket, result.object_key)


async def test_after_a_move_the_new_place_is_the_uploads_own(desk: Desk) -> None:
    """Another renewal names it again, and so does the record."""
    desk.server.set_options(refresh_target="bucket", refresh_scope="refreshed")
    desk.order(EXPIRE, replace(EXPIRE, part=6, attempt=1))
    movie = desk.file(8 * PART)

    result = await desk.push(movie, on_target_change="restart", concurrency=1)

    assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
    assert len(desk.events_of(UploadRestarted)) == 1
    assert result.renewal_count >= 2
    record = await desk.record()
    assert (record.endpoint, record.bucket) == (desk.server.oss_endpoint, result.bucket)


async def test_a_bucket_that_is_gone_is_a_move_too(desk: Desk) -> None:
    desk.server.set_options(refresh_target="bucket", refresh_scope="refreshed")
    gone = Fault(
        action="error",
        operation="UploadPart",
        attempt=(2, 9),
        status=404,
        code="NoSuchBucket",
        count=None,
    )
    desk.order(EXPIRE, gone)

    assert isinstance(await desk.fail(desk.file(8 * PART)), UploadTargetChanged)


@pytest.mark.parametrize("operation", ["InitiateMultipartUpload", "PutObject"])
async def test_a_move_before_anything_was_sent_is_reported_and_followed(
    desk: Desk, operation: str
) -> None:
    """The first run got no further than its grant; the second finds the target refused."""
    refusal = Fault(
        action="error", operation=operation, count=None, status=400, code="InvalidArgument"
    )
    desk.order(refusal)
    movie = desk.file(PART if operation == "PutObject" else 8 * PART)
    await desk.fail(movie)
    desk.order()
    desk.server.set_options(refresh_target="key", refresh_scope="refreshed")

    error = await desk.fail(movie)
    assert isinstance(error, UploadTargetChanged)

    result = await desk.push(movie, on_target_change="restart")
    assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
    assert desk.server.stats.creates == 1


async def test_a_new_target_must_be_trusted_before_it_is_followed(desk: Desk) -> None:
    """Only when we move there at all: until then it is just a name."""
    desk.server.set_options(refresh_target="bucket", refresh_scope="refreshed")
    desk.order(EXPIRE)
    ours = TrustPolicy(allow_loopback=True, expected_bucket=desk.server.backend.bucket)

    error = await desk.fail(desk.file(8 * PART), on_target_change="restart", trust=ours)

    assert isinstance(error, UntrustedEndpoint)
    assert desk.server.stats.completes == 0


async def test_parts_that_vanish_are_no_reason_to_move(desk: Desk) -> None:
    """VOD names another place meanwhile, but it is not the place that OSS refuses."""
    desk.server.set_options(refresh_target="key", refresh_scope="both")
    desk.order(EXPIRE, Fault(action="vanish", operation="CompleteMultipartUpload"))
    movie = desk.file(8 * PART)

    result = await desk.push(movie, on_target_change="restart")

    await desk.assert_stored(result, movie)
    assert len(desk.events_of(UploadRestarted)) == 1
    assert {r.subject for r in desk.requests("UploadPart")} == {result.object_key}
