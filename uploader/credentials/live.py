"""The credentials of one upload, renewed one at a time and ahead of their end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from uploader.clock import Clock
from uploader.errors import (
    CredentialsRejected,
    VideoError,
    VodupError,
)
from uploader.protocol.grants import StsCredentials, UploadGrant, UploadTarget
from uploader.protocol.signing import OssDialect, sign_oss
from uploader.protocol.wire import Operation, SignedRequest

DOCUMENTED_LIFE_S = 3000.0
"""VOD doc "Upload URLs and credentials": 3,000 s, whatever `Expiration` says."""

_RENEW_AHEAD_S = 300.0
_MAX_REFUSED_IN_A_ROW = 2
_RENEWAL_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Held:
    """Credentials with the time they came and the time they end, on `Clock.elapsed_s`."""

    credentials: StsCredentials
    generation: int
    received_s: float
    deadline_s: float

    @property
    def life_s(self) -> float:
        return self.deadline_s - self.received_s


def life_s(credentials: StsCredentials, *, clock: Clock) -> float:
    """Return how long these credentials will last from now, in seconds.

    The earliest of what the document says, `Expiration` and `ExpireUTCTime`: they
    contradict each other in practice. 0 or less: they have run out.
    """
    signals = [DOCUMENTED_LIFE_S]
    if credentials.life_s is not None:
        signals.append(credentials.life_s)
    if credentials.expires_at is not None:
        signals.append((credentials.expires_at - clock.utc_now()).total_seconds())
    return min(signals)


def renew_ahead_s(life_s: float, *, slow_part_s: float) -> float:
    """Return how long before their end credentials are renewed, in seconds.

    Five minutes, or three slow parts if that is more, so that what is under way still
    finishes; in proportion for credentials that live less than the documented time.
    """
    usual = min(_RENEW_AHEAD_S, life_s / 10)
    return min(max(usual, 3 * slow_part_s), life_s / 2)


class LiveGrant:
    """Signs for one OSS object with credentials that are replaced while parts are sent.

    Mutable state: the held credentials, which of them OSS has refused or accepted, and
    where VOD points by now (`moved_to`, None while that is our target). A `Signer` (see
    `protocol.wire`).
    """

    def __init__(
        self,
        target: UploadTarget,
        renew: Callable[[], Awaitable[UploadGrant]] | None,
        *,
        clock: Clock,
        dialect: OssDialect,
        grant: UploadGrant | None = None,
        on_renewed: Callable[[int], None] = lambda _: None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`grant` may be missing or stale: it is renewed when first needed.

        `renew` None: nobody can renew; the given credentials must do.
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
        if grant is not None and self._is_usable(grant.credentials):
            self._held = self._hold(grant.credentials, generation=0)

    @property
    def _generation(self) -> int:
        """0 until the first renewal, whether a usable grant was given or not."""
        return self._held.generation if self._held else 0

    def _is_usable(self, credentials: StsCredentials) -> bool:
        return self._renew is None or life_s(credentials, clock=self._clock) > 0

    def _hold(self, credentials: StsCredentials, *, generation: int) -> _Held:
        now_s = self._clock.elapsed_s()
        life = life_s(credentials, clock=self._clock)
        if life <= 0:
            # Just received, and yet over by our wall clock, which may be the one that is
            # wrong. OSS decides; if it refuses them, that is counted.
            life = min(credentials.life_s or DOCUMENTED_LIFE_S, DOCUMENTED_LIFE_S)
        return _Held(credentials, generation, now_s, now_s + life)

    async def prepare(self) -> None:
        """Make sure there are credentials that are neither refused nor past their end."""
        if not self.is_ready() or self._has_run_out():
            await self._replace(self._generation)

    def is_ready(self) -> bool:
        """Whether there are credentials that OSS has not refused.

        What ran out while a call waited for its turn is tried all the same: our deadline is
        the earliest of several guesses.
        """
        return self._held is not None and self._generation != self._refused_generation

    def _has_run_out(self) -> bool:
        held = self._held
        if held is None or self._renew is None:
            return False
        return self._clock.elapsed_s() >= held.deadline_s

    def sign(self, operation: Operation[Any], *, clock_offset_s: float) -> SignedRequest:
        """Sign with the newest credentials."""
        held = self._held
        if held is None:
            raise RuntimeError("prepare() comes first")
        return sign_oss(
            operation,
            held.credentials,
            at=self._clock.utc_now() + timedelta(seconds=clock_offset_s),
            generation=held.generation,
            dialect=self._dialect,
        )

    def is_aged(self, signed: SignedRequest) -> bool:
        """Whether the credentials were replaced since, or four fifths of their life is over."""
        held = self._held
        if held is None or signed.generation != held.generation:
            return True
        return self._clock.elapsed_s() > held.deadline_s - held.life_s / 5

    def accepted(self, signed: SignedRequest) -> None:
        """OSS took these credentials: renewing makes progress."""
        if signed.generation == self._generation:
            self._accepted_generation = signed.generation
            self._refused_in_a_row = 0

    async def renew(self, refused: SignedRequest) -> None:
        """Replace the credentials that signed `refused`, unless somebody has done so."""
        self._note_refused(refused.generation)
        await self._replace(refused.generation)

    def _note_refused(self, generation: int) -> None:
        """Sign nothing more with these: `prepare` waits from here on.

        A renewal counts as one made in vain only when OSS has refused what it brought:
        while no request is sent, credentials come and go without having been tried.
        """
        if generation != self._generation or generation == self._refused_generation:
            return
        self._refused_generation = generation
        if generation > 0 and generation != self._accepted_generation:
            self._refused_in_a_row += 1

    def note_part_time(self, seconds: float) -> None:
        """Remember how long slow parts take: renewals must come that much earlier."""
        self._slow_part_s = max(seconds, self._slow_part_s * 0.9)

    def move(self, target: UploadTarget) -> None:
        """Sign for another object from now on; the credentials are for that one already."""
        self._target, self.moved_to = target, None

    async def keep_fresh(self) -> None:
        """Renew ahead of the deadline for as long as this runs; uploading goes on meanwhile.

        While the old credentials still work a failing renewal is no failure of the
        upload; what VOD says of the video itself is.
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
        """Renew once for all who were refused with the same generation."""
        async with self._lock:
            current = self._generation
            if current != refused_generation:
                return  # another caller renewed while this one waited
            if self._failure is not None and self._failure[0] == refused_generation:
                raise self._failure[1]
            try:
                fresh = await self._ask()
            except VodupError as error:
                self._failure = (refused_generation, error)
                raise
            self._note_target(fresh.target)
            self._held = self._hold(fresh.credentials, generation=current + 1)
        self._on_renewed(current + 1)

    async def _ask(self) -> UploadGrant:
        if self._renew is None:
            raise CredentialsRejected(
                "The upload credentials have run out, and nobody was named who renews them.",
                next_step="Run the same command with a new --grant (an answer of "
                "RefreshUploadVideo), or with --auth-command or --auth-url.",
            )
        if self._refused_in_a_row >= _MAX_REFUSED_IN_A_ROW:
            raise CredentialsRejected(
                f"OSS refused the credentials of {self._refused_in_a_row} renewals in a row."
            )
        return await self._renew()

    def _note_target(self, target: UploadTarget) -> None:
        """Keep the first bucket and key, as the official SDKs do; remember where VOD points.

        Another endpoint alone means nothing: acceleration is asked for on Create only.
        """
        ours = (self._target.bucket, self._target.object_key)
        is_same = (target.bucket, target.object_key) == ours
        self.moved_to = None if is_same else target


class PlainSigner:
    """For requests that carry their right in their URL, or need none."""

    async def prepare(self) -> None:
        """Nothing to wait for."""

    def is_ready(self) -> bool:
        """There is nothing that could run out."""
        return True

    def sign(self, operation: Operation[Any], *, clock_offset_s: float) -> SignedRequest:
        """Send it as it is: `endpoint` is the whole URL."""
        request = operation.request
        return SignedRequest(request.method, request.endpoint, request.headers, request.body)

    def is_aged(self, signed: SignedRequest) -> bool:
        """There are no credentials."""
        return False

    async def renew(self, refused: SignedRequest) -> None:
        """Nothing can be renewed."""
        raise CredentialsRejected("This address was refused.")

    def accepted(self, signed: SignedRequest) -> None:
        """Nothing to note."""
