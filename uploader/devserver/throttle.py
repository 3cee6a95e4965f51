"""Limits bandwidth."""

from __future__ import annotations

import asyncio
import time


class Throttle:
    """Lets ``rate`` bytes a second through; ``None`` is no limit. Mutable, one event loop.

    A slice is booked at once and waited for afterwards, so that many connections share the
    rate in the order of their requests.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._free_at = 0.0

    async def spend(self, size: int) -> None:
        """Reserve ``size`` bytes and wait until the rate allows them."""
        if not self.rate:
            return
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + size / self.rate
        await asyncio.sleep(self._free_at - now)
