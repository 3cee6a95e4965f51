"""A body on its way out: read, checksummed, within the bandwidth, a unit at a time."""

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
from uploader.protocol.wire import Body, SentBody, SignedRequest
from uploader.transport.sockets import Sockets

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

__all__ = ["Buffers", "Outflow"]

SMALL_BODY_SIZE: Final = 64 * 1024
"""Up to here a body joins its headers in one write; above, the copy costs more."""

TURN_SIZE: Final = 1024 * 1024
"""Bytes a body may send before the other tasks of the loop have their turn."""

WAITING_SIZE: Final = 16 * 1024
"""Bytes a transport is given so as to tell when the kernel takes more; it copies them."""


class Buffers:
    """Buffers of one unit, the one used last first: it is still in the processor's cache.

    On a fast network the kernel takes most units whole, so one buffer serves all bodies.
    Mutable: those that lie idle.
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
        """Take a buffer back that certainly nobody reads or writes any more."""
        if len(buffer) == self.unit_size:
            self._idle.append(buffer)


class Outflow(Payload):
    """A body on its way out; used once. Mutable: how far it has come.

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
        self._is_hushed = False
        self._yielded_at = 0
        self.handed_size = 0
        self.transport: asyncio.Transport | None = None
        self.source_failure: Exception | None = None

    @classmethod
    def of(
        cls, request: SignedRequest, pace: Pace, buffers: Buffers, sockets: Sockets
    ) -> Outflow | None:
        """The request's body, if it has one; aiohttp sends Content-Length: 0 by itself."""
        if request.body is None or request.body.size == 0:
            return None
        return cls(request.body, pace, buffers, sockets, needs_md5=request.needs_md5)

    @property
    def consumed(self) -> bool:
        """Never to be sent again behind our back."""
        return True

    @property
    def is_complete(self) -> bool:
        """Whether every byte has been handed to the network."""
        return self.handed_size == self._size

    def sent(self) -> SentBody:
        """What has been handed to the network."""
        md5 = self._md5.hexdigest().upper() if self._md5 else None
        return SentBody(self.handed_size, self._crc64, md5)

    def hush(self) -> None:
        """Hand over nothing more: the answer is there."""
        self._is_hushed = True

    def end(self) -> None:
        """The exchange is over: save the buffer, or cut the connection that still uses it."""
        if self.transport is None:
            return
        if self.is_complete and self._is_flushed(self.transport):
            self._give_buffer_back()
        else:
            self.transport.abort()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Is asked for by nobody."""
        raise TypeError("a body is streamed, never decoded")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body."""
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write the body; cut the connection if that does not come to its end."""
        if not isinstance(writer, StreamWriter) or writer.transport is None:
            raise aiohttp.ClientConnectionResetError("the connection was lost before the body")
        self.transport = writer.transport
        self._drain_to_the_last_byte(self.transport)
        own_socket = self._sockets.fitted(self.transport)
        if self.handed_size == 0 and (self._size or 0) > SMALL_BODY_SIZE:
            writer.send_headers()  # aiohttp would copy the first unit to join it with them
            self._socket = None if _is_tls(self.transport) else own_socket
        try:
            while not self.is_complete:
                await self._hand_over_unit(writer, self.transport)
        except BaseException:
            self.transport.abort()
            raise

    async def _hand_over_unit(self, writer: StreamWriter, transport: asyncio.Transport) -> None:
        if self._is_hushed:
            await asyncio.get_running_loop().create_future()  # until aiohttp cancels this task
        left = (self._size or 0) - self.handed_size
        self._buffer = self._buffers.take(self._body.size)
        piece_size = min(left, self._pace.piece_size(len(self._buffer)))
        unit = await self._filled(memoryview(self._buffer)[:piece_size])
        await self._pace.spend(piece_size)
        self._digest(unit)
        if rest := await self._past_the_transport(unit, writer, transport):
            await writer.write(rest, drain=False)
        self.handed_size += piece_size
        self._pace.note_sent(piece_size)
        self._body.sent(self.handed_size)
        if not self.is_complete:
            await self._flushed(writer, transport)

    async def _past_the_transport(
        self, unit: memoryview, writer: StreamWriter, transport: asyncio.Transport
    ) -> memoryview:
        """Send straight to the kernel what can be sent that way; returns what cannot.

        A transport copies what the kernel does not take at once. It is given only a
        little of it, to wait with; the rest stays here until that is out.
        """
        while self._socket is not None and unit and self._is_flushed(transport):
            if transport.is_closing():
                raise aiohttp.ClientConnectionResetError("the connection was lost in the body")
            with suppress(BlockingIOError, InterruptedError):
                unit = unit[self._socket.send(unit) :]
            if unit:
                transport.write(unit[:WAITING_SIZE])
                unit = unit[WAITING_SIZE:]
                await self._drained(writer, transport)
        return unit

    def _give_buffer_back(self) -> None:
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None

    async def _filled(self, unit: memoryview) -> memoryview:
        filled = 0
        try:
            while filled < len(unit):
                filled += await self._read(unit[filled:], self.handed_size + filled)
        except Exception as exc:
            self.source_failure = exc  # aiohttp would wrap it
            raise
        return unit

    async def _read(self, into: memoryview, position: int) -> int:
        size = self._body.read_now(into, position)
        if size is None:
            size = await self._body.read(into, position)
        if size < 1:
            raise SourceChanged(f"the source ends at byte {position} of a part.")
        return size

    def _digest(self, unit: memoryview) -> None:
        self._crc64 = crc64(unit, self._crc64)
        if self._md5 is not None:
            self._md5.update(unit)

    @staticmethod
    def _drain_to_the_last_byte(transport: asyncio.Transport) -> None:
        """Let `drain` wait until nothing is buffered.

        Over TLS a high-water mark of 0 counts an empty buffer as full and hangs.
        """
        transport.set_write_buffer_limits(high=1 if _is_tls(transport) else 0, low=0)

    @staticmethod
    def _is_flushed(transport: asyncio.Transport) -> bool:
        return transport.get_write_buffer_size() == 0

    async def _flushed(self, writer: StreamWriter, transport: asyncio.Transport) -> None:
        """Wait until the unit is out, and let others have the buffer and their turn."""
        await self._drained(writer, transport)
        if self._is_flushed(transport):  # one that closes may still hold it
            self._give_buffer_back()
        if self.handed_size - self._yielded_at >= TURN_SIZE:
            self._yielded_at = self.handed_size
            await asyncio.sleep(0)  # a fast peer must not keep the loop from everyone else

    async def _drained(self, writer: StreamWriter, transport: asyncio.Transport) -> None:
        if not self._is_flushed(transport):
            await writer.drain()
        while not (self._is_flushed(transport) or transport.is_closing()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # a loop of another make whose `drain` comes back early


def _is_tls(transport: asyncio.Transport) -> bool:
    return transport.get_extra_info("sslcontext") is not None
