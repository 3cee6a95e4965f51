"""Bytes in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources.contract import Fingerprint, RandomAccess, RangeBody, Ranges, empty_source


@dataclass(frozen=True, slots=True)
class BytesSource(Ranges):
    """Bytes that are in memory anyway; they must not be changed while they are uploaded."""

    data: bytes | memoryview = field(repr=False)
    name: str = "<bytes>"
    stream = None  # all of it is there

    @property
    def identity(self) -> str:
        """The size and CRC-64 of the content: bytes have no other identity."""
        return f"bytes:{self.size}:{crc64(self.data):016x}"

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    async def fingerprint(self) -> Fingerprint:
        """The size and the CRC-64 of the content."""
        return Fingerprint.of_content(self.size, crc64(self.data))

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return the range as a request body."""
        return RangeBody(_Memory(memoryview(self.data)), offset, size, on_sent)

    async def __aenter__(self) -> Self:
        if not self.data:
            raise empty_source(self.name)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Memory(RandomAccess):
    data: memoryview

    def read_now(self, into: memoryview, offset: int) -> int | None:
        piece = self.data[offset : offset + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    async def read(self, into: memoryview, offset: int) -> int:
        return self.read_now(into, offset) or 0
