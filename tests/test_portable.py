"""What differs between operating systems: the ways that Linux does not use.

The rest of `uploader.portable` is tested by all other tests, and by `make test-portable`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from uploader import portable

PORTABLE = Path(__file__).parent / "portable"


class LoopOfWindows(asyncio.SelectorEventLoop):
    """An event loop that has no signal handlers."""

    def add_signal_handler(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    def remove_signal_handler(self, *_: Any) -> bool:
        raise NotImplementedError


def test_a_loop_without_signal_handlers_gets_the_signals() -> None:
    async def main() -> int:
        loop, received = asyncio.get_running_loop(), asyncio.Event()
        portable.on_signal(loop, signal.SIGTERM, received.set)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(received.wait(), 5)
        portable.off_signal(loop, signal.SIGTERM, before)
        return 1

    before = signal.getsignal(signal.SIGTERM)
    with asyncio.Runner(loop_factory=LoopOfWindows) as runner:
        assert runner.run(main()) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_portable_ways_are_those_that_are_tested(tmp_path: Path) -> None:
    """`make test-portable` hides what others lack: files are read and locked all the same."""
    code = """
import os, sys
from uploader import portable
assert portable.fcntl is portable.resource is portable._preadv is portable.CHILD is None
assert not (portable.HAS_OWNERS or portable.HAS_PROCESS_GROUPS or portable.CAN_READ_CACHED)
assert os.preadv and os.geteuid() >= 0  # the standard library keeps them
file = os.open("file", os.O_RDWR | os.O_CREAT)
os.write(file, b"0123456789")
into = memoryview(bytearray(4))
assert (portable.read_at(file, into, 3), bytes(into)) == (4, b"3456")
assert portable.read_at(file, into, 10) == 0
portable.lock(file, shared=True)
other = os.open("file", os.O_RDWR)
portable.lock(other, shared=True)
try:
    portable.lock(other)
except BlockingIOError:
    print("locked")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{PORTABLE}:{PORTABLE.parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "locked\n", done.stderr
