"""Resuming where an earlier run ended: exactly the gap, and nothing on trust."""

from __future__ import annotations

import asyncio

import pytest

from uploader import (
    ConfigurationError,
    PartsAdopted,
    ServiceError,
    UploadRestarted,
    UploadStarted,
)
from uploader.devserver import Fault
from uploader.protocol import oss
from uploader.state import Phase

from .harness import PART, Desk, created, foreign_part


async def test_only_the_gap_is_sent(desk: Desk) -> None:
    movie = desk.file(10 * PART)
    before = await desk.interrupted(movie, after=6)
    sent = desk.server.stats.part_bytes

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.part_bytes - sent == 4 * PART == result.sent_bytes
    assert (result.video_id, result.upload_id) == (before.video_id, before.upload_id)
    assert result.resumed_part_count == 6
    assert result.verified_by == "crc64"
    assert desk.server.stats.parts_sent_twice == 0
    assert (desk.server.stats.creates, desk.server.stats.initiates) == (1, 1)
    started = desk.events_of(UploadStarted)[-1]
    assert (started.is_resumed, started.done_bytes) == (True, 6 * PART)


async def test_a_hole_in_the_middle_is_filled(desk: Desk) -> None:
    desk.order(
        Fault(
            action="error",
            operation="UploadPart",
            part=4,
            count=None,
            status=400,
            code="InvalidArgument",
            name="refuse",
        ),
        Fault(action="delay", operation="UploadPart", part=4, delay_s=0.3, count=None),
    )
    movie = desk.file(8 * PART)
    await desk.fail(movie, concurrency=4)
    acked = await desk.acked_part_numbers()
    assert 4 not in acked
    assert max(acked) > 4
    desk.order()

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == len(acked)
    assert desk.server.stats.parts_sent_twice == 0


async def test_everything_there_but_complete_sends_no_part(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    desk.order(
        Fault(
            action="error",
            operation="CompleteMultipartUpload",
            count=None,
            status=400,
            code="InvalidArgument",
        )
    )
    await desk.fail(movie)
    desk.order()
    sent = desk.count("UploadPart")

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.count("UploadPart") == sent
    assert result.resumed_part_count == 6


async def test_the_plan_of_an_upload_outlives_another_part_size(desk: Desk) -> None:
    movie = desk.file(10 * PART)
    await desk.interrupted(movie, after=3)

    result = await desk.push(movie, part_size=3 * PART)

    await desk.assert_stored(result, movie)
    assert (result.part_count, result.resumed_part_count) == (10, 3)


async def test_an_upload_never_changes_its_video(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    before = await desk.interrupted(movie, after=3, key="mine")
    other = (await created(desk.server))["VideoId"]

    error = await desk.fail(movie, key="mine", video_id=other)

    assert isinstance(error, ConfigurationError)
    assert other in error.message
    result = await desk.push(movie, key="mine", video_id=before.video_id)
    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 3


# --- what the server holds is not trusted ------------------------------------------------


async def test_a_part_overwritten_by_another_client_is_sent_again(desk: Desk) -> None:
    movie = desk.file(8 * PART)
    await desk.interrupted(movie, after=5)
    await foreign_part(desk, 2)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 4


async def test_a_foreign_part_of_the_right_size_is_not_adopted(desk: Desk) -> None:
    movie = desk.file(8 * PART)
    await desk.interrupted(movie, after=3)
    await foreign_part(desk, 7)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 3
    assert not desk.events_of(PartsAdopted)


@pytest.mark.parametrize("list_crc", [True, False], ids=["crc64", "md5"])
async def test_a_part_whose_answer_was_lost_is_adopted(desk: Desk, list_crc: bool) -> None:
    desk.server.set_options(list_crc=list_crc)
    movie = desk.file(8 * PART)
    desk.order(
        Fault(action="drop_answer", operation="UploadPart", part=4, attempt=1),
        Fault(
            action="error",
            operation="UploadPart",
            part=4,
            attempt=(2, 99),
            count=None,
            status=400,
            code="InvalidArgument",
        ),
    )
    await desk.fail(movie, concurrency=1)
    desk.assert_faults_struck()
    desk.order()

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    (adopted,) = desk.events_of(PartsAdopted)
    assert adopted.part_count == 1
    assert result.resumed_part_count == 4
    assert len([r for r in desk.requests("UploadPart") if r.part_number == 4]) == 2


@pytest.mark.parametrize("list_crc", [True, False], ids=["crc64", "md5"])
async def test_a_foreign_part_is_not_adopted_by_md5_either(desk: Desk, list_crc: bool) -> None:
    desk.server.set_options(list_crc=list_crc)
    movie = desk.file(8 * PART)
    await desk.interrupted(movie, after=3)
    await foreign_part(desk, 5)

    await desk.assert_stored(await desk.push(movie), movie)
    assert not desk.events_of(PartsAdopted)


async def test_where_listing_is_denied_our_own_record_must_do(desk: Desk) -> None:
    desk.server.set_options(denied_operations=["ListParts"])
    movie = desk.file(8 * PART)
    await desk.interrupted(movie, after=5)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 5
    assert desk.server.stats.parts_sent_twice == 0


async def test_a_long_list_is_read_page_by_page(desk: Desk) -> None:
    desk.server.set_options(list_page_size=3)
    movie = desk.file(12 * PART)
    await desk.interrupted(movie, after=10)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.count("ListParts") == 4
    assert result.resumed_part_count == 10


async def test_the_pages_of_a_long_list_do_not_wait_for_each_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oss, "LIST_PAGE_SIZE", 3)
    movie = desk.file(12 * PART)
    await desk.interrupted(movie, after=11)
    desk.order(Fault(action="delay", operation="ListParts", delay_s=0.5, count=None))

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 11
    assert desk.server.stats.parts_sent_twice == 0
    _, *later = [call for call in desk.server.stats.log if call.operation == "ListParts"]
    assert len(later) == 3
    assert max(call.started_at for call in later) < min(call.ended_at for call in later)


@pytest.mark.parametrize("action", ["list_repeat_page", "list_stuck_marker"])
async def test_a_list_that_never_ends_is_left_alone(desk: Desk, action: str) -> None:
    """What it does not list may be stored all the same: our acks stay."""
    movie = desk.file(12 * PART)
    await desk.interrupted(movie, after=10)
    desk.server.set_options(list_page_size=3)
    desk.order(Fault(action=action, operation="ListParts", count=None))

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.count("ListParts") <= 3
    assert desk.server.stats.parts_sent_twice == 0


async def test_a_list_that_lags_costs_no_more_than_what_it_hides(desk: Desk) -> None:
    movie = desk.file(12 * PART)
    await desk.interrupted(movie, after=10)
    desk.order(Fault(action="list_lag", operation="ListParts", value=2))

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.parts_sent_twice <= 2


@pytest.mark.parametrize("action", ["malformed", "empty_body", "truncate_body", "html"])
async def test_a_list_that_cannot_be_read_is_requested_again(desk: Desk, action: str) -> None:
    movie = desk.file(6 * PART)
    await desk.interrupted(movie, after=4)
    desk.order(Fault(action=action, operation="ListParts", status=200 if action == "html" else 0))

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.count("ListParts") == 2
    assert result.resumed_part_count == 4


# --- the multipart upload is gone ----------------------------------------------------------


async def test_an_upload_id_that_is_gone_means_a_new_one_for_the_same_video(desk: Desk) -> None:
    movie = desk.file(8 * PART)
    before = await desk.interrupted(movie, after=5)
    desk.server.backend.storage.remove_upload(before.upload_id or "")

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.upload_id != before.upload_id
    assert (result.video_id, result.object_key) == (before.video_id, before.object_key)
    (restarted,) = desk.events_of(UploadRestarted)
    assert restarted.lost_bytes == 5 * PART
    assert desk.server.stats.creates == 1


async def test_an_upload_id_that_vanishes_while_parts_are_sent(desk: Desk) -> None:
    desk.order(Fault(action="vanish", operation="UploadPart", part=5))
    movie = desk.file(8 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert len(desk.events_of(UploadRestarted)) == 1
    assert desk.server.stats.initiates == 2


async def test_an_upload_id_that_vanishes_before_complete(desk: Desk) -> None:
    desk.order(Fault(action="vanish", operation="CompleteMultipartUpload"))
    movie = desk.file(8 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert len(desk.events_of(UploadRestarted)) == 1
    assert desk.server.stats.completes == 1


async def test_an_upload_that_is_removed_again_and_again_fails(desk: Desk) -> None:
    desk.order(Fault(action="vanish", operation="UploadPart", part=3, count=None))

    error = await desk.fail(desk.file(5 * PART))

    assert isinstance(error, ServiceError)
    assert error.code == "NoSuchUpload"
    assert desk.server.stats.initiates == 3


# --- between Create and the record ---------------------------------------------------------


@pytest.mark.parametrize("duplicate", ["error", "same_video"])
async def test_a_lost_answer_of_create_is_found_again(desk: Desk, duplicate: str) -> None:
    desk.server.set_options(duplicate_reference=duplicate)
    desk.order(Fault(action="drop_answer", operation="CreateUploadVideo"))
    movie = desk.file(3 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()
    assert len(desk.server.videos) == desk.server.stats.creates == 1


async def test_a_run_that_ended_before_it_knew_its_video_finds_it_again(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    async with desk.uploader(stall_timeout_s=30.0) as up:
        desk.order(Fault(action="no_answer", operation="CreateUploadVideo"))
        task = asyncio.create_task(up.upload(movie))
        while not desk.server.stats.creates:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    record = await desk.record()
    assert (record.phase, record.video_id) == (Phase.NEW, None)
    (video_id,) = desk.server.videos

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.video_id == video_id
    assert desk.server.stats.creates == 1
    assert desk.count("CreateUploadVideo") == 1


async def test_a_create_that_was_never_carried_out_is_repeated(desk: Desk) -> None:
    desk.order(Fault(action="reset", operation="CreateUploadVideo"))
    movie = desk.file(3 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.creates == 1
