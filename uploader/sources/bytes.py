"""Bytes in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources.fingerprints import Fingerprint
from uploader.sources.ranges import Checksums, Range
from uploader.sources.refusals import empty

__all__ = ["BytesSource"]


@dataclass(frozen=True, slots=True)
class BytesSource:
    """Bytes that are in memory anyway; they must not be changed meanwhile."""

    data: bytes | memoryview = field(repr=False)
    name: str = "<bytes>"

    @property
    def identity(self) -> str:
        """The content, for there is nothing else to go by."""
        return f"bytes:{self.size}:{crc64(self.data):016x}"

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    @property
    def arrival(self) -> None:
        """It is there as a whole."""

    async def fingerprint(self) -> Fingerprint:
        """The size and the CRC-64 of the content."""
        return Fingerprint(self.size, 0, 0, crc64(self.data), 0)

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """The range as a request's body."""
        return Range(_Memory(memoryview(self.data)), offset, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """Checksums of the range."""
        checksums = Checksums(with_md5=with_md5)
        checksums.update(memoryview(self.data)[offset : offset + size])
        return checksums.result()

    async def __aenter__(self) -> Self:
        if not self.data:
            raise empty(self.name)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Memory:
    data: memoryview

    def read_now(self, into: memoryview, offset: int) -> int | None:
        piece = self.data[offset : offset + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    async def read(self, into: memoryview, offset: int) -> int:
        return self.read_now(into, offset) or 0

    async def check(self) -> None:
        return None

    def check_now(self) -> None:
        return None
