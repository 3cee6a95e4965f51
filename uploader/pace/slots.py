"""Slots: how many requests with a body may be under way at once, shared evenly."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Hashable

__all__ = ["Slots"]


class Slots:
    """Slots, handed out evenly among owners, whose number may change at any time.

    The owner who holds least has the next turn, among equals the one who has waited
    longest; a file of ten thousand parts does not keep a small one waiting. Mutable: who
    holds slots and who waits. Fewer slots than are held take effect as they come back.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # longest wait first
        self._held: Counter[Hashable] = Counter()
        self.in_use = 0
        self.peak = 0

    @property
    def limit(self) -> int:
        """How many may be held at once."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._admit()

    async def acquire(self, owner: Hashable) -> None:
        """Wait for a slot."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            self._forgo(owner, turn)
            raise

    def release(self, owner: Hashable) -> None:
        """Give a slot back."""
        self.in_use -= 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._admit()

    def take_peak(self) -> int:
        """The most that were held at once since this was last asked."""
        peak, self.peak = self.peak, self.in_use
        return peak

    def _admit(self) -> None:
        while self._waiting and self.in_use < self._limit:
            owner = min(self._waiting, key=self._held.__getitem__)
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind the others: it has just had its turn
            if not turn.done():
                turn.set_result(None)
                self.in_use += 1
                self._held[owner] += 1
                self.peak = max(self.peak, self.in_use)

    def _forgo(self, owner: Hashable, turn: asyncio.Future[None]) -> None:
        """Undo the wait of a cancelled task, whose turn may have come at the same moment."""
        if not turn.cancelled():
            self.release(owner)
            return
        queue = self._waiting.get(owner)
        if queue and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]
