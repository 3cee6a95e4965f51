"""Signed calls to one service: the only retry loop."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from uploader.clock import Clock
from uploader.errors import (
    CredentialError,
    IntegrityError,
    InvalidGrant,
    ServiceError,
    TransportError,
    VodupError,
    without_frames,
)
from uploader.protocol.failures import Meaning, Service, is_outcome_known
from uploader.protocol.wire import Operation, SignedRequest, Signer, Transport, web_page
from uploader.redaction import redacted

T = TypeVar("T")

_Failure = ServiceError | TransportError | IntegrityError | InvalidGrant

MAX_CLOCK_OFFSET_S = 24 * 3600.0
"""A server's clock that differs by more is not believed."""

_MAX_RENEWALS_A_CALL = 5

_MAX_CONTRADICTIONS = 5
"""Answers of one call with other checksums than were sent, or with an error inside a success:
waiting does not change them. Too small: a few damaged packets in a row end the upload."""

_MAX_REFUSED_GRANTS = 2

_RESETS_BEFORE_PROBE = 2
"""Connections reset in a row by one request before its probe is sent."""

_SECRET_NAME = re.compile("authorization|token|signature$", re.I)

_PROBED_FOR = frozenset({Meaning.RENEW, Meaning.FIX_CLOCK, Meaning.FIX_REGION, Meaning.VANISHED})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often failed requests are repeated.

    `Operation.max_attempts` limits the requests of one API.

    Attributes:
        patience_s: for how long one request may keep failing, in seconds from its
            first failure. Too small: an outage at night ends the upload (it resumes, but
            a person has to run it). Too large: a real breakdown is reported late.
        first_contact_patience_s: the same while the service has never answered: a
            wrong endpoint or no network should be reported soon.
        base_s, cap_s: pause n is drawn from 0 to min(cap_s, base_s × 2^n) seconds.
    """

    patience_s: float = 900.0
    first_contact_patience_s: float = 60.0
    base_s: float = 0.5
    cap_s: float = 30.0

    def pause_s(self, failure_count: int, *, draw: float) -> float:
        """How long to wait after the n-th failure (from 1), `draw` being in [0, 1)."""
        return draw * float(min(self.cap_s, self.base_s * 2.0 ** min(failure_count, 30)))


@dataclass(frozen=True, slots=True)
class Retried:
    """A request failed and is about to be sent again; for events and logs.

    Attributes:
        pause_s: before it is sent again.
        left_s: how long it may keep failing before it is given up; 0 where only repairs limit it.
        service: its name, "OSS" or "VOD".
        address: host and port.
    """

    operation: str
    part_number: int | None
    failure: VodupError
    meaning: Meaning
    pause_s: float
    left_s: float = 0.0
    service: str = ""
    address: str = ""


class Contact:
    """Whether a service has ever answered. Mutable; shared by sessions with the same service."""

    def __init__(self) -> None:
        self.has_answered = False


class Session:
    """Calls one service with one signer.

    Mutable state: the clock's offset to the service, a region for the signer, and whether it has
    ever answered.
    """

    def __init__(
        self,
        transport: Transport,
        signer: Signer,
        *,
        clock: Clock,
        service: Service,
        slot: Callable[[], AbstractAsyncContextManager[object]],
        slow_down: Callable[[], None] = lambda: None,
        retry: RetryPolicy | None = None,
        on_retry: Callable[[Retried], None] = lambda _: None,
        draw: Callable[[], float] = random.random,
        contact: Contact | None = None,
    ) -> None:
        """`slot` is held during each attempt.

        `slow_down` is called when the service is busy, and when it did not answer in time.
        """
        self._transport, self._signer, self._clock = transport, signer, clock
        self._service, self._slot, self._slow_down = service, slot, slow_down
        self._retry = retry or RetryPolicy()
        self._on_retry, self._draw = on_retry, draw
        self._clock_offset_s = 0.0
        self._region: str | None = None
        self._contact = contact or Contact()

    async def call(self, operation: Operation[T]) -> T:
        """Perform `operation`: sign, send and parse until it succeeds or nothing helps.

        Raises:
            TransferError, CredentialError, VideoError: the last failure, once waiting
                and renewing are of no use or the policy's patience is spent. A call that
                is not repeatable raises the first failure with an unknown outcome.
            IntegrityError: five answers contradicted what was sent.
            InvalidGrant: two grants cannot be used.
            SourceError: the body could not be read.
        """
        attempts = _Attempts(self._retry, self._clock, self._draw, operation.max_attempts)
        while True:
            await self._signer.prepare()
            async with self._slot():
                if not self._signer.is_ready():
                    continue  # the credentials were refused while this call waited for its slot
                signed = self._sign(operation)
                try:
                    answer = await self._send(operation, signed)
                except (ServiceError, TransportError, IntegrityError, InvalidGrant) as error:
                    failure: _Failure = error
                else:
                    self._signer.accepted(signed)
                    return answer
            await self._prepare_retry(operation, signed, failure, attempts)

    def _sign(self, operation: Operation[Any]) -> SignedRequest:
        region, self._region = self._region, None  # the signer keeps it
        return self._signer.sign(operation, clock_offset_s=self._clock_offset_s, region=region)

    async def _send(self, operation: Operation[T], signed: SignedRequest) -> T:
        response = await self._transport.send(signed, answer_timeout_s=operation.answer_timeout_s)
        self._contact.has_answered = True
        try:
            return operation.parse(response)
        except VodupError as error:
            failure = error
        if isinstance(failure, TransportError) and response.is_web_page:
            failure = web_page(operation.name, response.status)
        raise without_frames(_without_secrets(failure, signed))

    async def _prepare_retry(
        self, operation: Operation[T], signed: SignedRequest, failure: _Failure, attempts: _Attempts
    ) -> None:
        """Do what makes another attempt worthwhile, or raise."""
        meaning = self._service.meaning(failure, is_aged=self._signer.is_aged(signed))
        if not operation.is_repeatable and not is_outcome_known(failure):
            raise failure
        match meaning:
            case Meaning.RENEW:
                if attempts.renewal_count == _MAX_RENEWALS_A_CALL:
                    raise self._service.rejected_error(
                        failure, renewal_count=attempts.renewal_count
                    )
                attempts.renewal_count += 1
                self._report(operation, signed, failure, meaning)
                await self._renew(signed, failure)
            case Meaning.FIX_CLOCK:
                self._fix_clock(failure, attempts)
                self._report(operation, signed, failure, meaning)
            case Meaning.FIX_REGION:
                self._fix_region(failure, attempts)
                self._report(operation, signed, failure, meaning)
            case Meaning.RETRY | Meaning.SLOW_DOWN:
                if meaning is Meaning.SLOW_DOWN:
                    self._slow_down()
                pause_s = attempts.next_pause_s(failure, has_answered=self._contact.has_answered)
                left_s = attempts.left_s
                self._report(operation, signed, failure, meaning, pause_s=pause_s, left_s=left_s)
                await self._clock.sleep(pause_s)
                if operation.probe is not None and attempts.reset_count >= _RESETS_BEFORE_PROBE:
                    await self._probe(operation.probe, attempts)
            case _:
                error = self._service.final_error(failure)
                if isinstance(error, ServiceError):
                    error.is_repeat = attempts.may_be_done
                raise error from failure.__cause__

    async def _probe(self, probe: Operation[object], attempts: _Attempts) -> None:
        """Send a request whose refusal cannot get lost, once, and do what the refusal requires.

        Raises:
            ServiceError: what was reset again and again cannot succeed.
        """
        await self._signer.prepare()
        async with self._slot():
            if not self._signer.is_ready():
                return  # another call has found out
            signed = self._sign(probe)
            try:
                await self._send(probe, signed)
            except ServiceError as error:
                refusal = error
            except (TransportError, IntegrityError):
                return
            else:
                self._signer.accepted(signed)
                return
        # A final refusal is ignored: one may be allowed to send parts and not to list them.
        if self._service.meaning(refusal) in _PROBED_FOR:
            await self._prepare_retry(probe, signed, refusal, attempts)

    async def _renew(self, signed: SignedRequest, failure: _Failure) -> None:
        try:
            await self._signer.renew(signed)
        except CredentialError as error:
            # Support asks for the refusal that made renewing necessary.
            error.code = error.code or failure.code
            error.request_id = error.request_id or failure.request_id
            raise

    def _fix_clock(self, failure: VodupError, attempts: _Attempts) -> None:
        """Learn the server's clock from its answer; once a call, for it must help."""
        server_s = getattr(failure, "server_epoch_s", None)
        offset_s = (server_s or 0.0) - self._clock.utc_now().timestamp()
        if server_s is None or attempts.is_clock_fixed or abs(offset_s) > MAX_CLOCK_OFFSET_S:
            failure.next_step = "Set the clock of this machine, then run the same command again."
            raise failure
        self._clock_offset_s = offset_s
        attempts.is_clock_fixed = True

    def _fix_region(self, failure: VodupError, attempts: _Attempts) -> None:
        """Learn the bucket's region from OSS's answer; once a call, for it must help."""
        region = getattr(failure, "oss_region", None)
        if region is None or attempts.is_region_fixed:
            raise self._service.final_error(failure)
        self._region = region
        attempts.is_region_fixed = True

    def _report(
        self,
        operation: Operation[T],
        signed: SignedRequest,
        failure: VodupError,
        meaning: Meaning,
        *,
        pause_s: float = 0.0,
        left_s: float = 0.0,
    ) -> None:
        retried = Retried(
            operation.name,
            operation.part_number,
            failure,
            meaning,
            pause_s,
            left_s,
            self._service.name,
            urlsplit(signed.url).netloc.rpartition("@")[2],
        )
        self._on_retry(retried)


class _Attempts:
    """What the attempts of one call have come to. Mutable, local to the call."""

    def __init__(
        self, policy: RetryPolicy, clock: Clock, draw: Callable[[], float], max_count: int | None
    ) -> None:
        self._policy, self._clock, self._draw = policy, clock, draw
        self._max_count = max_count
        self._failure_count = 0
        self._futile_count = 0
        self._first_failure_s: float | None = None
        self.left_s = 0.0
        """How long the call may keep failing."""
        self.renewal_count = 0
        self.is_clock_fixed = False
        self.may_be_done = False
        """Whether a failed attempt may have been carried out nevertheless."""
        self.is_region_fixed = False
        self.reset_count = 0
        """Connections in a row that the peer reset with the request under way."""

    def next_pause_s(self, failure: _Failure, *, has_answered: bool) -> float:
        """Return how long to wait before the next attempt, or raise `failure`."""
        now_s = self._clock.elapsed_s()
        if self._first_failure_s is None:
            self._first_failure_s = now_s
        self._failure_count += 1
        is_stored = isinstance(failure, IntegrityError)
        self.may_be_done |= is_stored or not is_outcome_known(failure)
        is_cut = isinstance(failure, TransportError) and failure.is_sent and not failure.is_timeout
        self.reset_count = self.reset_count + 1 if is_cut else 0
        policy = self._policy
        patience_s = policy.patience_s if has_answered else policy.first_contact_patience_s
        is_first_break = self._failure_count == 1 and isinstance(failure, TransportError)
        # A kept-alive connection that the server has just closed is no sign of trouble.
        pause_s = 0.0 if is_first_break else policy.pause_s(self._failure_count, draw=self._draw())
        pause_s = max(pause_s, getattr(failure, "retry_after_s", None) or 0.0)
        if self._is_futile(failure):
            raise failure
        is_last = self._failure_count == self._max_count
        self.left_s = self._first_failure_s + patience_s - now_s
        if is_last or pause_s > self.left_s:
            failure.is_temporary = True
            raise failure
        return pause_s

    def _is_futile(self, failure: _Failure) -> bool:
        """Whether there were enough failures that do not depend on when the call is made."""
        is_error_in_success = isinstance(failure, ServiceError) and failure.status < 300
        if isinstance(failure, InvalidGrant):
            most = _MAX_REFUSED_GRANTS
        elif isinstance(failure, IntegrityError) or is_error_in_success:
            most = _MAX_CONTRADICTIONS
        else:
            return False
        self._futile_count += 1
        return self._futile_count >= most


def _without_secrets(error: VodupError, signed: SignedRequest) -> VodupError:
    """The error without what the answer echoed of the request's credentials, even if cut off."""
    given = (*signed.headers.items(), *parse_qsl(urlsplit(signed.url).query))
    secrets = [
        re.split(":|Signature=", value)[-1] for name, value in given if _SECRET_NAME.search(name)
    ]
    for field, text in vars(error).items():
        if isinstance(text, str):
            setattr(error, field, redacted(text, *secrets))
    error.args = (error.message,)
    return error
