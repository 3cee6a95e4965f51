"""What an upload is planned from, and when a stream counts as the one that was sent before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from uploader import BytesSource, UploadOptions, opening
from uploader.clock import SystemClock
from uploader.opening import Job, drained, new_plan
from uploader.protocol.integrity import crc64
from uploader.protocol.plan import MAX_PART_COUNT, Outlook, Part
from uploader.protocol.steps import plan_steps
from uploader.sources import Arrival, Source

from .harness import content
from .test_arguments import GRANT

MIB = 2**20
Call = tuple[tuple[object, ...], dict[str, object]]


class Noon(SystemClock):
    """It is always the same moment."""

    def utc_now(self) -> datetime:
        return datetime(2026, 11, 30, 12, tzinfo=UTC)


def job(**changes: Any) -> Job:
    """As much of a job as planning looks at."""
    pace = SimpleNamespace(expected_concurrency=7, limit=5, connection_rate=2e6, rtt_s=0.25)
    plain: dict[str, Any] = {
        "options": UploadOptions(part_size=3 * MIB),
        "source": SimpleNamespace(arrival=None),
        "record": SimpleNamespace(size=100 * MIB),
        "network": SimpleNamespace(pace=pace, clock=Noon()),
        "asked": SimpleNamespace(grant=None),
    }
    return cast("Job", SimpleNamespace(**plain | changes))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the planners were asked for."""
    calls: list[Call] = []

    def noted(name: str) -> Callable[..., str]:
        def plan(*given: object, **named: object) -> str:
            calls.append((given, named))
            return name

        return plan

    for name in ("plan_parts", "plan_steps"):
        monkeypatch.setattr(opening, name, noted(name))
    return calls


def expiring(**ago: float) -> SimpleNamespace:
    """What a caller asks who brings credentials that end so much later than now."""
    ends = Noon().utc_now() + timedelta(**ago)
    credentials = replace(GRANT.credentials, expires_at=ends)
    return SimpleNamespace(grant=replace(GRANT, credentials=credentials))


@pytest.mark.parametrize(
    ("asked", "life_s"),
    [
        (SimpleNamespace(grant=None), 3000.0),
        (expiring(seconds=1200), 1200.0),
        (expiring(seconds=-60), 1.0),
        (expiring(seconds=1.5), 1.5),
    ],
)
def test_a_file_is_cut_by_what_the_network_and_the_credentials_tell(
    planned: list[Call], asked: SimpleNamespace, life_s: float
) -> None:
    assert new_plan(job(asked=asked)) == "plan_parts"  # type: ignore[comparison-overlap]
    outlook = Outlook(connection_rate=2e6, rtt_s=0.25, credential_life_s=life_s)
    assert planned == [
        (
            (100 * MIB,),
            {
                "part_size": 3 * MIB,
                "concurrency": 7,
                "first_concurrency": 5,
                "outlook": outlook,
            },
        )
    ]


def test_a_stream_is_cut_by_what_it_may_become(planned: list[Call]) -> None:
    arrival = SimpleNamespace(expected_size=9 * MIB, largest_part=4 * MIB)
    assert new_plan(job(source=SimpleNamespace(arrival=arrival))) == "plan_steps"  # type: ignore[comparison-overlap]
    given = {"part_size": 3 * MIB, "expected_size": 9 * MIB, "largest_size": 4 * MIB}
    assert planned == [((), given)]


# --- a stream that comes again ----------------------------------------------------------------


@dataclass
class Coming:
    """The arrival of bytes that are all there; remembers what it was asked. Mutable."""

    size: int
    largest_part: int = MIB
    is_rereadable: bool = False
    begun_for: list[str] = field(default_factory=list)
    reached_parts: list[Part] = field(default_factory=list)
    released: list[Part] = field(default_factory=list)

    async def begin(self, fingerprint: str) -> None:
        self.begun_for.append(fingerprint)

    async def reached(self, part: Part) -> int:
        self.reached_parts.append(part)
        return max(0, min(part.size, self.size - part.offset))

    async def release(self, part: Part) -> None:
        self.released.append(part)


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 2 * MIB, 2 * MIB + 77])
async def test_a_stream_is_read_to_its_end_piece_by_piece(size: int) -> None:
    data = content(size)
    coming = Coming(size)
    steps = plan_steps(largest_size=MIB)
    expected = [part for part, _ in zip(steps.parts, range(size // MIB + 1), strict=False)]

    found = await drained(BytesSource(data or b"x"), cast("Arrival", coming))

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
    source = cast("Source", SimpleNamespace(arrival=coming))
    await opening._await_end(source, size)
    assert coming.reached_parts == ([Part(MAX_PART_COUNT, size, 1)] if is_awaited else [])


async def test_what_is_all_there_is_not_waited_for() -> None:
    async with asyncio.timeout(1):
        await opening._await_end(BytesSource(b"abc"), 3)


async def test_a_key_is_made_of_service_and_place_and_takes_any_name() -> None:
    assert opening.default_key("vod.cn-shanghai", "/films/a.mp4") == "file-d284cca55cac503776e8"
    assert len(opening.default_key("", "b\udcff.mp4")) == 25
