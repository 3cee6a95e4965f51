"""Whoever produces a stream: what is read once, from its first byte to its end."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from typing import Final, Protocol

from uploader.errors import ConfigurationError, SourceUnreadable, VodupError
from uploader.threads import DISKS, Threads

__all__ = [
    "CommandInflow",
    "DescriptorInflow",
    "Inflow",
    "IteratorInflow",
    "Readable",
    "ReadableInflow",
]

PIPE_SIZE: Final = 1024 * 1024
"""What a pipe may hold, in bytes. Smaller wakes us more often; larger needs privileges."""

READ_SIZE: Final = 1024 * 1024
"""Bytes per hop into a thread."""


class Inflow(Protocol):
    """A stream of bytes that is read once."""

    async def read(self, into: memoryview) -> int:
        """Read some bytes; 0 at the end, and only at an end that is no failure.

        Raises:
            SourceUnreadable: whoever produces has failed.
        """

    async def close(self) -> None:
        """Read no more. May be called twice, and before the first `read`."""


# --- from an async iterator -----------------------------------------------------------


class IteratorInflow:
    """What an async iterator yields. Mutable: what is left of its last piece."""

    def __init__(self, pieces: AsyncIterable[bytes | bytearray | memoryview], name: str) -> None:
        self._pieces = pieces
        self._name = name
        self._iterator: AsyncIterator[bytes | bytearray | memoryview] | None = None
        self._left = memoryview(b"")

    async def read(self, into: memoryview) -> int:
        """Copy from the last piece, or wait for the next one."""
        if not self._left:
            self._left = await self._next()
        count = min(len(into), len(self._left))
        into[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    async def close(self) -> None:
        """Close the iterator, if it is one that can be."""
        self._left = memoryview(b"")
        closing = getattr(self._iterator, "aclose", None)
        if closing is not None:
            await closing()

    async def _next(self) -> memoryview:
        if self._iterator is None:
            self._iterator = aiter(self._pieces)
        try:
            async for piece in self._iterator:
                if len(view := _bytes_of(piece, self._name)):
                    return view
        except VodupError:
            raise
        except Exception as error:
            raise SourceUnreadable(
                f"{self._name}: its producer failed ({type(error).__name__}: {error})."
            ) from error
        return memoryview(b"")


def _bytes_of(piece: object, name: str) -> memoryview:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise ConfigurationError(
            f"{name} yields {type(piece).__name__}, not bytes.",
            next_step="Open text in binary mode, or encode it.",
        )
    return memoryview(piece).cast("B")


# --- from a file object ---------------------------------------------------------------


class Readable(Protocol):
    """A binary file object, as far as a stream needs one."""

    def read(self, size: int, /) -> bytes | None:
        """At most `size` bytes; b"" at the end."""


class ReadableInflow:
    """What a file object that cannot seek gives, read in a thread. It stays open.

    The thread is one of its own: whoever produces may keep it waiting for ever, and the
    disks of others must not wait with it.
    """

    def __init__(self, file: Readable, name: str) -> None:
        self._read_some = getattr(file, "read1", file.read)  # read() may wait for all of it
        self._name = name
        self._thread = Threads("vodup-stream", 1)

    async def read(self, into: memoryview) -> int:
        """Wait for it in the thread."""
        try:
            piece = await self._thread.run(self._read_some, min(len(into), READ_SIZE))
        except (OSError, ValueError) as error:
            raise SourceUnreadable(f"{self._name} cannot be read ({error}).") from error
        view = _bytes_of(piece if piece is not None else b"", self._name)
        into[: len(view)] = view
        return len(view)

    async def close(self) -> None:
        """Let the thread go; the file is not ours."""
        self._thread.shutdown()


# --- from a descriptor ----------------------------------------------------------------


class DescriptorInflow:
    """A pipe, a socket, a terminal, or a file under a descriptor that is not ours to close.

    Whatever can be waited for is waited for on the loop: a thread that reads cannot be
    stopped. Mutable: whoever waits.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._can_wait = _can_wait(descriptor, name)

    async def read(self, into: memoryview) -> int:
        """Read what is there, at least a byte."""
        try:
            if not self._can_wait:
                return await DISKS.run(os.readv, self._descriptor, [into[:READ_SIZE]])
            while True:
                await _readable(self._descriptor)
                with suppress(BlockingIOError):
                    return os.readv(self._descriptor, [into[:READ_SIZE]])
        except OSError as error:
            raise SourceUnreadable(
                f"{self._name} cannot be read ({error.strerror or error})."
            ) from error

    async def close(self) -> None:
        """It is not ours."""


def _can_wait(descriptor: int, name: str) -> bool:
    """Make a pipe large, and tell files from what a loop can wait for."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError as error:
        raise SourceUnreadable(f"{name} is not open ({error.strerror or error}).") from error
    if stat.S_ISDIR(mode):
        raise SourceUnreadable(f"{name} is a directory.")
    if stat.S_ISFIFO(mode):
        _enlarge(descriptor)
    return not (stat.S_ISREG(mode) or stat.S_ISBLK(mode))


def _enlarge(descriptor: int) -> None:
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read, or the end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(descriptor, _mark, ready)
    except PermissionError:
        return  # /dev/null and its like are always ready
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _mark(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


# --- from a command -------------------------------------------------------------------


class CommandInflow:
    """The standard output of a command that is started here, and its exit status.

    Runs without a shell, in a process group of its own. The end of its output is an end
    only if its exit status is 0. Mutable: the process.
    """

    _GRACE_S: Final = 5.0

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._process: asyncio.subprocess.Process | None = None
        self._output: int | None = None
        self._inflow: DescriptorInflow | None = None

    async def read(self, into: memoryview) -> int:
        """Start the command when its first byte is wanted; judge it by its exit status."""
        if self._inflow is None:
            self._inflow = await self._start()
        count = await self._inflow.read(into)
        if count == 0 and self._process is not None:
            status = await self._process.wait()
            if status != 0:
                raise SourceUnreadable(
                    f"The command {self._argv[0]} {_ending(status)}; what it wrote is not whole, "
                    "and nothing was completed.",
                    next_step="Mend it and run the same again: it begins from its first byte, and "
                    "what OSS has is compared and not sent again.",
                )
        return count

    async def close(self) -> None:
        """Stop the command, with everything it started, and wait for it."""
        self._close_output()
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(self._GRACE_S):
                await process.wait()
        except TimeoutError:
            _signal(process.pid, signal.SIGKILL)
            await process.wait()

    async def _start(self) -> DescriptorInflow:
        self._output, theirs = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._close_output()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SourceUnreadable(
                f"The command {self._argv[0]} cannot be started ({reason})."
            ) from error
        finally:
            os.close(theirs)
        return DescriptorInflow(self._output, f"the output of {self._argv[0]}")

    def _close_output(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            os.close(output)


def _ending(status: int) -> str:
    if status > 0:
        return f"failed with exit status {status}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)
