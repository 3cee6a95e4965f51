"""A loop that Ctrl-C and SIGTERM stop gracefully, and the second time at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from typing import Final

from uploader.cli import exits
from uploader.cli.running import Interrupted

__all__ = ["run_async"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR: Final = "\x1b[?25h"


def run_async(work: Coroutine[None, None, int]) -> int:
    """Run `work` on a loop; the first Ctrl-C or SIGTERM cancels it, the second one ends it.

    Raises:
        Interrupted: it was cancelled that way, and has cleaned up.
    """
    with asyncio.Runner() as runner:
        return runner.run(_interruptible(work))


async def _interruptible(work: Coroutine[None, None, int]) -> int:
    task = asyncio.ensure_future(work)
    with _signals_cancelling(task) as received:
        try:
            return await task
        except asyncio.CancelledError:
            if not received:
                raise
            raise Interrupted(received[0]) from None


@contextlib.contextmanager
def _signals_cancelling(task: asyncio.Future[int]) -> Iterator[list[signal.Signals]]:
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if received:
            _stop_at_once(number)
        received.append(number)
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield received
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _stop_at_once(number: signal.Signals) -> None:
    """End without cleaning up: what must survive is on disk already."""
    if sys.stderr.isatty():
        os.write(2, f"{_SHOW_CURSOR}\n".encode())
    os._exit(exits.interrupted_code(number))
