"""Who hands out grants, and renewing them: once for all, ahead of time, with an end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clocks import START, SkippingClock, SteppedClock, settled
from uploader.credentials import (
    AccessKeys,
    CallbackProvider,
    CommandProvider,
    GrantSource,
    LiveGrant,
    Network,
    NewVideo,
    PlainSigner,
    UrlProvider,
    VodProvider,
    life_s,
    renew_ahead_s,
)
from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    CredentialsRejected,
    InvalidGrant,
    OverwriteRefused,
    PermissionDenied,
    ServiceError,
    TransportError,
    UntrustedEndpoint,
    VideoGone,
    VodupError,
)
from uploader.pace import Pace
from uploader.protocol import oss
from uploader.protocol.grants import StsCredentials, UploadGrant, UploadTarget
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import AccessKey, VideoMeta
from uploader.protocol.wire import Response, SignedRequest
from uploader.session import RetryPolicy

VIDEO_ID = "c6a23a870c8c4ffcd40cbd3813311111"
TARGET = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-bucket", "sv/a.mp4")
HEAD = oss.head_object(TARGET)
BROKEN = TransportError("The connection was reset.", is_sent=True)


def credentials(**changes: Any) -> StsCredentials:
    return replace(StsCredentials("STS.id", "secret", "token"), **changes)


def a_grant(target: UploadTarget = TARGET, **changes: Any) -> UploadGrant:
    return UploadGrant(VIDEO_ID, target, credentials(**changes))


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
    """Hands out grants when told to. Mutable.

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
        self.renewed: list[int] = []
        self.live = LiveGrant(
            TARGET,
            issuer.renew if issuer else None,
            clock=self.clock,
            dialect=oss.OssDialect(),
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
    assert desk.renewed == [1]
    assert (await desk.signed()).generation == refused[0].generation + 1


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
    assert desk.renewed == [1]


async def test_a_failed_renewal_is_told_to_all_without_asking_again() -> None:
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


async def test_without_a_grant_the_first_is_asked_for_once() -> None:
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


async def test_nobody_renews_what_nobody_can_renew() -> None:
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
    fresh.desk.live.note_part_time(300)
    fresh.desk.live.note_part_time(1)  # a quick one does not make it forget
    await fresh.clock.advance(2701)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(3000 - 3 * 270 - 2)
    assert fresh.issuer.count == 1
    await fresh.clock.advance(2)
    assert fresh.issuer.count == 2


async def test_uploading_goes_on_while_credentials_are_renewed_ahead(start: Begin) -> None:
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


async def test_what_nobody_renews_is_not_kept_fresh() -> None:
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
async def test_another_bucket_or_key_is_noted(change: dict[str, str]) -> None:
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
    desk.live.move(moved)
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


# --- VOD itself ----------------------------------------------------------------------

VOD = "https://vod.cn-shanghai.aliyuncs.com"
KEY = AccessKey(id="id-1", secret="secret")
Answer = Response | Exception


class Vod:
    """VOD as a script of answers by action; the last one of each is given for ever. Mutable."""

    def __init__(self, **answers: Sequence[Answer]) -> None:
        self.answers = {action: list(script) for action, script in answers.items()}
        self.calls: list[dict[str, str]] = []
        self.requests: list[SignedRequest] = []

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        await asyncio.sleep(0)
        self.requests.append(request)
        query = dict(parse_qsl(urlsplit(request.url).query, keep_blank_values=True))
        body = getattr(request.body, "data", b"").decode()
        form = dict(parse_qsl(body)) if "Action" in query else {"body": body}
        self.calls.append(query | form)
        script = self.answers[query.get("Action", "any")]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def actions(self) -> list[str]:
        return [call["Action"] for call in self.calls]


def network(transport: Vod, *, trust: TrustPolicy | None = None) -> Network:
    clock = SkippingClock()
    pace = Pace(vod_calls_per_s=10_000.0, clock=clock)
    return Network(transport, pace, clock, RetryPolicy(), trust or TrustPolicy())


def at_vod(transport: Vod, key: AccessKey | AccessKeys = KEY) -> GrantSource:
    return VodProvider(key).connect(network(transport))


def told(**fields: Any) -> Response:
    return Response(200, {}, json.dumps(fields).encode())


def granted(video_id: str | None = VIDEO_ID) -> Response:
    address = {"Endpoint": TARGET.endpoint, "Bucket": TARGET.bucket, "FileName": "sv/a.mp4"}
    auth = {"AccessKeyId": "STS.id", "AccessKeySecret": "s", "SecurityToken": "t"}
    fields: dict[str, Any] = {"UploadAddress": address, "UploadAuth": auth, "RequestId": "8906"}
    return told(**fields, **({"VideoId": video_id} if video_id else {}))


def denied(code: str, status: int = 400) -> Response:
    return Response(status, {}, json.dumps({"Code": code, "RequestId": "8906"}).encode())


def mezzanine(status: str) -> Response:
    return told(Mezzanine={"Status": status, "Size": 0})


GONE = denied("InvalidVideo.NotFound", 404)
NEW = NewVideo(
    meta=VideoMeta(title="Movie"), file_name="a.mp4", file_size=9, reference_id="vodup-1"
)
AGAIN = replace(NEW, is_repeat=True)


async def test_a_video_is_made_with_one_call() -> None:
    transport = Vod(CreateUploadVideo=[granted()])
    grant = await at_vod(transport).create(NEW)
    assert (grant.video_id, grant.target) == (VIDEO_ID, TARGET)
    assert transport.actions == ["CreateUploadVideo"]
    assert transport.calls[0]["ReferenceId"] == "vodup-1"


@pytest.mark.parametrize("lost", [BROKEN, denied("InternalError", 500), Response(200, {}, b"<p>")])
async def test_a_video_whose_making_was_not_told_is_found_again(lost: Answer) -> None:
    transport = Vod(
        CreateUploadVideo=[lost],
        RefreshUploadVideo=[granted()],
        GetMezzanineInfo=[mezzanine("Uploading")],
    )
    grant = await at_vod(transport).create(NEW)
    assert grant.video_id == VIDEO_ID
    assert transport.actions == ["CreateUploadVideo", "RefreshUploadVideo", "GetMezzanineInfo"]
    assert transport.calls[1]["ReferenceId"] == "vodup-1"
    assert "VideoId" not in transport.calls[1]


async def test_a_video_that_was_not_made_is_made() -> None:
    transport = Vod(CreateUploadVideo=[BROKEN, granted()], RefreshUploadVideo=[GONE])
    await at_vod(transport).create(NEW)
    assert transport.actions == ["CreateUploadVideo", "RefreshUploadVideo", "CreateUploadVideo"]


async def test_an_earlier_run_is_asked_about_first() -> None:
    transport = Vod(RefreshUploadVideo=[granted()], GetMezzanineInfo=[mezzanine("Uploading")])
    assert (await at_vod(transport).create(AGAIN)).video_id == VIDEO_ID
    assert "CreateUploadVideo" not in transport.actions


async def test_a_duplicate_of_what_an_earlier_run_made_is_found() -> None:
    transport = Vod(
        CreateUploadVideo=[denied("InvalidParameter")],
        RefreshUploadVideo=[GONE, granted()],
        GetMezzanineInfo=[mezzanine("Uploading")],
    )
    assert (await at_vod(transport).create(AGAIN)).video_id == VIDEO_ID
    assert transport.actions.count("CreateUploadVideo") == 1


async def test_a_plain_refusal_is_raised_without_looking_further() -> None:
    transport = Vod(CreateUploadVideo=[denied("LengthExceededMax")])
    with pytest.raises(ConfigurationError, match="LengthExceededMax"):
        await at_vod(transport).create(NEW)
    assert transport.actions == ["CreateUploadVideo"]


async def test_making_a_video_in_doubt_has_an_end() -> None:
    transport = Vod(CreateUploadVideo=[BROKEN], RefreshUploadVideo=[GONE])
    with pytest.raises(TransportError):
        await at_vod(transport).create(NEW)
    assert transport.actions.count("CreateUploadVideo") == 3


@pytest.mark.parametrize("code", ["MissingParameter", "InvalidParameter", "MissingParameter.Id"])
@pytest.mark.parametrize("video", [NEW, AGAIN], ids=["in this run", "in an earlier run"])
async def test_where_nobody_can_look_no_second_video_is_made(code: str, video: NewVideo) -> None:
    transport = Vod(CreateUploadVideo=[BROKEN, granted()], RefreshUploadVideo=[denied(code)])
    with pytest.raises(VodupError) as caught:
        await at_vod(transport).create(video)
    assert transport.actions.count("CreateUploadVideo") == (0 if video.is_repeat else 1)
    assert "--video-id" in caught.value.next_step


async def test_a_finished_video_is_not_overwritten_by_its_reference_id() -> None:
    transport = Vod(RefreshUploadVideo=[granted()], GetMezzanineInfo=[mezzanine("Normal")])
    with pytest.raises(OverwriteRefused) as caught:
        await at_vod(transport).create(AGAIN)
    assert caught.value.video_id == VIDEO_ID


async def test_a_video_found_again_without_its_id_is_no_find() -> None:
    transport = Vod(RefreshUploadVideo=[granted(None)])
    with pytest.raises(TransportError, match=r"^RefreshUploadVideo did not tell the VideoId\."):
        await at_vod(transport).create(AGAIN)


async def test_the_callers_own_reference_id_is_asked_by() -> None:
    transport = Vod(CreateUploadVideo=[BROKEN, granted()], RefreshUploadVideo=[GONE])
    await at_vod(transport).create(replace(NEW, meta=VideoMeta(reference_id="mine-01")))
    assert {call["ReferenceId"] for call in transport.calls} == {"mine-01"}


async def test_renewing_asks_for_the_same_video() -> None:
    transport = Vod(RefreshUploadVideo=[granted(None)])
    grant = await at_vod(transport).renew(VIDEO_ID)
    assert grant.video_id == VIDEO_ID
    assert transport.calls[0]["VideoId"] == VIDEO_ID


async def test_a_grant_for_another_video_is_not_used() -> None:
    with pytest.raises(InvalidGrant, match="not used") as caught:
        await at_vod(Vod(RefreshUploadVideo=[granted("other")])).renew(VIDEO_ID)
    assert caught.value.video_id == VIDEO_ID
    assert caught.value.next_step.startswith("Check who hands out grants")


async def test_throttling_is_waited_out() -> None:
    transport = Vod(RefreshUploadVideo=[denied("Throttling.User"), granted()])
    await at_vod(transport).renew(VIDEO_ID)
    nonces = {call["SignatureNonce"] for call in transport.calls}
    assert len(nonces) == 2


# --- the caller's own key ------------------------------------------------------------


def keys(*names: str, is_async: bool) -> AccessKeys:
    """A callable that returns the next key each time, the last one for ever."""
    left = list(names)

    def ask() -> AccessKey:
        return AccessKey(id=left.pop(0) if len(left) > 1 else left[0], secret="secret")

    async def ask_async() -> AccessKey:
        await asyncio.sleep(0)
        return ask()

    return ask_async if is_async else ask


EXPIRED = denied("InvalidSecurityToken.Expired", 403)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_key_is_asked_for_once_and_again_when_it_is_refused(is_async: bool) -> None:
    transport = Vod(RefreshUploadVideo=[granted(), granted(), EXPIRED, granted()])
    source = at_vod(transport, keys("id-1", "id-2", is_async=is_async))
    for _ in range(3):
        await source.renew(VIDEO_ID)
    assert [call["AccessKeyId"] for call in transport.calls] == ["id-1"] * 3 + ["id-2"]


@pytest.mark.parametrize("key", [KEY, keys("id-1", is_async=False)])
async def test_the_same_key_again_is_no_renewal(key: AccessKey | AccessKeys) -> None:
    transport = Vod(RefreshUploadVideo=[EXPIRED])
    with pytest.raises(CallerNotAuthenticated) as caught:
        await at_vod(transport, key).renew(VIDEO_ID)
    assert len(transport.calls) == 1
    assert (caught.value.code, caught.value.request_id) == ("InvalidSecurityToken.Expired", "8906")


async def test_calls_side_by_side_renew_the_key_once() -> None:
    transport = Vod(
        RefreshUploadVideo=[EXPIRED, granted()],
        GetMezzanineInfo=[EXPIRED, mezzanine("Uploading")],
    )
    source = at_vod(transport, keys("id-1", "id-2", is_async=True))
    async with asyncio.TaskGroup() as group:
        group.create_task(source.renew(VIDEO_ID))
        group.create_task(source.facts(VIDEO_ID))
    assert sorted(call["AccessKeyId"] for call in transport.calls) == ["id-1"] * 2 + ["id-2"] * 2


async def test_an_sts_key_sends_its_token() -> None:
    transport = Vod(RefreshUploadVideo=[granted()])
    await at_vod(transport, replace(KEY, security_token="t0")).renew(VIDEO_ID)
    assert transport.calls[0]["SecurityToken"] == "t0"


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "ALIBABA_CLOUD_ACCESS_KEY_ID ALIBABA_CLOUD_ACCESS_KEY_SECRET "
        "ALIBABA_CLOUD_SECURITY_TOKEN VODUP_REGION VODUP_VOD_ENDPOINT".split()
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_key_comes_from_the_environment(env: pytest.MonkeyPatch) -> None:
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", " id-1 ")
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret\n")
    provider = VodProvider.from_env()
    assert provider.access_key == KEY
    assert (provider.region, provider.scope) == ("cn-shanghai", VOD)
    env.setenv("ALIBABA_CLOUD_SECURITY_TOKEN", "t0")
    assert VodProvider.from_env().access_key == replace(KEY, security_token="t0")


def test_region_and_endpoint_come_from_the_environment_unless_given(
    env: pytest.MonkeyPatch,
) -> None:
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-1")
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret")
    env.setenv("VODUP_REGION", "ap-southeast-1")
    assert VodProvider.from_env().scope == "https://vod.ap-southeast-1.aliyuncs.com"
    assert VodProvider.from_env(region="cn-beijing").scope.startswith("https://vod.cn-beijing.")
    env.setenv("VODUP_VOD_ENDPOINT", "https://vod-vpc.cn-beijing.aliyuncs.com")
    assert VodProvider.from_env().scope == "https://vod-vpc.cn-beijing.aliyuncs.com"
    assert VodProvider.from_env(endpoint=VOD).scope == VOD


@pytest.mark.parametrize("name", ["ID", "SECRET"])
def test_half_a_key_is_an_error_before_anything_is_asked(
    env: pytest.MonkeyPatch, name: str
) -> None:
    env.setenv(f"ALIBABA_CLOUD_ACCESS_KEY_{name}", "x")
    with pytest.raises(CallerNotAuthenticated, match="Only one"):
        VodProvider.from_env()


ASK_THE_CHAIN = """
import asyncio
from uploader import VodProvider, VodupError

async def main():
    ask = VodProvider.from_env().access_key
    for _ in range(2):
        key = await ask()
        print(key.id, key.secret, key.security_token)

try:
    asyncio.run(main())
except VodupError as error:
    print(type(error).__name__, error.message)
"""


def told_by_the_chain(home: Path) -> str:
    """In a process of its own: the chain's package reads the environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if "ALIBABA" not in name}
    env = kept | {"HOME": str(home), "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}
    argv = [sys.executable, "-c", ASK_THE_CHAIN]
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout


def test_the_default_chain_reads_its_file(tmp_path: Path) -> None:
    file = tmp_path / ".alibabacloud" / "credentials.ini"
    file.parent.mkdir()
    file.write_text(
        "[default]\nenable = true\ntype = access_key\n"
        "access_key_id = LTAI-file\naccess_key_secret = secret-file\n"
    )
    assert told_by_the_chain(tmp_path) == "LTAI-file secret-file None\n" * 2


def test_a_default_chain_that_finds_nothing_says_so(tmp_path: Path) -> None:
    told = told_by_the_chain(tmp_path)
    assert told.startswith("CallerNotAuthenticated The default credential chain found no AccessKey")


def test_without_a_key_and_without_the_default_chain_there_is_advice(
    env: pytest.MonkeyPatch,
) -> None:
    env.setitem(sys.modules, "alibabacloud_credentials.client", None)
    with pytest.raises(CallerNotAuthenticated) as caught:
        VodProvider.from_env()
    assert "vodup[credentials]" in caught.value.next_step


def test_no_key_is_ever_shown() -> None:
    shown = repr(VodProvider(AccessKey(id="id-1", secret="canary", security_token="canary")))
    assert "canary" not in shown
    assert "id-1" not in shown


@pytest.mark.parametrize("endpoint", ["http://vod.cn-shanghai.aliyuncs.com", "https://evil.com"])
def test_vod_calls_go_to_vod_alone(endpoint: str) -> None:
    with pytest.raises(UntrustedEndpoint):
        VodProvider(KEY, endpoint=endpoint).connect(network(Vod()))


# --- callbacks -----------------------------------------------------------------------


async def test_callbacks_return_grants_or_answers() -> None:
    async def renew(video_id: str) -> UploadGrant:
        return replace(a_grant(), video_id=None)

    async def create(video: NewVideo) -> bytes:
        assert video is NEW
        return granted().body

    source = CallbackProvider(renew, create).connect(network(Vod()))
    assert (await source.renew(VIDEO_ID)).video_id == VIDEO_ID
    assert (await source.create(NEW)).video_id == VIDEO_ID
    assert await source.facts(VIDEO_ID) is None


async def test_a_callback_may_not_change_the_video() -> None:
    async def renew(video_id: str) -> bytes:
        return granted("other").body

    with pytest.raises(InvalidGrant):
        await CallbackProvider(renew).connect(network(Vod())).renew(VIDEO_ID)


async def test_without_on_create_no_video_can_be_made() -> None:
    async def renew(video_id: str) -> UploadGrant:
        return a_grant()

    with pytest.raises(ConfigurationError, match=r"^This callback .* cannot make a video\."):
        await CallbackProvider(renew).connect(network(Vod())).create(NEW)


@pytest.mark.parametrize("name", ["on_renew", "on_create"])
async def test_what_a_callback_raises_becomes_ours_without_its_text(name: str) -> None:
    async def fail(_: object) -> UploadGrant:
        raise KeyError("canary")

    source = CallbackProvider(fail, fail).connect(network(Vod()))
    call = source.renew(VIDEO_ID) if name == "on_renew" else source.create(NEW)
    with pytest.raises(TransportError, match=f"{name} raised KeyError") as caught:
        await call
    assert "canary" not in str(caught.value)
    assert caught.value.next_step == "Mend what it raised, then run the same command again."
    assert isinstance(caught.value.__cause__, KeyError)


async def test_our_own_errors_pass_through_a_callback() -> None:
    async def fail(video_id: str) -> UploadGrant:
        raise VideoGone("It is gone.")

    with pytest.raises(VideoGone):
        await CallbackProvider(fail).connect(network(Vod())).renew(VIDEO_ID)


# --- commands ------------------------------------------------------------------------

# Prints an answer that names what it was started with.
_ECHO = (
    "import json, os, sys\n"
    "told = {n: v for n, v in os.environ.items() if n.startswith('VODUP_')}\n"
    "open(sys.argv[1], 'w').write(json.dumps([sys.argv[2:], told]))\n"
    "print(os.environ['ANSWER'])\n"
)


Echo = Callable[..., Awaitable[tuple[list[str], dict[str, str]]]]


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Echo:
    """Run a command that notes its arguments and `VODUP_*` variables."""
    noted = tmp_path / "noted"
    monkeypatch.setenv("ANSWER", granted().body.decode())

    async def run(*more: str, video: NewVideo | None = None) -> tuple[list[str], dict[str, str]]:
        command = [sys.executable, "-c", _ECHO, str(noted), *more]
        source = CommandProvider(command).connect(network(Vod()))
        grant = await (source.create(video) if video else source.renew(VIDEO_ID))
        assert grant.video_id == VIDEO_ID
        arguments, variables = json.loads(noted.read_text())
        return arguments, variables

    return run


async def test_a_command_gets_the_video_id_at_its_end(echo: Echo) -> None:
    arguments, variables = await echo("--quiet")
    assert arguments == ["--quiet", VIDEO_ID]
    assert variables == {"VODUP_ACTION": "renew", "VODUP_VIDEO_ID": VIDEO_ID}


async def test_a_command_gets_the_video_id_where_it_wants_it(echo: Echo) -> None:
    arguments, _ = await echo("--id={video_id}", "{video_id}", "$(rm -rf x)")
    assert arguments == [f"--id={VIDEO_ID}", VIDEO_ID, "$(rm -rf x)"]


async def test_a_command_that_makes_a_video_is_told_what_of(echo: Echo) -> None:
    arguments, variables = await echo("--new", video=NEW)
    assert arguments == ["--new"]
    assert variables == {
        "VODUP_ACTION": "create",
        "VODUP_VIDEO_ID": "",
        "VODUP_TITLE": "Movie",
        "VODUP_FILE_NAME": "a.mp4",
        "VODUP_FILE_SIZE": "9",
        "VODUP_REFERENCE_ID": "vodup-1",
        "VODUP_META": '{"title": "Movie"}',
    }


def test_a_command_is_split_like_in_a_shell_but_not_run_by_one() -> None:
    assert CommandProvider("get-grant 'a b' --x").argv == ["get-grant", "a b", "--x"]
    assert CommandProvider(["/opt/get grant", "s3cret"]).scope == "command:get grant"


@pytest.mark.parametrize("command", ["", "  ", []])
def test_an_empty_command_is_refused(command: str | list[str]) -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        _ = CommandProvider(command).scope


async def test_a_command_is_not_asked_for_facts() -> None:
    assert await CommandProvider("false").connect(network(Vod())).facts(VIDEO_ID) is None


def test_a_command_with_an_open_quote_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="quotation"):
        _ = CommandProvider("get 'grant").argv


async def test_a_command_that_is_not_there_is_named() -> None:
    source = CommandProvider(["/no/such/command"]).connect(network(Vod()))
    with pytest.raises(ConfigurationError, match="/no/such/command"):
        await source.renew(VIDEO_ID)


async def test_a_command_that_fails_is_temporary() -> None:
    source = CommandProvider([sys.executable, "-c", "raise SystemExit(3)"]).connect(network(Vod()))
    with pytest.raises(TransportError, match="exit status 3") as caught:
        await source.renew(VIDEO_ID)
    assert caught.value.is_temporary
    assert caught.value.next_step.startswith("Run it by hand to see why")


async def test_a_command_that_hangs_is_ended() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    source = CommandProvider(sleep, timeout_s=0.2).connect(network(Vod()))
    with pytest.raises(TransportError, match=r"0\.2 s"):
        await asyncio.wait_for(source.renew(VIDEO_ID), 10)


# --- URLs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://grants.example.com/x",
        "http://127.0.0.1:8000/x",
        "http://[::1]/x",
        "http://localhost/x",
        "ftp://grants.example.com/x",
        "grants.example.com/x",
        "",
    ],
)
def test_an_auth_url_is_https(url: str) -> None:
    with pytest.raises(UntrustedEndpoint, match="must be https") as caught:
        UrlProvider(url).connect(network(Vod()))
    assert caught.value.next_step.startswith("Use https. For a test on this machine, a loopback ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/x", "http://[::1]/x"])
def test_a_loopback_literal_may_be_allowed(url: str) -> None:
    UrlProvider(url).connect(network(Vod(), trust=TrustPolicy(allow_loopback=True)))


@pytest.mark.parametrize(
    "url", ["http://localhost/x", "http://127.0.0.1.evil.com/x", "http://127.0.0.1@evil.com/x"]
)
def test_allowing_loopback_allows_literals_alone(url: str) -> None:
    with pytest.raises(UntrustedEndpoint):
        UrlProvider(url).connect(network(Vod(), trust=TrustPolicy(allow_loopback=True)))


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        UrlProvider("https://[::1/x").connect(network(Vod()))


async def test_a_url_with_a_place_for_the_video_id_is_got() -> None:
    transport = Vod(any=[granted(None)])
    source = UrlProvider("https://h/v/{video_id}?x=1", "b0").connect(network(transport))
    assert (await source.renew("a/b?c")).video_id == "a/b?c"
    (request,) = transport.requests
    assert (request.method, request.url) == ("GET", "https://h/v/a%2Fb%3Fc?x=1")
    assert request.headers["authorization"] == "Bearer b0"
    with pytest.raises(ConfigurationError):
        await source.create(NEW)


async def test_a_url_without_one_is_posted_to() -> None:
    transport = Vod(any=[granted()])
    source = UrlProvider("https://h/grants").connect(network(transport))
    await source.renew(VIDEO_ID)
    await source.create(NEW)
    assert {request.method for request in transport.requests} == {"POST"}
    renewed, made = (json.loads(call["body"]) for call in transport.calls)
    assert renewed == {"action": "renew", "video_id": VIDEO_ID}
    assert made == {
        "action": "create",
        "title": "Movie",
        "file_name": "a.mp4",
        "file_size": "9",
        "reference_id": "vodup-1",
        "meta": '{"title": "Movie"}',
    }
    assert "authorization" not in transport.requests[0].headers


async def test_an_app_server_that_is_busy_says_for_how_long() -> None:
    transport = Vod(any=[Response(503, {"retry-after": "7"}, b"busy"), granted()])
    net = network(transport)
    await UrlProvider("https://h/grants").connect(net).renew(VIDEO_ID)
    assert isinstance(net.clock, SkippingClock)
    assert net.clock.pauses == [7.0]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, ServiceError),
        (401, CallerNotAuthenticated),
        (403, PermissionDenied),
        (404, ServiceError),
    ],
)
async def test_an_app_server_that_says_no_is_believed(status: int, kind: type[VodupError]) -> None:
    transport = Vod(any=[Response(status, {}, b"no")])
    with pytest.raises(kind, match=str(status)) as caught:
        await UrlProvider("https://h/grants").connect(network(transport)).renew(VIDEO_ID)
    assert caught.value.next_step.split()[0] in {"Look", "Ask", "Check"}
    assert len(transport.requests) == 1


async def test_an_app_server_that_talks_of_other_things_is_not_understood() -> None:
    transport = Vod(any=[Response(200, {}, b"<html>canary</html>")])
    with pytest.raises(InvalidGrant) as caught:
        await UrlProvider("https://h/grants").connect(network(transport)).renew(VIDEO_ID)
    assert "canary" not in str(caught.value)


def test_the_scope_of_a_url_is_without_its_query_and_token() -> None:
    provider = UrlProvider("https://h/grants?key=canary", "canary")
    assert provider.scope == "https://h/grants"
    assert UrlProvider("https://u:canary@h/grants").scope == "https://h/grants"
    assert "canary" not in repr(provider)


def test_arguments_of_a_command_are_not_shown() -> None:
    assert "canary" not in repr(CommandProvider(["get", "--secret=canary"]))
