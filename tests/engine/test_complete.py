"""The one request that must not be guessed about: done, not done, or not known."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from uploader import (
    IntegrityError,
    OverwriteRefused,
    PermissionDenied,
    RetryPolicy,
    ServiceError,
    SourceChanged,
    UnverifiedCompletion,
    UploadRestarted,
    UploadStarted,
)
from uploader.devserver import Fault
from uploader.state import Phase

from .harness import (
    PART,
    Desk,
    assert_overwrite_helps,
    content,
    created,
    foreign_part,
    until,
)

COMPLETE = "CompleteMultipartUpload"


PATIENT = RetryPolicy(patience_s=600, base_s=0.01, cap_s=0.05)


def deny(desk: Desk, *operations: str) -> None:
    desk.server.set_options(denied_operations=operations)


# --- the answer is lost, the run goes on ---------------------------------------------------


@pytest.mark.parametrize("action", ["drop_answer", "truncate_body", "garbage"])
async def test_a_lost_answer_is_settled_by_looking_at_the_object(desk: Desk, action: str) -> None:
    desk.order(Fault(action=action, operation=COMPLETE, after_bytes=20))
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()
    assert result.verified_by == "crc64-head"
    assert desk.server.stats.completes == 1
    assert not desk.events_of(UploadRestarted)


async def test_where_looking_is_denied_vods_own_url_settles_it(desk: Desk) -> None:
    deny(desk, "HeadObject")
    desk.order(Fault(action="drop_answer", operation=COMPLETE))
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "crc64-url"
    assert desk.server.stats.overwrite_refreshes == 0


async def test_without_any_way_to_look_it_is_not_called_a_success(desk: Desk) -> None:
    deny(desk, "HeadObject", "GetObject")
    desk.order(Fault(action="drop_answer", operation=COMPLETE))

    movie = desk.file(4 * PART)

    error = await desk.fail(movie)

    assert error.is_resumable
    assert desk.server.stats.completes == 1
    await assert_overwrite_helps(desk, movie, error)


async def test_a_complete_that_was_never_applied_is_repeated(desk: Desk) -> None:
    desk.order(Fault(action="reset", operation=COMPLETE))
    movie = desk.file(4 * PART)

    await desk.assert_stored(await desk.push(movie), movie)
    assert desk.count("UploadPart") == 4


async def test_another_object_under_the_key_proves_nothing(desk: Desk) -> None:
    """An old object is there, ours is gone: existence must not pass for success."""
    answer = await created(desk.server)
    old = await desk.push(desk.file(2 * PART, "old.mp4", seed=5), video_id=answer["VideoId"])
    new = desk.file(4 * PART, "new.mp4", seed=6)
    desk.order(Fault(action="vanish", operation=COMPLETE))

    result = await desk.push(new, video_id=old.video_id, overwrite=True)

    await desk.assert_stored(result, new)
    assert len(desk.events_of(UploadRestarted)) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(action="error_body", operation=COMPLETE, code="InternalError"),
        Fault(action="empty_body", operation=COMPLETE),
        Fault(action="malformed", operation=COMPLETE),
        Fault(action="html", operation=COMPLETE, status=200),
        Fault(action="oversize", operation=COMPLETE, value=4 << 20),
    ],
    ids=lambda fault: fault.action,
)
async def test_a_200_that_is_no_result_is_no_success(desk: Desk, fault: Fault) -> None:
    desk.order(fault)
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()
    assert desk.count(COMPLETE) == 2


async def test_a_200_with_an_error_for_ever_is_an_error(desk: Desk) -> None:
    desk.order(Fault(action="html", operation=COMPLETE, status=200, count=None))

    error = await desk.fail(desk.file(4 * PART))

    assert error.is_temporary
    assert desk.server.stats.completes == 0


async def test_a_failed_callback_does_not_hide_a_stored_object(desk: Desk) -> None:
    desk.order(Fault(action="callback_failed", operation=COMPLETE))
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "crc64-head"


async def test_a_part_oss_has_otherwise_is_sent_again_and_completed(desk: Desk) -> None:
    movie = desk.file(5 * PART)
    desk.order(Fault(action="delay", operation=COMPLETE, delay_s=0.6, attempt=1))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(desk.push(movie))
        await until(lambda: desk.count(COMPLETE) == 1)
        await foreign_part(desk, 3)

    result = task.result()
    await desk.assert_stored(result, movie)
    assert len([r for r in desk.requests(COMPLETE) if r.code == "InvalidPart"]) == 1
    assert result.sent_bytes == 6 * PART
    assert not desk.events_of(UploadRestarted)


# --- the run ends around Complete ----------------------------------------------------------


async def cut_off(desk: Desk, movie: Path, operation: str, action: str) -> None:
    """End a run the moment `operation` was (or was not) carried out."""
    desk.order(Fault(action=action, operation=operation))
    done = {"no_answer": lambda: finished(desk), "hang": lambda: desk.count(operation) == 1}
    async with desk.uploader() as up:
        task = asyncio.create_task(up.upload(movie))
        await until(done[action])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await desk.record()).phase is Phase.COMPLETING
    desk.order()


def finished(desk: Desk) -> bool:
    return desk.server.stats.completes + desk.server.stats.puts == 1


@pytest.mark.parametrize(("size", "operation"), [(4 * PART, COMPLETE), (PART, "PutObject")])
async def test_a_finished_video_is_proved_through_vods_url_without_a_refresh(
    desk: Desk, size: int, operation: str
) -> None:
    movie = desk.file(size)
    await cut_off(desk, movie, operation, "no_answer")

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "crc64-url"
    assert desk.count("RefreshUploadVideo") == 0, "it would open an overwrite"
    assert result.sent_bytes == 0
    assert finished(desk)


@pytest.mark.parametrize(("size", "operation"), [(4 * PART, COMPLETE), (PART, "PutObject")])
async def test_a_finished_video_that_cannot_be_read_stays_unverified(
    desk: Desk, size: int, operation: str
) -> None:
    desk.server.set_options(file_url=False)
    movie = desk.file(size)
    await cut_off(desk, movie, operation, "no_answer")

    for _ in range(2):
        error = await desk.fail(movie)
        assert isinstance(error, UnverifiedCompletion)

    assert desk.count("RefreshUploadVideo") == 0
    assert finished(desk)
    await assert_overwrite_helps(desk, movie, error)
    assert finished(desk), "the object proves itself: nothing is sent again"


@pytest.mark.parametrize(("size", "operation"), [(4 * PART, COMPLETE), (PART, "PutObject")])
async def test_what_nobody_may_read_is_sent_again_when_allowed(
    desk: Desk, size: int, operation: str
) -> None:
    desk.server.set_options(file_url=False)
    deny(desk, "HeadObject")
    movie = desk.file(size)
    await cut_off(desk, movie, operation, "no_answer")

    result = await assert_overwrite_helps(desk, movie, await desk.fail(movie))

    assert result.sent_bytes == size
    assert result.verified_by == "crc64"


async def test_a_replacement_of_what_nobody_may_read_resumes_after_a_kill(desk: Desk) -> None:
    desk.server.set_options(file_url=False)
    deny(desk, "HeadObject")
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "no_answer")
    desk.order(Fault(action="error", operation="UploadPart", status=400, code="InvalidArgument"))
    await desk.fail(movie, overwrite=True)

    await desk.assert_stored(await desk.push(movie), movie)


async def test_verifying_what_was_never_verified_says_how_to_finish_it(desk: Desk) -> None:
    desk.server.set_options(file_url=False)
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "no_answer")

    async with desk.uploader() as up:
        with pytest.raises(UnverifiedCompletion) as caught:
            await up.verify(movie)

    await assert_overwrite_helps(desk, movie, caught.value)


@pytest.mark.parametrize(("size", "operation"), [(4 * PART, COMPLETE), (PART, "PutObject")])
async def test_a_complete_that_did_not_happen_happens_in_the_next_run(
    desk: Desk, size: int, operation: str
) -> None:
    movie = desk.file(size)
    await cut_off(desk, movie, operation, "hang")

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.overwrite_refreshes == 0
    assert desk.server.stats.creates == 1


async def test_other_bytes_behind_vods_url_are_no_success(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "no_answer")
    desk.order(Fault(action="wrong_crc", operation="GetObject", count=None))

    error = await desk.fail(movie)

    assert isinstance(error, IntegrityError)
    assert desk.count("RefreshUploadVideo") == 0
    result = await desk.push(movie, overwrite=True)
    await desk.assert_stored(result, movie)


async def test_vods_url_proves_by_etag_where_there_is_no_crc(desk: Desk) -> None:
    desk.server.set_options(crc_headers=False)
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "no_answer")

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "etag"
    assert desk.count("RefreshUploadVideo") == 0


async def test_aborting_a_finished_video_opens_no_overwrite(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "no_answer")
    key = (await desk.record()).key

    async with desk.uploader() as up:
        await up.abort(key)

    assert desk.count("RefreshUploadVideo") == 0


# --- overwriting -------------------------------------------------------------------------


async def test_a_finished_video_is_not_overwritten_without_permission(desk: Desk) -> None:
    first = await desk.push(desk.file(2 * PART))
    other = desk.file(3 * PART, "other.mp4", seed=1)

    error = await desk.fail(other, video_id=first.video_id)

    assert isinstance(error, SourceChanged)
    assert "--overwrite" in error.next_step
    assert desk.server.stats.overwrite_refreshes == 0
    assert desk.server.object_bytes(first.video_id) == content(2 * PART)


async def test_the_finished_video_of_another_upload_is_not_overwritten_by_default(
    desk: Desk, tmp_path: Path
) -> None:
    first = await desk.push(desk.file(2 * PART))
    elsewhere = Desk(desk.server, tmp_path / "elsewhere")
    elsewhere.folder.mkdir(mode=0o700)
    other = elsewhere.file(3 * PART, seed=1)

    error = await elsewhere.fail(other, video_id=first.video_id)

    assert isinstance(error, OverwriteRefused)
    assert desk.server.stats.overwrite_refreshes == 0

    result = await elsewhere.push(other, video_id=first.video_id, overwrite=True)
    await desk.assert_stored(result, other)
    assert desk.server.stats.overwrite_refreshes > 0


async def test_a_video_that_another_upload_finished_meanwhile_is_not_overwritten(
    desk: Desk, tmp_path: Path
) -> None:
    """The run that was interrupted never sent CompleteMultipartUpload."""
    movie = desk.file(9 * PART)
    begun = await desk.interrupted(movie, after=3)
    desk.order()
    elsewhere = Desk(desk.server, tmp_path / "elsewhere")
    elsewhere.folder.mkdir(mode=0o700)
    theirs = await elsewhere.push(elsewhere.file(2 * PART, seed=1), video_id=begun.video_id)
    refreshes = desk.count("RefreshUploadVideo")

    error = await desk.fail(movie)

    assert isinstance(error, OverwriteRefused)
    assert "finished by another upload" in error.message
    assert desk.count("RefreshUploadVideo") == refreshes
    assert desk.server.object_bytes(theirs.video_id) == content(2 * PART, seed=1)
    await desk.assert_stored(await desk.push(movie, overwrite=True), movie)


async def test_without_permission_to_query_a_video_its_upload_continues(desk: Desk) -> None:
    movie = desk.file(9 * PART)
    await desk.interrupted(movie, after=3)
    desk.order()
    desk.server.set_options(denied_vod_operations=("GetMezzanineInfo",))

    await desk.assert_stored(await desk.push(movie), movie)


async def test_a_damaged_object_of_ours_is_replaced_without_overwrite(desk: Desk) -> None:
    """VOD may have taken it for the film by then; the next run replaces it all the same."""
    desk.order(
        Fault(action="wrong_crc", operation=COMPLETE),
        Fault(action="wrong_crc", operation="HeadObject", count=None),
    )
    movie = desk.file(4 * PART)
    assert isinstance(await desk.fail(movie), IntegrityError)
    assert (await desk.record()).is_overwrite
    desk.order()

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.overwrite_refreshes == 1


async def test_a_damaged_object_is_ours_even_if_the_answer_that_made_it_was_lost(
    desk: Desk,
) -> None:
    """Sending it again is interrupted, and the next run must recognise it as ours."""
    desk.order(
        Fault(action="drop_answer", operation=COMPLETE),
        Fault(action="wrong_crc", operation="HeadObject", count=None),
        Fault(action="error", operation="InitiateMultipartUpload", status=403, code="AccessDenied",
              attempt=2, count=None),
    )  # fmt: skip
    movie = desk.file(4 * PART)
    assert isinstance(await desk.fail(movie), PermissionDenied)
    desk.assert_faults_struck()
    desk.order()

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert len(desk.events_of(UploadRestarted)) == 1


async def test_new_content_replaces_the_old_with_overwrite(desk: Desk) -> None:
    movie = desk.file(2 * PART)
    first = await desk.push(movie)
    desk.file(3 * PART, seed=1)

    assert isinstance(await desk.fail(movie), SourceChanged)
    result = await desk.push(movie, overwrite=True)

    assert result.video_id == first.video_id
    await desk.assert_stored(result, movie)
    assert desk.server.stats.creates == 1


async def test_an_interrupted_overwrite_resumes_without_the_option(
    desk: Desk,
) -> None:
    first = await desk.push(desk.file(2 * PART), key="mine")
    movie = desk.file(6 * PART, seed=1)
    begun = await desk.interrupted(movie, after=2, key="mine", overwrite=True)
    assert begun.is_overwrite

    result = await desk.push(movie, key="mine")

    await desk.assert_stored(result, movie)
    assert (result.video_id, result.resumed_part_count) == (first.video_id, 2)


async def test_an_object_that_is_not_ours_after_complete_is_never_a_success(desk: Desk) -> None:
    desk.order(
        Fault(action="wrong_crc", operation=COMPLETE, count=None),
        Fault(action="wrong_crc", operation="HeadObject", count=None),
    )
    movie = desk.file(4 * PART)

    error = await desk.fail(movie)

    assert isinstance(error, IntegrityError)
    assert (await desk.record()).phase is not Phase.DONE
    desk.order()
    result = await desk.push(movie)
    await desk.assert_stored(result, movie)
    assert result.video_id == (await desk.record()).video_id


async def test_an_error_in_every_success_ends_after_five_requests(desk: Desk) -> None:
    desk.order(
        Fault(action="error", operation=COMPLETE, status=200, code="InternalError", count=None)
    )
    movie = desk.file(4 * PART)

    error = await desk.fail(movie, retry=PATIENT)

    assert isinstance(error, ServiceError)
    assert error.code == "InternalError"
    assert desk.count(COMPLETE) == 5
    assert desk.count("HeadObject") == 1, "the object decides"
    desk.order()
    await desk.assert_stored(await desk.push(movie), movie)
    assert desk.server.stats.creates == 1


async def test_an_unknown_error_in_a_success_stays_one_where_looking_is_denied(
    desk: Desk,
) -> None:
    deny(desk, "HeadObject", "GetObject")
    desk.order(Fault(action="error_body", operation=COMPLETE, code="SomethingNew"))
    error = await desk.fail(desk.file(4 * PART))
    assert (error.code, error.is_resumable) == ("SomethingNew", True)


async def test_an_edit_before_a_repeated_complete_keeps_the_parts(desk: Desk) -> None:
    """The first Complete may have been carried out: what it names must stay."""
    movie = desk.file(4 * PART)
    desk.order(Fault(action="error", operation=COMPLETE, status=400, code="Odd", count=None))
    await desk.fail(movie)
    desk.order()
    status = movie.stat()

    def edit(event: object) -> None:
        if isinstance(event, UploadStarted):
            movie.write_bytes(content(status.st_size, seed=77))
            os.utime(movie, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert isinstance(await desk.fail(movie, on_event=edit), SourceChanged)
    assert (await desk.record()).phase is Phase.COMPLETING
    assert len(await desk.acked_part_numbers()) == 4
    movie.write_bytes(content(status.st_size))
    os.utime(movie, ns=(status.st_atime_ns, status.st_mtime_ns))
    await desk.assert_stored(await desk.push(movie), movie)


async def test_an_unknown_error_in_a_success_is_settled_by_the_object(desk: Desk) -> None:
    desk.order(Fault(action="error_body", operation=COMPLETE, code="SomethingNew"))
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "crc64-head"
    assert desk.count(COMPLETE) == 1


async def test_the_etag_settles_an_error_in_a_success_too(desk: Desk) -> None:
    desk.server.set_options(crc_headers=False)
    desk.order(Fault(action="error_body", operation=COMPLETE, code="SomethingNew"))
    movie = desk.file(4 * PART)

    assert (await desk.push(movie)).verified_by == "etag"
