"""How many connections, how many bytes a second: one budget for every upload of an `Uploader`.

Three limits live here. *Slots* bound how many requests with a body are under way; their
number is fixed or steered by what the kernel reports about the open connections.
*Bandwidth* bounds bytes a second, by the time of day if wished. *VOD calls* bound
requests a second to the VOD API.

The steering is a pure function, `decide`: state and what was seen in, new state out.
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
from uploader.pace.bandwidth import SLICE_S, Bandwidth, Bucket
from uploader.pace.slots import Slots
from uploader.pace.steering import (
    MAX_CONCURRENCY,
    TICK_S,
    USUAL_CONCURRENCY,
    LinkProbe,
    Meter,
    Steering,
    begin,
    decide,
    set_back,
)

__all__ = ["Pace"]

SMALLEST_PIECE: Final = 1024
"""Bytes; less costs more in packets than it carries."""


class Pace:
    """The budget shared by all uploads of an `Uploader`. Mutable; one event loop.

    Args:
        concurrency: connections that carry bodies at once, or "auto". Too few leave a
            long or lossy link idle; too many fill queues and are refused with 503.
        max_concurrency: the most "auto" may choose. Memory is this times the unit of
            the transport. Too small caps lossy links; too large, other people's traffic.
        bandwidth: bytes a second; None for no limit.
        vod_calls_per_s: calls to the VOD API a second. Too few slow the start of many
            small files; too many are throttled by VOD.
        shared_vod_budget: waits for a turn that others must know of, too, before each of
            those calls.
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
        self._bucket = Bucket(self._clock, bandwidth)
        self._vod_calls = _vod_limiter(vod_calls_per_s)
        self._meter = Meter()
        self._probe: LinkProbe | None = None
        self._sent_bytes = 0
        self._full_rate = 0.0
        self._ticked_at = self._halved_at = float("-inf")

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
        """How many connections will probably end an upload together.

        Where many are needed to begin with, "auto" goes beyond them, and a tail of small parts
        costs nothing there. Where few do, it stays with them: cut for more, the last parts
        would rest longer for their answers than their bytes take.
        """
        self._begin()
        steering = self._steering
        if steering.is_fixed:
            return steering.ceiling
        hoped_for = steering.floor if steering.floor <= USUAL_CONCURRENCY else 2 * steering.floor
        return min(steering.ceiling, max(USUAL_CONCURRENCY, hoped_for, steering.limit))

    @property
    def connection_rate(self) -> float | None:
        """Bytes a second one connection may expect; None while nothing is known.

        Known is a limit, and what the link carried when it was full.
        """
        known = [rate for rate in (self._full_rate, self._bucket.lowest_rate()) if rate]
        return min(known) / self.limit if known else None

    @property
    def rtt_s(self) -> float:
        """The shortest round trip to the peers; 0 while unknown."""
        samples = self._probe.sample() if self._probe is not None else []
        return min((sample.min_rtt_s for sample in samples if sample.min_rtt_s > 0), default=0.0)

    @property
    def bytes_per_s(self) -> int | None:
        """The bandwidth in force right now; None when there is no limit."""
        return self._bucket.rate()

    @asynccontextmanager
    async def slot(
        self, owner: Hashable = None, *, going: asyncio.Event | None = None
    ) -> AsyncIterator[None]:
        """Hold one connection slot; owners (uploads) share the slots evenly.

        `going`: the owner asks for one only while this is set.
        """
        if going is not None:
            await going.wait()
        self._begin()
        await self._slots.acquire(owner)
        try:
            yield
        finally:
            self._slots.release(owner)

    async def spend(self, byte_count: int) -> None:
        """Wait until the bandwidth allows so many more bytes."""
        await self._bucket.spend(byte_count)

    def piece_size(self, most: int) -> int:
        """How many bytes to hand to the network at once, so that a slow rate stays smooth."""
        rate = self._bucket.rate()
        return most if rate is None else min(most, max(SMALLEST_PIECE, int(rate * SLICE_S)))

    def set_bandwidth(self, bandwidth: Bandwidth | None) -> None:
        """Change the bandwidth while uploads run."""
        self._bucket.bandwidth = bandwidth

    async def vod_call(self) -> None:
        """Wait until one more call to the VOD API is due."""
        await self._vod_calls.acquire()
        if self._shared_vod_budget is not None:
            await self._shared_vod_budget()

    def note_sent(self, byte_count: int) -> None:
        """Count bytes handed to the network."""
        self._sent_bytes += byte_count

    def slow_down(self) -> None:
        """Halve the slots: the service refused for load, or requests timed out.

        Refusals come in bunches, one for every request that was under way; a bunch
        counts once.
        """
        now = self._clock.elapsed_s()
        if now - self._halved_at >= 1.0:
            self._halved_at = now
            self._apply(set_back(self._steering))

    @asynccontextmanager
    async def steering(self, probe: LinkProbe) -> AsyncIterator[None]:
        """Adapt the slots while the block runs; any number of blocks at once."""
        failure: Exception | None = None
        self._probe = probe
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(self._tick_forever(probe))
            try:
                yield
            except Exception as exc:  # unwrapped below: callers catch our errors, not groups
                failure = exc
            finally:
                ticking.cancel()
        if failure is not None:
            raise failure

    async def _tick_forever(self, probe: LinkProbe) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            self.tick(probe)

    def tick(self, probe: LinkProbe) -> None:
        """Look at the links and decide; sooner than the last look allows, do nothing."""
        now = self._clock.elapsed_s()
        seconds = min(now - self._ticked_at, 4 * TICK_S)
        if seconds < 0.9 * TICK_S:
            return
        self._ticked_at = now
        sent_bytes, self._sent_bytes = self._sent_bytes, 0
        seen = self._meter.read(probe.sample(), seconds=seconds, sent_bytes=sent_bytes)
        is_used_up = self._slots.take_peak() >= self._slots.limit
        if is_used_up and seen.has_queue:
            self._full_rate = seen.rate
        seen = replace(seen, is_used_up=is_used_up, allowed_rate=self._bucket.rate())
        self._apply(decide(self._steering, seen))

    def _begin(self) -> None:
        """Start where the link suggests, once somebody has been spoken to."""
        if self._steering.is_new and self._probe is not None:
            seen = Meter().read(self._probe.sample())
            self._apply(begin(self._steering, replace(seen, allowed_rate=self._bucket.rate())))

    def _apply(self, steering: Steering) -> None:
        self._steering = steering
        self._slots.limit = steering.limit


def _first_steering(concurrency: int | Literal["auto"], ceiling: int) -> Steering:
    if concurrency == "auto":
        _require(ceiling >= 1, "max_concurrency must be at least 1.")
        return Steering.automatic(ceiling)
    _require(concurrency >= 1, "concurrency must be at least 1.")
    return Steering.fixed(concurrency)


def _vod_limiter(calls_per_s: float) -> AsyncLimiter:
    """A fifth of a second's calls may go out at once, so that no second holds many more."""
    _require(calls_per_s > 0, "vod_calls_per_s must be above 0.")
    burst = max(1.0, calls_per_s / 5)
    return AsyncLimiter(burst, burst / calls_per_s)


def _require(is_true: bool, message: str) -> None:
    if not is_true:
        raise ConfigurationError(message)
