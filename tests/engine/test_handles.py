"""Uploads beside their callers: handles, their events, and the face for code without a loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from uploader import (
    BlockingUploader,
    ConfigurationError,
    Event,
    PartStored,
    SourceUnreadable,
    StreamSource,
    Uploader,
    UploadFinished,
    UploadHandle,
    UploadItem,
    UploadProgress,
    UploadStarted,
    VodupError,
)
from uploader.devserver import DevServer, Fault, ThreadedDevServer
from uploader.state import Phase

from .harness import LOOPBACK, PART, Desk, options, until

SLOW = Fault(action="slow", operation="UploadPart", delay_s=0.1, count=None)


def ours() -> set[asyncio.Task[object]]:
    """The tasks of this loop without those of the server that runs in it."""
    return {t for t in asyncio.all_tasks() if "RequestHandler" not in repr(t.get_coro())}


async def begun(up: Uploader, source: Path, desk: Desk) -> UploadHandle:
    """An upload of which the first part has arrived."""
    handle = await up.submit(source)
    await until(lambda: desk.count("UploadPart") > 0)
    return handle


async def test_a_handle_is_awaited_for_the_result(desk: Desk) -> None:
    source = desk.file(6 * PART)
    async with desk.uploader() as up:
        handle = await up.submit(source)
        result = await handle
        assert handle.is_done
        assert (handle.key, handle.video_id) == (result.key, result.video_id)
        assert await handle.result() == result
    await desk.assert_stored(result, source)


async def test_leaving_the_block_waits_for_what_was_submitted(desk: Desk) -> None:
    sources = [desk.file(2 * PART, f"{n}.mp4", seed=n) for n in range(5)]
    async with desk.uploader() as up:
        handles = [await up.submit(source) for source in sources]
    assert all(handle.is_done for handle in handles)
    assert {video.status for video in desk.server.videos.values()} == {"Uploaded"}


async def test_an_error_in_the_block_cancels_what_was_submitted(desk: Desk) -> None:
    desk.order(SLOW)
    handles: list[UploadHandle] = []

    async def broken() -> None:
        async with desk.uploader(concurrency=1) as up:
            handles.append(await begun(up, desk.file(20 * PART), desk))
            raise LookupError

    with pytest.raises(LookupError):
        await broken()
    with pytest.raises(asyncio.CancelledError):
        await handles[0]
    assert (await desk.record()).phase is Phase.UPLOADING


async def test_a_failure_that_was_not_awaited_is_raised_at_the_end(desk: Desk) -> None:
    async def careless() -> None:
        async with desk.uploader() as up:
            await up.submit(desk.folder / "missing.mp4")
            await up.submit(desk.file(PART))

    with pytest.raises(SourceUnreadable):
        await careless()
    assert {video.status for video in desk.server.videos.values()} == {"Uploaded"}


async def test_a_failure_that_was_awaited_is_not_raised_again(desk: Desk) -> None:
    async with desk.uploader() as up:
        handle = await up.submit(desk.folder / "missing.mp4")
        with pytest.raises(SourceUnreadable):
            await handle


async def test_an_upload_that_ends_as_cancelled_without_a_cancel_has_failed(desk: Desk) -> None:
    async def producer() -> AsyncIterator[bytes]:
        yield bytes(PART)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        future.cancel()
        yield await future

    movie = desk.file(2 * PART)
    async with desk.uploader() as up:
        stray, good = await up.submit(StreamSource(producer(), "a.mp4")), await up.submit(movie)
        with pytest.raises(VodupError, match="CancelledError"):
            await stray
        assert (await good).size == 2 * PART


async def test_cancelling_keeps_the_checkpoint_and_leaves_nothing_running(desk: Desk) -> None:
    source = desk.file(20 * PART)
    desk.order(SLOW)
    async with desk.uploader(concurrency=2) as up:
        before = ours()
        handle = await begun(up, source, desk)
        await handle.cancel()
        assert ours() <= before
        with pytest.raises(asyncio.CancelledError):
            await handle
        desk.order()
        again = await up.submit(source)  # the same upload, claimed again at once
        result = await again
    assert result.resumed_part_count > 0
    await desk.assert_stored(result, source)
    assert desk.server.stats.creates == 1


async def test_a_paused_upload_starts_no_request_and_resumes_where_it_was(desk: Desk) -> None:
    source = desk.file(20 * PART)
    desk.order(SLOW)
    async with desk.uploader(concurrency=2) as up:
        handle = await begun(up, source, desk)
        handle.pause()
        assert handle.is_paused
        await until(lambda: all(r.ended_at for r in desk.requests("UploadPart")))
        sent = desk.count("UploadPart")
        await asyncio.sleep(0.5)
        assert desk.count("UploadPart") == sent < 20
        handle.resume()
        result = await handle
    assert desk.count("UploadPart") == result.part_count
    await desk.assert_stored(result, source)


async def test_a_paused_upload_leaves_the_connections_to_the_others(desk: Desk) -> None:
    desk.order(Fault(action="slow", operation="UploadPart", delay_s=0.05, count=40))
    async with desk.uploader(concurrency=1) as up:
        handle = await begun(up, desk.file(20 * PART), desk)
        handle.pause()
        await up.upload(desk.file(4 * PART, "other.mp4"))
        assert not handle.is_done
        handle.resume()
        await handle


async def test_draining_keeps_the_parts_under_way(desk: Desk) -> None:
    source = desk.file(20 * PART)
    desk.order(SLOW)
    up = desk.uploader(concurrency=4)
    paces = [up.pace]
    async with up:
        handle = await begun(up, source, desk)
        pace = up.pace
        assert pace
        assert await pace.drain(5.0)
        assert not pace.in_use
        await until(lambda: len(desk.events_of(PartStored)) == desk.count("UploadPart"))
        await handle.cancel()
    assert all(request.status == 200 for request in desk.requests("UploadPart"))
    assert len(await desk.acked_part_numbers()) == desk.count("UploadPart") > 0
    assert [*paces, up.pace] == [None, None]


async def test_aborting_gives_the_upload_up(desk: Desk) -> None:
    desk.order(SLOW)
    async with desk.uploader(concurrency=1) as up:
        handle = await begun(up, desk.file(20 * PART), desk)
        await handle.abort()
    assert (await desk.record()).phase is Phase.ABORTED
    assert desk.server.open_upload_count == 0


async def test_what_may_be_left_of_a_finished_upload_is_not_forgotten(desk: Desk) -> None:
    """VOD has a file from an earlier Complete; credentials would be for overwriting it."""
    desk.order(Fault(action="no_answer", operation="CompleteMultipartUpload"))
    async with desk.uploader(concurrency=2) as up:
        handle = await begun(up, desk.file(6 * PART), desk)
        await until(lambda: desk.server.stats.completes > 0)
        refreshes = desk.count("RefreshUploadVideo")
        await handle.abort()
        (orphan,) = await up.state.orphans()
    record = await desk.record()
    assert (record.phase, record.upload_id) == (Phase.ABORTED, None)
    assert orphan.video_id == record.video_id
    assert desk.count("RefreshUploadVideo") == refreshes
    assert desk.server.stats.overwrite_refreshes == 0


async def test_a_finished_upload_cannot_be_aborted(desk: Desk) -> None:
    async with desk.uploader() as up:
        handle = await up.submit(desk.file(PART))
        await handle
        with pytest.raises(ConfigurationError):
            await handle.abort()


async def test_events_are_read_to_the_last(desk: Desk) -> None:
    async with desk.uploader() as up:
        handle = await up.submit(desk.file(6 * PART))
        seen = [event async for event in handle.events()]
        assert [e async for e in handle.events()] == []  # after the end nothing comes
    kinds = [type(event) for event in seen if not isinstance(event, UploadProgress)]
    assert kinds == [UploadStarted, *[PartStored] * 6, UploadFinished]


async def test_a_slow_reader_misses_old_progress_and_nothing_else(desk: Desk) -> None:
    desk.order(Fault(action="slow", operation="UploadPart", delay_s=0.3, count=None))
    async with desk.uploader(concurrency=1) as up:
        handle = await up.submit(desk.file(5 * PART))
        reader = handle.events()
        first = await anext(reader)  # it has begun to listen, and reads no more until the end
        await handle
        seen = [first, *[event async for event in reader]]
    received = [event for event in desk.events if isinstance(event, UploadProgress)]
    assert len(received) > 1
    assert [event for event in seen if isinstance(event, UploadProgress)] == received[-1:]
    assert [event for event in seen if event not in received] == [
        e for e in desk.events if e not in received
    ]


async def test_no_more_are_begun_than_allowed(desk: Desk) -> None:
    desk.order(Fault(action="slow", operation="PutObject", delay_s=0.3, count=None))
    async with desk.uploader(submitted=2) as up:
        for number in range(2):
            await up.submit(desk.file(PART, f"{number}.mp4"))
        third = asyncio.ensure_future(up.submit(desk.file(PART, "third.mp4")))
        await until(lambda: desk.count("PutObject") == 2)
        assert not third.done()
        await (await third)


async def test_outside_of_the_block_nothing_is_begun(desk: Desk) -> None:
    up = desk.uploader()
    with pytest.raises(RuntimeError):
        await up.submit(desk.file(PART))


# --- code without a loop ------------------------------------------------------------------


@pytest.fixture
def threaded() -> Iterator[DevServer]:
    with ThreadedDevServer() as running:
        yield running.server


@pytest.fixture
def place(threaded: DevServer, tmp_path: Path) -> Desk:
    return Desk(threaded, tmp_path)


def blocking(place: Desk, **changes: object) -> BlockingUploader:
    return BlockingUploader(
        place.provider(), state=place.state_path, options=options(**changes), trust=LOOPBACK
    )


def test_threads_share_one_uploader(place: Desk) -> None:
    sources = [place.file(3 * PART, f"{n}.mp4", seed=n) for n in range(8)]
    with blocking(place) as up, ThreadPoolExecutor(4) as threads:
        results = list(threads.map(up.upload, sources))
    for source, result in zip(sources, results, strict=True):
        assert place.server.object_bytes(result.video_id) == source.read_bytes()
    assert not [thread for thread in threading.enumerate() if thread.name == "vodup"]


def test_errors_arrive_in_the_calling_thread(place: Desk) -> None:
    with blocking(place) as up, pytest.raises(SourceUnreadable):
        up.upload(place.folder / "missing.mp4")


def test_a_blocking_handle_waits_pauses_and_cancels(place: Desk) -> None:
    place.order(SLOW)
    with blocking(place, concurrency=1) as up:
        handle = up.submit(place.file(20 * PART))
        with pytest.raises(TimeoutError):
            handle.result(timeout_s=0.2)
        handle.pause()
        handle.resume()
        handle.cancel()
        assert handle.is_done
        with pytest.raises(concurrent.futures.CancelledError):
            handle.result()
        assert handle.key is not None
        up.abort(handle.key)
    assert place.server.open_upload_count == 0


def test_many_are_uploaded_from_a_thread_and_failures_stay_apart(place: Desk) -> None:
    items = [UploadItem(source=place.file(PART, f"{n}.mp4", seed=n), tag=n) for n in range(6)]
    items.append(UploadItem(source=place.folder / "missing.mp4", tag="missing"))
    with blocking(place) as up:
        outcomes = list(up.upload_many(items))
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.item.tag for outcome in failed] == ["missing"]
    assert len(outcomes) == 7


def test_ending_the_iteration_early_cancels_the_rest(place: Desk) -> None:
    place.order(Fault(action="slow", operation="PutObject", delay_s=0.1, count=None))
    items = [UploadItem(source=place.file(PART, f"{n}.mp4", seed=n)) for n in range(30)]
    with blocking(place, concurrency=1) as up:
        for outcome in up.upload_many(items, files=2):
            assert outcome.error is None
            break
    assert place.count("PutObject") < 30


def test_what_a_signal_handler_raises_ends_the_iteration_at_once(place: Desk) -> None:
    place.order(Fault(action="slow", operation="PutObject", delay_s=5, count=None))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with blocking(place) as up:
            signal.setitimer(signal.ITIMER_REAL, 0.7)
            started_s = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                list(up.upload_many([UploadItem(source=place.file(PART))]))
            assert time.monotonic() - started_s < 4
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_is_wrong_with_the_items_is_raised(place: Desk) -> None:
    def items() -> Iterator[UploadItem]:
        yield UploadItem(source=place.file(PART))
        raise LookupError("the list ends badly")

    with blocking(place) as up, pytest.raises(LookupError):
        list(up.upload_many(items()))


def test_a_blocking_uploader_works_inside_its_block_only(place: Desk) -> None:
    with pytest.raises(RuntimeError):
        blocking(place).upload(place.file(PART))


def test_a_listener_is_called_in_the_loops_thread(place: Desk) -> None:
    received: list[Event] = []
    with blocking(place) as up:
        up.upload(place.file(2 * PART), on_event=received.append)
    assert isinstance(received[-1], UploadFinished)


# --- other loops ------------------------------------------------------------------------------


def test_it_runs_under_uvloop(place: Desk) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        async with place.uploader() as up:
            results = await asyncio.gather(
                *[up.upload(place.file(9 * PART, f"{n}.mp4", seed=n)) for n in range(4)]
            )
        for result in results:
            assert place.server.object_bytes(result.video_id)

    uvloop.run(run())


def test_it_runs_in_the_loop_of_another_framework(place: Desk) -> None:
    """Under anyio's task groups and cancel scopes, as starlette and others use them."""
    import anyio

    place.order(SLOW)

    async def run() -> None:
        async with place.uploader(concurrency=1) as up:
            with anyio.move_on_after(0.5) as scope:
                await up.upload(place.file(20 * PART))
            assert scope.cancelled_caught
            place.order()
            async with anyio.create_task_group() as group:
                group.start_soon(up.upload, place.folder / "movie.mp4")

    anyio.run(run)
    assert place.server.stats.creates == 1
    assert {video.status for video in place.server.videos.values()} == {"Uploaded"}


async def test_nothing_is_left_behind(desk: Desk) -> None:
    before = ours()
    async with desk.uploader() as up:
        await (await up.submit(desk.file(3 * PART)))
    await asyncio.sleep(0)
    assert ours() == before


async def test_a_listener_of_a_handle_receives_its_events(desk: Desk) -> None:
    received: list[Event] = []
    async with desk.uploader() as up:
        handle = await up.submit(desk.file(2 * PART), on_event=received.append)
        await handle
    assert isinstance(received[-1], UploadFinished)
    assert received == desk.events
