"""What keeps the parts of a stream until OSS has them, and the one that is memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from uploader.errors import ConfigurationError
from uploader.protocol.plan import MIN_PART_SIZE
from uploader.protocol.wire import Body
from uploader.sources.bytes import BytesSource

__all__ = [
    "KEPT_IN_MEMORY",
    "SHARES",
    "Content",
    "Fill",
    "Kept",
    "MemoryWindow",
    "Room",
    "Window",
    "filled_from",
    "require_room",
]

MIB = 1024 * 1024

KEPT_IN_MEMORY: Final = 96 * MIB
"""Bytes of a stream in memory. Too small: fewer connections work at once, and parts cannot
grow, so that 10,000 of them hold less. Too large: it is memory."""

SHARES: Final = 8
"""The largest part is so small that this many are kept at once: some being sent, one filled."""

Fill = Callable[[memoryview], Awaitable[int]]
"""Reads some bytes of the stream; 0 at its end."""


class Content(Protocol):
    """The bytes of one part, as often as they are wanted."""

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """As `Source.body`; `offset` counts from the beginning of the part."""

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """As `Source.read_crc`."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A part of `size` bytes that can be read until it is dropped."""

    size: int
    content: Content


class Window(Protocol):
    """Keeps a bounded number of bytes."""

    @property
    def largest_part(self) -> int:
        """Bytes of one part that fit well."""

    @property
    def identity(self) -> str | None:
        """Of the stream, where the window outlives a process; else None."""

    async def open(self, reference: str) -> int:
        """Get ready for the upload of this name; what is there of another one is dropped.

        "" is none, so that nothing is kept for a later run.

        Returns the size of the stream if a former run has reached its end, so that
        `former` has all of it; else 0.
        """

    async def former(self, offset: int) -> Kept | None:
        """The part that the former run had from `offset` on; None if none began there."""

    async def keep(self, offset: int, size: int, fill: Fill) -> Kept | None:
        """Wait for room and read `size` bytes, or up to the end; None if it has come already."""

    async def ended(self, size: int) -> None:
        """Note that the stream has ended after so many bytes."""

    async def drop(self, offset: int, kept: Kept) -> None:
        """The part need not be kept any more."""

    async def close(self, *, is_done: bool) -> None:
        """Give everything back; what a later run could use stays unless the upload is done."""


class Room:
    """A number of bytes that are lent, to one window or to several. Mutable: how many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.lent = 0
        self._returned = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait until there is room; a part larger than all of it comes alone."""
        while self.lent and self.lent + size > self._most:
            self._returned.clear()
            await self._returned.wait()
        self.lent += size

    def give_back(self, size: int) -> None:
        """Make room."""
        self.lent -= size
        self._returned.set()


# --- memory ---------------------------------------------------------------------------


class MemoryWindow:
    """Keeps parts in memory, in buffers that are used again. Mutable."""

    def __init__(self, most: int = KEPT_IN_MEMORY, *, room: Room | None = None) -> None:
        """`most`: bytes kept at once, at least eight of OSS's smallest parts.

        `room`: shared with other windows, where many streams are uploaded at once.
        """
        require_room(most, "--memory")
        self._most = most
        self._room = room or Room(most)
        self._lent: dict[int, bytearray] = {}
        self._idle: list[bytearray] = []

    @property
    def largest_part(self) -> int:
        """An eighth of it."""
        return self._most // SHARES

    @property
    def identity(self) -> None:
        """Memory does not outlive a process."""

    async def open(self, reference: str) -> int:
        """Memory holds nothing of another run."""
        return 0

    async def former(self, offset: int) -> Kept | None:
        """Memory holds nothing of another run."""
        return None

    async def keep(self, offset: int, size: int, fill: Fill) -> Kept | None:
        """Read into a buffer."""
        await self._room.take(size)
        self._lent[offset] = buffer = self._buffer(size)
        view = memoryview(buffer)
        filled = await filled_from(fill, view)
        kept = Kept(filled, BytesSource(view[:filled]))
        if not filled:
            await self.drop(offset, kept)
            return None
        return kept

    async def ended(self, size: int) -> None:
        """Nobody could ask for it later."""

    async def drop(self, offset: int, kept: Kept) -> None:
        """Put the buffer back."""
        buffer = self._lent.pop(offset)
        self._idle.append(buffer)
        self._room.give_back(len(buffer))

    async def close(self, *, is_done: bool) -> None:
        """Forget all of it."""
        for buffer in self._lent.values():
            self._room.give_back(len(buffer))
        self._lent.clear()
        self._idle.clear()

    def _buffer(self, size: int) -> bytearray:
        """One that lies idle, or a new one; parts grow, so that smaller ones are of no use."""
        self._idle = [buffer for buffer in self._idle if len(buffer) == size]
        return self._idle.pop() if self._idle else bytearray(size)


async def filled_from(fill: Fill, view: memoryview) -> int:
    """Fill `view`, or as much of it as there is before the end; returns how much."""
    filled = 0
    while filled < len(view):
        count = await fill(view[filled:])
        if count == 0:
            break
        filled += count
    return filled


def require_room(most: int, flag: str) -> None:
    """Refuse a window that does not hold parts.

    Raises:
        ConfigurationError: it is too small.
    """
    if most < SHARES * MIN_PART_SIZE:
        raise ConfigurationError(
            f"{most} bytes are too few to keep parts in ({flag}).",
            next_step=f"Allow at least {SHARES * MIN_PART_SIZE}.",
        )
