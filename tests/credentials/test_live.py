"""One upload's credentials: renewed once for all, ahead of time, with an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clocks import START, SkippingClock, SteppedClock, settled
from tests.credentials.script import (
    BROKEN,
    HEAD,
    TARGET,
    a_grant,
    credentials,
)
from uploader.credentials import (
    LiveGrant,
    PlainSigner,
    life_s,
)
from uploader.credentials.live import renew_ahead_s
from uploader.errors import (
    CredentialsRejected,
    PermissionDenied,
    VideoGone,
)
from uploader.protocol import oss
from uploader.protocol.grants import UploadGrant
from uploader.protocol.signing import OssDialect
from uploader.protocol.wire import SignedRequest

# --- how long credentials last -------------------------------------------------------


def test_credentials_last_the_documented_time_at_most() -> None:
    clock = SkippingClock()
    assert life_s(credentials(), clock=clock) == 3000
    assert life_s(credentials(life_s=3600.0), clock=clock) == 3000
    assert life_s(credentials(expires_at=START + timedelta(hours=12)), clock=clock) == 3000


def test_the_earliest_signal_counts() -> None:
    clock = SkippingClock()
    soon = START + timedelta(seconds=900)
    assert life_s(credentials(life_s=1200.0), clock=clock) == 1200
    assert life_s(credentials(life_s=1200.0, expires_at=soon), clock=clock) == 900
    assert life_s(credentials(life_s=600.0, expires_at=soon), clock=clock) == 600
    clock.now_s = 901
    assert life_s(credentials(expires_at=soon), clock=clock) == -1


_LIVES = st.floats(1e-3, 1e6)
_PART_TIMES = st.floats(0, 1e7)


@given(_LIVES, _PART_TIMES)
def test_renewal_is_ahead_of_the_end_but_never_of_the_beginning(life: float, slow: float) -> None:
    ahead = renew_ahead_s(life, slow_part_s=slow)
    assert 0 < ahead * 1.2 < life  # a fifth more at most, by jitter


@given(_LIVES, _PART_TIMES)
def test_three_slow_parts_finish_where_they_fit(life: float, slow: float) -> None:
    ahead = renew_ahead_s(life, slow_part_s=slow)
    assert ahead >= min(3 * slow, life / 2)


def test_the_usual_margin_is_five_minutes() -> None:
    assert renew_ahead_s(3000, slow_part_s=0) == 300
    assert renew_ahead_s(3000, slow_part_s=99) == 300
    assert renew_ahead_s(3000, slow_part_s=200) == 600
    assert renew_ahead_s(43200, slow_part_s=0) == 300


# --- one upload's credentials --------------------------------------------------------


class Issuer:
    """Hands out grants on request. Mutable.

    `answers` are given in order, the last one for ever; each call waits for `gate`.
    """

    def __init__(self, *answers: UploadGrant | Exception, is_open: bool = True) -> None:
        self.answers = list(answers) or [a_grant()]
        self.gate = asyncio.Event()
        self.count = 0
        if is_open:
            self.gate.set()

    async def renew(self) -> UploadGrant:
        self.count += 1
        await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Desk:
    """One LiveGrant and what belongs to it. Mutable."""

    def __init__(
        self,
        issuer: Issuer | None,
        given: UploadGrant | None = None,
        *,
        clock: SkippingClock | None = None,
        draw: float = 0.0,
    ) -> None:
        self.clock = clock or SkippingClock()
        self.renewed: list[float] = []
        self.live = LiveGrant(
            TARGET,
            issuer.renew if issuer else None,
            clock=self.clock,
            dialect=OssDialect(),
            grant=given,
            on_renewed=self.renewed.append,
            draw=lambda: draw,
        )

    async def signed(self) -> SignedRequest:
        await self.live.prepare()
        return self.live.sign(HEAD, clock_offset_s=0.0)

    async def used(self) -> SignedRequest:
        signed = await self.signed()
        self.live.accepted(signed)
        return signed


async def test_sixteen_refused_callers_renew_once() -> None:
    issuer = Issuer(is_open=False)
    desk = Desk(issuer, a_grant())
    refused = [await desk.signed() for _ in range(16)]
    async with asyncio.TaskGroup() as group:
        for signed in refused:
            group.create_task(desk.live.renew(signed))
        await settled()
        issuer.gate.set()
    assert issuer.count == 1
    assert len(desk.renewed) == 1
    assert (await desk.signed()).generation == refused[0].generation + 1


async def test_a_renewal_reports_how_long_it_took() -> None:
    clock = SkippingClock()

    class Slow(Issuer):
        async def renew(self) -> UploadGrant:
            await clock.sleep(7)
            return a_grant()

    desk = Desk(Slow(), a_grant(), clock=clock)
    await refuse(desk)
    assert desk.renewed == [7.0]


async def test_who_was_refused_with_older_credentials_does_not_renew_again() -> None:
    issuer = Issuer()
    desk = Desk(issuer, a_grant())
    slow = await desk.signed()
    await desk.live.renew(await desk.signed())
    await desk.used()
    await desk.live.renew(slow)
    assert issuer.count == 1


async def test_new_signatures_wait_once_credentials_are_refused() -> None:
    issuer = Issuer(is_open=False)
    desk = Desk(issuer, a_grant())
    first = await desk.signed()
    async with asyncio.TaskGroup() as group:
        group.create_task(desk.live.renew(first))
        await settled()
        assert not desk.live.is_ready()
        waiting = group.create_task(desk.signed())
        await settled()
        assert not waiting.done()
        issuer.gate.set()
    assert waiting.result().generation == first.generation + 1
    assert issuer.count == 1


async def test_a_late_refusal_does_not_lift_the_ban_on_newer_credentials() -> None:
    issuer = Issuer()
    desk = Desk(issuer, a_grant())
    oldest = await desk.signed()
    await desk.live.renew(oldest)
    newer = await desk.used()
    issuer.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(desk.live.renew(newer))
        await settled()
        group.create_task(desk.live.renew(oldest))
        await settled()
        assert not desk.live.is_ready()
        issuer.gate.set()
    assert desk.live.is_ready()


async def test_a_cancelled_renewal_is_taken_over_by_the_next_in_line() -> None:
    issuer = Issuer(is_open=False)
    desk = Desk(issuer, a_grant())
    signed = await desk.signed()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(desk.live.renew(signed))
        second = group.create_task(desk.live.renew(signed))
        await settled()
        first.cancel()
        await settled()
        issuer.gate.set()
    assert first.cancelled()
    assert second.result() is None
    assert issuer.count == 2
    assert len(desk.renewed) == 1


async def test_a_failed_renewal_fails_all_who_wait_with_one_request() -> None:
    issuer = Issuer(PermissionDenied("No."), is_open=False)
    desk = Desk(issuer, a_grant())
    refused = [await desk.signed() for _ in range(16)]
    tasks = [asyncio.ensure_future(desk.live.renew(signed)) for signed in refused]
    await settled()
    issuer.gate.set()
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    assert {str(failure) for failure in failures} == {str(PermissionDenied("No."))}
    with pytest.raises(PermissionDenied):
        await desk.signed()
    assert issuer.count == 1


async def test_without_a_grant_the_first_is_requested_once() -> None:
    issuer = Issuer(is_open=False)
    desk = Desk(issuer)
    assert not desk.live.is_ready()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(desk.signed()) for _ in range(16)]
        await settled()
        issuer.gate.set()
    assert issuer.count == 1
    assert {task.result().generation for task in tasks} == {1}


async def test_a_grant_that_has_run_out_is_renewed_before_it_is_used() -> None:
    issuer = Issuer()
    desk = Desk(issuer, a_grant(expires_at=START - timedelta(seconds=1)))
    await desk.signed()
    assert issuer.count == 1


async def test_a_grant_that_lives_is_used_as_it_is() -> None:
    issuer = Issuer()
    await Desk(issuer, a_grant(expires_at=START + timedelta(seconds=9))).signed()
    assert issuer.count == 0


async def test_credentials_past_their_end_are_renewed_before_they_are_refused() -> None:
    issuer = Issuer()
    desk = Desk(issuer, a_grant())
    desk.clock.now_s = 2999
    await desk.signed()
    assert issuer.count == 0
    desk.clock.now_s = 3000
    await desk.signed()
    assert issuer.count == 1


async def test_what_ran_out_while_waiting_for_a_slot_is_tried_all_the_same() -> None:
    desk = Desk(Issuer(), a_grant())
    await desk.live.prepare()
    desk.clock.now_s = 3001
    assert desk.live.is_ready()


async def test_credentials_that_cannot_be_renewed_are_used_until_oss_refuses_them() -> None:
    desk = Desk(None, a_grant(expires_at=START - timedelta(days=1)))
    signed = await desk.used()
    desk.clock.now_s = 10**6
    signed = await desk.used()
    with pytest.raises(CredentialsRejected) as caught:
        await desk.live.renew(signed)
    assert "--auth-command" in caught.value.next_step
    assert "--grant" in caught.value.next_step


async def test_a_wrong_wall_clock_does_not_renew_for_ever() -> None:
    """Every grant is over by our clock on arrival; OSS accepts it all the same."""
    clock = SkippingClock(wrong_by_s=4000)
    issuer = Issuer(a_grant(expires_at=START + timedelta(seconds=3000)))
    desk = Desk(issuer, clock=clock)
    for _ in range(20):
        await desk.used()
        clock.now_s += 100
    assert issuer.count == 1
    clock.now_s = 3000
    await desk.used()
    assert issuer.count == 2


# --- renewals with an end ------------------------------------------------------------


async def refuse(desk: Desk) -> None:
    await desk.live.renew(await desk.signed())


async def test_renewals_never_accepted_end_after_two() -> None:
    issuer = Issuer()
    desk = Desk(issuer, a_grant())
    await refuse(desk)
    await refuse(desk)
    with pytest.raises(CredentialsRejected, match="2 renewals in a row"):
        await refuse(desk)
    assert issuer.count == 2


async def test_accepted_credentials_make_renewing_worthwhile_again() -> None:
    issuer = Issuer()
    desk = Desk(issuer, a_grant())
    for _ in range(10):
        await refuse(desk)
        await refuse(desk)
        await desk.used()
    assert issuer.count == 20


async def test_a_success_with_older_credentials_proves_nothing_for_the_new() -> None:
    desk = Desk(Issuer(), a_grant())
    old = await desk.signed()
    await refuse(desk)
    await refuse(desk)
    desk.live.accepted(old)
    with pytest.raises(CredentialsRejected):
        await refuse(desk)


async def test_renewals_without_a_request_in_between_are_not_in_vain() -> None:
    issuer = Issuer()
    desk = Desk(issuer, a_grant())
    for _ in range(10):
        desk.clock.now_s += 3000
        await desk.signed()  # and then waits long for its slot
    assert issuer.count == 10


async def test_sixteen_refusals_of_one_renewal_count_once() -> None:
    desk = Desk(Issuer(), a_grant())
    await refuse(desk)
    refused = [await desk.signed() for _ in range(16)]
    async with asyncio.TaskGroup() as group:
        for signed in refused:
            group.create_task(desk.live.renew(signed))
    await desk.used()


# --- ahead of time -------------------------------------------------------------------


@dataclass
class Fresh:
    """`keep_fresh` under a stepped clock. Mutable."""

    desk: Desk
    clock: SteppedClock
    issuer: Issuer
    task: asyncio.Task[None]


Begin = Callable[..., Awaitable[Fresh]]


@pytest.fixture
async def start() -> AsyncIterator[Begin]:
    tasks: list[asyncio.Task[None]] = []

    async def begin(issuer: Issuer, given: UploadGrant | None = None, draw: float = 0.0) -> Fresh:
        clock = SteppedClock()
        desk = Desk(issuer, given or a_grant(), clock=clock, draw=draw)
        task = asyncio.ensure_future(desk.live.keep_fresh())
        tasks.append(task)
        await settled()
        return Fresh(desk, clock, issuer, task)

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(("draw", "at_s"), [(0.0, 2700), (1.0, 2640)])
async def test_renewal_comes_five_minutes_and_some_jitter_ahead(
    start: Begin, draw: float, at_s: int
) -> None:
    fresh = await start(Issuer(), draw=draw)
    await fresh.clock.advance(at_s - 1)
    assert fresh.issuer.count == 0
    await fresh.clock.advance(2)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(at_s - 2)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(2)
    assert fresh.issuer.count == 2


async def test_slow_parts_move_renewal_forward(start: Begin) -> None:
    fresh = await start(Issuer())
    fresh.desk.live.record_part_time(300)
    fresh.desk.live.record_part_time(1)  # a quick one does not make it forget
    await fresh.clock.advance(2701)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(3000 - 3 * 270 - 2)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(2)
    assert fresh.issuer.count == 2


async def test_uploading_continues_while_credentials_are_renewed_ahead(start: Begin) -> None:
    fresh = await start(Issuer(is_open=False))
    await fresh.clock.advance(2701)
    assert fresh.issuer.count == 1
    before = await asyncio.wait_for(fresh.desk.signed(), 1)
    fresh.issuer.gate.set()
    await settled()
    after = await fresh.desk.signed()
    assert (before.generation, after.generation) == (0, 1)


async def test_a_failing_renewal_is_tried_again_while_the_old_credentials_work(
    start: Begin,
) -> None:
    fresh = await start(Issuer(BROKEN, PermissionDenied("No."), BROKEN, a_grant()))
    await fresh.clock.advance(2700)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(9)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(1)
    assert fresh.issuer.count == 2
    assert (await fresh.desk.signed()).generation == 0
    await fresh.clock.advance(20)
    assert fresh.issuer.count == 4
    assert (await fresh.desk.signed()).generation == 1
    assert not fresh.task.done()


async def test_of_a_short_life_no_more_than_a_twentieth_is_waited(start: Begin) -> None:
    fresh = await start(Issuer(BROKEN, BROKEN, a_grant()), a_grant(life_s=100.0))
    while not fresh.issuer.count:
        await fresh.clock.advance(0.5)
    await fresh.clock.advance(5)
    assert fresh.issuer.count == 2


async def test_a_video_that_is_gone_ends_the_upload(start: Begin) -> None:
    fresh = await start(Issuer(VideoGone("It is gone.")))
    await fresh.clock.advance(2701)
    assert isinstance(fresh.task.exception(), VideoGone)


async def test_a_renewal_somebody_else_made_is_not_repeated(start: Begin) -> None:
    fresh = await start(Issuer())
    await fresh.clock.advance(2000)
    await fresh.desk.live.renew(await fresh.desk.used())
    await fresh.clock.advance(2000)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(701)
    assert fresh.issuer.count == 2


async def test_without_credentials_keeping_them_fresh_waits_for_the_first(start: Begin) -> None:
    fresh = await start(Issuer(), a_grant(expires_at=START - timedelta(days=1)))
    await fresh.clock.advance(100)
    assert fresh.issuer.count == 0
    await fresh.desk.signed()
    await fresh.clock.advance(2701)
    assert fresh.issuer.count == 2


async def test_keep_fresh_returns_where_nothing_can_be_renewed() -> None:
    await asyncio.wait_for(Desk(None, a_grant()).live.keep_fresh(), 1)


# --- what else is known of credentials -----------------------------------------------


async def test_credentials_are_aged_in_the_last_fifth_of_their_life() -> None:
    desk = Desk(Issuer(), a_grant())
    signed = await desk.signed()
    desk.clock.now_s = 2400
    assert not desk.live.is_aged(signed)
    desk.clock.now_s = 2401
    assert desk.live.is_aged(signed)


async def test_replaced_credentials_are_aged() -> None:
    desk = Desk(Issuer(), a_grant())
    signed = await desk.signed()
    await desk.live.renew(signed)
    assert desk.live.is_aged(signed)
    assert not desk.live.is_aged(await desk.signed())


async def test_signatures_are_for_the_servers_time() -> None:
    desk = Desk(None, a_grant())
    await desk.live.prepare()
    signed = desk.live.sign(HEAD, clock_offset_s=-3600.0)
    assert signed.headers["x-oss-date"] == "20261122T080354Z"


async def test_signing_comes_after_preparing() -> None:
    with pytest.raises(RuntimeError):
        Desk(Issuer()).live.sign(HEAD, clock_offset_s=0.0)


@pytest.mark.parametrize("change", [{"bucket": "outin-other"}, {"object_key": "sv/b.mp4"}])
async def test_another_bucket_or_key_is_recorded(change: dict[str, str]) -> None:
    moved = replace(TARGET, **change)
    desk = Desk(Issuer(a_grant(moved), a_grant()), a_grant())
    await refuse(desk)
    assert desk.live.moved_to == moved
    await refuse(desk)
    assert desk.live.moved_to is None


async def test_another_endpoint_is_no_other_target() -> None:
    moved = replace(TARGET, endpoint="https://oss-accelerate.aliyuncs.com", object_prefix="x")
    desk = Desk(Issuer(a_grant(moved)), a_grant())
    await refuse(desk)
    assert desk.live.moved_to is None


async def test_after_moving_the_new_target_is_ours() -> None:
    moved = replace(TARGET, object_key="sv/b.mp4")
    desk = Desk(Issuer(a_grant(moved)), a_grant())
    await refuse(desk)
    desk.live.move(moved, OssDialect(region="cn-beijing"))
    assert desk.live.moved_to is None
    await refuse(desk)
    assert desk.live.moved_to is None


async def test_addresses_with_their_right_inside_are_sent_as_they_are() -> None:
    signer, url = PlainSigner(), "https://h/a%2Fb?Signature=x%3D"
    await signer.prepare()
    signed = signer.sign(oss.read_signed_url(url), clock_offset_s=5.0)
    assert (signed.method, signed.url, signed.headers) == ("GET", url, {"range": "bytes=0-0"})
    assert signer.is_ready()
    assert not signer.is_aged(signed)
    signer.accepted(signed)
    with pytest.raises(CredentialsRejected):
        await signer.renew(signed)
