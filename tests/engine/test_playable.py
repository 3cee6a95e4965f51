"""Waiting until VOD can play a video: few calls for many, and the transcoder's reason."""

from __future__ import annotations

import asyncio

import pytest

from uploader import (
    BytesSource,
    ConfigurationError,
    NotPlayable,
    PermissionDenied,
    VideoGone,
    VideoInfo,
    VideoMeta,
)
from uploader.devserver import Fault

from .harness import PART, Desk, content


async def test_a_video_is_followed_until_it_plays(desk: Desk) -> None:
    desk.server.set_options(processing_s=600)
    seen: list[str] = []

    def on_status(info: VideoInfo) -> None:
        seen.append(info.status)
        desk.server.set_options(processing_s=0)

    async with desk.uploader() as up:
        result = await up.upload(desk.file(PART), meta=VideoMeta(cover_url="https://c/1.png"))
        playable = await up.wait_until_playable(result.video_id, on_status=on_status)

    assert seen == ["UploadSucc", "Normal"]
    (stream,) = playable.streams
    assert (stream.format, stream.definition, stream.size) == ("mp4", "HD", PART)
    assert stream.url.startswith("http://127.0.0.1")
    assert playable.cover_url == "https://c/1.png"
    assert desk.server.stats.requests["GetPlayInfo"] == 1, "never before it is Normal"


async def test_many_videos_share_their_calls(desk: Desk) -> None:
    desk.server.set_options(processing_s=600)
    calls = desk.server.stats.requests

    def on_status(info: VideoInfo) -> None:
        if calls["GetVideoInfos"] == 2 and info.status == "UploadSucc":
            desk.server.set_options(processing_s=0)

    async with desk.uploader() as up:
        sources = [BytesSource(content(10, seed=seed), f"{seed}.mp4") for seed in range(25)]
        results = [await up.upload(source) for source in sources]
        waits = (up.wait_until_playable(r.video_id, on_status=on_status) for r in results)
        playable = await asyncio.gather(*waits)

    assert [video.video_id for video in playable] == [result.video_id for result in results]
    assert calls["GetPlayInfo"] == 25
    assert 4 <= calls["GetVideoInfos"] < 25, "twenty videos a call"


async def test_what_the_transcoder_says_is_the_reason(desk: Desk) -> None:
    desk.server.set_options(status_after_upload="TranscodeFail")
    async with desk.uploader() as up:
        result = await up.upload(desk.file(PART))
        with pytest.raises(NotPlayable, match="ContentBad: The resource operated") as caught:
            await up.wait_until_playable(result.video_id)
        assert not caught.value.is_temporary
        assert caught.value.video_id == result.video_id
        desk.server.set_options(denied_vod_operations=("GetTranscodeSummary",))
        with pytest.raises(NotPlayable, match="the reason cannot be read"):
            await up.wait_until_playable(result.video_id)
        desk.server.set_options(status_after_upload="Blocked")
        with pytest.raises(NotPlayable, match="playable: Blocked"):
            await up.wait_until_playable(result.video_id)


async def test_waiting_ends_in_time_and_can_go_on(desk: Desk) -> None:
    desk.server.set_options(processing_s=600)
    async with desk.uploader() as up:
        result = await up.upload(desk.file(PART))
        with pytest.raises(NotPlayable, match="not playable yet: UploadSucc") as caught:
            await up.wait_until_playable(result.video_id, timeout_s=0.1)
        assert caught.value.is_temporary
        desk.server.set_options(processing_s=0)
        assert (await up.wait_until_playable(result.video_id, timeout_s=0)).streams


async def test_a_waiting_task_may_be_cancelled_without_harm_to_the_others(desk: Desk) -> None:
    desk.server.set_options(processing_s=600)
    async with desk.uploader() as up:
        result = await up.upload(desk.file(PART))
        leader = asyncio.create_task(up.wait_until_playable(result.video_id))
        await asyncio.sleep(0)
        other = asyncio.create_task(up.wait_until_playable(result.video_id))
        await asyncio.sleep(0)
        leader.cancel()
        desk.server.set_options(processing_s=0)
        assert (await other).video_id == result.video_id
        assert leader.cancelled()


async def test_a_stored_file_that_no_player_takes_is_not_playable(desk: Desk) -> None:
    meta = VideoMeta(template_group_id="VOD_NO_TRANSCODE")
    async with desk.uploader() as up:
        result = await up.upload(desk.file(PART, "movie.mkv"), meta=meta)
        with pytest.raises(NotPlayable, match="no stream of it that plays"):
            await up.wait_until_playable(result.video_id)


async def test_what_cannot_be_waited_for_is_said(desk: Desk) -> None:
    async with desk.uploader() as up:
        with pytest.raises(VideoGone, match="does not know"):
            await up.wait_until_playable("0" * 32)
        result = await up.upload(desk.file(PART))
        refusal = Fault(action="error", operation="GetPlayInfo", status=403, code="Forbidden.RAM")
        desk.server.faults.replace([refusal])
        with pytest.raises(PermissionDenied, match="GetPlayInfo"):
            await up.wait_until_playable(result.video_id)
        desk.server.set_options(denied_vod_operations=("GetVideoInfos",))
        with pytest.raises(PermissionDenied) as caught:
            await up.wait_until_playable(result.video_id)
        assert "vod:GetVideoInfos" in caught.value.next_step
    async with desk.uploader_without_provider() as up:
        with pytest.raises(ConfigurationError, match="AccessKey"):
            await up.wait_until_playable(result.video_id)
    with pytest.raises(RuntimeError, match="inside its block"):
        await up.wait_until_playable(result.video_id)
