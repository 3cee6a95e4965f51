"""The budget that all uploads of an `Uploader` share.

It has three limits. *Slots* bound how many requests may be in flight; their number is fixed
or follows what the kernel reports about the open connections. *Bandwidth* bounds bytes per
second, by the time of day if wished. *VOD calls* bound requests per second to the VOD API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, Literal

from aiolimiter import AsyncLimiter

from uploader.clock import Clock, SystemClock
from uploader.errors import ConfigurationError
from uploader.pace.bandwidth import Bandwidth, RateLimiter
from uploader.pace.slots import Slots
from uploader.pace.steering import (
    MAX_CONCURRENCY,
    TICK_S,
    USUAL_CONCURRENCY,
    LinkProbe,
    LinkSample,
    Meter,
    Steering,
    back_off,
    decide,
    with_first_limit,
)
from uploader.tasks import beside

_DRAIN_LOOK_S: Final = 0.05


class Pace:
    """The budget shared by all uploads of an `Uploader`. Mutable; one event loop.

    Attributes:
        is_slowed_by_loss: whether losses slow down any connection, as of `rtt_s`.

    Args:
        concurrency: connections that carry bodies at once, or "auto". Too few leave a
            long or lossy link idle; too many fill queues and are refused with 503.
        max_concurrency: the most "auto" may choose. Memory is this times the unit of the
            transport. Too small wastes lossy links; too large crowds out other traffic.
        bandwidth: bytes per second; None for no limit.
        vod_calls_per_s: calls to the VOD API per second. Too few delay the start of many
            small files; too many are throttled by VOD.
        shared_vod_budget: awaited before each of those calls, where other processes share
            the budget.
        clock: the clock of bandwidth and steering.

    Raises:
        ConfigurationError: a number is below 1 (or not above 0 for `vod_calls_per_s`).
    """

    def __init__(
        self,
        *,
        concurrency: int | Literal["auto"] = "auto",
        max_concurrency: int = MAX_CONCURRENCY,
        bandwidth: Bandwidth | None = None,
        vod_calls_per_s: float = 20.0,
        shared_vod_budget: Callable[[], Awaitable[None]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._shared_vod_budget = shared_vod_budget
        self._steering = _first_steering(concurrency, max_concurrency)
        self._slots = Slots(self._steering.limit)
        self._limiter = RateLimiter(self._clock, bandwidth)
        self._vod_calls = _vod_limiter(vod_calls_per_s)
        self._meter = Meter()
        self._probe: LinkProbe | None = None
        self._sent_bytes = 0
        self._full_rate = 0.0
        self._rtt_s = 0.0
        self.is_slowed_by_loss = True
        self._ticked_at = self._halved_at = float("-inf")
        self._is_draining = False

    @property
    def limit(self) -> int:
        """Slots that may be held at once, right now."""
        return self._slots.limit

    @property
    def max_concurrency(self) -> int:
        """Slots that may ever be held at once."""
        return self._steering.ceiling

    @property
    def in_use(self) -> int:
        """Slots held right now."""
        return self._slots.in_use

    @property
    def expected_concurrency(self) -> int:
        """How many connections will probably be in use at the end of an upload.

        Where many are needed to start with, "auto" goes beyond them, and a tail of small
        parts costs nothing there. Where few suffice, it stays with them: cut for more, the
        last parts would wait longer for their answers than their bytes take.
        """
        self._set_first_limit()
        steering = self._steering
        if steering.is_fixed:
            return steering.ceiling
        reachable = steering.floor if steering.floor <= USUAL_CONCURRENCY else 2 * steering.floor
        return min(steering.ceiling, max(USUAL_CONCURRENCY, reachable, steering.limit))

    @property
    def connection_rate(self) -> float | None:
        """Bytes per second one connection may expect; None while unknown.

        It follows from the bandwidth limit, and from what the link carried when it was full.
        """
        known = [rate for rate in (self._full_rate, self._limiter.lowest_rate()) if rate]
        return min(known) / self.limit if known else None

    @property
    def rtt_s(self) -> float:
        """The shortest round trip to the peers, as of the last tick; 0 while unknown."""
        if self._rtt_s == 0.0 and self._probe is not None:
            self._read_path(self._probe.sample())
        return self._rtt_s

    @asynccontextmanager
    async def slot(
        self, owner: Hashable = None, *, resumed: asyncio.Event | None = None
    ) -> AsyncIterator[None]:
        """Hold one slot; owners (uploads) share the slots evenly.

        `resumed`: the owner waits for a slot only while this is set.
        """
        if resumed is not None:
            await resumed.wait()
        self._set_first_limit()
        await self._slots.acquire(owner)
        try:
            yield
        finally:
            self._slots.release(owner)

    async def drain(self, timeout_s: float) -> bool:
        """Let no more requests begin, and wait for those under way; whether any has ended.

        At most `timeout_s`: on a slow link parts may need much longer. For what is cancelled
        afterwards, because nothing ever begins again.
        """
        self._is_draining = True
        self._slots.set_limit(0)
        first_count, end_s = self.in_use, self._clock.elapsed_s() + timeout_s
        while self.in_use and self._clock.elapsed_s() < end_s:
            await self._clock.sleep(_DRAIN_LOOK_S)
        return self.in_use < first_count

    async def spend(self, byte_count: int) -> None:
        """Wait until the bandwidth allows so many more bytes."""
        await self._limiter.spend(byte_count)

    def send_size(self, max_size: int) -> int:
        """How many bytes to send at once, at most `max_size`, so that a low rate stays smooth."""
        return self._limiter.send_size(max_size)

    async def vod_call(self) -> None:
        """Wait until the budget allows one more call to the VOD API."""
        await self._vod_calls.acquire()
        if self._shared_vod_budget is not None:
            await self._shared_vod_budget()

    def count_sent(self, byte_count: int) -> None:
        """Count bytes given to the network."""
        self._sent_bytes += byte_count

    def slow_down(self) -> None:
        """Halve the slots: the service refused for load, or requests timed out.

        Refusals come in bunches, one for each request in flight; a bunch counts once.
        """
        now = self._clock.elapsed_s()
        if now - self._halved_at >= 1.0:
            self._halved_at = now
            self._apply(back_off(self._steering))

    @asynccontextmanager
    async def steering(self, probe: LinkProbe) -> AsyncIterator[None]:
        """Adapt the slots while the block runs; any number of blocks at once."""
        self._probe = probe
        async with beside(self._tick_forever(probe)):
            yield

    async def _tick_forever(self, probe: LinkProbe) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            self.tick(probe)

    def tick(self, probe: LinkProbe) -> None:
        """Sample the links and decide; does nothing if the last tick was just before."""
        now = self._clock.elapsed_s()
        seconds = min(now - self._ticked_at, 4 * TICK_S)
        if seconds < 0.9 * TICK_S:
            return
        self._ticked_at = now
        sent_bytes, self._sent_bytes = self._sent_bytes, 0
        samples = probe.sample()
        self._read_path(samples)
        interval = self._meter.read(samples, seconds=seconds, sent_bytes=sent_bytes)
        is_saturated = self._slots.take_peak() >= self._slots.limit
        if is_saturated and interval.has_queue:
            self._full_rate = interval.rate
        allowed_rate = self._limiter.rate()
        interval = replace(interval, is_saturated=is_saturated, allowed_rate=allowed_rate)
        self._apply(decide(self._steering, interval))

    def _read_path(self, samples: list[LinkSample]) -> None:
        self._rtt_s = _shortest_rtt_s(samples)
        self.is_slowed_by_loss = any(sample.is_slowed_by_loss for sample in samples)

    def _set_first_limit(self) -> None:
        """Start with what the link suggests, as soon as a connection reports its round trip."""
        if self._steering.is_new and self._probe is not None:
            interval = Meter().read(self._probe.sample())
            interval = replace(interval, allowed_rate=self._limiter.rate())
            self._apply(with_first_limit(self._steering, interval))

    def _apply(self, steering: Steering) -> None:
        self._steering = steering
        if not self._is_draining:
            self._slots.set_limit(steering.limit)


def _shortest_rtt_s(samples: list[LinkSample]) -> float:
    return min((sample.min_rtt_s for sample in samples if sample.min_rtt_s > 0), default=0.0)


def _first_steering(concurrency: int | Literal["auto"], ceiling: int) -> Steering:
    if concurrency == "auto":
        _require(ceiling >= 1, "max_concurrency must be at least 1.")
        return Steering.automatic(ceiling)
    _require(concurrency >= 1, "concurrency must be at least 1.")
    return Steering.fixed(concurrency)


def _vod_limiter(calls_per_s: float) -> AsyncLimiter:
    """Lets a fifth of a second's calls go at once, so that no second holds many more."""
    _require(calls_per_s > 0, "vod_calls_per_s must be above 0.")
    burst = max(1.0, calls_per_s / 5)
    return AsyncLimiter(burst, burst / calls_per_s)


def _require(is_true: bool, message: str) -> None:
    if not is_true:
        raise ConfigurationError(message)
