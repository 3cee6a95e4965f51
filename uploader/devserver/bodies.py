"""Request bodies, written to disk: hashed while they are written, never held in memory."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastcrc import crc64

from .exchange import Exchange


@dataclass(frozen=True, slots=True)
class ReceivedBody:
    """A whole body: ``path`` is its temporary file, ``None`` when bodies are discarded."""

    path: Path | None
    size: int
    md5: bytes
    crc64: int
    stored_crc64: int
    """CRC of the bytes on disk; differs from ``crc64`` only under the fault ``rot``."""

    @property
    def etag(self) -> str:
        """OSS's ETag of a part or simple object: the MD5 in upper-case hex."""
        return self.md5.hex().upper()

    @property
    def content_md5(self) -> str:
        """The MD5 as the Content-MD5 header writes it."""
        return base64.b64encode(self.md5).decode("ascii")

    def forget(self) -> None:
        """Delete the temporary file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


async def receive_body(exchange: Exchange) -> ReceivedBody:
    """Read the body of a request into a new file; remove the file if the body is cut off."""
    discard = exchange.backend.options.discard_bodies
    path = None if discard else exchange.backend.storage.new_body()
    try:
        if path is None:
            return await _receive_into(exchange, None, None)
        with path.open("wb", buffering=0) as sink:
            return await _receive_into(exchange, path, sink)
    except BaseException:
        if path is not None:
            path.unlink(missing_ok=True)
        raise


async def _receive_into(
    exchange: Exchange, path: Path | None, sink: BinaryIO | None
) -> ReceivedBody:
    md5, crc, stored_crc, size = hashlib.md5(usedforsecurity=False), 0, 0, 0
    flips, rots = exchange.fault("flip_bit"), exchange.fault("rot")
    async for chunk in exchange.chunks():
        sent = _flipped(chunk) if flips and not size else chunk
        stored = _flipped(sent) if rots and not size else sent
        md5.update(sent)
        crc = crc64.xz(sent, crc)
        stored_crc = crc64.xz(stored, stored_crc) if rots else crc
        size += len(sent)
        if sink is not None:
            sink.write(stored)
    return ReceivedBody(path, size, md5.digest(), crc, stored_crc)


def _flipped(data: bytes) -> bytes:
    return bytes((data[0] ^ 1,)) + data[1:]
