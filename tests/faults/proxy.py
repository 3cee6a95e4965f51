"""A TCP proxy that misbehaves on order: cut, stalled, slowed, damaged, refused, repeated.

It forwards bytes and knows just enough of HTTP/1.1 to see where a request ends, so that a
toxic can be aimed at the n-th request that matches a pattern. Everything else (when to read,
when to close and how) happens below HTTP, where a server under test could not do it itself.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, Self

Direction = Literal["up", "down"]
Close = Literal["fin", "rst", "hang"]

_CHUNK = 64 * 1024
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x28"  # fatal, handshake_failure (RFC 8446, 6)

ON_ACCEPT = frozenset({"refuse", "blackhole", "tls_abort", "slow_accept"})
ON_STREAM = frozenset({"latency", "bandwidth", "slicer", "limit", "truncate", "corrupt"})
ON_REQUEST = frozenset({"swallow", "answer", "duplicate", "reset_peer", "half_open", "slow_close"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Toxic:
    """One order. Sizes are bytes, durations seconds.

    On a connection as it is accepted:
        refuse       reset it
        blackhole    never read from it, never answer
        tls_abort    answer the first bytes with a fatal TLS alert
        slow_accept  look at it `delay_s` later
    On the bytes of a request ("up") or its answer ("down"):
        latency      forward `delay_s` later, give or take `jitter_s`
        bandwidth    forward `rate` bytes a second
        slicer       forward in pieces of `size`, `delay_s` apart
        limit        forward `after` bytes, then `close`
        truncate     forward `after` bytes, swallow the rest, then end that direction alone
        corrupt      flip bits `xor` of the byte at `after`, or of the one `find` ends with
    On a request:
        swallow      read it whole, forward nothing, `close`
        answer       answer `answer` as soon as its head is there, then `close`
        duplicate    as swallow, but send it on a connection of its own `delay_s` later
        reset_peer   forward, and reset the connection after `delay_s`
        half_open    read `after` bytes and no more, and write nothing: the connection stays
        slow_close   forward, end the answer's direction, close `delay_s` later

    Attributes:
        pattern: searched in a request's head; empty fits all. Not for orders on accept.
        connection: only the n-th connection, from 1.
        request: only from the n-th request of a connection on; 2 means a reused one.
        skip: so many that fit are let through.
        count: so many are hit; None for ever.
        in_body: `after` counts from the end of the head.
    """

    action: str
    direction: Direction = "up"
    pattern: bytes = b""
    connection: int | None = None
    request: int = 1
    skip: int = 0
    count: int | None = 1
    after: int = 0
    in_body: bool = False
    find: bytes = b""
    xor: int = 1
    delay_s: float = 0.0
    jitter_s: float = 0.0
    rate: float = 0.0
    size: int = 1
    close: Close = "fin"
    answer: bytes = b""

    def __post_init__(self) -> None:
        if self.action not in ON_ACCEPT | ON_STREAM | ON_REQUEST:
            raise ValueError(f"unknown toxic {self.action!r}")


@dataclass(slots=True)
class _Armed:
    """A toxic and how often it fitted and acted. Mutable."""

    toxic: Toxic
    seen: int = 0
    consumed: int = 0

    def acts_on(self, connection: int, request: int, head: bytes) -> bool:
        toxic = self.toxic
        if toxic.connection not in (None, connection) or request < toxic.request:
            return False
        if not re.search(toxic.pattern, head):
            return False
        self.seen += 1
        is_spent = toxic.count is not None and self.consumed >= toxic.count
        if is_spent or self.seen <= toxic.skip:
            return False
        self.consumed += 1
        return True


class FaultProxy:
    """Forwards to `host`:`port` unless ordered otherwise; an async context manager.

    Mutable: toxics and their counts, connections. `receive_buffer` keeps the kernel from
    taking more than that off a sender that is to be stalled or slowed; `tls` is the context
    of a server that its clients may or may not trust.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *toxics: Toxic,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
        seed: int = 0,
    ) -> None:
        self._upstream = (host, port)
        self._armed = [_Armed(toxic) for toxic in toxics]
        self._receive_buffer, self._tls = receive_buffer, tls
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._zombies: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self.address = ("127.0.0.1", 0)
        self.connection_count = 0
        self.replayed: list[bytes] = []
        """What upstream answered to requests sent a second time."""

    async def __aenter__(self) -> Self:
        listening = socket.socket()
        if self._receive_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        listening.bind(("127.0.0.1", 0))
        self.address = listening.getsockname()
        self._listener = await asyncio.start_server(
            self._accept, sock=listening, limit=self._receive_buffer or _CHUNK, ssl=self._tls
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in (tasks := self._tasks | self._zombies):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.address[1]}"

    @property
    def consumed(self) -> int:
        """How often any toxic has acted."""
        return sum(armed.consumed for armed in self._armed)

    def order(self, *toxics: Toxic) -> None:
        """Put other toxics in force, with fresh counts."""
        self._armed = [_Armed(toxic) for toxic in toxics]

    async def settled(self) -> None:
        """Wait for the requests that are sent a second time."""
        if self._zombies:
            await asyncio.wait(self._zombies, timeout=5)

    def take(self, actions: frozenset[str], connection: int, request: int, head: bytes) -> Toxic:
        """The toxic that acts now; one that only forwards if there is none."""
        for armed in self._armed:
            if armed.toxic.action in actions and armed.acts_on(connection, request, head):
                return armed.toxic
        return _HARMLESS

    def jittered(self, toxic: Toxic) -> float:
        """How long this time."""
        return max(0.0, toxic.delay_s + self._random.uniform(-1, 1) * toxic.jitter_s)

    def replay(self, request: bytes, delay_s: float) -> None:
        """Send a request again, later and on a connection of its own."""
        zombie = asyncio.ensure_future(self._replay(request, delay_s))
        self._zombies.add(zombie)

    async def _replay(self, request: bytes, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(3), self._connected() as upstream:
                upstream.writer.write(request)
                self.replayed.append(await upstream.reader.readuntil(b"\r\n\r\n"))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connection_count += 1
        client = _Peer(reader, writer)
        try:
            await self._serve(client, self.connection_count)
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # either side has gone, or the proxy is closing
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, client: _Peer, number: int) -> None:
        toxic = self.take(ON_ACCEPT, number, 1, b"")
        match toxic.action:
            case "refuse":
                return client.reset()
            case "blackhole":
                await asyncio.Event().wait()
            case "tls_abort":
                await client.reader.read(1)
                await client.write(_TLS_ALERT)
                client.end()
                await client.drain_to_end()
                return None
            case "slow_accept":
                await asyncio.sleep(toxic.delay_s)
        async with self._connected() as upstream:
            await _Link(self, number, client, upstream).run()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[_Peer]:
        peer = _Peer(*await asyncio.open_connection(*self._upstream))
        try:
            yield peer
        finally:
            peer.writer.transport.abort()


_HARMLESS = Toxic(action="latency")


@dataclass(slots=True)
class _Peer:
    """One side of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_head(self) -> bytes:
        """A request up to its empty line, however small the buffer is; b"" at the end."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            try:
                head += await self.reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return b""
            except asyncio.LimitOverrunError as error:
                head += await self.reader.readexactly(error.consumed)
        return head

    def reset(self) -> None:
        """RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def end(self) -> None:
        """FIN."""
        with suppress(OSError):
            if self.writer.can_write_eof():
                self.writer.write_eof()
            else:  # TLS knows no half-closed connection
                self.writer.close()

    async def drain_to_end(self) -> None:
        """Read until the other side closes: with unread bytes the kernel would send an RST."""
        while await self.reader.read(_CHUNK):
            pass


class _Over(EOFError):
    """This connection has come to the end that was ordered."""


class _Link:
    """One client connection and its upstream. Mutable: the toxic of the request under way."""

    def __init__(self, proxy: FaultProxy, number: int, client: _Peer, upstream: _Peer) -> None:
        self._proxy, self._number = proxy, number
        self._client, self._upstream = client, upstream
        self._answer = _Stream(proxy, _HARMLESS, client, self._end_answer)
        self._is_mute = False

    async def run(self) -> None:
        """Forward both ways until either way ends."""
        ways = [asyncio.ensure_future(self._up()), asyncio.ensure_future(self._down())]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self) -> None:
        request_number = 0
        while head := await self._client.read_head():
            request_number += 1
            kinds = ON_STREAM | ON_REQUEST
            toxic = self._proxy.take(kinds, self._number, request_number, head)
            down = toxic if toxic.direction == "down" else _HARMLESS
            self._answer = _Stream(self._proxy, down, self._client, self._end_answer)
            size = int(found[1]) if (found := _CONTENT_LENGTH.search(head)) else 0
            await self._request(toxic, head, size)

    async def _request(self, toxic: Toxic, head: bytes, size: int) -> None:
        match toxic.action:
            case "answer":
                await self._client.write(toxic.answer)
                await self._end_request(toxic.close)
            case "swallow" | "duplicate":
                whole = head + await self._client.reader.readexactly(size)
                if toxic.action == "duplicate":
                    self._proxy.replay(whole, toxic.delay_s)
                await self._end_request(toxic.close)
            case "half_open":
                self._is_mute = True
                left = max(0, toxic.after - (0 if toxic.in_body else len(head)))
                await self._upstream.write(head + await self._client.reader.readexactly(left))
                await asyncio.Event().wait()
            case "reset_peer":
                asyncio.get_running_loop().call_later(toxic.delay_s, self._client.reset)
            case "slow_close":
                self._answer.closes_after_s = toxic.delay_s
        up = toxic if toxic.direction == "up" else _HARMLESS
        await self._forward(_Stream(self._proxy, up, self._upstream, self._end_request), head, size)

    async def _forward(self, stream: _Stream, head: bytes, size: int) -> None:
        stream.head_size = len(head)
        await stream.pass_on(head)
        while size > 0:
            piece = await self._client.reader.read(min(size, _CHUNK))
            if not piece:
                raise _Over
            size -= len(piece)
            await stream.pass_on(piece)

    async def _down(self) -> None:
        while piece := await self._upstream.reader.read(_CHUNK):
            if self._is_mute:
                continue
            await self._answer.pass_on(piece)
            if self._answer.closes_after_s is not None:
                self._client.end()
                await asyncio.sleep(self._answer.closes_after_s)
                raise _Over
        await self._end_answer("fin")

    async def _end_request(self, how: Close) -> None:
        """End the connection while the request is being read."""
        if how == "hang":
            await asyncio.Event().wait()
        if how == "rst":
            self._client.reset()
        else:
            self._client.end()
            await self._client.drain_to_end()
        raise _Over

    async def _end_answer(self, how: Close) -> None:
        """End the connection while the answer is on its way; `_up` sees the client leave."""
        if how == "rst":
            self._client.reset()
            raise _Over
        if how == "fin":
            self._client.end()
        await asyncio.Event().wait()


@dataclass(slots=True)
class _Stream:
    """One request or answer on its way. Mutable: how far it has come."""

    proxy: FaultProxy
    toxic: Toxic
    to: _Peer
    cut: Callable[[Close], Awaitable[None]]
    position: int = 0
    head_size: int | None = None
    closes_after_s: float | None = None
    _seen: bytearray = field(default_factory=bytearray)

    async def pass_on(self, piece: bytes) -> None:
        """Forward a piece the way the toxic says."""
        self._note_head(piece)
        how: dict[str, Callable[[bytes], Awaitable[None]]] = {
            "latency": self._late,
            "bandwidth": self._slowly,
            "slicer": self._sliced,
            "limit": self._limited,
            "truncate": self._limited,
            "corrupt": self._corrupted,
        }
        await how.get(self.toxic.action, self.to.write)(piece)
        self.position += len(piece)

    def _note_head(self, piece: bytes) -> None:
        if self.head_size is None:
            self._seen += piece
            end = self._seen.find(b"\r\n\r\n")
            self.head_size = end + 4 if end >= 0 else None

    def _mark(self) -> int:
        """Where `after` is, counted from the first byte."""
        return self.toxic.after + ((self.head_size or 0) if self.toxic.in_body else 0)

    async def _late(self, piece: bytes) -> None:
        if (delay_s := self.proxy.jittered(self.toxic)) > 0:
            await asyncio.sleep(delay_s)
        await self.to.write(piece)

    async def _slowly(self, piece: bytes) -> None:
        size = max(1, int(self.toxic.rate / 50))
        for start in range(0, len(piece), size):
            part = piece[start : start + size]
            await asyncio.sleep(len(part) / self.toxic.rate)
            await self.to.write(part)

    async def _sliced(self, piece: bytes) -> None:
        for start in range(0, len(piece), self.toxic.size):
            await self.to.write(piece[start : start + self.toxic.size])
            await asyncio.sleep(self.toxic.delay_s)

    async def _limited(self, piece: bytes) -> None:
        left = self._mark() - self.position
        await self.to.write(piece[: max(0, left)])
        if left > len(piece):
            return
        if self.toxic.action == "limit":
            await self.cut(self.toxic.close)
        else:
            self.to.end()
            await asyncio.Event().wait()

    async def _corrupted(self, piece: bytes) -> None:
        data = bytearray(piece)
        at = self._mark() - self.position
        if self.toxic.find:
            found = re.search(self.toxic.find, piece)
            at = found.end() - 1 if found else -1
        if 0 <= at < len(data):
            data[at] ^= self.toxic.xor
        await self.to.write(bytes(data))


@asynccontextmanager
async def unreachable() -> AsyncIterator[str]:
    """A URL whose port drops every SYN: its queue of connections is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            for filler in fillers:
                filler.close()


@asynccontextmanager
async def closed_port() -> AsyncIterator[str]:
    """A URL without a listener: its port is bound, so that nothing else takes it meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
