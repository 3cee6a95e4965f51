"""Images, attached media, covers and subtitles: one request each; nothing renews credentials."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from uploader import (
    BytesSource,
    ConfigurationError,
    CredentialsRejected,
    MediaAbandoned,
    MediaKind,
    PermissionDenied,
    StreamSource,
    TransferError,
    UploadItem,
    UploadResult,
    VideoMeta,
)
from uploader.companions import store, upload_cover, upload_subtitle
from uploader.credentials.vod import MediaSource
from uploader.devserver import Fault
from uploader.state import Phase, open_state

from .harness import PART, Desk, content

COVER = MediaKind("image:cover")


async def upload(desk: Desk, kind: str, name: str, size: int = 5000) -> UploadResult:
    path = desk.folder / name
    if not path.exists():
        desk.file(size, name)
    async with desk.uploader() as up:
        item = UploadItem(source=path, media=MediaKind(kind))
        return await up.upload_item(item)


@pytest.mark.parametrize(
    ("kind", "name", "folder"),
    [
        ("image", "a.png", "image/default/"),
        ("image:cover", "a.JPG", "image/cover/"),
        ("attached:watermark", "a.mov", "watermark/"),
        ("attached:subtitle", "a.zh.srt", "subtitle/"),
        ("attached:material", "a.zip", "material/"),
    ],
)
async def test_media_are_stored_verified_and_found_again(
    desk: Desk, kind: str, name: str, folder: str
) -> None:
    result = await upload(desk, kind, name, PART + 5)
    assert result.object_key.startswith(folder)
    assert (result.verified_by, result.part_count, result.size) == ("crc64", 1, PART + 5)
    assert desk.server.stats.requests["InitiateMultipartUpload"] == 0, "one request each"
    puts = desk.server.stats.requests["PutObject"]

    again = await upload(desk, kind, name)
    assert again.is_earlier_result
    assert again.video_id == result.video_id
    assert desk.server.stats.requests["PutObject"] == puts
    async with desk.uploader() as up:
        stored = await up.library.media(MediaKind(kind), result.video_id)
    assert stored.status == "Normal"
    assert stored.url.endswith(result.object_key)
    assert desk.server.object_bytes(result.video_id) == (desk.folder / name).read_bytes()


async def test_a_file_may_be_a_video_as_well(desk: Desk) -> None:
    movie = desk.file(PART, "a.mp4")
    video = await desk.push(movie)
    media = await upload(desk, "attached:material", "a.mp4")
    assert (video.key != media.key, media.is_earlier_result) == (True, False)


async def test_an_interrupted_media_is_abandoned_and_reported(desk: Desk) -> None:
    fault = Fault(action="error", operation="PutObject", status=403, code="UserDisable")
    desk.server.faults.replace([fault])
    with pytest.raises(PermissionDenied, match="UserDisable"):
        await upload(desk, "image:cover", "a.png")
    desk.events.clear()
    record = await desk.record()
    assert record.phase is Phase.COMPLETING

    result = await upload(desk, "image:cover", "a.png")
    (abandoned,) = desk.events_of(MediaAbandoned)
    assert abandoned.media_id == record.video_id
    assert result.video_id != record.video_id
    assert (await desk.record()).phase is Phase.DONE


async def test_a_run_that_died_before_it_knew_the_id_is_reported_too(desk: Desk) -> None:
    fault = Fault(action="drop_answer", operation="CreateUploadImage", count=None)
    desk.server.faults.replace([fault])
    with pytest.raises(TransferError):
        await upload(desk, "image:cover", "a.png")
    desk.server.faults.replace([])
    await upload(desk, "image:cover", "a.png")
    (abandoned,) = desk.events_of(MediaAbandoned)
    assert abandoned.media_id is None


async def test_expired_credentials_are_replaced_by_a_new_grant(desk: Desk) -> None:
    fault = Fault(action="error", operation="PutObject", status=403, code="SecurityTokenExpired")
    desk.server.faults.replace([fault])
    result = await upload(desk, "image:cover", "a.png")
    (abandoned,) = desk.events_of(MediaAbandoned)
    assert "run out" in abandoned.reason
    assert abandoned.media_id != result.video_id
    assert desk.server.stats.requests["RefreshUploadVideo"] == 0
    desk.server.faults.replace([replace(fault, count=None)])
    with pytest.raises(CredentialsRejected):
        await upload(desk, "image:cover", "b.png")
    assert desk.server.stats.requests["CreateUploadImage"] == 2 + 3


async def test_a_cover_is_uploaded_and_set(desk: Desk) -> None:
    picture = desk.file(900, "movie.jpg")
    async with desk.uploader() as up:
        video = await up.upload(desk.file(PART))
        stored = await upload_cover(up, picture, video.video_id)
        again = await upload_cover(up, picture, video.video_id)
        info = (await up.library.videos([video.video_id]))[video.video_id]
    assert info.cover_url == stored.url == again.url
    assert desk.server.stats.requests["CreateUploadImage"] == 1


async def test_a_subtitle_has_its_language_as_a_tag(desk: Desk) -> None:
    async with desk.uploader() as up:
        stored = await upload_subtitle(up, desk.file(90, "movie.zh.srt"), language="zh")
        assert stored.url.endswith(".srt")
        desk.server.set_options(denied_vod_operations=("GetAttachedMediaInfo",))
        other = await store(up, desk.file(91, "b.vtt"), MediaKind("attached:subtitle"), VideoMeta())
    assert other.url.startswith("http://")
    assert other.status == "", "not known: it may not be read"
    assert desk.server.videos[other.media_id].object_key in other.url


async def test_what_cannot_be_media_is_refused_before_anything_exists(desk: Desk) -> None:
    async with desk.uploader() as up:
        for item, word in (
            (UploadItem(source=desk.file(9, "a.bmp"), media=COVER), "VOD takes no file like"),
            (
                UploadItem(source=desk.file(9, "a.png"), media=COVER, video_id="v"),
                "always a new one",
            ),
            (UploadItem(source=StreamSource(_chunks(), "b.png"), media=COVER), "at most 5 GiB"),
        ):
            with pytest.raises(ConfigurationError, match=word):
                await up.upload_item(item)
    with pytest.raises(ConfigurationError, match="no kind of media"):
        MediaKind("video")
    async with desk.uploader(lambda _: asyncio.sleep(0)) as up:
        with pytest.raises(ConfigurationError, match="AccessKey"):
            await up.upload_item(UploadItem(source=BytesSource(b"x", "a.png"), media=COVER))
    assert desk.server.stats.requests.total() == 0
    async with open_state(desk.state_path) as store_:
        assert [status async for status in store_.uploads()] == []


async def _chunks() -> AsyncIterator[bytes]:
    yield content(5)


async def test_nothing_renews_media_or_reads_them_as_videos(desk: Desk) -> None:
    async with desk.uploader() as up:
        source = MediaSource(up.grants, COVER)
        assert await source.facts("i") is None
        with pytest.raises(CredentialsRejected, match="No operation of VOD renews"):
            await source.renew("i")
