"""The events of a run, field for field."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from uploader.errors import ServiceError, VodupError
from uploader.events import (
    CredentialsRenewed,
    Event,
    PartStored,
    RequestRetried,
    UploadCancelled,
    UploadFailed,
)
from uploader.protocol.failures import Meaning
from uploader.session import Retried
from uploader.upload.progress import Progress

WHOSE: dict[str, Any] = {"key": "movie.mp4", "video_id": "v-1"}
REFUSAL = ServiceError(
    "OSS is busy.",
    operation="UploadPart",
    status=503,
    code="SlowDown",
    request_id="5C3D",
    next_step="Run it again.",
).located(video_id="v-1", phase=None)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def progress(events: list[Event]) -> Progress:
    return Progress("movie.mp4", "v-1", [events.append])


def test_what_goes_again_is_sent_twice_but_under_way_once(progress: Progress) -> None:
    first, second = progress.watch_part(1), progress.watch_part(2)
    first(100)
    second(30)
    first(250)
    assert (progress.sent_bytes, progress.under_way_bytes) == (280, 280)
    first(0)  # the request is repeated: what is sent again is sent, and counts
    first(250)
    assert (progress.sent_bytes, progress.under_way_bytes) == (530, 280)
    progress.count_acked(1)
    assert (progress.sent_bytes, progress.under_way_bytes) == (530, 30)
    progress.count_acked(1)
    assert progress.under_way_bytes == 30


def test_a_stored_part(progress: Progress, events: list[Event]) -> None:
    progress.emit_stored(3, 1000, 0.12345678)
    assert events == [PartStored(**WHOSE, part_number=3, size=1000, seconds=0.123457)]


def test_a_repeated_request(progress: Progress, events: list[Event]) -> None:
    for _ in range(2):
        progress.count_retry(
            Retried("UploadPart", 3, REFUSAL, Meaning.SLOW_DOWN, 1.23456, 9.87654, "OSS", "oss:443")
        )
    assert progress.retry_count == 2
    expected = RequestRetried(
        **WHOSE,
        operation="UploadPart",
        part_number=3,
        reason="OSS is busy.",
        code="SlowDown",
        request_id="5C3D",
        action="SLOW_DOWN",
        pause_s=1.235,
        left_s=9.877,
        service="OSS",
        address="oss:443",
    )
    assert events == [expected, expected]


def test_new_credentials(progress: Progress, events: list[Event]) -> None:
    for _ in range(2):
        progress.count_renewal(0.12345678)
    assert events == [
        CredentialsRenewed(**WHOSE, renewal_count=count, seconds=0.123457) for count in (1, 2)
    ]


def test_how_it_ends(progress: Progress, events: list[Event]) -> None:
    with pytest.raises(asyncio.CancelledError), progress.reporting_failure():
        raise asyncio.CancelledError
    with pytest.raises(ServiceError), progress.reporting_failure():
        raise REFUSAL
    with progress.reporting_failure():
        pass
    assert events == [
        UploadCancelled(**WHOSE),
        UploadFailed(
            **WHOSE,
            error="ServiceError",
            message="OSS is busy.",
            code="SlowDown",
            request_id="5C3D",
            is_resumable=True,
            next_step="Run it again.",
        ),
    ]


def test_an_error_is_located_where_it_ends_the_upload(progress: Progress) -> None:
    progress.phase = "send"
    with pytest.raises(VodupError) as caught, progress.reporting_failure():
        raise VodupError("It failed.")
    assert (caught.value.video_id, caught.value.phase) == ("v-1", "send")
