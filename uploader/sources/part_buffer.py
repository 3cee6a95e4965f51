"""Buffers that hold the parts of a stream until OSS has them, and the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from uploader.errors import ConfigurationError
from uploader.protocol.plan import MIN_PART_SIZE
from uploader.sources.bytes import BytesSource
from uploader.sources.contract import Ranges

DEFAULT_MEMORY_SIZE: Final = 96 * 1024 * 1024
"""Bytes of a stream in memory. Too small: fewer connections send at once, and parts cannot
grow, so that 10,000 of them hold less. Too large: uses memory."""

BUFFERED_PART_COUNT: Final = 8
"""At least this many parts fit into a buffer, which limits their size: some are being sent
while one is filled."""

ReadInto = Callable[[memoryview], Awaitable[int]]
"""Reads some bytes of the stream; 0 at its end."""


class BufferedPart(Ranges, Protocol):
    """A part that can be read until it is dropped; offsets count from its first byte."""

    @property
    def size(self) -> int:
        """Bytes."""


class PartBuffer(Protocol):
    """Holds a limited number of bytes of one stream; by default, not across runs."""

    @property
    def max_part_size(self) -> int:
        """Bytes of the largest part to plan for."""

    @property
    def identity(self) -> str | None:
        """Of the stream, where the buffer outlives the process; else None."""
        return None

    async def open(self, reference: str) -> int:
        """Prepare for the upload with this reference; remove what belongs to another one.

        An empty `reference` means that nothing needs to survive for a later run.

        Returns the size of the stream if an earlier run has read it to its end, so that
        `earlier_part` returns all of it; else 0.
        """
        return 0

    async def earlier_part(self, offset: int) -> BufferedPart | None:
        """Return the part that an earlier run buffered at this offset, or None."""
        return None

    async def fill(self, offset: int, size: int, read: ReadInto) -> BufferedPart | None:
        """Wait for space, then read `size` bytes or up to the end; None if nothing is left."""
        ...

    async def record_end(self, size: int) -> None:
        """Record that the stream has ended after so many bytes."""
        return None

    async def drop(self, offset: int, part: BufferedPart) -> None:
        """Free the space of a part that is not needed any more."""

    async def close(self, *, is_done: bool) -> None:
        """Free everything; what a later run could use remains unless the upload is done."""


class BufferSpace:
    """A number of bytes for one buffer, or shared by several. Mutable: how many are used."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self.used = 0
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait until there is space; a part larger than all of it waits to be the only one."""
        while self.used and self.used + size > self._max_size:
            self._freed.clear()
            await self._freed.wait()
        self.used += size

    def free(self, size: int) -> None:
        """Give space back."""
        self.used -= size
        self._freed.set()


class MemoryBuffer(PartBuffer):
    """Holds parts in memory, in buffers that are reused. Mutable."""

    def __init__(
        self, max_size: int = DEFAULT_MEMORY_SIZE, *, space: BufferSpace | None = None
    ) -> None:
        """`max_size`: bytes held at once, at least eight of OSS's smallest parts.

        `space`: shared with other buffers, where many streams are uploaded at once.
        """
        require_buffer_size(max_size, "--memory")
        self._max_size = max_size
        self._space = space or BufferSpace(max_size)
        self._used: dict[int, bytearray] = {}
        self._spare: list[bytearray] = []

    @property
    def max_part_size(self) -> int:
        """An eighth of the buffer."""
        return self._max_size // BUFFERED_PART_COUNT

    async def fill(self, offset: int, size: int, read: ReadInto) -> BufferedPart | None:
        """Read into memory."""
        await self._space.take(size)
        # Reuse memory of this size; parts only grow, so that smaller pieces are released.
        self._spare = [data for data in self._spare if len(data) == size]
        self._used[offset] = data = self._spare.pop() if self._spare else bytearray(size)
        view = memoryview(data)
        part = BytesSource(view[: await read_fully(read, view)])
        if part.size:
            return part
        await self.drop(offset, part)
        return None

    async def drop(self, offset: int, part: BufferedPart) -> None:
        """Keep the memory for the next part."""
        data = self._used.pop(offset)
        self._spare.append(data)
        self._space.free(len(data))

    async def close(self, *, is_done: bool) -> None:
        """Free all memory."""
        for data in self._used.values():
            self._space.free(len(data))
        self._used.clear()
        self._spare.clear()


async def read_fully(read: ReadInto, view: memoryview) -> int:
    """Fill `view`, or as much of it as is left of the stream; return how much."""
    filled = 0
    while filled < len(view):
        count = await read(view[filled:])
        if count == 0:
            break
        filled += count
    return filled


def require_buffer_size(max_size: int, flag: str) -> None:
    """Refuse a buffer that is too small for parts.

    Raises:
        ConfigurationError: it is too small.
    """
    least = BUFFERED_PART_COUNT * MIN_PART_SIZE
    if max_size < least:
        raise ConfigurationError(
            f"{flag}: {max_size} bytes are too few to buffer parts.",
            next_step=f"Allow at least {least} bytes.",
        )
