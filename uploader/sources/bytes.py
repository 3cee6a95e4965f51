"""Bytes in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from uploader.protocol.integrity import crc64
from uploader.sources.contract import Fingerprint, RandomAccess, empty_source


@dataclass(frozen=True, slots=True)
class BytesSource(RandomAccess):
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

    def read_now(self, into: memoryview, offset: int) -> int | None:
        """Copy from memory."""
        piece = memoryview(self.data)[offset : offset + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    async def read(self, into: memoryview, offset: int) -> int:
        """Copy from memory."""
        return self.read_now(into, offset) or 0

    async def __aenter__(self) -> Self:
        if not self.data:
            raise empty_source(self.name)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        return None
