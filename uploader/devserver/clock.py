"""The server's clock: the machine's, or one that stands still until it is moved."""

from __future__ import annotations

import asyncio
import time

_LONGEST_SLEEP_S = 3600


class Clock:
    """Mutable: a clock that was set to an instant moves only with ``advance``."""

    def __init__(self, instant: float | None) -> None:
        self._instant = instant
        self._moved: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def is_set(self) -> bool:
        """Whether it stands still."""
        return self._instant is not None

    def now(self) -> float:
        """Seconds of the Unix epoch."""
        return time.time() if self._instant is None else self._instant

    def advance(self, seconds: float) -> None:
        """Move a clock that stands still; may be called from any thread.

        Raises: ValueError when it runs by itself, or would go back.
        """
        if self._instant is None or seconds < 0:
            raise ValueError("only a clock that stands still can be advanced, and only forwards")
        self._instant += seconds
        for loop, moved in tuple(self._moved):
            loop.call_soon_threadsafe(moved.set)

    async def sleep_until(self, instant: float) -> None:
        """Return once it is ``instant``."""
        moved = (asyncio.get_running_loop(), asyncio.Event())
        self._moved.append(moved)
        try:
            while (left := instant - self.now()) > 0:
                if self._instant is None:
                    await asyncio.sleep(min(left, _LONGEST_SLEEP_S))
                else:
                    await moved[1].wait()
                    moved[1].clear()
        finally:
            self._moved.remove(moved)
