"""The state is lost: the video that an earlier run has created is found again, never made twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from uploader import (
    EarlierVideoFound,
    InvalidGrant,
    OverwriteRefused,
    UnverifiedCompletion,
    VideoMeta,
)
from uploader.devserver import Fault
from uploader.errors import ServiceError
from uploader.sources import BytesSource, StreamSource
from uploader.state import Phase
from uploader.upload import request

from .harness import PART, Desk, content
from .test_packages import hls

CREATE = "CreateUploadVideo"


def lose_state(desk: Desk) -> None:
    shutil.rmtree(desk.state_path.parent)


SIZES = pytest.mark.parametrize("size", [PART, 4 * PART], ids=["put", "multipart"])


@SIZES
async def test_a_finished_video_is_returned_if_it_holds_the_source(desk: Desk, size: int) -> None:
    movie = desk.file(size)
    first = await desk.push(movie)
    lose_state(desk)
    before = dict(desk.server.stats.requests)

    result = await desk.push(movie)

    assert result.video_id == first.video_id
    assert (result.is_earlier_result, result.sent_bytes) == (True, 0)
    assert result.earlier_video_id is None
    assert (result.bucket, result.object_key) == (first.bucket, first.object_key)
    assert result.verified_by == "crc64-url"
    assert desk.server.stats.creates == 1
    assert desk.server.stats.overwrite_refreshes == 0
    assert desk.server.stats.requests["PutObject"] == before.get("PutObject", 0)
    (found,) = desk.events_of(EarlierVideoFound)
    assert (found.earlier_video_id, found.is_same) == (first.video_id, True)
    assert (await desk.record()).phase is Phase.DONE
    again = await desk.push(movie)
    assert (again.video_id, again.is_earlier_result) == (first.video_id, True)


async def test_a_run_that_ends_while_it_adopts_a_video_is_resumed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    movie = desk.file(4 * PART)
    first = await desk.push(movie)
    lose_state(desk)

    async def killed(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr("uploader.upload.former.verify.record_result", killed)
        with pytest.raises(asyncio.CancelledError):
            await desk.push(movie)
    record = await desk.record()
    assert (record.phase, record.video_id) == (Phase.COMPLETING, first.video_id)

    result = await desk.push(movie)

    assert result.video_id == first.video_id
    assert desk.server.stats.creates == 1
    assert desk.server.stats.overwrite_refreshes == 0


@SIZES
async def test_an_unfinished_video_is_continued(desk: Desk, size: int) -> None:
    movie = desk.file(size)
    operation = "PutObject" if size == PART else "UploadPart"
    desk.order(Fault(action="error", operation=operation, code="EntityTooLarge", count=None))
    await desk.fail(movie)
    desk.order()
    (video_id,) = desk.server.videos
    lose_state(desk)

    result = await desk.push(movie)

    assert result.video_id == video_id
    assert desk.server.object_bytes(video_id) == movie.read_bytes()
    assert desk.server.stats.creates == 1


async def test_a_grant_of_another_video_is_not_taken_for_it(desk: Desk) -> None:
    movie = desk.file(PART)
    desk.order(Fault(action="error", operation="PutObject", code="EntityTooLarge", count=None))
    await desk.fail(movie)
    desk.order()
    lose_state(desk)
    desk.server.set_options(refresh_video_id="different")

    assert isinstance(await desk.fail(movie), InvalidGrant)
    assert (await desk.record()).video_id is None


@pytest.mark.parametrize("code", ["InvalidParameter", "InvalidParameter.ReferenceId", "Odd"])
async def test_whatever_code_a_used_reference_id_gets(desk: Desk, code: str) -> None:
    desk.server.set_options(duplicate_reference_code=code)
    movie = desk.file(PART)
    first = await desk.push(movie)
    lose_state(desk)

    assert (await desk.push(movie)).video_id == first.video_id
    assert desk.server.stats.creates == 1


@SIZES
async def test_where_create_answers_with_the_finished_video(desk: Desk, size: int) -> None:
    """Nothing of the answer shows that the video is not new; the object does."""
    desk.server.set_options(duplicate_reference="same_video")
    movie = desk.file(size)
    first = await desk.push(movie)
    lose_state(desk)

    result = await desk.push(movie)

    assert result.video_id == first.video_id
    await desk.assert_stored(result, movie)
    assert desk.server.stats.creates == 1
    assert desk.server.stats.puts + desk.server.stats.completes == 1


@pytest.mark.parametrize("may_look", [True, False])
async def test_where_create_answers_with_a_video_that_holds_something_else(
    desk: Desk, may_look: bool
) -> None:
    desk.server.set_options(duplicate_reference="same_video")
    movie = desk.file(4 * PART)
    first = await desk.push(movie)
    status = movie.stat()
    desk.file(4 * PART, seed=1)
    os.utime(movie, ns=(status.st_atime_ns, status.st_mtime_ns))
    lose_state(desk)
    if not may_look:
        desk.server.set_options(denied_operations=("HeadObject",))

    error = await desk.fail(movie)

    assert isinstance(error, OverwriteRefused)
    assert error.video_id == first.video_id
    assert desk.server.object_bytes(first.video_id) == content(4 * PART)


async def test_a_video_with_other_content_is_left_alone(desk: Desk) -> None:
    """An edit that hides behind the old size and time."""
    movie = desk.file(4 * PART)
    first = await desk.push(movie)
    status = movie.stat()
    desk.file(4 * PART, seed=1)
    os.utime(movie, ns=(status.st_atime_ns, status.st_mtime_ns))
    lose_state(desk)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.video_id != first.video_id
    assert result.earlier_video_id == first.video_id
    assert desk.server.object_bytes(first.video_id) == content(4 * PART)
    (found,) = desk.events_of(EarlierVideoFound)
    assert (found.earlier_video_id, found.is_same) == (first.video_id, False)
    lose_state(desk)
    assert (await desk.push(movie)).video_id == result.video_id, "the second life is found, too"


async def test_the_size_alone_shows_other_content(desk: Desk) -> None:
    first = await desk.push(BytesSource(content(PART), "a.mp4"), key="film")
    stored = desk.server.backend.storage.object(first.bucket, first.object_key)
    assert stored is not None
    desk.server.backend.storage.save_object(replace(stored, size=7))
    lose_state(desk)

    result = await desk.push(BytesSource(content(PART), "a.mp4"), key="film")

    assert result.earlier_video_id == first.video_id


async def test_a_video_that_was_deleted_is_followed_by_another(desk: Desk) -> None:
    movie = desk.file(PART)
    first = await desk.push(movie)
    desk.server.delete_video(first.video_id)
    lose_state(desk)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert (result.video_id != first.video_id, result.earlier_video_id) == (True, None)


async def test_an_aborted_upload_is_followed_by_another_video(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    begun = await desk.interrupted(movie, after=2)
    async with desk.uploader() as up:
        await up.abort(begun.key)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.video_id != begun.video_id
    assert result.earlier_video_id is None


async def test_a_finished_video_that_cannot_be_compared_is_an_error(desk: Desk) -> None:
    movie = desk.file(PART)
    first = await desk.push(movie)
    lose_state(desk)
    desk.server.set_options(file_url=False)

    error = await desk.fail(movie)

    assert isinstance(error, UnverifiedCompletion)
    assert error.video_id == first.video_id
    assert f"--video-id {first.video_id} --overwrite" in error.next_step
    assert desk.server.stats.creates == 1
    result = await desk.push(movie, key="other")
    assert result.video_id != first.video_id
    over = await desk.push(movie, video_id=first.video_id, overwrite=True)
    await desk.assert_stored(over, movie)


@SIZES
async def test_without_a_crc_the_etag_is_compared(desk: Desk, size: int) -> None:
    desk.server.set_options(crc_headers=False)
    movie = desk.file(size)
    first = await desk.push(movie)
    lose_state(desk)

    result = await desk.push(movie)

    assert (result.video_id, result.verified_by) == (first.video_id, "etag")
    assert result.is_earlier_result
    if size > PART:
        lose_state(desk)
        error = await desk.fail(movie, part_size=2 * PART)
        assert isinstance(error, UnverifiedCompletion), "the ETag is that of other parts"


async def test_a_package_is_not_uploaded_twice(desk: Desk) -> None:
    """VOD opens its playlist alone, and the same playlist may name other files."""
    main = hls(desk.folder / "package")
    first = await desk.push(main)
    lose_state(desk)

    error = await desk.fail(main)

    assert isinstance(error, UnverifiedCompletion)
    assert "none of its other files" in error.message
    assert desk.server.stats.creates == 1
    over = await desk.push(main, video_id=first.video_id, overwrite=True)
    assert over.video_id == first.video_id


@pytest.mark.parametrize("more", [0, 1], ids=["of the same size", "longer"])
async def test_a_package_with_another_playlist_is_another_video(desk: Desk, more: int) -> None:
    main = hls(desk.folder / "package")
    first = await desk.push(main)
    storage = desk.server.backend.storage
    playlist = storage.object(first.bucket, first.object_key)
    assert playlist is not None
    other = await desk.push(BytesSource(content(playlist.size + more), "a.mp4"), key="other")
    changed = storage.object(other.bucket, other.object_key)
    assert changed is not None
    storage.save_object(replace(changed, bucket=first.bucket, object_key=first.object_key))
    lose_state(desk)
    desk.server.set_options(crc_headers=not more)

    result = await desk.push(main)

    assert result.video_id != first.video_id
    assert result.earlier_video_id == first.video_id


async def test_an_own_reference_id_is_never_replaced(desk: Desk) -> None:
    meta = VideoMeta(reference_id="mine-0001")
    movie = desk.file(PART)
    first = await desk.push(movie, meta=meta)
    lose_state(desk)

    assert (await desk.push(movie, meta=meta)).video_id == first.video_id
    lose_state(desk)
    desk.file(PART, seed=1)
    error = await desk.fail(movie, meta=meta)

    assert isinstance(error, OverwriteRefused)
    assert error.video_id == first.video_id
    assert desk.server.stats.creates == 1


async def test_the_reference_id_tells_sources_machines_and_keys_apart(desk: Desk) -> None:
    movie = desk.file(PART)
    first = await desk.push(movie)
    other_key = await desk.push(movie, key="other")
    other = desk.file(PART, "other.mp4")
    same_bytes = await desk.push(other)
    assert len({first.video_id, other_key.video_id, same_bytes.video_id}) == 3
    lose_state(desk)
    movie.chmod(0o600)
    assert (await desk.push(movie)).video_id == first.video_id, "only its change time is another"


async def test_where_the_look_up_fails_the_refusal_is_raised(desk: Desk) -> None:
    movie = desk.file(PART)
    await desk.push(movie)
    lose_state(desk)
    desk.server.set_options(denied_vod_operations=("GetMezzanineInfo",))

    error = await desk.fail(movie)

    assert error.code == "InvalidReferenceId.Duplicate"
    assert desk.server.stats.creates == 1


async def test_a_refusal_that_is_about_something_else_is_raised(desk: Desk) -> None:
    desk.order(Fault(action="error", operation=CREATE, status=400, code="Odd", count=None))

    error = await desk.fail(desk.file(PART))

    assert isinstance(error, ServiceError)
    assert (error.code, desk.count(CREATE)) == ("Odd", 1)


async def test_lives_have_an_end(desk: Desk) -> None:
    code = "InvalidReferenceId.Duplicate"
    desk.order(Fault(action="error", operation=CREATE, status=400, code=code, count=None))

    error = await desk.fail(desk.file(PART))

    assert isinstance(error, OverwriteRefused)
    assert desk.count(CREATE) == 101


async def test_a_new_upload_costs_no_further_call(desk: Desk) -> None:
    await desk.push(desk.file(PART))
    assert dict(desk.server.stats.requests) == {CREATE: 1, "PutObject": 1}


async def test_a_stream_under_an_own_reference_id_is_refused(desk: Desk) -> None:
    """It cannot be compared without being consumed."""
    meta = VideoMeta(reference_id="mine-0001")
    await desk.push(desk.file(PART), meta=meta)
    lose_state(desk)

    error = await desk.fail(StreamSource(pieces(), "a.mp4"), key="stream", meta=meta)

    assert isinstance(error, OverwriteRefused)
    assert desk.server.stats.creates == 1


async def pieces() -> AsyncIterator[bytes]:
    yield content(PART)


async def test_streams_of_one_key_are_videos_of_their_own(desk: Desk) -> None:
    videos = set()
    for _ in range(2):
        result = await desk.push(StreamSource(pieces(), "a.mp4"), key="stream")
        videos.add(result.video_id)
        lose_state(desk)
    assert len(videos) == 2


async def test_without_a_machine_id_the_host_name_tells_machines_apart(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "_MACHINE_ID", tmp_path / "absent")
    request._host_identity.cache_clear()
    assert request._host_identity() == socket.gethostname()
    monkeypatch.undo()
    request._host_identity.cache_clear()


async def test_a_stream_finds_an_object_under_the_video_that_it_is_to_fill(desk: Desk) -> None:
    """It cannot be compared without being consumed."""
    first = await desk.push(desk.file(PART))
    desk.server.reopen_video(first.video_id)
    lose_state(desk)

    error = await desk.fail(StreamSource(pieces(), "a.mp4"), video_id=first.video_id)

    assert isinstance(error, OverwriteRefused)
    assert desk.server.object_bytes(first.video_id) == content(PART)
