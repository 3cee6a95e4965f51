"""How an upload fails: the kind of the error, and what its message names."""

from __future__ import annotations

import asyncio
import os

import pytest

from uploader import (
    CallbackProvider,
    ConfigurationError,
    NewVideo,
    OverwriteRefused,
    SourceChanged,
    UnverifiedCompletion,
    UploadGrant,
    UploadRestarted,
    UploadTargetChanged,
    VideoMeta,
    VodupError,
    decode_grant,
)
from uploader.devserver import Fault
from uploader.errors import IntegrityError, UnsupportedState
from uploader.state import Phase

from .harness import PART, Desk, created, until
from .test_complete import COMPLETE, cut_off, deny
from .test_corners import blind, execute


def assert_error(error: VodupError, kind: type[VodupError], *named: object) -> None:
    """It is of this kind, and its text names what it is about and what to use next."""
    assert type(error) is kind
    for name in named:
        assert str(name) in str(error)


# --- before anything is sent ----------------------------------------------------------------


async def test_without_a_source_of_grants(desk: Desk) -> None:
    async with desk.uploader_without_provider() as up:
        with pytest.raises(VodupError) as caught:
            await up.upload(desk.file(PART))
        with pytest.raises(VodupError) as grants:
            _ = up.grants
    assert_error(caught.value, ConfigurationError, "--grant")
    assert_error(grants.value, ConfigurationError)


async def test_a_grant_of_another_video_and_of_none(desk: Desk) -> None:
    answer = await created(desk.server)
    pair = (answer["UploadAddress"], answer["UploadAuth"])
    movie = desk.file(2 * PART)

    theirs = await desk.fail(movie, grant=decode_grant(*pair, video_id="1" * 32), video_id="0" * 32)
    error = await desk.fail(movie, grant=decode_grant(*pair))

    assert_error(theirs, ConfigurationError, "1" * 32, "0" * 32)
    assert_error(error, ConfigurationError, "--video-id")
    assert desk.server.stats.initiates == 0


async def test_a_new_video_without_an_id(desk: Desk) -> None:
    async def create(video: NewVideo) -> UploadGrant:
        answer = await created(desk.server)
        return decode_grant(answer["UploadAddress"], answer["UploadAuth"])

    async def renew(video_id: str) -> UploadGrant:
        raise NotImplementedError

    error = await desk.fail(desk.file(PART), provider=CallbackProvider(renew, create))

    assert_error(error, ConfigurationError)


async def test_an_upload_of_another_video(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    before = await desk.interrupted(movie, after=3, key="mine")
    other = (await created(desk.server))["VideoId"]

    error = await desk.fail(movie, key="mine", video_id=other)

    assert_error(error, ConfigurationError, before.video_id, other, "--key", "--video-id")


async def test_a_video_that_is_finished(desk: Desk) -> None:
    video_id = (await created(desk.server))["VideoId"]
    await desk.push(desk.file(PART, "first.mp4"), video_id=video_id, key="first")
    async with desk.uploader(state="memory") as up:
        with pytest.raises(OverwriteRefused) as caught:
            await up.upload(desk.file(PART), video_id=video_id)
    assert_error(caught.value, OverwriteRefused, video_id)


# --- of an earlier run ------------------------------------------------------------------------


async def test_a_file_that_changed_since_it_was_finished(desk: Desk) -> None:
    movie = desk.file(PART)
    result = await desk.push(movie, key="mine")
    desk.file(PART, seed=1)

    assert_error(
        await desk.fail(movie, key="mine"),
        SourceChanged,
        movie,
        result.video_id,
        "--changed new-video",
        "--overwrite",
    )


@pytest.mark.parametrize(
    ("seed", "size", "changes"),
    [
        (1, 8 * PART, "modification time, change time"),
        (0, 9 * PART, "size, modification time, change time"),
    ],
)
async def test_a_file_that_changed_since_it_was_begun(
    desk: Desk, seed: int, size: int, changes: str
) -> None:
    movie = desk.file(8 * PART)
    await desk.interrupted(movie, after=2)
    desk.file(size, seed=seed)

    error = await desk.fail(movie)

    assert_error(error, SourceChanged, movie, changes)


@pytest.mark.parametrize(
    ("field", "value", "of"),
    [
        ("plan", "nonsense", "plan"),
        ("fingerprint", "nonsense", "fingerprint"),
        ("result", "[7]", "result"),
        ("result", "{", "result"),
    ],
)
async def test_a_checkpoint_that_is_not_readable(
    desk: Desk, field: str, value: str, of: str
) -> None:
    movie = desk.file(4 * PART)
    if field == "result":
        await desk.push(movie)
    else:
        await desk.interrupted(movie, after=2)
    execute(desk, f"UPDATE vodup_upload SET {field} = '{value}'")  # noqa: S608
    desk.file(4 * PART, seed=5)

    error = await desk.fail(movie)

    assert isinstance(error, UnsupportedState)
    opening = f"The {of} in the checkpoint is not readable: "
    assert error.message.startswith(opening)
    reason = error.message.removeprefix(opening)
    assert len(reason) > 10
    assert not reason.startswith("None")
    assert error.next_step == (
        "If no newer vodup wrote it, the record is damaged: `vodup clean` removes it, and "
        "--video-id continues the video."
    )


async def test_an_upload_that_is_not_there(desk: Desk) -> None:
    async with desk.uploader() as up:
        for work in (up.abort("mine"), up.verify(desk.file(PART), key="mine")):
            with pytest.raises(VodupError) as caught:
                await work
            assert_error(caught.value, ConfigurationError, "'mine'", "`vodup status`", "--state")


async def test_an_upload_that_is_finished_cannot_be_aborted(desk: Desk) -> None:
    result = await desk.push(desk.file(PART), key="mine")
    async with desk.uploader() as up:
        with pytest.raises(VodupError) as caught:
            await up.abort("mine")
    assert_error(caught.value, ConfigurationError, result.video_id, "`vodup clean mine`")


async def test_an_upload_that_was_never_sent(desk: Desk) -> None:
    desk.server.set_options(denied_vod_operations=["CreateUploadVideo"])
    movie = desk.file(PART)
    await desk.fail(movie, key="mine")
    async with desk.uploader() as up:
        with pytest.raises(VodupError) as caught:
            await up.verify(movie, key="mine")
    assert_error(caught.value, ConfigurationError, "`vodup push`")


@pytest.mark.parametrize("field", ["endpoint", "bucket", "object_key"])
async def test_an_upload_of_which_half_the_target_is_known(desk: Desk, field: str) -> None:
    movie = desk.file(4 * PART)
    await desk.interrupted(movie, after=2, key="mine")
    execute(desk, f"UPDATE vodup_upload SET {field} = NULL")  # noqa: S608
    async with desk.uploader() as up:
        with pytest.raises(ConfigurationError, match="The upload mine has no target yet"):
            await up.verify(movie, key="mine")


# --- while it is sent -------------------------------------------------------------------------


async def test_a_file_that_changes_while_it_is_sent(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    desk.order(Fault(action="slow", operation="UploadPart", part=4, delay_s=0.3))

    async def rewrite() -> None:
        await until(lambda: desk.server.stats.parts_stored >= 3)
        os.utime(movie, (1, 1))

    async with asyncio.TaskGroup() as group:
        failing = group.create_task(desk.fail(movie, key="mine"))
        group.create_task(rewrite())

    assert_error(failing.result(), SourceChanged, movie, "`vodup abort mine`")


@pytest.mark.parametrize(
    ("operation", "size", "phase"),
    [
        ("InitiateMultipartUpload", 2 * PART, "start"),
        ("UploadPart", 2 * PART, "send"),
        (COMPLETE, 2 * PART, "complete"),
        ("PutObject", PART, "complete"),
    ],
)
async def test_an_error_says_where_in_the_upload_it_happened(
    desk: Desk, operation: str, size: int, phase: str
) -> None:
    desk.order(
        Fault(action="error", operation=operation, count=None, status=400, code="InvalidArgument")
    )
    assert (await desk.fail(desk.file(size))).phase == phase


async def test_an_upload_id_that_vanishes(desk: Desk) -> None:
    desk.order(Fault(action="vanish", operation="UploadPart", part=3))
    movie = desk.file(6 * PART)
    await desk.push(movie, concurrency=1)
    (restarted,) = desk.events_of(UploadRestarted)
    assert restarted.reason == "OSS does not know the UploadId any more"
    assert restarted.lost_bytes == 2 * PART


async def test_an_upload_id_that_vanished_between_two_runs(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    record = await desk.interrupted(movie, after=2)
    desk.server.backend.storage.remove_upload(record.upload_id or "")
    await desk.push(movie)
    (restarted,) = desk.events_of(UploadRestarted)
    assert restarted.reason == "OSS does not know the UploadId any more"


async def test_an_upload_that_is_gone_when_it_is_to_be_completed(desk: Desk) -> None:
    desk.order(Fault(action="vanish", operation=COMPLETE))
    await desk.push(desk.file(4 * PART))
    (restarted,) = desk.events_of(UploadRestarted)
    assert restarted.reason == "the upload was gone before it was completed"


async def test_parts_that_cannot_be_joined(desk: Desk) -> None:
    desk.order(Fault(action="error", operation=COMPLETE, status=400, code="InvalidPart"))
    await desk.push(desk.file(4 * PART))
    (restarted,) = desk.events_of(UploadRestarted)
    assert restarted.reason == "OSS cannot join the parts (InvalidPart)"


async def test_a_target_that_vod_moved(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    await desk.interrupted(movie, after=2)
    desk.server.set_options(refresh_target="bucket", refresh_scope="refreshed")
    error = await desk.fail(movie)
    assert isinstance(error, UploadTargetChanged)
    assert error.message.startswith("VOD now names another bucket or key (bucket ")
    assert ", and OSS refuses the first: " in error.message
    assert error.next_step == UploadTargetChanged.default_next_step
    assert error.code
    assert error.request_id


# --- at the end -------------------------------------------------------------------------------


async def test_an_object_that_cannot_be_compared(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await desk.push(movie, key="mine")
    deny(desk, "GetObject")
    async with desk.uploader() as up:
        with pytest.raises(VodupError) as caught:
            await up.verify(movie, key="mine")
    assert_error(caught.value, UnverifiedCompletion, "vod:GetMezzanineInfo")
    assert caught.value.phase == "verify"


async def test_an_object_that_is_another(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    result = await desk.push(movie, key="mine")
    desk.file(2 * PART, seed=1)
    async with desk.uploader() as up:
        with pytest.raises(IntegrityError) as caught:
            await up.verify(movie, key="mine")
    message = caught.value.message
    assert message.startswith(
        f"The object in OSS is not {movie}: {4 * PART} bytes with CRC-64 {result.crc64}, the "
        f"source has {2 * PART} bytes with "
    )


async def test_an_object_of_which_nothing_is_reported(desk: Desk) -> None:
    deny(desk, "HeadObject")
    desk.order(Fault(action="drop_answer", operation=COMPLETE))
    error = await desk.fail(desk.file(4 * PART), provider=blind(desk), meta=VideoMeta(title="A"))
    assert_error(error, UnverifiedCompletion)
    assert error.phase == "verify"
    assert (await desk.record()).phase is Phase.COMPLETING


FINISHED = "VOD has finished video {0} (status Normal, {1} bytes) after a run that ended while "
FINISHED += "completing it"


@pytest.mark.parametrize("size", [4 * PART, PART])
async def test_a_video_that_was_finished_and_cannot_be_read(desk: Desk, size: int) -> None:
    desk.server.set_options(file_url=False)
    movie = desk.file(size)
    await cut_off(desk, movie, COMPLETE if size > PART else "PutObject", "no_answer")
    (video,) = desk.server.videos.values()

    error = await desk.fail(movie)

    finished = FINISHED.format(video.video_id, size)
    assert_error(error, UnverifiedCompletion, finished)
    assert error.phase == "settle"


async def test_a_finished_video_without_figures(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "no_answer")
    desk.server.set_options(crc_headers=False)
    desk.order(Fault(action="missing_etag", operation="GetObject", count=None))
    (video,) = desk.server.videos.values()

    error = await desk.fail(movie)

    finished = FINISHED.format(video.video_id, 4 * PART)
    assert_error(error, UnverifiedCompletion, finished)
    desk.assert_faults_struck()


async def test_a_video_that_was_finished_with_other_bytes(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    await cut_off(desk, movie, COMPLETE, "no_answer")
    desk.order(Fault(action="wrong_crc", operation="GetObject", count=None))
    (video,) = desk.server.videos.values()

    error = await desk.fail(movie)

    finished = FINISHED.format(video.video_id, 4 * PART)
    assert_error(error, IntegrityError, finished, "--overwrite")
    assert error.phase == "settle"


async def test_a_video_that_another_upload_finished_meanwhile(desk: Desk) -> None:
    movie = desk.file(9 * PART)
    begun = await desk.interrupted(movie, after=3)
    async with desk.uploader(state="memory") as theirs:
        await theirs.upload(desk.file(2 * PART, "theirs.mp4"), video_id=begun.video_id)

    error = await desk.fail(movie)

    assert_error(error, OverwriteRefused, begun.video_id)
