"""One request while it is handled: its body, its faults, its connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal

from aiohttp import web

from .backend import Backend
from .faults import Fault
from .stats import RequestRecord
from .throttle import Throttle

_SLICE_SIZE = 256 * 1024
_POLL_S = 0.05


class Dropped(Exception):
    """The connection was closed, or broke, before an answer was sent."""


class BodyTimeout(Exception):
    """The client stopped sending in the middle of a body."""


class Exchange:
    """A request and its state. Mutable; it exists as long as the request."""

    def __init__(
        self,
        request: web.BaseRequest,
        backend: Backend,
        record: RequestRecord,
        throttles: tuple[Throttle, ...],
    ) -> None:
        self.request = request
        self.backend = backend
        self.record = record
        self.throttles = throttles
        self.faults: tuple[Fault, ...] = ()
        self.body = b""
        """The whole body of a VOD call."""
        self.wants_json = False
        self._held: list[bytes] | None = None

    def fault(self, action: str) -> Fault | None:
        """The fault with this action that applies to this request."""
        return next((fault for fault in self.faults if fault.action == action), None)

    # body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, at the configured bandwidth."""
        if self._held is not None:
            held, self._held = self._held, []
            for piece in held:
                yield piece
            return
        async for piece in self._arriving():
            yield piece

    async def _arriving(self) -> AsyncIterator[bytes]:
        self._continue_if_expected()
        while chunk := await self._read_some():
            for start in range(0, len(chunk), _SLICE_SIZE):
                piece = chunk[start : start + _SLICE_SIZE]
                self.backend.stats.received(self.record, len(piece))
                for throttle in self.throttles:
                    await throttle.spend(len(piece))
                yield piece
        self.record.is_body_complete = True

    async def _read_some(self) -> bytes:
        try:
            async with asyncio.timeout(self.backend.options.body_idle_timeout_s):
                return await self.request.content.readany()
        except TimeoutError:
            raise BodyTimeout("no byte of the body arrived in time") from None
        except Exception as error:  # aiohttp reports a dead client with several classes
            raise Dropped("client went away inside the body") from error

    def _continue_if_expected(self) -> None:
        if self.request.headers.get("Expect", "").lower() == "100-continue":
            self.write_raw(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def hold_body(self) -> None:
        """Receive the whole body before it is processed."""
        self._held = [piece async for piece in self._arriving()]

    async def drain(self) -> None:
        """Read the rest of the body and discard it."""
        async for _ in self.chunks():
            pass

    async def read_at_most(self, size: int) -> None:
        """Read until ``size`` bytes of the body have arrived or it has ended."""
        if size <= 0:
            return
        async for _ in self.chunks():
            if self.record.body_bytes >= size:
                return

    async def read_body(self, limit: int = 4 * 1024 * 1024) -> bytes:
        """A small body in memory.

        Raises: ValueError when it is longer than ``limit`` bytes.
        """
        pieces = [piece async for piece in self.chunks()]
        body = b"".join(pieces)
        if len(body) > limit:
            raise ValueError(f"body of {len(body)} bytes is longer than {limit}")
        return body

    # connection

    def is_closed(self) -> bool:
        """Whether the client's connection is gone."""
        transport = self.request.transport
        return transport is None or transport.is_closing()

    async def wait_until_closed(self) -> None:
        """Send nothing until the client disconnects."""
        while not self.is_closed():  # noqa: ASYNC110 - aiohttp has no event for it
            await asyncio.sleep(_POLL_S)

    def write_raw(self, data: bytes) -> None:
        """Bytes below HTTP."""
        transport = self.request.transport
        if transport is not None:
            transport.write(data)

    def close(self, how: Literal["rst", "fin", "keep"]) -> None:
        """End the connection with an RST or a FIN."""
        transport = self.request.transport
        if transport is None or how == "keep":
            return
        if how == "fin":
            transport.close()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
