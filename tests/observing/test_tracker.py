"""The tracker: how far every upload is, counted once from its events."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.harness import PART, Desk
from uploader.devserver import DevServer, Fault
from uploader.events import (
    HookFailed,
    UploadCancelled,
    UploadFailed,
    UploadProgress,
    UploadRestarted,
    UploadStarted,
)
from uploader.tracker import Tracker


class Seconds:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def tracker(clock: Seconds) -> Tracker:
    return Tracker(clock)


def started(key: str = "k", *, done_bytes: int = 0, is_resumed: bool = False) -> UploadStarted:
    return UploadStarted(
        key=key,
        video_id="v",
        source=f"{key}.mp4",
        size=100,
        part_count=10,
        done_bytes=done_bytes,
        resumed_part_count=done_bytes // 10,
        upload_id=None,
        is_resumed=is_resumed,
    )


def progress(done_bytes: int, key: str = "k") -> UploadProgress:
    return UploadProgress(
        key=key,
        video_id="v",
        done_bytes=done_bytes,
        size=100,
        acked_part_count=done_bytes // 10,
        part_count=10,
        renewal_count=1,
        retry_count=2,
    )


def failed(key: str = "k") -> UploadFailed:
    return UploadFailed(
        key=key,
        video_id="v",
        error="TransportError",
        message="No.",
        code="",
        request_id="",
        is_resumable=True,
        next_step="Run it again.",
    )


def test_an_upload_that_resumes_counts_only_what_this_run_sends(tracker: Tracker) -> None:
    tracker(started(done_bytes=30, is_resumed=True))
    tracker(progress(50))

    upload = tracker.active["k"]
    assert (upload.done_bytes, upload.resumed_bytes, upload.new_bytes) == (50, 30, 20)
    assert (upload.acked_part_count, upload.renewal_count, upload.retry_count) == (5, 1, 2)
    assert (tracker.size, tracker.done_bytes, tracker.sent_bytes) == (100, 50, 20)
    assert tracker.started == {True: 1}


def test_a_part_that_is_sent_again_counts_once(tracker: Tracker) -> None:
    tracker(started())
    for position in (50, 20, 40):
        tracker(progress(position))
    assert tracker.active["k"].done_bytes == 40
    assert tracker.new_bytes == 50
    tracker(progress(60))
    assert tracker.new_bytes == 60


def test_bytes_sent_before_a_restart_stay_counted(tracker: Tracker) -> None:
    tracker(started(done_bytes=20, is_resumed=True))
    tracker(progress(50))
    tracker(UploadRestarted(key="k", video_id="v", reason="gone", lost_bytes=50))
    tracker(progress(10))

    assert tracker.restart_count == 1
    assert tracker.active["k"].done_bytes == 10
    assert tracker.new_bytes == 30 + 10
    assert sum(tracker.started.values()) == 1


@pytest.mark.parametrize("end", [failed(), UploadCancelled(key="k", video_id="v")])
def test_an_upload_without_success_keeps_its_bytes(
    tracker: Tracker, end: UploadFailed | UploadCancelled
) -> None:
    tracker(started())
    tracker(progress(70))
    tracker(end)
    assert tracker.active == {}
    assert tracker.sent_bytes == tracker.new_bytes == 70
    assert tracker.failed.total() + tracker.cancelled_count == 1


def test_an_upload_that_never_started_is_counted_as_it_ends(tracker: Tracker) -> None:
    tracker(failed(key=""))
    tracker(HookFailed(key="", video_id=None, message="It exited with 1."))
    assert tracker.failed == {"TransportError": 1}
    assert (tracker.hook_failure_count, tracker.hook_failure) == (1, "It exited with 1.")
    assert tracker.size == tracker.sent_bytes == 0


def test_rates_and_remaining_times_follow_the_last_samples(
    tracker: Tracker, clock: Seconds
) -> None:
    tracker(started("a"))
    tracker(started("b"))
    assert (tracker.bytes_per_s(), tracker.remaining_s()) == (0.0, None)
    tracker.sample()
    clock.now_s += 2
    tracker(progress(40, "a"))
    tracker(progress(10, "b"))

    assert tracker.bytes_per_s() == 25
    assert tracker.remaining_s() == (200 - 50) / 25
    a = tracker.active["a"]
    assert (tracker.bytes_per_s(a), tracker.remaining_s(a)) == (20, 3)
    assert tracker.seconds == 2
    for _ in range(20):
        tracker.sample()
        clock.now_s += 1
    assert (tracker.bytes_per_s(a), tracker.remaining_s(a)) == (0, None)


def test_an_upload_that_started_after_the_last_sample_has_no_rate_yet(tracker: Tracker) -> None:
    tracker(started())
    assert tracker.bytes_per_s(tracker.active["k"]) == 0


async def test_a_real_upload_and_its_repeat(tmp_path: Path) -> None:
    tracker = Tracker()
    async with DevServer() as server:
        desk = Desk(server, tmp_path)
        desk.order(
            Fault(action="error", operation="UploadPart", part=2, code="SecurityTokenExpired"),
            Fault(action="error", operation="UploadPart", part=3, code="InternalError"),
        )
        movie = desk.file(4 * PART + 7)
        async with desk.uploader() as up:
            result = await up.upload(movie, on_event=tracker)
            await up.upload(movie, on_event=tracker)

    size = movie.stat().st_size
    assert tracker.finished == {"crc64": 1}
    assert tracker.finished_before_count == 1
    assert tracker.new_bytes == size
    assert tracker.sent_bytes == result.sent_bytes >= size
    assert tracker.size == tracker.done_bytes == 2 * size
    assert (tracker.stored_part_count, tracker.renewal_count) == (5, 1)
    assert tracker.retry_count == 2
    assert tracker.active == {}
