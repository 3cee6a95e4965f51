"""Waiting for conditions and for processes, so that a slow machine tests the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(is_true: Callable[[], object], *, within_s: float = 30.0) -> None:
    """Return as soon as `is_true`; fail after `within_s`."""
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.02)


async def until(is_true: Callable[[], object], *, within_s: float = 30.0) -> None:
    """The same, on a loop."""
    async with asyncio.timeout(within_s):
        while not is_true():  # noqa: ASYNC110 - others tell nobody
            await asyncio.sleep(0.01)


def is_stopped(pid: int) -> bool:
    """Whether a process has stopped after a SIGSTOP: each of its threads does so by itself."""
    threads = Path(f"/proc/{pid}/task").glob("*/status")
    return all("\nState:\tT" in thread.read_text() for thread in threads)
