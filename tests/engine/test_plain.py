"""The way it should go: a source in, a verified object out, and nothing twice."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from uploader import (
    BytesSource,
    UploadFinished,
    UploadStarted,
    VideoMeta,
    decode_grant,
    upload_sync,
)
from uploader.devserver import ThreadedDevServer
from uploader.protocol.integrity import crc64

from .harness import LOOPBACK, PART, Desk, content, created, options, refreshed


async def test_a_file_becomes_a_verified_object(desk: Desk) -> None:
    movie = desk.file(7 * PART + 1)

    result = await desk.push(movie, meta=VideoMeta(title="A movie"))

    await desk.assert_stored(result, movie)
    video = desk.server.videos[result.video_id]
    assert (result.bucket, result.object_key) == (video.bucket, video.object_key)
    assert (video.title, video.status) == ("A movie", "Uploaded")
    assert result.verified_by == "crc64"
    assert result.crc64 == crc64(movie.read_bytes())
    assert result.sent_bytes == result.size
    assert (result.resumed_part_count, result.renewal_count, result.retry_count) == (0, 0, 0)


async def test_a_finished_upload_returns_its_result_and_sends_nothing(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    first = await desk.push(movie)
    sent = desk.server.stats.requests.total()

    again = await desk.push(movie)

    assert desk.server.stats.requests.total() == sent
    assert again.is_earlier_result
    assert again.sent_bytes == 0
    assert (again.video_id, again.crc64, again.etag) == (first.video_id, first.crc64, first.etag)


@pytest.mark.parametrize("size", [1, PART - 1, PART])
async def test_a_file_of_one_part_is_one_put_object(desk: Desk, size: int) -> None:
    movie = desk.file(size)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert (desk.server.stats.puts, desk.server.stats.initiates) == (1, 0)
    assert result.upload_id is None
    assert result.sent_bytes == size
    assert result.verified_by == "crc64"


@pytest.mark.parametrize("size", [PART + 1, 2 * PART - 1, 2 * PART, 40 * PART + 17])
async def test_larger_files_are_sent_in_parts(desk: Desk, size: int) -> None:
    movie = desk.file(size)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert (desk.server.stats.puts, desk.server.stats.completes) == (0, 1)
    assert desk.count("UploadPart") == result.part_count == -(-size // PART)


@pytest.mark.parametrize(
    "name",
    ["a b.mp4", "电影 第一集.mp4", "🎬 take 2.mp4", "a+b %2F~[]()'&=.mp4", "x" * 200 + ".mp4"],
)
async def test_any_file_name_will_do(desk: Desk, name: str) -> None:
    movie = desk.file(2 * PART + 5, name)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)


async def test_a_file_name_that_is_no_utf8_will_do(desk: Desk) -> None:
    movie = desk.file(2 * PART, os.fsdecode(b"caf\xe9.mp4"))

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert (await desk.push(movie)).is_earlier_result


async def test_bytes_in_memory_are_uploaded(desk: Desk) -> None:
    data = content(3 * PART)

    result = await desk.push(data, meta=VideoMeta(title="In memory", file_name="clip.mp4"))

    await desk.assert_stored(result, data)
    assert (await desk.push(data)).is_earlier_result


async def test_a_named_source_in_memory_needs_no_meta(desk: Desk) -> None:
    data = content(PART)

    result = await desk.push(BytesSource(data, "clip.mp4"))

    await desk.assert_stored(result, data)


async def test_a_known_video_is_continued(desk: Desk) -> None:
    answer = await created(desk.server)
    movie = desk.file(3 * PART)

    result = await desk.push(movie, video_id=answer["VideoId"])

    await desk.assert_stored(result, movie)
    assert result.video_id == answer["VideoId"]
    assert desk.server.stats.creates == 1


async def test_a_decoded_pair_is_used_until_it_runs_out(desk: Desk) -> None:
    answer = await created(desk.server)
    movie = desk.file(3 * PART)
    grant = decode_grant(answer["UploadAddress"], answer["UploadAuth"], video_id=answer["VideoId"])

    result = await desk.push(movie, grant=grant)

    await desk.assert_stored(result, movie)
    assert result.video_id == answer["VideoId"]
    assert desk.count("RefreshUploadVideo") == 0


async def test_a_coroutine_function_renews(desk: Desk) -> None:
    answer = await created(desk.server)
    movie = desk.file(3 * PART)
    renewed: list[str] = []

    async def renew(video_id: str) -> dict[str, Any]:
        renewed.append(video_id)
        return await refreshed(desk.server, video_id)

    result = await desk.push(movie, provider=renew, video_id=answer["VideoId"])

    await desk.assert_stored(result, movie)
    assert renewed == [answer["VideoId"]]


async def test_the_caller_receives_events(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    mine: list[object] = []

    result = await desk.push(movie, on_event=mine.append)

    assert mine == desk.events
    (started,), (finished,) = desk.events_of(UploadStarted), desk.events_of(UploadFinished)
    assert (started.size, started.part_count, started.is_resumed) == (3 * PART, 3, False)
    assert finished.result == result


async def test_several_uploads_share_one_uploader(desk: Desk) -> None:
    movies = [desk.file(3 * PART, f"{n}.mp4", seed=n) for n in range(5)]

    async with desk.uploader() as up, asyncio.TaskGroup() as group:
        tasks = [group.create_task(up.upload(movie)) for movie in movies]

    for movie, task in zip(movies, tasks, strict=True):
        await desk.assert_stored(task.result(), movie)
    assert desk.server.stats.creates == 5


async def test_the_same_file_goes_to_two_videos(desk: Desk) -> None:
    movie = desk.file(2 * PART)
    videos = [(await created(desk.server))["VideoId"] for _ in range(2)]

    results = [await desk.push(movie, video_id=video) for video in videos]

    assert [result.video_id for result in results] == videos
    for result in results:
        await desk.assert_stored(result, movie)


def test_code_without_a_loop_uploads_too(tmp_path: Path) -> None:
    with ThreadedDevServer() as threaded:
        desk = Desk(threaded.server, tmp_path)
        movie = desk.file(3 * PART)

        result = upload_sync(
            movie,
            provider=desk.provider(),
            state=desk.state_path,
            options=options(),
            trust=LOOPBACK,
            meta=VideoMeta(title="Sync"),
        )

        assert desk.server.object_bytes(result.video_id) == movie.read_bytes()
