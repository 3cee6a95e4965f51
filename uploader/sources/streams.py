"""Streams: bytes that come once, in order, and end when they end.

Parts are read in order and kept, in memory or in a spool, until OSS has them; when there
is no room for another, the producer is not read from.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, Callable
from types import TracebackType
from typing import Self

from uploader.errors import SourceNotRepeatable
from uploader.protocol.plan import Part
from uploader.protocol.wire import Body
from uploader.sources.fingerprints import Fingerprint
from uploader.sources.part_buffer import Kept, MemoryWindow, Window
from uploader.sources.readers import Inflow, IteratorInflow
from uploader.sources.refusals import empty

__all__ = ["StreamSource"]

_UNKNOWN = Fingerprint(0, 0, 0, 0, 0)
"""A stream is known by its bytes, which are compared as they come by."""


class StreamSource:
    """A stream. Mutable: how far it has come, and which parts are kept. Used once.

    Args:
        pieces: an async iterable of bytes, or an `Inflow`.
        name: a file name: VOD wants one with the extension of a video.
        identity: what the stream is called from run to run, which is what a repeated
            run goes on with; None draws a new one, so that every stream is an upload of
            its own unless the caller names a key.
        window: keeps parts; None for 96 MiB of memory.
        expected_size: a guess of the whole, in bytes; parts are then no larger than
            those of a file of that size.
    """

    def __init__(
        self,
        pieces: AsyncIterable[bytes | bytearray | memoryview] | Inflow,
        name: str = "<stream>",
        *,
        identity: str | None = None,
        window: Window | None = None,
        expected_size: int | None = None,
    ) -> None:
        self.name = name
        self._inflow = IteratorInflow(pieces, name) if isinstance(pieces, AsyncIterable) else pieces
        self._window = window or MemoryWindow()
        self.identity = identity or self._window.identity or f"stream:{uuid.uuid4().hex}"
        self.expected_size = expected_size
        self.size = 0
        self._kept: dict[int, Kept] = {}
        self._end = 0
        self._has_ended = False
        self._former_size = 0

    # --- as a source ----------------------------------------------------------------

    @property
    def arrival(self) -> Self:
        """It arrives."""
        return self

    async def fingerprint(self) -> Fingerprint:
        """Always the same: its bytes are compared as they come by."""
        return _UNKNOWN

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """A part that is kept.

        Raises:
            SourceNotRepeatable: it is not kept any more.
        """
        return self._part_at(offset).content.body(0, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """Checksums of a part that is kept.

        Raises:
            SourceNotRepeatable: it is not kept any more.
        """
        return await self._part_at(offset).content.read_crc(0, size, with_md5=with_md5)

    async def __aenter__(self) -> Self:
        """Read nothing yet: whether there is something to do is not known."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._inflow.close()
        finally:
            self._kept.clear()
            await self._window.close(is_done=error is None)

    # --- as an arrival --------------------------------------------------------------

    @property
    def is_rereadable(self) -> bool:
        """No: it comes once."""
        return False

    @property
    def largest_part(self) -> int:
        """What the window keeps."""
        return self._window.largest_part

    @property
    def resumption(self) -> str:
        """What it takes to go on."""
        if self._has_ended and self._window.identity is not None:
            return (
                "Run the same command again: the spool holds the rest, the producer is not needed."
            )
        return (
            "The stream came once. To go on, run its producer again from its start with "
            "--key {key} (key=): what OSS has is compared and not sent again."
        )

    async def begin(self, reference: str) -> None:
        """Open the window."""
        self._former_size = await self._window.open(reference)
        self._has_ended = self._has_ended or self._former_size > 0

    async def reached(self, part: Part) -> int:
        """Read the part, once there is room for it.

        Raises:
            SourceNotRepeatable: it was released before.
            SourceUnreadable: the producer failed, or the stream is empty.
        """
        kept = self._kept.get(part.offset)
        if kept is None:
            kept = await self._next(part)
        return kept.size if kept else 0

    async def release(self, part: Part) -> None:
        """Drop the part."""
        if (kept := self._kept.pop(part.offset, None)) is not None:
            await self._window.drop(part.offset, kept)

    async def _next(self, part: Part) -> Kept | None:
        if part.offset != self._end:
            if part.offset > self._end:
                return None  # the end was before it
            raise self._gone(part.offset)
        kept = await self._read(part)
        if kept is None or kept.size < part.size:
            await self._note_end(self._end + (kept.size if kept else 0))
        if kept is not None:
            self._kept[part.offset] = kept
            self._end += kept.size
        return kept

    async def _read(self, part: Part) -> Kept | None:
        if self._former_size:
            return await self._read_former(part)
        if self._has_ended:
            return None
        return await self._window.keep(part.offset, part.size, self._inflow.read)

    async def _read_former(self, part: Part) -> Kept | None:
        if part.offset == self._former_size:
            return None
        kept = await self._window.former(part.offset)
        if kept is None or kept.size != min(part.size, self._former_size - part.offset):
            raise self._gone(part.offset)  # it was cut otherwise
        return kept

    async def _note_end(self, size: int) -> None:
        self.size = size
        if size == 0:
            raise empty(self.name)
        if not self._has_ended:
            self._has_ended = True
            await self._window.ended(size)

    def _part_at(self, offset: int) -> Kept:
        if (kept := self._kept.get(offset)) is None:
            raise self._gone(offset)
        return kept

    def _gone(self, offset: int) -> SourceNotRepeatable:
        return SourceNotRepeatable(
            f"The bytes of {self.name} from {offset} on are needed once more, and a stream comes "
            "only once."
        )
