"""Readers: bytes that a producer delivers once, from the first to the last."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from typing import Final, Protocol

from uploader import portable
from uploader.commands import CommandNotStarted, RunningCommand, describe_status, wait_readable
from uploader.errors import ConfigurationError, SourceUnreadable, VodupError
from uploader.sources.contract import BytesLike
from uploader.threads import DISKS

PIPE_SIZE: Final = 1024 * 1024
"""Bytes that a pipe may hold. Smaller: more wake-ups; larger needs privileges."""

READ_SIZE: Final = 1024 * 1024
"""Bytes per read in a thread."""


class Reader(Protocol):
    """A stream of bytes that is read once."""

    async def read(self, into: memoryview) -> int:
        """Read some bytes; 0 at the end, if the producer has ended without a failure.

        Raises:
            SourceUnreadable: the producer has failed.
        """

    async def close(self) -> None:
        """Stop reading. May be called twice, and before the first `read`."""


class IteratorReader:
    """The bytes of an async iterator. Mutable: the rest of its last piece."""

    def __init__(self, pieces: AsyncIterable[BytesLike], name: str) -> None:
        self._pieces = pieces
        self._name = name
        self._iterator: AsyncIterator[BytesLike] | None = None
        self._rest = memoryview(b"")

    async def read(self, into: memoryview) -> int:
        """Copy from the last piece, or wait for the next one."""
        if not self._rest:
            self._rest = await self._next()
        count = min(len(into), len(self._rest))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def close(self) -> None:
        """Close the iterator, if it can be closed."""
        self._rest = memoryview(b"")
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
                f"{self._name}: its producer failed ({type(error).__name__}: {error}).",
                next_step="Fix the producer, then upload its stream again from the start.",
            ) from error
        return memoryview(b"")


def _bytes_of(piece: object, name: str) -> memoryview:
    if not isinstance(piece, BytesLike):
        raise ConfigurationError(
            f"{name} yields {type(piece).__name__}, not bytes.",
            next_step="Open text in binary mode, or encode it.",
        )
    return memoryview(piece).cast("B")


def stdin_descriptor() -> int:
    """The descriptor of standard input; it is a ConfigurationError if that is closed."""
    if sys.stdin is None:
        raise ConfigurationError(
            "Standard input is closed.", next_step="Connect it to a pipe or a file, or name a file."
        )
    return sys.stdin.fileno()


class DescriptorReader:
    """A pipe, socket, terminal or file under a descriptor, which stays open.

    Where possible the event loop waits for data: a thread that reads cannot be stopped.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._can_wait = _prepare(descriptor, name)

    async def read(self, into: memoryview) -> int:
        """Read what is there, at least one byte."""
        try:
            if not self._can_wait:
                return await DISKS.run(portable.read_into, self._descriptor, into[:READ_SIZE])
            while True:
                await wait_readable(self._descriptor)
                with suppress(BlockingIOError):
                    return portable.read_into(self._descriptor, into[:READ_SIZE])
        except OSError as error:
            raise SourceUnreadable(
                f"{self._name} cannot be read ({error.strerror or error})."
            ) from error

    async def close(self) -> None:
        """The descriptor belongs to the caller."""


def _prepare(descriptor: int, name: str) -> bool:
    """Enlarge a pipe; return whether an event loop can wait for the descriptor."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError as error:
        raise SourceUnreadable(f"{name} is not open ({error.strerror or error}).") from error
    if stat.S_ISDIR(mode):
        raise SourceUnreadable(f"{name} is a directory.")
    if stat.S_ISFIFO(mode):
        portable.enlarge_pipe(descriptor, PIPE_SIZE)
    return not (stat.S_ISREG(mode) or stat.S_ISBLK(mode))


class CommandReader:
    """The standard output of a command, and its exit status. Mutable: the process.

    Runs without a shell, in a process group of its own. The end of the output counts as
    the end of the stream only if the exit status is 0.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._command: RunningCommand | None = None
        self._reader: DescriptorReader | None = None

    async def read(self, into: memoryview) -> int:
        """Start the command on the first call; check its exit status at the end."""
        if self._command is None or self._reader is None:
            try:
                self._command = RunningCommand(self._argv)
            except CommandNotStarted as error:
                raise SourceUnreadable(
                    f"The command {self._argv[0]} cannot be started ({error})."
                ) from error
            output_name = f"the output of {self._argv[0]}"
            self._reader = DescriptorReader(self._command.output, output_name)
        count = await self._reader.read(into)
        if count == 0 and (status := await self._command.wait()) != 0:
            ending = describe_status(status, self._command.last_output)
            raise SourceUnreadable(
                f"The command {self._argv[0]} {ending}, so its output is incomplete; nothing was "
                "completed.",
                next_step="Fix the command and run the same again: it starts from its first "
                "byte, and what OSS has is compared and not sent again.",
            )
        return count

    async def close(self) -> None:
        """Stop the command, with everything it started, and wait for it."""
        command, self._command = self._command, None
        if command is not None:
            await command.stop()
