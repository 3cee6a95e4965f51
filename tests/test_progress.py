"""What listeners and logs are told of a run, field for field."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from uploader.errors import HookError, ServiceError
from uploader.events import (
    CredentialsRenewed,
    Event,
    HookFailed,
    PartsAdopted,
    PartStored,
    RequestRetried,
    UploadCancelled,
    UploadFailed,
    UploadProgress,
    UploadRestarted,
)
from uploader.log import configure
from uploader.progress import Progress
from uploader.protocol.verdicts import Verdict
from uploader.session import Retried

WHOSE: dict[str, Any] = {"key": "movie.mp4", "video_id": "v-1"}
REFUSAL = ServiceError(
    "OSS is busy.",
    operation="UploadPart",
    status=503,
    code="SlowDown",
    request_id="5C3D",
    video_id="v-1",
    next_step="Run it again.",
)


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def progress(told: list[Event]) -> Progress:
    return Progress("movie.mp4", "v-1", [told.append])


def test_positions_add_up_and_a_repeat_is_not_counted_twice(progress: Progress) -> None:
    first, second = progress.watch(1), progress.watch(2)
    first(100)
    second(30)
    first(250)
    assert (progress.sent_bytes, progress.under_way_bytes) == (280, 280)
    first(0)  # the request is repeated: what is sent again is sent, and counts
    first(250)
    assert (progress.sent_bytes, progress.under_way_bytes) == (530, 280)
    progress.arrived(1)
    assert (progress.sent_bytes, progress.under_way_bytes) == (530, 30)
    progress.arrived(1)
    assert progress.under_way_bytes == 30


def test_a_stored_part(progress: Progress, told: list[Event]) -> None:
    progress.stored(3, 1000, 0.12345678)
    assert told == [PartStored(**WHOSE, part_number=3, size=1000, seconds=0.123457)]


def test_a_repeated_request(progress: Progress, told: list[Event]) -> None:
    for _ in range(2):
        progress.retried(Retried("UploadPart", 3, REFUSAL, Verdict.SLOW_DOWN, 1.23456))
    assert progress.retry_count == 2
    expected = RequestRetried(
        **WHOSE,
        operation="UploadPart",
        part_number=3,
        reason="OSS is busy.",
        code="SlowDown",
        request_id="5C3D",
        verdict="SLOW_DOWN",
        pause_s=1.235,
    )
    assert told == [expected, expected]


def test_new_credentials(progress: Progress, told: list[Event]) -> None:
    progress.renewal_s = 0.12345678
    progress.renewed(7)
    progress.renewed(8)
    assert told == [
        CredentialsRenewed(**WHOSE, renewal_count=count, seconds=0.123457) for count in (1, 2)
    ]


def test_how_it_ends(progress: Progress, told: list[Event]) -> None:
    progress.cancelled()
    progress.failed(REFUSAL)
    progress.hook_failed(HookError("The hook said no."))
    assert told == [
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
        HookFailed(**WHOSE, message="The hook said no."),
    ]


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (PartStored(**WHOSE, part_number=3, size=1000, seconds=0.1), "debug"),
        (PartsAdopted(**WHOSE, part_count=2), "info"),
        (UploadCancelled(**WHOSE), "info"),
        (CredentialsRenewed(**WHOSE, renewal_count=1, seconds=0.1), "info"),
        (UploadRestarted(**WHOSE, reason="gone", lost_bytes=5), "warning"),
        (HookFailed(**WHOSE, message="The hook said no."), "warning"),
    ],
)
def test_an_event_is_logged_under_its_type(progress: Progress, event: Event, level: str) -> None:
    stream = io.StringIO()
    configure("debug", is_json=True, stream=stream)
    progress.tell(event)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"]) == (event.type, level)
    assert (line["key"], line["video_id"]) == ("movie.mp4", "v-1")


def test_how_far_it_has_come_is_not_logged(progress: Progress, told: list[Event]) -> None:
    stream = io.StringIO()
    configure("debug", is_json=True, stream=stream)
    event = UploadProgress(
        **WHOSE, done_bytes=1, size=2, acked_part_count=0, part_count=1, renewal_count=0,
        retry_count=0,
    )  # fmt: skip
    progress.tell(event)
    assert (stream.getvalue(), told) == ("", [event])
