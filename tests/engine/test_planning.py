"""What an upload is planned from, and when a stream counts as the one that was sent before."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from uploader import BytesSource, UploadOptions, decode_grant
from uploader.clock import SystemClock
from uploader.devserver import Fault
from uploader.protocol.integrity import crc64
from uploader.protocol.part_sizes import Outlook, plan_file, plan_stream
from uploader.protocol.plan import MAX_PART_COUNT, Part, read_plan
from uploader.sources import PartStream, Source
from uploader.transport import sockets
from uploader.upload.grant import _outlook, new_plan
from uploader.upload.request import UploadContext, default_key
from uploader.upload.resume import _wait_for_end, read_stream

from .harness import Desk, content, created
from .test_arguments import GRANT

MIB = 2**20

SIZES = (100 * MIB, 1000 * MIB)
"""A file with about as many parts as connections, and one with many more."""


class Noon(SystemClock):
    """It is always the same moment."""

    def utc_now(self) -> datetime:
        return datetime(2026, 11, 30, 12, tzinfo=UTC)


def context(**changes: Any) -> UploadContext:
    """As much of a context as planning reads."""
    pace = SimpleNamespace(
        expected_concurrency=7, connection_rate=2e6, rtt_s=1.0, is_slowed_by_loss=False
    )
    plain: dict[str, Any] = {
        "options": UploadOptions(part_size=3 * MIB),
        "source": SimpleNamespace(stream=None),
        "record": SimpleNamespace(size=SIZES[0]),
        "network": SimpleNamespace(pace=pace, clock=Noon()),
        "request": SimpleNamespace(grant=None),
    }
    return cast("UploadContext", SimpleNamespace(**plain | changes))


def expiring(**ago: float) -> SimpleNamespace:
    """A request with credentials that expire this long from now."""
    ends = Noon().utc_now() + timedelta(**ago)
    credentials = replace(GRANT.credentials, expires_at=ends)
    return SimpleNamespace(grant=replace(GRANT, credentials=credentials))


@pytest.mark.parametrize(
    ("request_", "life_s"),
    [
        (SimpleNamespace(grant=None), 3000.0),
        (expiring(seconds=1200), 1200.0),
        (expiring(seconds=-60), 1.0),
        (expiring(seconds=1.5), 1.5),
    ],
)
def test_a_file_is_cut_by_what_the_network_and_the_credentials_tell(
    request_: SimpleNamespace, life_s: float
) -> None:
    outlook = Outlook(
        connection_rate=2e6, rtt_s=1.0, is_slowed_by_loss=False, credential_life_s=life_s
    )
    assert _outlook(context(request=request_)) == outlook
    for part_size, size in itertools.product((None, 3 * MIB), SIZES):
        whole = context(
            request=request_,
            options=UploadOptions(part_size=part_size),
            record=SimpleNamespace(size=size),
        )
        assert new_plan(whole) == plan_file(
            size, part_size=part_size, concurrency=7, outlook=outlook
        )


def test_each_of_these_changes_the_plan() -> None:
    """Or the comparison above would not notice that one is left out."""
    outlook = Outlook(
        connection_rate=2e6, rtt_s=1.0, is_slowed_by_loss=False, credential_life_s=3000.0
    )
    arguments: dict[str, Any] = {"concurrency": 7, "outlook": outlook}
    others: list[dict[str, Any]] = [
        {"part_size": 3 * MIB},
        {"concurrency": 8},
        {"outlook": replace(outlook, connection_rate=None)},
        {"outlook": replace(outlook, rtt_s=0.0)},
        {"outlook": replace(outlook, is_slowed_by_loss=True)},
        {"outlook": replace(outlook, credential_life_s=1.0)},
    ]
    for other in others:
        assert any(plan_file(s, **arguments | other) != plan_file(s, **arguments) for s in SIZES), (
            other
        )


@dataclass(frozen=True)
class FarPath:
    """What the kernel would report about a connection that has just been made."""

    rtt_us: int
    min_rtt_us: int
    unacked_size: int = 0
    retransmit_count: int = 0
    acked_bytes: int = 1000


@pytest.mark.parametrize(("rtt_s", "part_count"), [(0.0001, 5), (0.05, 36)])
async def test_the_first_upload_is_cut_by_the_round_trip_of_the_connection_that_began_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, rtt_s: float, part_count: int
) -> None:
    """With a grant, nothing else was sent before; a later run near by has the same parts."""
    movie = desk.file(9 * MIB)
    answer = await created(desk.server)
    grant = decode_grant(answer["UploadAddress"], answer["UploadAuth"], video_id=answer["VideoId"])
    far = FarPath(int(rtt_s * 1e6), int(rtt_s * 1e6))
    cut: dict[str, Any] = {"part_size": None, "concurrency": "auto", "grant": grant}
    desk.order(
        Fault(action="error", operation="UploadPart", count=None, status=400, code="AccessDenied")
    )
    with monkeypatch.context() as patched:
        patched.setattr(sockets, "tcp_info", lambda _: far)
        patched.setattr(sockets, "congestion_of", lambda _: "cubic")
        await desk.fail(movie, **cut)
    plan = (await desk.record()).plan
    assert plan is not None
    assert read_plan(plan).part_count == part_count
    desk.order()

    result = await desk.push(movie, **cut)

    await desk.assert_stored(result, movie)
    assert (await desk.record()).plan == plan
    assert (result.part_count, desk.count("InitiateMultipartUpload")) == (part_count, 1)


@pytest.mark.parametrize(("part_size", "expected_mib"), [(None, 300_000), (3 * MIB, 900)])
def test_a_stream_is_cut_by_what_it_may_become(part_size: int | None, expected_mib: int) -> None:
    stream = SimpleNamespace(expected_size=expected_mib * MIB, max_part_size=40 * MIB)
    source = SimpleNamespace(stream=stream)
    assert new_plan(
        context(source=source, options=UploadOptions(part_size=part_size))
    ) == plan_stream(part_size=part_size, expected_size=expected_mib * MIB, largest_size=40 * MIB)


# --- a stream that comes again ----------------------------------------------------------------


@dataclass
class Coming:
    """A stream of bytes that are all there; records its calls. Mutable."""

    size: int
    max_part_size: int = MIB
    is_rereadable: bool = False
    begun_for: list[str] = field(default_factory=list)
    reached_parts: list[Part] = field(default_factory=list)
    released: list[Part] = field(default_factory=list)

    async def begin(self, fingerprint: str) -> None:
        self.begun_for.append(fingerprint)

    async def wait_for(self, part: Part) -> int:
        self.reached_parts.append(part)
        return max(0, min(part.size, self.size - part.offset))

    async def release(self, part: Part) -> None:
        self.released.append(part)


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 2 * MIB, 2 * MIB + 77])
async def test_a_stream_is_read_to_its_end_piece_by_piece(size: int) -> None:
    data = content(size)
    coming = Coming(size)
    steps = plan_stream(largest_size=MIB)
    expected = [part for part, _ in zip(steps.parts, range(size // MIB + 1), strict=False)]

    found = await read_stream(BytesSource(data or b"x"), cast("PartStream", coming))

    assert found == (size, crc64(data))
    assert coming.begun_for == [""]
    assert coming.reached_parts == expected
    assert coming.released == [part for part in expected if part.offset < size]


@pytest.mark.parametrize(
    ("is_rereadable", "size", "is_awaited"), [(True, 5, True), (False, 5, False), (True, 0, False)]
)
async def test_what_can_be_read_again_is_compared_once_it_has_grown_beyond(
    is_rereadable: bool, size: int, is_awaited: bool
) -> None:
    coming = Coming(10, is_rereadable=is_rereadable)
    source = cast("Source", SimpleNamespace(stream=coming))
    await _wait_for_end(source, size)
    assert coming.reached_parts == ([Part(MAX_PART_COUNT, size, 1)] if is_awaited else [])


async def test_what_is_all_there_is_not_waited_for() -> None:
    async with asyncio.timeout(1):
        await _wait_for_end(BytesSource(b"abc"), 3)


async def test_a_key_is_made_of_service_and_place_and_takes_any_name() -> None:
    assert default_key("vod.cn-shanghai", "/films/a.mp4") == "file-d284cca55cac503776e8"
    assert len(default_key("", "b\udcff.mp4")) == 25
