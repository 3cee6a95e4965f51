"""The credentials of one upload: renewed by one caller at a time, and before they run out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from uploader.clock import Clock
from uploader.errors import CredentialsRejected, VideoError, VodupError
from uploader.protocol.grants import StsCredentials, UploadGrant, UploadTarget
from uploader.protocol.signing import OssDialect, sign_oss
from uploader.protocol.wire import Operation, SignedRequest

DOCUMENTED_LIFE_S: Final = 3000.0
"""VOD doc "Upload URLs and credentials": 3,000 s, whatever `Expiration` says."""

_RENEW_AHEAD_S: Final = 300.0
_MAX_REFUSED_IN_A_ROW: Final = 2
_RENEWAL_PAUSE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Held:
    """Credentials, when they were received and when they run out, on `Clock.elapsed_s`."""

    credentials: StsCredentials
    generation: int
    received_s: float
    deadline_s: float

    @property
    def life_s(self) -> float:
        return self.deadline_s - self.received_s


def life_s(credentials: StsCredentials, *, clock: Clock) -> float:
    """Return how long these credentials will last from now, in seconds.

    The minimum of the documented time, `Expiration` and `ExpireUTCTime`: in practice they
    contradict each other. 0 or less: the credentials have run out.
    """
    signals = [DOCUMENTED_LIFE_S]
    if credentials.life_s is not None:
        signals.append(credentials.life_s)
    if credentials.expires_at is not None:
        signals.append((credentials.expires_at - clock.utc_now()).total_seconds())
    return min(signals)


def renew_ahead_s(life_s: float, *, slow_part_s: float) -> float:
    """Return how long before they run out credentials are renewed, in seconds.

    Five minutes, or the time of three slow parts if that is more, so that requests under
    way still finish; a tenth of the life of credentials that last less than 3,000 s.
    """
    usual = min(_RENEW_AHEAD_S, life_s / 10)
    return min(max(usual, 3 * slow_part_s), life_s / 2)


class LiveGrant:
    """Signs for one OSS object with credentials that are replaced while parts are sent.

    A `Signer` (see `protocol.wire`). Mutable: the credentials, and which of them OSS has
    refused or accepted.

    Attributes:
        moved_to: the bucket and key that VOD names by now; None while they are ours.
    """

    def __init__(
        self,
        target: UploadTarget,
        renew: Callable[[], Awaitable[UploadGrant]] | None,
        *,
        clock: Clock,
        dialect: OssDialect,
        grant: UploadGrant | None = None,
        on_renewed: Callable[[float], None] = lambda _: None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`grant` may be missing or have run out: it is renewed when first needed.

        Args:
            renew: returns a new grant; None: the given credentials cannot be renewed.
            on_renewed: called after each renewal with the seconds that it took.
            draw: random numbers in [0, 1), for jitter.
        """
        self._target, self._renew, self._clock, self._dialect = target, renew, clock, dialect
        self._on_renewed, self._draw = on_renewed, draw
        self._lock = asyncio.Lock()
        self._refused_in_a_row = 0
        self._refused_generation = self._accepted_generation = -1
        self._failure: tuple[int, VodupError] | None = None
        self._held: _Held | None = None
        self._slow_part_s = 0.0
        self.moved_to: UploadTarget | None = None
        if grant is not None and (renew is None or life_s(grant.credentials, clock=clock) > 0):
            self._held = self._hold(grant.credentials, generation=0)

    @property
    def endpoint(self) -> str:
        """Where requests go."""
        return self._dialect.endpoint or self._target.endpoint

    @property
    def _generation(self) -> int:
        """0 until the first renewal, whether a usable grant was given or not."""
        return self._held.generation if self._held else 0

    def _hold(self, credentials: StsCredentials, *, generation: int) -> _Held:
        now_s = self._clock.elapsed_s()
        life = life_s(credentials, clock=self._clock)
        if life <= 0:
            # Just received, but already over by our wall clock, which may be wrong. OSS
            # decides; if it refuses them, that is counted.
            life = min(credentials.life_s or DOCUMENTED_LIFE_S, DOCUMENTED_LIFE_S)
        return _Held(credentials, generation, now_s, now_s + life)

    async def prepare(self) -> None:
        """Make sure that there are credentials that have neither been refused nor run out."""
        if not self.is_ready() or self._has_run_out():
            await self._replace(self._generation)

    def is_ready(self) -> bool:
        """Whether there are credentials that OSS has not refused.

        Credentials that ran out while a call waited for its slot are used all the same:
        the deadline is the earliest of several estimates.
        """
        return self._held is not None and self._generation != self._refused_generation

    def _has_run_out(self) -> bool:
        held = self._held
        if held is None or self._renew is None:
            return False
        return self._clock.elapsed_s() >= held.deadline_s

    def sign(
        self, operation: Operation[Any], *, clock_offset_s: float, region: str | None = None
    ) -> SignedRequest:
        """Sign with the newest credentials."""
        held = self._held
        if held is None:
            raise RuntimeError("prepare() comes first")
        if region is not None:
            self._dialect = replace(self._dialect, region=region)
        return sign_oss(
            operation,
            held.credentials,
            at=self._clock.utc_now() + timedelta(seconds=clock_offset_s),
            generation=held.generation,
            dialect=self._dialect,
        )

    def is_aged(self, signed: SignedRequest) -> bool:
        """Whether the credentials were replaced since, or four fifths of their life are over."""
        held = self._held
        if held is None or signed.generation != held.generation:
            return True
        return self._clock.elapsed_s() > held.deadline_s - held.life_s / 5

    def accepted(self, signed: SignedRequest) -> None:
        """OSS has accepted these credentials, so renewing them makes progress."""
        if signed.generation == self._generation:
            self._accepted_generation = signed.generation
            self._refused_in_a_row = 0

    async def renew(self, refused: SignedRequest) -> None:
        """Replace the credentials that signed `refused`, unless that has been done."""
        self._record_refusal(refused.generation)
        await self._replace(refused.generation)

    def _record_refusal(self, generation: int) -> None:
        """Sign nothing more with these credentials: from now on `prepare` renews them.

        A renewal counts as useless only when OSS has refused its credentials; while no
        request is sent, credentials are replaced without having been tried.
        """
        if generation != self._generation or generation == self._refused_generation:
            return
        self._refused_generation = generation
        if generation > 0 and generation != self._accepted_generation:
            self._refused_in_a_row += 1

    def record_part_time(self, seconds: float) -> None:
        """Take into account how long a part took: slow parts need earlier renewals."""
        self._slow_part_s = max(seconds, self._slow_part_s * 0.9)

    def move(self, target: UploadTarget, dialect: OssDialect) -> None:
        """Sign for another object from now on; the credentials are for that one already."""
        self._target, self._dialect, self.moved_to = target, dialect, None

    async def keep_fresh(self) -> None:
        """Renew ahead of the deadline for as long as this runs; parts are sent meanwhile.

        A renewal that fails while the old credentials still work is repeated.

        Raises:
            VideoError: VOD's record of the video does not allow the upload any more.
        """
        if self._renew is None:
            return
        while True:
            await self._clock.sleep(self._until_renewal_s())
            held = self._held
            if held is None or self._until_renewal_s() > 0:
                continue
            try:
                await self._replace(held.generation)
            except VideoError:
                raise
            except VodupError:
                self._failure = None
                await self._clock.sleep(min(_RENEWAL_PAUSE_S, held.life_s / 20))

    def _until_renewal_s(self) -> float:
        held = self._held
        if held is None:
            return 1.0
        ahead_s = renew_ahead_s(held.life_s, slow_part_s=self._slow_part_s)
        jitter_s = self._draw() * ahead_s / 5
        return max(0.0, held.deadline_s - ahead_s - jitter_s - self._clock.elapsed_s())

    async def _replace(self, refused_generation: int) -> None:
        """Renew once for all callers whose requests were refused with one generation."""
        async with self._lock:
            current = self._generation
            if current != refused_generation:
                return  # another caller renewed while this one waited
            if self._failure is not None and self._failure[0] == refused_generation:
                raise self._failure[1]
            began_s = self._clock.elapsed_s()
            try:
                fresh = await self._request()
            except VodupError as error:
                self._failure = (refused_generation, error)
                raise
            seconds = self._clock.elapsed_s() - began_s
            # Keep the first bucket and key, as the official SDKs do. Another endpoint alone means
            # nothing: acceleration is requested on Create only.
            ours = (self._target.bucket, self._target.object_key)
            is_same = (fresh.target.bucket, fresh.target.object_key) == ours
            self.moved_to = None if is_same else fresh.target
            self._held = self._hold(fresh.credentials, generation=current + 1)
        self._on_renewed(seconds)

    async def _request(self) -> UploadGrant:
        if self._renew is None:
            raise CredentialsRejected(
                "The upload credentials have run out and cannot be renewed.",
                next_step="Run the same command with a new --grant (an answer of "
                "RefreshUploadVideo), or with --auth-command or --auth-url.",
            )
        if self._refused_in_a_row >= _MAX_REFUSED_IN_A_ROW:
            raise CredentialsRejected(
                f"OSS refused the credentials of {self._refused_in_a_row} renewals in a row."
            )
        return await self._renew()


class PlainSigner:
    """A `Signer` for requests that are authorized by their URL or headers."""

    async def prepare(self) -> None:
        """Nothing to get."""

    def is_ready(self) -> bool:
        """Always."""
        return True

    def sign(
        self, operation: Operation[Any], *, clock_offset_s: float, region: str | None = None
    ) -> SignedRequest:
        """Return the request unchanged: `endpoint` is the whole URL."""
        request = operation.request
        return SignedRequest(request.method, request.endpoint, request.headers, request.body)

    def is_aged(self, signed: SignedRequest) -> bool:
        """Never: there are no credentials."""
        return False

    async def renew(self, refused: SignedRequest) -> None:
        """Raise: nothing can be renewed."""
        raise CredentialsRejected("This URL was refused.")

    def accepted(self, signed: SignedRequest) -> None:
        """Nothing to record."""
