"""The one retry loop: what is repeated, after which pause, and what ends it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clocks import START, SkippingClock
from uploader.errors import (
    CallerNotAuthenticated,
    CredentialsRejected,
    IntegrityError,
    InvalidGrant,
    PermissionDenied,
    ServiceError,
    SourceChanged,
    TransportError,
    VideoGone,
    VodupError,
)
from uploader.protocol.failures import OSS, VOD, Meaning, Service
from uploader.protocol.wire import Operation, Request, Response, SignedRequest
from uploader.session import Contact, Retried, RetryPolicy, Session

Answer = Response | BaseException
BROKEN = TransportError("The connection was reset.", is_sent=True)
OK = Response(200, {}, b"done")


def refused(status: int, code: str, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"x-code": code, **named}, b"")


def parse(response: Response) -> str:
    if response.status == 200:
        return response.body.decode()
    code = response.headers["x-code"]
    raise ServiceError(
        f"Refused with {code}.",
        operation="UploadPart",
        status=response.status,
        code=code,
        request_id="5C3D",
        server_epoch_s=response.server_epoch_s,
        retry_after_s=response.retry_after_s,
    )


def unusable_page(response: Response) -> str:
    raise TransportError("The answer has no ETag.", is_sent=True)


OPERATION = Operation(name="UploadPart", request=Request("PUT", "https://h"), parse=parse)
ONCE = Operation(
    name="Create", request=Request("POST", "https://h"), parse=parse, is_repeatable=False
)
ERROR_IN_SUCCESS = replace(OPERATION, parse=lambda response: parse(replace(response, status=201)))
PROBE = Operation(name="ListParts", request=Request("GET", "https://h"), parse=parse)
PROBED = replace(OPERATION, probe=PROBE)


@dataclass
class FakeSigner:
    """Counts its requests. Mutable."""

    slots: Slots
    generation: int = 1
    is_old: bool = False
    renewal_count: int = 0
    accepted_generations: list[int] = field(default_factory=list)
    offsets_s: list[float] = field(default_factory=list)
    signed_for: list[Operation[Any]] = field(default_factory=list)
    regions: list[str | None] = field(default_factory=list)
    refused: list[SignedRequest] = field(default_factory=list)
    unready_count: int = 0
    prepare_count: int = 0
    on_renew: Callable[[], None] = lambda: None

    async def prepare(self) -> None:
        assert self.slots.held == 0
        self.prepare_count += 1

    def is_ready(self) -> bool:
        self.unready_count -= 1
        return self.unready_count < 0

    def sign(
        self, operation: Operation[Any], *, clock_offset_s: float, region: str | None = None
    ) -> SignedRequest:
        assert self.slots.held == 1
        self.offsets_s.append(clock_offset_s)
        self.signed_for.append(operation)
        self.regions.append(region)
        return SignedRequest("PUT", f"https://h/{len(self.offsets_s)}", {}, None, self.generation)

    def is_aged(self, signed: SignedRequest) -> bool:
        return self.is_old or signed.generation != self.generation

    async def renew(self, refused: SignedRequest) -> None:
        assert self.slots.held == 0
        self.on_renew()
        self.refused.append(refused)
        self.renewal_count += 1
        self.generation += 1

    def accepted(self, signed: SignedRequest) -> None:
        self.accepted_generations.append(signed.generation)


@dataclass
class Slots:
    """How many slots are held, and have ever been taken. Mutable."""

    held: int = 0
    taken: int = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        self.held += 1
        self.taken += 1
        try:
            yield
        finally:
            self.held -= 1


class WatchedClock(SkippingClock):
    """Asserts that no call sleeps while it holds a slot."""

    def __init__(self, slots: Slots, *, wrong_by_s: float = 0.0) -> None:
        super().__init__(wrong_by_s=wrong_by_s)
        self._slots = slots

    async def sleep(self, seconds: float) -> None:
        assert self._slots.held == 0
        await super().sleep(seconds)


class Rig:
    """A session on a script of answers; the last one is given for ever. Mutable."""

    def __init__(
        self,
        answers: Sequence[Answer],
        *,
        service: Service = OSS,
        draw: float = 0.5,
        wrong_by_s: float = 0.0,
        seconds_per_answer: float = 0.0,
        contact: Contact | None = None,
    ) -> None:
        self.answers, self.seconds_per_answer = list(answers), seconds_per_answer
        self.slots = Slots()
        self.clock = WatchedClock(self.slots, wrong_by_s=wrong_by_s)
        self.signer = FakeSigner(self.slots)
        self.sent: list[SignedRequest] = []
        self.answer_timeouts_s: list[float] = []
        self.retried: list[Retried] = []
        self.slow_down_count = 0
        self.session = Session(
            self,
            self.signer,
            clock=self.clock,
            service=service,
            slot=self.slots.slot,
            slow_down=self._slow_down,
            on_retry=self.retried.append,
            draw=lambda: draw,
            contact=contact,
        )

    def _slow_down(self) -> None:
        self.slow_down_count += 1

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        assert self.slots.held == 1
        self.sent.append(request)
        self.answer_timeouts_s.append(answer_timeout_s)
        await asyncio.sleep(0)
        self.clock.now_s += self.seconds_per_answer
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def call(self, operation: Operation[str] = OPERATION) -> str:
        return await self.session.call(operation)

    async def fails(
        self, kind: type[VodupError], operation: Operation[str] = OPERATION
    ) -> VodupError:
        with pytest.raises(kind) as caught:
            await self.call(operation)
        assert type(caught.value) is kind
        assert self.slots.held == 0
        return caught.value

    def meanings(self) -> list[Meaning]:
        return [retried.meaning for retried in self.retried]


async def test_a_success_is_returned_and_reported_to_the_signer() -> None:
    rig = Rig([OK])
    assert await rig.call() == "done"
    assert rig.signer.accepted_generations == [1]
    assert not rig.retried
    assert rig.slots.held == 0


_TOKEN = "OpaqueToken+of/this=session" * 4


@pytest.mark.parametrize(
    ("url", "headers", "secret"),
    [
        ("https://h/", {"x-oss-security-token": _TOKEN}, _TOKEN),
        ("https://h/", {"authorization": f"OSS key-id:{_TOKEN}"}, _TOKEN),
        ("https://h/", {"authorization": f"OSS4 Credential=key-id, Signature={_TOKEN}"}, _TOKEN),
        (f"https://h/?a=1&SecurityToken={quote(_TOKEN, safe='')}&b=2", {}, _TOKEN),
        (f"https://h/?Signature={quote(_TOKEN, safe='')}", {}, _TOKEN),
    ],
)
async def test_a_service_that_echoes_a_secret_does_not_make_it_part_of_the_error(
    url: str, headers: dict[str, str], secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse_echo(_: Response) -> str:
        text = f"The key-id or {secret[:60]} is bad."
        raise ServiceError(text, operation="X", status=403, code=secret, ec=secret, request_id="R1")

    rig = Rig([refused(403, "AccessDenied")])
    signed = SignedRequest("PUT", url, headers)
    monkeypatch.setattr(rig.signer, "sign", lambda *_, **__: signed)
    error = await rig.fails(ServiceError, replace(OPERATION, parse=parse_echo))
    assert error.message == "The key-id or [redacted] is bad."
    assert (error.code, error.request_id) == ("[redacted]", "R1")
    assert secret[:20] not in "".join(traceback.format_exception(error)) + repr(vars(error))


# --- pauses --------------------------------------------------------------------------


async def test_pauses_double_up_to_the_cap() -> None:
    rig = Rig([*[refused(500, "InternalError")] * 9, OK])
    await rig.call()
    assert rig.clock.pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]
    assert [retried.pause_s for retried in rig.retried] == rig.clock.pauses


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_pauses_are_drawn_from_zero_to_their_limit(failure_count: int, draw: float) -> None:
    policy = RetryPolicy()
    pause_s = policy.pause_s(failure_count, draw=draw)
    assert 0 <= pause_s <= min(policy.cap_s, policy.base_s * 2.0 ** min(failure_count, 60))
    assert pause_s == pytest.approx(draw * policy.pause_s(failure_count, draw=1.0))


async def test_the_first_broken_connection_is_retried_at_once() -> None:
    rig = Rig([BROKEN, BROKEN, OK])
    await rig.call()
    assert rig.clock.pauses == [0.0, 1.0]


async def test_a_first_refusal_is_not_retried_at_once() -> None:
    rig = Rig([refused(500, "InternalError"), OK])
    await rig.call()
    assert rig.clock.pauses == [0.5]


async def test_other_bytes_in_oss_are_sent_again() -> None:
    rig = Rig([IntegrityError("Other bytes."), OK])
    assert await rig.call() == "done"
    assert rig.clock.pauses == [0.5]


@pytest.mark.parametrize(
    ("futile", "kind", "request_count"),
    [
        (IntegrityError("Other bytes."), IntegrityError, 5),
        (InvalidGrant("No FileName."), InvalidGrant, 2),
        (refused(200, "InternalError"), ServiceError, 5),
    ],
)
async def test_what_waiting_does_not_change_ends_soon(
    futile: Answer, kind: type[VodupError], request_count: int
) -> None:
    rig = Rig([OK, *[BROKEN, futile] * request_count])
    await rig.call()
    error = await rig.fails(kind, ERROR_IN_SUCCESS)
    assert not error.is_temporary
    assert len(rig.sent) == 1 + 2 * request_count, "broken connections do not count"
    assert rig.clock.now_s < 120


async def test_a_grant_that_cannot_be_used_is_requested_once_more() -> None:
    rig = Rig([InvalidGrant("No FileName."), OK])
    assert await rig.call() == "done"


async def test_a_grant_that_cannot_be_used_is_not_created_twice() -> None:
    rig = Rig([InvalidGrant("No FileName."), OK])
    await rig.fails(InvalidGrant, ONCE)
    assert len(rig.sent) == 1


async def test_retry_after_is_the_least_pause() -> None:
    rig = Rig([refused(503, "ServiceUnavailable", retry_after="7"), OK])
    await rig.call()
    assert rig.clock.pauses == [7.0]


async def test_retry_after_does_not_shorten_a_pause() -> None:
    rig = Rig([*[refused(503, "ServiceUnavailable", retry_after="1")] * 5, OK])
    await rig.call()
    assert rig.clock.pauses == [1.0, 1.0, 2.0, 4.0, 8.0]


async def test_every_attempt_has_its_own_signature() -> None:
    rig = Rig([BROKEN, refused(500, "InternalError"), OK])
    await rig.call()
    assert len({request.url for request in rig.sent}) == 3
    assert rig.slots.taken == 3


# --- refusals that a reset takes with it -------------------------------------------------


async def test_a_probe_finds_the_refusal_that_resets_hide() -> None:
    rig = Rig([BROKEN, BROKEN, refused(403, "SecurityTokenExpired"), OK])
    assert await rig.call(PROBED) == "done"
    assert rig.signer.signed_for == [PROBED, PROBED, PROBE, PROBED]
    assert [request.generation for request in rig.signer.refused] == [1]
    assert rig.meanings() == [Meaning.RETRY, Meaning.RETRY, Meaning.RENEW]
    assert rig.retried[-1].operation == "ListParts"


async def test_a_probe_that_is_answered_vouches_for_its_credentials() -> None:
    rig = Rig([BROKEN, BROKEN, OK, refused(403, "AccessDenied")])
    await rig.fails(PermissionDenied, PROBED)
    assert rig.signer.accepted_generations == [1]


async def test_no_probe_is_signed_with_credentials_that_were_refused_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig([BROKEN, BROKEN, OK])
    monkeypatch.setattr(rig.signer, "is_ready", iter([True, True, False, True]).__next__)
    assert await rig.call(PROBED) == "done"
    assert rig.signer.signed_for == [PROBED, PROBED, PROBED]
    assert rig.signer.prepare_count == 4


def of_region(region: str | None) -> Response:
    headers = {"x-region": region} if region else {}
    return Response(400, headers, b"")


def parse_region(response: Response) -> str:
    if response.status == 200:
        return "done"
    raise ServiceError(
        "Invalid signing region.",
        operation="X",
        status=400,
        code="InvalidArgument",
        ec="0002-00000226",
        oss_region=response.headers.get("x-region"),
    )


REGIONAL = replace(OPERATION, parse=parse_region)


async def test_the_region_that_an_answer_names_reaches_the_signer_once() -> None:
    rig = Rig([of_region("cn-beijing"), OK, OK])
    for _ in range(2):
        await rig.session.call(REGIONAL)
    assert rig.signer.regions == [None, "cn-beijing", None]
    assert rig.meanings() == [Meaning.FIX_REGION]
    assert rig.clock.pauses == []


@pytest.mark.parametrize("answers", [[None], ["cn-beijing", "cn-shenzhen"]])
async def test_a_region_is_learned_once_a_call(answers: list[str | None]) -> None:
    rig = Rig([of_region(region) for region in answers])
    error = await rig.fails(PermissionDenied, REGIONAL)
    assert "--oss-region" in error.next_step
    assert len(rig.signer.regions) == len(answers)


async def test_a_clock_that_a_broken_body_hides_is_corrected() -> None:
    date = format_datetime(START + timedelta(hours=1), usegmt=True)
    rig = Rig([BROKEN, BROKEN, refused(403, "RequestTimeTooSkewed", date=date), OK])
    await rig.call(PROBED)
    assert rig.signer.offsets_s == [0.0, 0.0, 0.0, pytest.approx(3600, abs=2)]
    assert rig.signer.signed_for == [PROBED, PROBED, PROBE, PROBED]


async def test_a_probe_finds_that_the_upload_has_vanished() -> None:
    rig = Rig([BROKEN, BROKEN, refused(404, "NoSuchUpload")])
    assert (await rig.fails(ServiceError, PROBED)).code == "NoSuchUpload"
    assert rig.signer.signed_for == [PROBED, PROBED, PROBE]


@pytest.mark.parametrize("found", [OK, BROKEN, refused(403, "AccessDenied")])
async def test_a_probe_that_finds_nothing_changes_nothing(found: Answer) -> None:
    rig = Rig([BROKEN, BROKEN, found, BROKEN, found, OK])
    rig.signer.is_old = True  # a denied list says nothing about these credentials
    assert await rig.call(PROBED) == "done"
    assert rig.clock.pauses == [0.0, 1.0, 2.0]
    assert rig.signer.signed_for == [PROBED, PROBED, PROBE, PROBED, PROBE, PROBED]
    assert rig.signer.renewal_count == 0


@pytest.mark.parametrize(
    "between",
    [
        refused(500, "InternalError"),
        TransportError("No connection was made.", is_sent=False),
        TransportError("The peer took nothing.", is_sent=True, is_timeout=True),
    ],
)
async def test_only_resets_in_a_row_are_probed(between: Answer) -> None:
    rig = Rig([BROKEN, between, BROKEN, OK])
    await rig.call(PROBED)
    assert PROBE not in rig.signer.signed_for


async def test_renewing_behind_broken_bodies_has_an_end() -> None:
    rounds: list[Answer] = [BROKEN, refused(403, "SecurityTokenExpired")] * 6
    rig = Rig([BROKEN, *rounds])
    await rig.fails(CredentialsRejected, PROBED)
    assert rig.signer.renewal_count == 5
    assert rig.signer.signed_for == [PROBED, *[PROBED, PROBE] * 6]


# --- patience ------------------------------------------------------------------------


async def test_a_service_that_never_answered_is_given_up_after_a_minute() -> None:
    rig = Rig([BROKEN])
    error = await rig.fails(TransportError)
    assert error.is_temporary
    assert 30 < rig.clock.now_s <= 60


async def test_a_service_that_has_answered_before_gets_fifteen_minutes() -> None:
    rig = Rig([OK, BROKEN])
    await rig.call()
    await rig.fails(TransportError)
    assert 870 < rig.clock.now_s <= 900


async def test_sessions_with_the_same_service_share_its_first_contact() -> None:
    contact = Contact()
    await Rig([OK], contact=contact).call()
    rig = Rig([BROKEN], contact=contact)
    await rig.fails(TransportError)
    assert 870 < rig.clock.now_s <= 900
    assert 800 < rig.retried[0].left_s <= 900


async def test_any_answer_is_a_first_contact() -> None:
    rig = Rig([refused(500, "InternalError")])
    error = await rig.fails(ServiceError)
    assert error.is_temporary
    assert 870 < rig.clock.now_s <= 900


async def test_patience_begins_with_the_first_failure_not_with_the_call() -> None:
    rig = Rig([OK, BROKEN, OK], seconds_per_answer=2000.0)
    await rig.call()
    assert await rig.call() == "done"


async def test_patience_counts_the_time_attempts_take() -> None:
    rig = Rig([OK, BROKEN], seconds_per_answer=500.0)
    await rig.call()
    await rig.fails(TransportError)
    assert len(rig.sent) == 1 + 3


async def test_waiting_longer_than_patience_is_not_begun() -> None:
    rig = Rig([refused(503, "ServiceUnavailable", retry_after="901")])
    error = await rig.fails(ServiceError)
    assert error.is_temporary
    assert rig.clock.pauses == []


@pytest.mark.parametrize("failure", [BROKEN, refused(500, "InternalError"), refused(503, "")])
async def test_an_operation_may_have_a_number_of_attempts(failure: Answer) -> None:
    three = replace(OPERATION, max_attempts=3)
    assert await Rig([failure, failure, OK]).call(three) == "done"
    rig = Rig([failure, failure, failure, OK])
    with pytest.raises((TransportError, ServiceError)) as caught:
        await rig.call(three)
    assert len(rig.sent) == 3
    assert caught.value.is_temporary


async def test_renewals_are_no_attempts() -> None:
    expired = refused(403, "SecurityTokenExpired")
    rig = Rig([expired, expired, refused(500, "InternalError"), OK])
    assert await rig.call(replace(OPERATION, max_attempts=2)) == "done"


async def test_every_call_has_patience_of_its_own() -> None:
    failures = [refused(500, "InternalError")] * 40
    rig = Rig([*failures, OK, *failures, OK])
    await rig.call()
    assert await rig.call() == "done"
    assert rig.clock.now_s > 900


# --- slowing down --------------------------------------------------------------------


async def test_a_busy_service_slows_down_each_time() -> None:
    rig = Rig([refused(503, "SlowDown"), refused(503, ""), refused(429, ""), OK])
    await rig.call()
    assert rig.slow_down_count == 3
    assert rig.meanings() == [Meaning.SLOW_DOWN] * 3


async def test_a_timeout_of_either_side_slows_down() -> None:
    late = TransportError("The server took no byte for 30 s.", is_sent=True, is_timeout=True)
    rig = Rig([late, refused(400, "RequestTimeout"), OK])
    await rig.call()
    assert rig.slow_down_count == 2
    assert rig.meanings() == [Meaning.SLOW_DOWN] * 2


async def test_a_mere_failure_does_not_slow_down() -> None:
    rig = Rig([BROKEN, refused(500, "InternalError"), OK])
    await rig.call()
    assert rig.slow_down_count == 0


# --- renewing ------------------------------------------------------------------------


async def test_expired_credentials_are_renewed_and_the_request_repeated_at_once() -> None:
    rig = Rig([refused(403, "SecurityTokenExpired"), OK])
    assert await rig.call() == "done"
    assert rig.signer.renewal_count == 1
    assert [request.generation for request in rig.sent] == [1, 2]
    assert rig.signer.accepted_generations == [2]
    assert rig.clock.pauses == []
    assert rig.meanings() == [Meaning.RENEW]


async def test_a_vague_403_of_fresh_credentials_is_final() -> None:
    rig = Rig([refused(403, "AccessDenied"), OK])
    error = await rig.fails(PermissionDenied)
    assert (error.code, error.request_id) == ("AccessDenied", "5C3D")
    assert rig.signer.renewal_count == 0


async def test_a_vague_403_of_aged_credentials_is_worth_a_renewal() -> None:
    rig = Rig([refused(403, "AccessDenied"), OK])
    rig.signer.is_old = True
    assert await rig.call() == "done"
    assert rig.signer.renewal_count == 1


async def test_renewals_of_one_call_have_an_end() -> None:
    rig = Rig([refused(403, "SecurityTokenExpired")])
    error = await rig.fails(CredentialsRejected)
    assert rig.signer.renewal_count == 5
    assert "--part-size" in error.next_step
    assert (error.code, error.request_id) == ("SecurityTokenExpired", "5C3D")


async def test_a_caller_whose_every_key_is_refused_gets_advice_about_keys() -> None:
    rig = Rig([refused(400, "InvalidSecurityToken.Expired")], service=VOD)
    error = await rig.fails(CallerNotAuthenticated)
    assert rig.signer.renewal_count == 5
    assert "ALIBABA_CLOUD_ACCESS_KEY_ID" in error.next_step


async def test_a_failed_renewal_names_the_refusal_that_led_to_it() -> None:
    def fail() -> None:
        raise CredentialsRejected("No more credentials.")

    rig = Rig([refused(403, "SecurityTokenExpired")])
    rig.signer.on_renew = fail
    error = await rig.fails(CredentialsRejected)
    assert (error.message, error.code) == ("No more credentials.", "SecurityTokenExpired")
    assert error.request_id == "5C3D"


async def test_credentials_refused_while_waiting_for_a_slot_are_not_signed_with() -> None:
    rig = Rig([OK])
    rig.signer.unready_count = 2
    assert await rig.call() == "done"
    assert rig.signer.prepare_count == 3
    assert len(rig.sent) == len(rig.signer.offsets_s) == 1


# --- the clock -----------------------------------------------------------------------


def skewed(*, server_ahead_s: float) -> Response:
    date = format_datetime(START + timedelta(seconds=server_ahead_s), usegmt=True)
    return refused(403, "RequestTimeTooSkewed", date=date)


async def test_the_servers_clock_is_learned_and_kept() -> None:
    rig = Rig([skewed(server_ahead_s=0), OK], wrong_by_s=3600)
    await rig.call()
    await rig.call()
    assert rig.signer.offsets_s == [0.0, -3600.0, -3600.0]
    assert rig.clock.pauses == []
    assert rig.meanings() == [Meaning.FIX_CLOCK]


async def test_the_clock_is_fixed_once_a_call() -> None:
    rig = Rig([skewed(server_ahead_s=3600)])
    error = await rig.fails(ServiceError)
    assert error.code == "RequestTimeTooSkewed"
    assert "clock" in error.next_step
    assert len(rig.sent) == 2


async def test_a_later_call_may_fix_the_clock_again() -> None:
    rig = Rig([skewed(server_ahead_s=3600), OK, skewed(server_ahead_s=7200), OK])
    await rig.call()
    await rig.call()
    assert rig.signer.offsets_s[-1] == 7200.0


async def test_without_a_date_there_is_nothing_to_learn() -> None:
    rig = Rig([refused(403, "RequestTimeTooSkewed")])
    await rig.fails(ServiceError)
    assert len(rig.sent) == 1


@pytest.mark.parametrize("sign", [1, -1])
async def test_a_clock_more_than_a_day_away_is_ignored(sign: int) -> None:
    rig = Rig([skewed(server_ahead_s=sign * (24 * 3600 + 1)), OK])
    await rig.fails(ServiceError)
    assert len(rig.sent) == 1


@pytest.mark.parametrize("sign", [1, -1])
async def test_a_clock_a_day_away_is_used(sign: int) -> None:
    rig = Rig([skewed(server_ahead_s=sign * 24 * 3600), OK])
    await rig.call()
    assert rig.signer.offsets_s == [0.0, sign * 24 * 3600.0]


# --- what may not be repeated --------------------------------------------------------


@pytest.mark.parametrize("failure", [BROKEN, refused(500, "InternalError"), refused(504, "")])
async def test_what_must_not_happen_twice_is_not_repeated_in_doubt(failure: Answer) -> None:
    rig = Rig([failure, OK], service=VOD)
    with pytest.raises((TransportError, ServiceError)):
        await rig.call(ONCE)
    assert len(rig.sent) == 1


@pytest.mark.parametrize(
    "failure",
    [
        TransportError("No route.", is_sent=False),
        refused(400, "Throttling.User"),
        refused(503, "ServiceUnAvailable"),
        refused(400, "InvalidSecurityToken.Expired"),
    ],
)
async def test_what_certainly_did_not_happen_is_repeated(failure: Answer) -> None:
    rig = Rig([failure, OK], service=VOD)
    assert await rig.call(ONCE) == "done"
    assert len(rig.sent) == 2


# --- ends ----------------------------------------------------------------------------


async def test_giving_up_raises_what_callers_catch_apart() -> None:
    error = await Rig([refused(404, "InvalidVideo.NotFound")], service=VOD).fails(VideoGone)
    assert (error.code, error.request_id) == ("InvalidVideo.NotFound", "5C3D")


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchBucket", "NobodyKnowsThis"])
async def test_giving_up_raises_the_refusal_itself(code: str) -> None:
    rig = Rig([refused(404, code), OK])
    error = await rig.fails(ServiceError)
    assert error.code == code
    assert len(rig.sent) == 1
    assert not error.is_temporary


async def test_what_is_wrong_with_the_source_passes_through() -> None:
    rig = Rig([SourceChanged("It is shorter."), OK])
    await rig.fails(SourceChanged)
    assert len(rig.sent) == 1


async def test_cancellation_passes_through_and_frees_the_slot() -> None:
    rig = Rig([asyncio.CancelledError()])
    with pytest.raises(asyncio.CancelledError):
        await rig.call()
    assert len(rig.sent) == 1
    assert rig.slots.held == 0


async def test_retries_are_reported() -> None:
    part = Operation(
        name="UploadPart", request=Request("PUT", "https://h"), parse=parse, part_number=17
    )
    rig = Rig([refused(500, "InternalError"), OK])
    await rig.call(part)
    (retried,) = rig.retried
    assert (retried.operation, retried.part_number, retried.pause_s) == ("UploadPart", 17, 0.5)
    assert retried.failure.code == "InternalError"


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (refused(403, "SecurityTokenExpired"), Meaning.RENEW),
        (skewed(server_ahead_s=0), Meaning.FIX_CLOCK),
    ],
)
async def test_retries_without_a_pause_are_reported(answer: Response, meaning: Meaning) -> None:
    rig = Rig([answer, OK])
    await rig.call()
    (retried,) = rig.retried
    assert (retried.meaning, retried.pause_s) == (meaning, 0.0)
    assert retried.failure.code == answer.headers["x-code"]


async def test_the_refused_request_is_what_is_renewed_for() -> None:
    rig = Rig([refused(403, "SecurityTokenExpired"), OK])
    await rig.call()
    assert rig.signer.refused == rig.sent[:1]


async def test_the_operation_is_what_is_signed_and_how_long_it_is_waited_for() -> None:
    slow = replace(OPERATION, answer_timeout_s=77.0)
    rig = Rig([BROKEN, OK])
    await rig.call(slow)
    assert rig.signer.signed_for == [slow, slow]
    assert rig.answer_timeouts_s == [77.0, 77.0]


async def test_credentials_refused_again_and_again_come_with_advice() -> None:
    error = await Rig([refused(403, "SecurityTokenExpired")]).fails(CredentialsRejected)
    assert str(error) == (
        "Refused with SecurityTokenExpired. So were 5 credentials in a row. "
        "Use a smaller --part-size or more bandwidth: a part must be sent within the life of one "
        "credential. Then run the same command again."
    )


async def test_a_clock_that_cannot_be_fixed_comes_with_advice() -> None:
    error = await Rig([refused(403, "RequestTimeTooSkewed")]).fails(ServiceError)
    assert error.next_step == "Set the clock of this machine, then run the same command again."


async def test_patience_that_is_just_enough_is_enough() -> None:
    rig = Rig([refused(500, "InternalError", retry_after="60"), OK])
    rig.session = Session(
        rig,
        rig.signer,
        clock=rig.clock,
        service=OSS,
        slot=rig.slots.slot,
        retry=RetryPolicy(patience_s=60.0),
    )
    assert await rig.call() == "done"
    assert rig.clock.pauses == [60.0]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Response(200, {"content-type": "text/html"}, b"<html>"), "WebPage"),
        (Response(200, {"content-type": "application/xml"}, b"<x/>"), ""),
    ],
)
async def test_a_login_page_is_named_and_retried(answer: Response, code: str) -> None:
    rig = Rig([answer])
    with pytest.raises(TransportError) as caught:
        await rig.call(replace(OPERATION, parse=unusable_page, max_attempts=3))
    assert (caught.value.code, len(rig.sent)) == (code, 3)
    assert ("UploadPart was answered with a web page" in caught.value.message) == bool(code)
    assert ("log in" in caught.value.next_step) == bool(code)
