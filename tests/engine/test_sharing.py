"""Uploads share the budget of their `Uploader`, and suit their parts to it."""

from __future__ import annotations

import asyncio

from uploader import Bandwidth, UploadStarted, decode_grant

from .harness import PART, Desk, created, until


async def test_a_small_upload_is_not_kept_waiting_by_a_large_one(desk: Desk) -> None:
    """It has one request; the large one always has dozens that wait for their turn."""
    small, large = desk.file(PART - 1, "small.mp4"), desk.file(80 * PART, "large.mp4", seed=1)
    async with (
        desk.uploader(concurrency="auto", bandwidth=Bandwidth.constant(40 * PART)) as up,
        asyncio.TaskGroup() as group,
    ):
        sending = group.create_task(up.upload(large))
        await until(lambda: desk.count("UploadPart") >= 6)
        before = desk.count("UploadPart")
        await up.upload(small)
        assert desk.count("UploadPart") - before < 20
        sending.cancel()


async def test_a_bandwidth_limit_is_shared_evenly_by_files(desk: Desk) -> None:
    """The one with more parts to send does not get more."""
    one, other = desk.file(90 * PART, "one.mp4"), desk.file(20 * PART, "other.mp4", seed=1)
    async with (
        desk.uploader(bandwidth=Bandwidth.constant(40 * PART)) as up,
        asyncio.TaskGroup() as group,
    ):
        sending = group.create_task(up.upload(one))
        await until(lambda: desk.count("UploadPart") >= 4)
        finishing = group.create_task(up.upload(other))
        await until(lambda: len(desk.events_of(UploadStarted)) == 2)
        before = desk.count("UploadPart")
        await finishing
        carried = desk.count("UploadPart") - before
        assert 2 * 20 - 10 <= carried <= 2 * 20 + 10
        sending.cancel()


async def test_parts_are_small_where_credentials_live_briefly(desk: Desk) -> None:
    file = desk.file(5 * 2**20)
    assert (await desk.push(file, part_size=None)).part_count == 1
    again = desk.file(5 * 2**20, "again.mp4", seed=1)
    desk.server.set_options(expiration_s=300)
    answer = await created(desk.server)
    grant = decode_grant(answer["UploadAddress"], answer["UploadAuth"], video_id=answer["VideoId"])
    result = await desk.push(again, part_size=None, grant=grant)
    assert result.part_count == 3
