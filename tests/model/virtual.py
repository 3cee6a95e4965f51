"""An event loop whose time passes when a test says so, or when nothing else is left to do.

Everything that waits, waits on this loop: `Clock.sleep`, `asyncio.timeout`, rate limiters.
So ten minutes of pauses take as long as what happens in them.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

__all__ = ["START", "Deadlock", "VirtualClock", "VirtualLoop"]

T = TypeVar("T")

START = datetime(2026, 11, 22, 9, 3, 54, tzinfo=UTC)

_BUSY_ITERATIONS = 200_000

_WORK_S = 1e-6
"""What one turn of the loop takes. If time stood still while work is done, a rate limiter
that waits for what rounding has left over would wait for ever."""


class Deadlock(AssertionError):
    """Every task waits, and no timer will ever wake one of them."""


class _Selector(selectors.DefaultSelector):
    """Lets time pass where another selector would wait. Mutable: the time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if timeout is None and not ready:
            raise Deadlock("every task waits, and there is no timer")
        self.now_s += _WORK_S if ready or not timeout else max(timeout, _WORK_S)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs to the end of a coroutine, skipping all waiting; or step by step with `settle`.

    For code without threads: their time does not pass here. Mutable: the time.
    """

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._virtual.now_s

    def settle(self) -> None:
        """Run until every task waits for something that has not happened yet."""
        for _ in range(_BUSY_ITERATIONS):
            self.call_soon(self.stop)
            self.run_forever()
            if not self._has_work():
                return
        raise AssertionError("the tasks keep each other busy without waiting for anything")

    def skip(self, seconds: float) -> None:
        """Let time pass at once, as when a machine sleeps: every timer fires once, late."""
        self._virtual.now_s += seconds
        self.settle()

    def next_timer_s(self) -> float | None:
        """Seconds until a timer fires; None when there is none."""
        timers: list[asyncio.TimerHandle] = vars(self)["_scheduled"]
        if not timers or not timers[0].cancelled():
            return max(0.0, timers[0].when() - self.time()) if timers else None
        whens = [timer.when() for timer in timers if not timer.cancelled()]
        return max(0.0, min(whens) - self.time()) if whens else None

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.run_until_complete(work)

    def _has_work(self) -> bool:
        due_s = self.next_timer_s()
        return bool(vars(self)["_ready"]) or (due_s is not None and due_s <= 0)


class VirtualClock:
    """The clock of a `VirtualLoop`. Mutable: `wrong_by_s`, how far the wall clock is ahead."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.wrong_by_s = 0.0

    def true_now(self) -> datetime:
        """What an exact clock shows: the services have one."""
        return START + timedelta(seconds=self._loop.time())

    def utc_now(self) -> datetime:
        """What the wall clock of this machine shows."""
        return self.true_now() + timedelta(seconds=self.wrong_by_s)

    def elapsed_s(self) -> float:
        """Seconds, never jumping."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
