"""What VOD holds: search over pages, deletion, pulls from URLs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uploader import BytesSource, ServiceError, VideoMeta
from uploader.devserver import Fault
from uploader.protocol import catalog

from .harness import PART, Desk, content


async def test_a_search_reads_every_page_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PAGE_SIZE", 2)
    expired = Fault(
        action="error", operation="SearchMedia", status=400, code="InvalidScrollToken.Expired"
    )
    async with desk.uploader() as up:
        results = [
            await up.upload(BytesSource(content(9, seed=n), f"{n}.mp4"), key=f"k{n}")
            for n in range(5)
        ]
        found = [video.video_id async for video in up.library.search()]
        assert sorted(found) == sorted(result.video_id for result in results)
        assert desk.server.stats.requests["SearchMedia"] == 3
        desk.server.faults.replace([expired])
        assert len([video async for video in up.library.search()]) == 5, "starts over once"
        desk.server.faults.replace([replace(expired, count=None)])
        with pytest.raises(ServiceError, match="InvalidScrollToken"):
            _ = [video async for video in up.library.search()]


async def test_more_videos_than_a_call_takes_are_deleted(desk: Desk) -> None:
    async with desk.uploader() as up:
        results = [
            await up.upload(BytesSource(content(9, seed=n), f"{n}.mp4"), key=f"k{n}")
            for n in range(3)
        ]
        ids = [result.video_id for result in results]
        unknown = [f"{n:032x}" for n in range(21)]
        assert await up.library.delete([*ids, *unknown]) == frozenset(unknown)
        assert await up.library.videos(ids) == {}
        assert not await up.library.delete_unfinished(ids[0])


async def test_a_finished_video_is_not_deleted_as_unfinished(desk: Desk) -> None:
    async with desk.uploader() as up:
        result = await up.upload(desk.file(PART))
        assert not await up.library.delete_unfinished(result.video_id)
        assert result.video_id in await up.library.videos([result.video_id])


async def test_a_pull_is_followed_and_a_failed_one_is_made_again(desk: Desk) -> None:
    async with desk.uploader() as up:
        result = await up.upload(desk.file(PART))
        url = (await up.wait_until_playable(result.video_id)).streams[0].url
        jobs = [job async for job in up.library.pull(url, VideoMeta(title="t"))]
        assert jobs[-1].is_done
        assert (await up.library.videos([jobs[-1].video_id]))[jobs[-1].video_id].title == "t"
        (again,) = [job async for job in up.library.pull(url, VideoMeta())]
        assert again.job_id == jobs[0].job_id
        other = [job async for job in up.library.pull(url, VideoMeta(), again=True)]
        assert other[0].job_id != jobs[0].job_id
        missing = url.partition("?")[0] + "x.mp4"
        for _ in range(2):
            *_, last = [job async for job in up.library.pull(missing, VideoMeta())]
            assert last.has_failed
            assert last.error.startswith("URLInvalidError")
    assert desk.server.stats.requests["UploadMediaByURL"] == 4
