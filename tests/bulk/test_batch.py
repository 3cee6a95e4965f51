"""`Uploader.upload_many`: order, limits, failures apart, ending early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from tests.engine.harness import Desk, created
from uploader import Outcome, SourceUnreadable, UploadGrant, UploadItem, decode_answer
from uploader.batch import _LARGE_SIZE, upload_batch
from uploader.errors import ConfigurationError, VodupError
from uploader.events import UploadResult

LARGE = _LARGE_SIZE


def result_of(item: UploadItem) -> UploadResult:
    return UploadResult(
        key=str(item.key),
        video_id="v",
        upload_id=None,
        bucket="b",
        object_key="o",
        size=1,
        crc64=0,
        etag=None,
        part_count=1,
        resumed_part_count=0,
        renewal_count=0,
        retry_count=0,
        sent_bytes=1,
        verified_by="crc64",
        seconds=0.0,
    )


class Site:
    """Uploads nothing; remembers the order and how many were under way."""

    def __init__(self) -> None:
        self.started: list[str | None] = []
        self.under_way = self.most = self.large_under_way = self.most_large = 0

    async def upload(self, item: UploadItem) -> UploadResult:
        self.started.append(item.key)
        is_large = (item.size or 0) >= LARGE
        self.under_way += 1
        self.large_under_way += is_large
        self.most = max(self.most, self.under_way)
        self.most_large = max(self.most_large, self.large_under_way)
        try:
            await asyncio.sleep(0.002)
        finally:
            self.under_way -= 1
            self.large_under_way -= is_large
        if item.key == "bad":
            raise SourceUnreadable("No.")
        if item.key == "bug":
            raise KeyError("oops")
        return result_of(item)


def items(*sizes: int) -> list[UploadItem]:
    return [UploadItem(source="x", key=f"{n}:{s}", size=s) for n, s in enumerate(sizes)]


async def outcomes(site: Site, given: object, **options: int) -> list[Outcome]:
    options = {"files": 2, "look_ahead": 10} | options
    return [o async for o in upload_batch(site.upload, given, **options)]  # type: ignore[arg-type]


async def test_every_item_ends_once_and_no_more_than_files_run_at_once() -> None:
    site = Site()
    ended = await outcomes(site, items(*[5] * 50), files=3)
    assert sorted(str(o.item.key) for o in ended) == sorted(f"{n}:5" for n in range(50))
    assert site.most == 3


async def test_the_largest_item_read_ahead_starts_first() -> None:
    site = Site()
    await outcomes(site, items(1, 7, 3, 9, 2), files=1)
    assert site.started == ["3:9", "1:7", "2:3", "4:2", "0:1"]


async def test_small_items_pass_large_ones_that_wait() -> None:
    site = Site()
    await outcomes(site, items(*[LARGE] * 9, *[1] * 20), files=16, look_ahead=100)
    assert site.most_large == 4
    assert site.most == 16
    assert "9:1" in site.started[:16]


async def test_a_batch_of_large_items_alone_ends() -> None:
    site = Site()
    assert len(await outcomes(site, items(*[LARGE] * 11), files=16, look_ahead=3)) == 11


async def test_failures_are_outcomes_and_stop_no_other_item() -> None:
    given = [UploadItem(source="x", key=key, size=1) for key in ("bad", "good", "bug", "fine")]
    ended = {o.item.key: o for o in await outcomes(Site(), given)}
    assert isinstance(ended["bad"].error, SourceUnreadable)
    assert isinstance(ended["bug"].error, VodupError)
    assert isinstance(ended["bug"].error.__cause__, KeyError)
    assert ended["good"].result is not None
    assert ended["fine"].result is not None


async def test_items_are_read_a_bounded_number_ahead() -> None:
    read = 0

    def reading() -> Iterator[UploadItem]:
        nonlocal read
        for item in items(*[1] * 1000):
            read += 1
            yield item

    async with aclosing(upload_batch(Site().upload, reading(), files=2, look_ahead=20)) as ending:
        async for _ in ending:
            break
    assert read <= 2 + 20 + 4 + 4  # taken, waiting, ended but not yet read, in hand


async def test_closing_early_cancels_running_uploads() -> None:
    site = Site()
    async with aclosing(upload_batch(site.upload, items(*[1] * 30), files=4)) as ending:
        async for _ in ending:
            break
    assert site.under_way == 0
    assert len(site.started) < 30


async def test_an_error_while_reading_items_is_raised() -> None:
    async def reading() -> AsyncIterator[UploadItem]:
        yield UploadItem(source="x", key="one", size=1)
        raise ConfigurationError("unreadable")

    with pytest.raises(ConfigurationError, match="unreadable"):
        await outcomes(Site(), reading())


async def test_nothing_to_do_ends_at_once() -> None:
    assert await outcomes(Site(), []) == []


async def test_files_are_stored_and_verified(desk: Desk, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.mp4" for n in range(12)]
    for number, path in enumerate(paths[1:], 1):
        path.write_bytes(bytes([number]) * 1000 * number)
    async with desk.uploader() as up:
        given = [UploadItem(source=path, tag=path) for path in paths]
        ended = [outcome async for outcome in up.upload_many(given, files=3)]
    failed = [o for o in ended if o.error is not None]
    assert [o.item.tag for o in failed] == [paths[0]]
    stored = {o.item.tag: o.result for o in ended if o.result is not None}
    assert {path: result.size for path, result in stored.items()} == {
        path: path.stat().st_size for path in paths[1:]
    }
    assert desk.server.stats.creates == 11


async def test_fewer_than_one_file_at_once_is_refused(desk: Desk) -> None:
    async with desk.uploader() as up:
        with pytest.raises(ConfigurationError):
            [_ async for _ in up.upload_many([], files=0)]


async def test_an_upload_that_outlives_its_cancellation_blocks_nothing() -> None:
    """Whatever it waits for may be done in the moment it is cancelled, and hide that."""

    async def upload(item: UploadItem) -> UploadResult:
        if item.key != "first":
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        raise VodupError("It failed.")

    items = [UploadItem(source=b"x", key="first"), *[UploadItem(source=b"x")] * 40]
    async with asyncio.timeout(10), aclosing(upload_batch(upload, items, files=4)) as outcomes:
        async for outcome in outcomes:
            assert outcome.item.key == "first"
            break


# --- cancellations that nobody requested ------------------------------------------------


async def cancelled_by_itself() -> None:
    """Await something that was cancelled, as a careless callback may."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def test_a_stray_cancellation_is_the_failure_of_its_item() -> None:
    async def upload(item: UploadItem) -> UploadResult:
        if item.key == "stray":
            await cancelled_by_itself()
        return result_of(item)

    given = [UploadItem(source="x", key=key, size=1) for key in ("a", "stray", "b", "c", "d")]
    ended = {o.item.key: o async for o in upload_batch(upload, given, files=2)}

    assert len(ended) == 5
    assert "Internal error (CancelledError)" in str(ended.pop("stray").error)
    assert all(outcome.result is not None for outcome in ended.values())


async def test_a_task_group_that_leaves_its_cancellation_behind_loses_no_outcome() -> None:
    """On Python 3.11 and 3.12 a plain group that fails while it waits does that."""

    async def upload(item: UploadItem) -> UploadResult:
        if item.key == "stray":
            await cancelled_by_itself()
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail_soon())
        return result_of(item)

    async def fail_soon() -> None:
        await asyncio.sleep(0)
        raise ValueError

    keys = ("a", "b", "c", "stray", "d", "e")
    given = [UploadItem(source="x", key=key, size=1) for key in keys]
    outcomes = [outcome async for outcome in upload_batch(upload, given, files=1)]
    assert len(outcomes) == 6


async def test_a_stray_cancellation_while_reading_items_is_raised() -> None:
    async def reading() -> AsyncIterator[UploadItem]:
        yield UploadItem(source="x", key="one", size=1)
        await cancelled_by_itself()

    with pytest.raises(VodupError, match="Internal error"):
        await outcomes(Site(), reading())


async def test_a_cancellation_of_the_caller_is_no_failure() -> None:
    under_way = asyncio.Event()

    async def upload(item: UploadItem) -> UploadResult:
        under_way.set()
        await asyncio.sleep(3600)
        return result_of(item)

    async def consume() -> list[Outcome]:
        return [o async for o in upload_batch(upload, items(1, 1, 1), files=2)]

    consumer = asyncio.create_task(consume())
    await under_way.wait()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer


async def test_a_provider_that_awaits_something_cancelled_fails_each_item_alone(
    desk: Desk, tmp_path: Path
) -> None:
    async def renew(video_id: str) -> UploadGrant:
        await cancelled_by_itself()
        raise AssertionError

    good = tmp_path / "good.mp4"
    good.write_bytes(b"x" * 1000)
    grant = decode_answer(await created(desk.server))
    async with desk.uploader(provider=renew) as up:
        given = [
            UploadItem(source=good, key="bad", video_id="v1"),
            UploadItem(source=good, key="good", grant=grant),
        ]
        ended = {o.item.key: o async for o in up.upload_many(given)}
    assert ended["bad"].error is not None
    assert ended["good"].result is not None


async def test_urgent_items_start_before_larger_ones() -> None:
    given = [
        UploadItem(source="x", key=f"{priority}:{size}", size=size, priority=priority)
        for priority, size in ((0, 9), (0, LARGE), (5, 1), (-1, LARGE), (5, 2), (90, 1))
    ]
    site = Site()
    await outcomes(site, given, files=2, look_ahead=10)
    assert site.started[:3] == ["90:1", "5:2", "5:1"]
    assert site.started[-1] == f"-1:{LARGE}"


async def test_an_urgent_item_does_not_wait_for_large_ones() -> None:
    freed = asyncio.Event()
    ended: list[str | None] = []

    async def upload(item: UploadItem) -> UploadResult:
        if item.size == LARGE:
            await freed.wait()
        ended.append(item.key)
        return result_of(item)

    async def reading() -> AsyncIterator[UploadItem]:
        for item in items(LARGE, LARGE):
            yield item
        yield UploadItem(source="x", key="plain", size=1)
        await asyncio.sleep(0)
        yield UploadItem(source="x", key="urgent", size=1, priority=1)

    async with aclosing(upload_batch(upload, reading(), files=1, look_ahead=10)) as outcomes:
        assert (await anext(outcomes)).item.key == "urgent"  # all uploads are busy
        freed.set()
        assert len([outcome async for outcome in outcomes]) == 3
    assert ended[0] == "urgent"


async def test_large_items_leave_one_upload_to_smaller_ones() -> None:
    site = Site()
    await outcomes(site, items(*[LARGE] * 5, *[1] * 5), files=3, look_ahead=100)
    assert site.most_large == 2
