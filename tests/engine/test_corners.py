"""What hardly ever happens to an upload: it still ends in a proof or in a typed error."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from uploader import (
    BytesSource,
    CallbackProvider,
    ConfigurationError,
    NewVideo,
    PartsAdopted,
    ServiceError,
    SourceChanged,
    UnverifiedCompletion,
    UploadGrant,
    UploadRestarted,
    VideoMeta,
    VodupError,
    decode_answer,
)
from uploader.devserver import Fault
from uploader.errors import UnsupportedState
from uploader.state import MemoryState, Phase, UploadRecord

from ..devserver.clients import granted
from .harness import PART, Desk, assert_overwrite_helps, content, created, refreshed, until
from .test_complete import COMPLETE, cut_off, deny


def blind(desk: Desk) -> CallbackProvider:
    """An app server: it creates and renews, and reports nothing about a video."""

    async def create(video: NewVideo) -> UploadGrant:
        return decode_answer(await created(desk.server))

    async def renew(video_id: str) -> UploadGrant:
        return decode_answer(await refreshed(desk.server, video_id))

    return CallbackProvider(renew, create)


def execute(desk: Desk, statement: str) -> None:
    """Change the checkpoint behind vodup's back."""
    connection = sqlite3.connect(desk.state_path, timeout=10)
    connection.execute(statement)
    connection.commit()
    connection.close()


async def refuse(desk: Desk, movie: Path, operation: str) -> None:
    """End a run with a refusal of one operation."""
    desk.order(
        Fault(action="error", operation=operation, count=None, status=400, code="InvalidArgument")
    )
    assert (await desk.fail(movie)).code == "InvalidArgument"
    desk.order()


# --- completing -------------------------------------------------------------------------


async def test_parts_oss_cannot_join_although_it_lists_them_are_sent_again(desk: Desk) -> None:
    desk.order(Fault(action="error", operation=COMPLETE, status=400, code="InvalidPart"))
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
    (restarted,) = desk.events_of(UploadRestarted)
    assert restarted.lost_bytes == 4 * PART
    assert "InvalidPart" in restarted.reason
    assert desk.server.stats.creates == 1


async def test_parts_oss_cannot_join_for_ever_are_an_error(desk: Desk) -> None:
    desk.order(
        Fault(action="error", operation=COMPLETE, status=400, code="InvalidPart", count=None)
    )
    error = await desk.fail(desk.file(4 * PART))
    assert isinstance(error, ServiceError)
    assert error.code == "InvalidPart"
    assert desk.count(COMPLETE) == 3


async def test_a_part_oss_lost_meanwhile_is_sent_before_completing(desk: Desk) -> None:
    """It is not on the last page of the list, and that page is the last."""
    desk.server.set_options(list_page_size=3)
    movie = desk.file(10 * PART)
    await desk.interrupted(movie, after=8)
    desk.server.backend.storage._db.execute("DELETE FROM parts WHERE part_number = 8")

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.count(COMPLETE) == 1
    assert result.resumed_part_count == 7


async def test_a_failed_callback_does_not_hide_a_small_object(desk: Desk) -> None:
    desk.order(Fault(action="callback_failed", operation="PutObject"))
    movie = desk.file(PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "crc64-head"
    assert desk.server.stats.puts == 1


async def test_a_failed_callback_without_permission_to_read_is_no_success(desk: Desk) -> None:
    deny(desk, "HeadObject")
    desk.order(Fault(action="callback_failed", operation="PutObject"))

    movie = desk.file(PART)

    await assert_overwrite_helps(desk, movie, await desk.fail(movie))


async def test_a_refused_read_that_is_not_about_permission_is_reported(desk: Desk) -> None:
    desk.order(
        Fault(action="drop_answer", operation=COMPLETE),
        Fault(action="error", operation="HeadObject", status=400, code="InvalidObjectName"),
    )

    error = await desk.fail(desk.file(4 * PART))

    assert isinstance(error, ServiceError)
    assert error.code == "InvalidObjectName"
    assert error.phase == "settle"


async def test_where_neither_oss_nor_vod_reports_it_is_no_success(desk: Desk) -> None:
    deny(desk, "HeadObject")
    desk.order(Fault(action="drop_answer", operation=COMPLETE))

    movie, given = desk.file(4 * PART), {"provider": blind(desk), "meta": VideoMeta(title="A")}

    error = await desk.fail(movie, **given)

    assert desk.server.stats.completes == 1
    await assert_overwrite_helps(desk, movie, error, **given)


async def test_an_answer_without_figures_is_made_up_for_by_the_etag_of_head(desk: Desk) -> None:
    desk.server.set_options(crc_headers=False)
    desk.order(Fault(action="missing_etag", operation=COMPLETE))
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "etag"


@dataclass(frozen=True, slots=True)
class _Fickle(BytesSource):
    """Looks as it did, and reads otherwise once it was changed."""

    changes: list[str] = field(default_factory=list)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        crc64, md5 = await BytesSource.read_crc(self, offset, size, with_md5=with_md5)
        return crc64 ^ len(self.changes), md5


async def test_a_source_that_changes_after_it_was_completed_proves_nothing(desk: Desk) -> None:
    movie = _Fickle(content(6 * PART), "movie.mp4")
    refuse_fourth = Fault(
        action="error", operation="UploadPart", part=4, count=None, status=400, code="InvalidRange"
    )
    desk.order(refuse_fourth)
    await desk.fail(movie, concurrency=1)  # three parts have CRCs, and no MD5s
    desk.server.set_options(crc_headers=False)
    desk.order(Fault(action="slow", operation=COMPLETE, delay_s=0.3))

    async with asyncio.TaskGroup() as group:
        failing = group.create_task(desk.fail(movie))
        await until(lambda: desk.server.stats.completes == 1)
        movie.changes.append("after completing")

    error = failing.result()
    assert isinstance(error, SourceChanged)
    assert "after it was sent" in error.message


async def test_a_small_upload_whose_answer_was_lost_is_found_by_looking(desk: Desk) -> None:
    movie = desk.file(PART)
    desk.order(Fault(action="no_answer", operation="PutObject"))
    async with desk.uploader(blind(desk)) as up:
        task = asyncio.create_task(up.upload(movie, meta=VideoMeta(title="A")))
        await until(lambda: desk.server.stats.puts == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    desk.order()

    result = await desk.push(movie, provider=blind(desk))

    await desk.assert_stored(result, movie)
    assert (result.verified_by, result.sent_bytes) == ("crc64-head", 0)
    assert result.etag == hashlib.md5(movie.read_bytes(), usedforsecurity=False).hexdigest().upper()
    assert desk.server.stats.puts == 1


async def test_an_upload_that_vanished_at_complete_restarts_while_vod_waits(desk: Desk) -> None:
    deny(desk, "HeadObject")
    desk.order(Fault(action="vanish", operation=COMPLETE))
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert len(desk.events_of(UploadRestarted)) == 1


async def test_without_a_provider_a_lost_complete_stays_open(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "no_answer")
    key = (await desk.record()).key

    async with desk.uploader_without_provider() as up:
        with pytest.raises(VodupError):
            await up.upload(movie, key=key)

    assert (await desk.record()).phase is Phase.COMPLETING
    result = await desk.push(movie)
    await desk.assert_stored(result, movie)
    assert result.verified_by == "crc64-url"


async def test_without_a_provider_there_are_no_grants_to_hand_out(desk: Desk) -> None:
    async with desk.uploader_without_provider() as up:
        with pytest.raises(ConfigurationError, match="Grants need a provider"):
            _ = up.grants
    with pytest.raises(ConfigurationError, match="Grants need a provider"):
        _ = desk.uploader().grants  # not opened


async def test_a_grant_without_a_provider_or_permission_to_read_is_no_success(desk: Desk) -> None:
    deny(desk, "HeadObject")
    desk.order(Fault(action="drop_answer", operation=COMPLETE))
    grant = decode_answer(await created(desk.server))

    async with desk.uploader_without_provider() as up:
        with pytest.raises(UnverifiedCompletion) as caught:
            await up.upload(desk.file(4 * PART), grant=grant)
        assert desk.server.stats.completes == 1
        assert "--overwrite" in caught.value.next_step
        result = await up.upload(desk.file(4 * PART), grant=grant, overwrite=True)

    assert result.verified_by == "crc64"


async def test_aborting_while_completing_removes_the_parts(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "hang")
    record = await desk.record()
    async with desk.uploader_without_provider() as up:
        with pytest.raises(VodupError):
            await up.abort(record.key)
    assert (await desk.record()).phase is Phase.COMPLETING

    async with desk.uploader() as up:
        await up.abort(record.key)

    assert desk.count("AbortMultipartUpload") == 1
    assert desk.server.open_upload_count == 0
    assert (await desk.record()).phase is Phase.ABORTED


async def test_aborting_before_completing_makes_no_other_call_to_vod(desk: Desk) -> None:
    await desk.interrupted(desk.file(4 * PART), after=2)
    async with desk.uploader() as up:
        await up.abort((await desk.record()).key)
    assert desk.count("GetMezzanineInfo") == 0
    assert desk.count("AbortMultipartUpload") == 1


async def test_without_a_provider_nothing_can_be_compared(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    result = await desk.push(movie)
    async with desk.uploader_without_provider() as up:
        with pytest.raises(VodupError):
            await up.verify(movie, key=result.key)


async def test_an_abort_that_fails_says_where(desk: Desk) -> None:
    await desk.interrupted(desk.file(4 * PART), after=2)
    key = (await desk.record()).key
    desk.order(
        Fault(
            action="error",
            operation="AbortMultipartUpload",
            count=None,
            status=400,
            code="InvalidObjectName",
        )
    )

    async with desk.uploader() as up:
        with pytest.raises(ServiceError) as caught:
            await up.abort(key)

    assert caught.value.phase == "abort"


# --- resuming ---------------------------------------------------------------------------


async def test_a_list_of_parts_without_end_is_not_read_for_ever(desk: Desk) -> None:
    movie = desk.file(26 * PART)
    await desk.interrupted(movie, after=24)
    desk.server.set_options(list_page_size=1)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.count("ListParts") == 1 + 20, "one to see how far it goes, then the pages"
    assert result.resumed_part_count == 24, "a part beyond the pages is not missing"


async def test_a_list_that_is_refused_for_good_is_reported(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await desk.interrupted(movie, after=2)
    desk.order(
        Fault(
            action="error", operation="ListParts", count=None, status=400, code="InvalidObjectName"
        )
    )

    error = await desk.fail(movie)

    assert isinstance(error, ServiceError)
    assert error.code == "InvalidObjectName"


async def test_a_stranger_s_part_of_another_size_is_not_adopted(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    record = await desk.interrupted(movie, after=3)
    client = granted(await refreshed(desk.server, record.video_id or ""))
    other = content(PART + 1, seed=99)
    reply = await asyncio.to_thread(client.put_part, record.upload_id or "", 5, other)
    assert reply.status == 200

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 3
    assert not desk.events_of(PartsAdopted)


async def test_a_file_that_changed_before_a_byte_arrived_is_just_sent(desk: Desk) -> None:
    movie = desk.file(PART)
    await refuse(desk, movie, "PutObject")
    movie.write_bytes(content(PART, seed=5))

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.creates == 1


async def test_an_ack_outside_of_the_plan_is_no_proof_of_the_same_file(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await desk.interrupted(movie, after=2)
    execute(desk, "UPDATE vodup_part SET number = 99 WHERE number = 2")
    os.utime(movie)

    assert isinstance(await desk.fail(movie), SourceChanged)


async def test_a_damaged_result_of_a_finished_upload_is_named(desk: Desk) -> None:
    movie = desk.file(PART)
    await desk.push(movie)
    execute(desk, "UPDATE vodup_upload SET result = '[7]'")

    error = await desk.fail(movie)

    assert isinstance(error, UnsupportedState)
    assert "result" in error.message


async def test_a_record_that_lost_its_video_is_not_sent_to(desk: Desk) -> None:
    """As if the store had been edited: a target, and nothing to renew for it."""
    answer = await created(desk.server)
    grant = decode_answer(answer)
    state = MemoryState()
    source = BytesSource(content(2 * PART))
    async with state, state.claim("movie") as journal, source:
        await journal.create_record(
            UploadRecord(
                key="movie",
                phase=Phase.UPLOADING,
                source="movie.mp4",
                fingerprint=(await source.fingerprint()).to_text(),
                size=2 * PART,
                endpoint=grant.target.endpoint,
                bucket=grant.target.bucket,
                object_key=grant.target.object_key,
            )
        )

    error = await desk.fail(BytesSource(content(2 * PART)), state=state, key="movie")

    assert isinstance(error, ConfigurationError)
    assert "VideoId" in error.message
    assert desk.count("RefreshUploadVideo") == 0


# --- requests that cannot be fulfilled ---------------------------------------------------


async def test_an_uploader_works_inside_its_block_only(desk: Desk) -> None:
    uploader = desk.uploader()
    with pytest.raises(RuntimeError, match="inside its block"):
        await uploader.upload(desk.file(PART))
    async with uploader:
        assert uploader.grants is not None
    with pytest.raises(RuntimeError, match="inside its block"):
        await uploader.upload(desk.file(PART))
    with pytest.raises(ConfigurationError, match="Grants need a provider"):
        _ = uploader.grants


async def test_without_provider_and_grant_nothing_can_be_begun(desk: Desk) -> None:
    async with desk.uploader_without_provider() as up:
        with pytest.raises(ConfigurationError, match="No provider issues grants"):
            await up.upload(desk.file(PART))


async def test_what_was_never_sent_cannot_be_compared(desk: Desk) -> None:
    desk.server.set_options(denied_vod_operations=["CreateUploadVideo"])
    movie = desk.file(PART)
    await desk.fail(movie)

    async with desk.uploader() as up:
        with pytest.raises(ConfigurationError, match="has no target yet"):
            await up.verify(movie)


async def test_an_unreadable_object_is_not_called_the_same(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await desk.push(movie)
    deny(desk, "GetObject")

    async with desk.uploader() as up:
        with pytest.raises(UnverifiedCompletion, match="does not let us read") as caught:
            await up.verify(movie)
        assert caught.value.next_step == (
            "Allow vod:GetMezzanineInfo to return the file's URL, then run `vodup verify` again. "
            "If the upload is not finished, push it again with --overwrite."
        )
        deny(desk)
        assert (await up.verify(movie)).size == 4 * PART


async def test_where_vod_reports_nothing_the_object_itself_is_compared(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    result = await desk.push(movie, provider=blind(desk), meta=VideoMeta(title="A"))

    async with desk.uploader(blind(desk)) as up:
        assert (await up.verify(movie)).crc64 == result.crc64
