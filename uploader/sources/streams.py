"""Streams: bytes that are read once, in order, and whose end is known when it comes.

Parts are read in order and buffered, in memory or in a spool, until OSS has them; while there
is no space for another one, the producer is not read from.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, Callable
from typing import Self

from uploader.errors import SourceNotRepeatable
from uploader.protocol.plan import Part
from uploader.protocol.wire import Body
from uploader.sources.contract import BytesLike, Checksums, Fingerprint, empty_source
from uploader.sources.part_buffer import BufferedPart, MemoryBuffer, PartBuffer
from uploader.sources.readers import IteratorReader, Reader

_UNKNOWN = Fingerprint(0, 0, 0, 0, 0)
"""A stream is identified by its bytes, which are compared as they are read."""


class StreamSource:
    """A stream. Mutable: how far it was read, and which parts are buffered. Used once.

    Args:
        pieces: an async iterable of bytes, or a `Reader`.
        name: a file name: VOD requires one with the extension of a video.
        identity: the stream's name from run to run, by which a repeated run resumes; None
            draws a new one, so that every stream is an upload of its own unless the caller
            passes a key.
        buffer: holds parts; None for 96 MiB of memory.
        expected_size: an estimate of the total in bytes; parts are then no larger than
            those of a file of that size.
    """

    is_rereadable = False

    def __init__(
        self,
        pieces: AsyncIterable[BytesLike] | Reader,
        name: str = "<stream>",
        *,
        identity: str | None = None,
        buffer: PartBuffer | None = None,
        expected_size: int | None = None,
    ) -> None:
        self.name = name
        self._reader = IteratorReader(pieces, name) if isinstance(pieces, AsyncIterable) else pieces
        self._buffer = buffer or MemoryBuffer()
        self.identity = identity or self._buffer.identity or f"stream:{uuid.uuid4().hex}"
        self.expected_size = expected_size
        self.max_part_size = self._buffer.max_part_size
        self.size = 0
        self._parts: dict[int, BufferedPart] = {}
        self._end = 0
        self._has_ended = False
        self._earlier_size = 0

    @property
    def stream(self) -> Self:
        """The stream itself."""
        return self

    async def fingerprint(self) -> Fingerprint:
        """Always the same: the bytes are compared as they are read."""
        return _UNKNOWN

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return a buffered part as a request body.

        Raises:
            SourceNotRepeatable: it is not buffered any more.
        """
        return self._part_at(offset).body(0, size, on_sent)

    async def read_crc(self, offset: int, size: int, *, with_md5: bool = False) -> Checksums:
        """Return the checksums of a buffered part.

        Raises:
            SourceNotRepeatable: it is not buffered any more.
        """
        return await self._part_at(offset).read_crc(0, size, with_md5=with_md5)

    async def __aenter__(self) -> Self:
        """Read nothing yet: whether there is anything to do is not known."""
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            await self._reader.close()
        finally:
            self._parts.clear()
            await self._buffer.close(is_done=error is None)

    @property
    def resume_hint(self) -> str:
        """How a user resumes."""
        if self._has_ended and self._buffer.identity is not None:
            return "Run the same command again: the spool has the rest, the producer is not needed."
        return (
            "To resume, run the producer again from its start with --key {key} (key=): the bytes "
            "that OSS has are compared and not sent again."
        )

    async def begin(self, reference: str) -> None:
        """Open the buffer."""
        self._earlier_size = await self._buffer.open(reference)
        self._has_ended = self._has_ended or self._earlier_size > 0

    async def wait_for(self, part: Part) -> int:
        """Read the part, once there is space for it.

        Raises:
            SourceNotRepeatable: it was released before.
            SourceUnreadable: the producer failed, or the stream is empty.
        """
        buffered = self._parts.get(part.offset)
        if buffered is None:
            buffered = await self._next(part)
        return buffered.size if buffered else 0

    async def release(self, part: Part) -> None:
        """Drop the part from the buffer."""
        if (buffered := self._parts.pop(part.offset, None)) is not None:
            await self._buffer.drop(part.offset, buffered)

    async def _next(self, part: Part) -> BufferedPart | None:
        if part.offset > self._end:
            return None  # the stream ends before it
        if part.offset < self._end:
            raise self._not_buffered(part.offset)
        buffered = await self._read(part)
        if buffered is None or buffered.size < part.size:
            await self._record_end(self._end + (buffered.size if buffered else 0))
        if buffered is not None:
            self._parts[part.offset] = buffered
            self._end += buffered.size
        return buffered

    async def _read(self, part: Part) -> BufferedPart | None:
        if self._earlier_size:
            return await self._read_earlier(part)
        if self._has_ended:
            return None
        return await self._buffer.fill(part.offset, part.size, self._reader.read)

    async def _read_earlier(self, part: Part) -> BufferedPart | None:
        if part.offset == self._earlier_size:
            return None
        buffered = await self._buffer.earlier_part(part.offset)
        if buffered is None or buffered.size != min(part.size, self._earlier_size - part.offset):
            raise self._not_buffered(part.offset)  # the earlier run used other parts
        return buffered

    async def _record_end(self, size: int) -> None:
        self.size = size
        if size == 0:
            raise empty_source(self.name)
        if not self._has_ended:
            self._has_ended = True
            await self._buffer.record_end(size)

    def _part_at(self, offset: int) -> BufferedPart:
        if (buffered := self._parts.get(offset)) is None:
            raise self._not_buffered(offset)
        return buffered

    def _not_buffered(self, offset: int) -> SourceNotRepeatable:
        return SourceNotRepeatable(
            f"The bytes of {self.name} from offset {offset} on have to be sent again, and a stream "
            "can be read only once."
        )
