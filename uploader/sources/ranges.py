"""Ranges of a source: as the body of a request, and as checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from uploader.errors import SourceChanged
from uploader.protocol.integrity import crc64

__all__ = ["REREAD_SIZE", "Checksums", "Positioned", "Range"]

REREAD_SIZE: Final = 4 * 1024 * 1024
"""Bytes per hop into a thread where a range is read only for its checksum."""


class Positioned(Protocol):
    """What a range reads from."""

    def read_now(self, into: memoryview, offset: int) -> int | None:
        """Fill `into` if that needs no waiting; None where it would. 0 is the end."""

    async def read(self, into: memoryview, offset: int) -> int:
        """Fill `into`; returns how many bytes."""

    def check_now(self) -> None:
        """Raise `SourceChanged` if it has; only asked where `read_now` gave bytes."""

    async def check(self) -> None:
        """Raise `SourceChanged` if it has."""


@dataclass(frozen=True, slots=True)
class Range:
    """A range of a source as a `Body`; after its last byte the source is checked."""

    origin: Positioned
    offset: int
    size: int
    on_sent: Callable[[int], None] | None = None

    def read_now(self, into: memoryview, position: int) -> int | None:
        """As `Body.read_now`."""
        count = self.origin.read_now(into[: self.size - position], self.offset + position)
        if count is not None and self._has_ended(count, position):
            self.origin.check_now()
            self._require_bytes(count, position)
        return count

    async def read(self, into: memoryview, position: int) -> int:
        """As `Body.read`."""
        count = await self.origin.read(into[: self.size - position], self.offset + position)
        if self._has_ended(count, position):
            await self.origin.check()
            self._require_bytes(count, position)
        return count

    def sent(self, position: int) -> None:
        """Pass it on to whoever asked."""
        if self.on_sent is not None:
            self.on_sent(position)

    def _has_ended(self, count: int, position: int) -> bool:
        return count == 0 or position + count == self.size

    def _require_bytes(self, count: int, position: int) -> None:
        if count == 0:
            raise SourceChanged(f"the source ends at byte {self.offset + position}.")


class Checksums:
    """CRC-64 and, if wanted, MD5 of what it is given. Mutable."""

    def __init__(self, *, with_md5: bool) -> None:
        self._crc = 0
        self._md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None

    def update(self, piece: memoryview) -> None:
        """Go on with `piece`."""
        self._crc = crc64(piece, self._crc)
        if self._md5 is not None:
            self._md5.update(piece)

    def result(self) -> tuple[int, str | None]:
        """CRC-64, and MD5 as upper-case hex."""
        return self._crc, self._md5.hexdigest().upper() if self._md5 else None
