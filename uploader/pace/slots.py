"""Slots: how many requests may be in flight at once, shared evenly among uploads."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Hashable


class Slots:
    """A semaphore that is fair to owners and whose limit may change at any time.

    The next slot goes to the owner that holds the fewest, among equals to the one that has
    waited longest: a file of ten thousand parts does not delay a small one. A lower limit
    takes effect as slots are released. Mutable: who holds slots and who waits.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # longest wait first
        self._held: Counter[Hashable] = Counter()
        self.in_use = 0
        self.peak = 0

    def set_limit(self, limit: int) -> None:
        """Change how many slots may be held at once."""
        self.limit = limit
        self._admit()

    async def acquire(self, owner: Hashable) -> None:
        """Wait for a slot."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release(owner)  # it got its slot at the same moment
            raise

    def release(self, owner: Hashable) -> None:
        """Give a slot back."""
        self.in_use -= 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._admit()

    def take_peak(self) -> int:
        """The most slots that were held at once since the last call."""
        peak, self.peak = self.peak, self.in_use
        return peak

    def _admit(self) -> None:
        while self._waiting and self.in_use < self.limit:
            owner = min(self._waiting, key=self._held.__getitem__)
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # now behind the other owners
            if not turn.done():
                turn.set_result(None)
                self.in_use += 1
                self._held[owner] += 1
                self.peak = max(self.peak, self.in_use)
