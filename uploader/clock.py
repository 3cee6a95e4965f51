"""The clocks, as an argument: tests pass a virtual one."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What time it is, and waiting."""

    def utc_now(self) -> datetime:
        """Wall clock, aware, UTC: only for signatures and for what people read."""

    def elapsed_s(self) -> float:
        """Seconds on a clock that never jumps and runs while the machine sleeps."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clocks.

    `elapsed_s` is CLOCK_BOOTTIME where there is one: on Linux `time.monotonic` stands
    still during suspend, and credentials do not.
    """

    _CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def utc_now(self) -> datetime:
        """Wall clock, aware, UTC."""
        return datetime.now(UTC)

    def elapsed_s(self) -> float:
        """Seconds since boot, suspend included."""
        return time.clock_gettime(self._CLOCK_ID)

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the loop."""
        await asyncio.sleep(seconds)
