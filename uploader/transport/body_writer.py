"""Sends a body a unit at a time: read it, add it to the checksums, keep to the bandwidth."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp.http import StreamWriter
from aiohttp.payload import Payload

from uploader.errors import SourceChanged
from uploader.pace import Pace
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body, SentBody
from uploader.transport.sockets import Sockets

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

SMALL_BODY_SIZE: Final = 64 * 1024
"""Up to here a body joins its headers in one write; above, the copy costs more."""

TURN_SIZE: Final = 1024 * 1024
"""Bytes a body may send before the other tasks of the loop get their turn."""

PROBE_SIZE: Final = 16 * 1024
"""Bytes given to a full transport, which copies them, to learn when the kernel takes more."""


class Buffers:
    """Reusable buffers of one unit; the one used last is in the processor's cache still.

    On a fast network the kernel takes most units whole, so one buffer serves all bodies.
    Mutable: the idle buffers.
    """

    def __init__(self, unit_size: int) -> None:
        self.unit_size = unit_size
        self._idle: list[bytearray] = []

    def take(self, body_size: int) -> bytearray:
        """A buffer of one unit, or of the whole body if that is smaller."""
        if body_size < self.unit_size:
            return bytearray(body_size)
        return self._idle.pop() if self._idle else bytearray(self.unit_size)

    def give_back(self, buffer: bytearray) -> None:
        """Return a buffer that nothing reads or writes any more."""
        if len(buffer) == self.unit_size:
            self._idle.append(buffer)


class BodyWriter(Payload):
    """Writes one body once. Mutable: how far it has come.

    aiohttp calls `write_with_length` in a task of its own. A buffer may be used again
    only when no transport refers to it: asyncio's keep a view of what the kernel did
    not take (uvloop always, asyncio since 3.12), so each unit waits until the write
    buffer is empty.
    """

    def __init__(
        self, body: Body, pace: Pace, buffers: Buffers, sockets: Sockets, *, needs_md5: bool
    ) -> None:
        super().__init__(None)
        self._size = body.size
        self._body = body
        self._pace = pace
        self._buffers = buffers
        self._sockets = sockets
        self._socket: socket.socket | None = None
        self._buffer: bytearray | None = None
        self._md5 = hashlib.md5(usedforsecurity=False) if needs_md5 else None
        self._crc64 = 0
        self._is_stopped = False
        self._yielded_at = 0
        self.sent_size = 0
        self.transport: asyncio.Transport | None = None
        self.source_error: Exception | None = None

    @property
    def consumed(self) -> bool:
        """Keeps aiohttp from sending the body again."""
        return True

    @property
    def is_complete(self) -> bool:
        """Whether every byte has been given to the network."""
        return self.sent_size == self._size

    def sent(self) -> SentBody:
        """What has been given to the network."""
        md5 = self._md5.hexdigest().upper() if self._md5 else None
        return SentBody(self.sent_size, self._crc64, md5)

    def stop_sending(self) -> None:
        """Send no further unit: the answer is there."""
        self._is_stopped = True

    def release(self) -> None:
        """Give the buffer back, or cut the connection that still refers to it."""
        if self.transport is None:
            return
        if self.is_complete and _is_flushed(self.transport):
            self._give_buffer_back()
        else:
            self.transport.abort()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Part of aiohttp's interface; never called for a request."""
        raise TypeError("a body is streamed, never decoded")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body."""
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write the body; cut the connection if it cannot be written whole."""
        if not isinstance(writer, StreamWriter) or writer.transport is None:
            raise aiohttp.ClientConnectionResetError("the connection was lost before the body")
        self.transport = writer.transport
        _drain_to_the_last_byte(self.transport)
        own_socket = self._sockets.tuned_socket_of(self.transport)
        if self.sent_size == 0 and (self._size or 0) > SMALL_BODY_SIZE:
            writer.send_headers()  # aiohttp would copy the first unit to join it with them
            self._socket = None if _is_tls(self.transport) else own_socket
        try:
            while not self.is_complete:
                await self._send_unit(writer, self.transport)
        except BaseException:
            self.transport.abort()
            raise

    async def _send_unit(self, writer: StreamWriter, transport: asyncio.Transport) -> None:
        if self._is_stopped:
            await asyncio.get_running_loop().create_future()  # until aiohttp cancels this task
        left = (self._size or 0) - self.sent_size
        self._buffer = self._buffers.take(self._body.size)
        size = min(left, self._pace.send_size(len(self._buffer)))
        unit = await self._read_unit(memoryview(self._buffer)[:size])
        await self._pace.spend(size)
        self._update_checksums(unit)
        if rest := await self._send_to_kernel(unit, writer, transport):
            await writer.write(rest, drain=False)
        self.sent_size += size
        self._pace.count_sent(size)
        self._body.sent(self.sent_size)
        if not self.is_complete:
            await self._wait_until_sent(writer, transport)

    async def _send_to_kernel(
        self, unit: memoryview, writer: StreamWriter, transport: asyncio.Transport
    ) -> memoryview:
        """Send past the transport, where that is possible; returns the rest.

        A transport copies what the kernel does not take at once. It is given only a
        little, to wait with; what follows stays here until that is sent.
        """
        while self._socket is not None and unit and _is_flushed(transport):
            if transport.is_closing():
                raise aiohttp.ClientConnectionResetError("the connection was lost in the body")
            with suppress(BlockingIOError, InterruptedError):
                unit = unit[self._socket.send(unit) :]
            if unit:
                transport.write(unit[:PROBE_SIZE])
                unit = unit[PROBE_SIZE:]
                await _drain(writer, transport)
        return unit

    async def _read_unit(self, unit: memoryview) -> memoryview:
        filled = 0
        try:
            while filled < len(unit):
                filled += await self._read(unit[filled:], self.sent_size + filled)
        except Exception as exc:
            self.source_error = exc  # aiohttp would wrap it
            raise
        return unit

    async def _read(self, into: memoryview, position: int) -> int:
        size = self._body.read_now(into, position)
        if size is None:
            size = await self._body.read(into, position)
        if size < 1:
            raise SourceChanged(f"the source ends at byte {position} of a part.")
        return size

    def _update_checksums(self, unit: memoryview) -> None:
        self._crc64 = crc64(unit, self._crc64)
        if self._md5 is not None:
            self._md5.update(unit)

    async def _wait_until_sent(self, writer: StreamWriter, transport: asyncio.Transport) -> None:
        """Wait until the unit is sent, then let other tasks have the buffer and a turn."""
        await _drain(writer, transport)
        if _is_flushed(transport):  # one that closes may still hold it
            self._give_buffer_back()
        if self.sent_size - self._yielded_at >= TURN_SIZE:
            self._yielded_at = self.sent_size
            await asyncio.sleep(0)  # a fast peer must not keep the loop from other tasks

    def _give_buffer_back(self) -> None:
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None


def _drain_to_the_last_byte(transport: asyncio.Transport) -> None:
    """Make `drain` wait until nothing is buffered.

    Over TLS a high-water mark of 0 counts an empty buffer as full and hangs.
    """
    transport.set_write_buffer_limits(high=1 if _is_tls(transport) else 0, low=0)


async def _drain(writer: StreamWriter, transport: asyncio.Transport) -> None:
    if not _is_flushed(transport):
        await writer.drain()
    while not (_is_flushed(transport) or transport.is_closing()):  # noqa: ASYNC110
        await asyncio.sleep(0.001)  # the `drain` of some other event loop returns early


def _is_flushed(transport: asyncio.Transport) -> bool:
    return transport.get_write_buffer_size() == 0


def _is_tls(transport: asyncio.Transport) -> bool:
    return transport.get_extra_info("sslcontext") is not None
