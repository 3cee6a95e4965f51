"""Clocks for tests: time passes when a test says so, or when somebody sleeps."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 22, 9, 3, 54, tzinfo=UTC)


class SkippingClock:
    """Sleeping moves time forward at once. For code with one sleeper. Mutable: the time.

    `wrong_by_s` is how far the wall clock is ahead of the truth.
    """

    def __init__(self, *, wrong_by_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.wrong_by_s = wrong_by_s
        self.pauses: list[float] = []

    def utc_now(self) -> datetime:
        return START + timedelta(seconds=self.now_s + self.wrong_by_s)

    def elapsed_s(self) -> float:
        return 1000.0 + self.now_s

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


class SteppedClock(SkippingClock):
    """Time stands still until `advance`. For code with several tasks."""

    def __init__(self, *, wrong_by_s: float = 0.0) -> None:
        super().__init__(wrong_by_s=wrong_by_s)
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking sleepers in order and letting them work."""
        end_s = self.now_s + seconds
        await settled()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self.now_s, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
            await settled()
        self.now_s = end_s


async def settled() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(50):
        await asyncio.sleep(0)
