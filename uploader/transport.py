"""aiohttp behind `Transport`: bodies streamed with a CRC, a watchdog, errors of our own.

aiohttp appears only here. Its errors carry the request's headers, and with them the
signature, so none of them leaves this module, not even as a cause.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import struct
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import aiohttp
from aiohttp.http import StreamWriter
from aiohttp.payload import Payload
from yarl import URL

from uploader.errors import ConfigurationError, SourceChanged, TransportError
from uploader.pace import LinkSample, Pace
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Response, SentBody

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from aiohttp.abc import AbstractStreamWriter

    from uploader.protocol.wire import Body, SignedRequest

__all__ = ["AiohttpTransport", "ConnectionFacts", "may_use_congestion"]

ANSWER_SIZE_LIMIT: Final = 1024 * 1024
"""Answers are XML or JSON of a few KiB; a page of ListParts has 0.3 MiB."""

HEADER_SIZE_LIMIT: Final = 8190
"""Of one header line; there may be 128 of them."""

SMALL_BODY_SIZE: Final = 64 * 1024
"""Up to here a body joins its headers in one write; above, the copy costs more."""

TURN_SIZE: Final = 1024 * 1024
"""Bytes a body may send before the other tasks of the loop have their turn."""

WAITING_SIZE: Final = 16 * 1024
"""Bytes a transport is given so as to tell when the kernel takes more; it copies them."""

CLOSE_TIMEOUT_S: Final = 5.0
"""Connections are cut, not shut down politely; only a DNS query could last this long."""

_AUTO_HEADERS: Final = ("Accept", "Content-Type", "User-Agent")
"""aiohttp would add these after signing; OSS signs Content-Type."""


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What there is to know about the connections, for people.

    Attributes:
        congestion: congestion control of our sockets, "" before the first connection.
        open_socket_count: connections open right now, idle ones included.
    """

    congestion: str
    open_socket_count: int


class AiohttpTransport:
    """`Transport` on one aiohttp session; an async context manager. Mutable; one event loop.

    Args:
        pace: the budget whose bandwidth it keeps; None for no limit.
        stall_timeout_s: a peer that takes no byte for so long is given up. Too small
            breaks on a link that pauses; too large wastes a slot on a dead one.
        connect_timeout_s: for DNS, TCP and TLS together. Too small fails far away; too
            large delays the next address.
        connection_limit: connections open at once, at least those `pace` may ask for.
            Too small makes requests queue and time out; too large, descriptors.
        ca_file: one more file of trusted certificates, for a TLS-inspecting proxy.
        unit_size: bytes read, checked and handed over at once. Below 256 KiB the
            overhead shows (TLS: +20 % CPU at 128 KiB); above 1 MiB the caches overflow,
            and memory is this times the number of bodies under way.
        congestion: TCP congestion control to ask for; None for the system's. Where the
            kernel refuses, the system's stays. "cubic" gives way on lossy links. "bbr" is
            for peers that are far away, others get "cubic".
        near_rtt_s: a peer whose handshake takes less is near. Too large gives up bbr's
            strength on lossy paths; too small pays for its pacing within a data centre.
        notsent_lowat: bytes the kernel may hold unsent, at least one unit: less cuts
            every unit into pieces. Too large costs kernel memory and sends on after a
            refusal. None for no limit.
        keepalive_s: how long an idle connection is kept. Too small reconnects between
            parts; larger than the server's own limit meets closed connections.
        proxy: URL of an HTTP proxy; the environment is not asked.
    """

    def __init__(
        self,
        *,
        pace: Pace | None = None,
        stall_timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        connection_limit: int = 64,
        ca_file: Path | None = None,
        unit_size: int = 512 * 1024,
        congestion: str | None = "bbr",
        near_rtt_s: float = 0.001,
        notsent_lowat: int | None = 512 * 1024,
        keepalive_s: float = 15.0,
        proxy: str | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._patience = _Patience(connect_timeout_s, stall_timeout_s)
        self._connection_limit = max(connection_limit, self._pace.max_concurrency + 8)
        self._ca_file = ca_file
        self._keepalive_s = keepalive_s
        self._proxy = proxy
        self._buffers = _Buffers(unit_size)
        lowat = None if notsent_lowat is None else max(notsent_lowat, unit_size)
        self._sockets = _Sockets(congestion, near_rtt_s, lowat, stall_timeout_s)
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection without waiting for the peers; may be called twice."""
        self._is_closed = True
        async with self._opening:  # a session that is being made must not be forgotten
            session, self._session = self._session, None
        if session is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await session.close()
            await asyncio.sleep(0)  # lets the transports close their sockets

    def facts(self) -> ConnectionFacts:
        """What is in use right now."""
        sockets = [sock for _, sock in self._sockets.open()]
        for sock in sockets:
            self._sockets.fit(sock)
        used = next(filter(None, map(_congestion_of, sockets)), self._sockets.congestion)
        return ConnectionFacts(used, len(sockets))

    def sample(self) -> list[LinkSample]:
        """The kernel's view of every open connection (`LinkProbe`).

        Each has the congestion control of its path by then: whoever looks decides by it.
        """
        connections = self._sockets.open()
        for _, sock in connections:
            self._sockets.fit(sock)
        return [s for serial, sock in connections if (s := _link_sample(serial, sock))]

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        """Send `request` once and read the whole answer (`Transport`).

        An answer of 300 and above that comes before the body is out ends the sending;
        `Response.sent` tells how much was sent, and the connection is not used again.

        Raises:
            TransportError: there is no usable answer.
            SourceError: the body could not be read.
        """
        session = await self._open_session()
        outflow = _Outflow.of(request, self._pace, self._buffers, self._sockets)
        watch = _Watch(outflow, self._patience, answer_timeout_s)
        try:
            return await self._exchange(session, request, outflow, watch)
        except _Unusable as exc:
            failure = TransportError(f"{_named(request)}: {exc}.", is_sent=True)
        except aiohttp.ClientError as exc:
            failure = _translated(exc, request)
        except TimeoutError:
            failure = TransportError(
                f"{_named(request)}: {watch.verdict()}.", is_sent=True, is_timeout=True
            )
        except (OSError, ValueError) as exc:
            failure = _translated(exc, request)
        finally:
            if outflow is not None:
                outflow.end()
        if outflow is not None and outflow.source_failure is not None:
            raise outflow.source_failure
        raise failure  # outside the handlers: aiohttp's error must not come along as context

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        request: SignedRequest,
        outflow: _Outflow | None,
        watch: _Watch,
    ) -> Response:
        async with asyncio.timeout(None) as scope:
            with watch.over(scope):
                async with session.request(
                    request.method,
                    URL(request.url, encoded=True),
                    data=outflow,
                    headers={"Accept-Encoding": "identity", **request.headers},
                    allow_redirects=False,
                    proxy=self._proxy,
                ) as answer:
                    if outflow is not None and answer.status >= 300:
                        outflow.hush()
                    watch.answer_has_begun()
                    body = await _read_answer(answer)
        sent = outflow.sent() if outflow else SentBody()
        return Response(answer.status, _first_of_each(answer), body, sent)

    async def _open_session(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._is_closed:
                raise RuntimeError("the transport is closed")
            if self._session is None:
                self._session = await self._new_session()
            return self._session

    async def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=await asyncio.to_thread(tls_context, self._ca_file),
            limit=self._connection_limit,
            keepalive_timeout=self._keepalive_s,
            socket_factory=self._sockets.make,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._patience.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=[_without_hidden_retry],
            skip_auto_headers=_AUTO_HEADERS,
            auto_decompress=False,
            trust_env=False,
            max_line_size=HEADER_SIZE_LIMIT,
            max_field_size=HEADER_SIZE_LIMIT,
        )


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Verifies always; reads files, so not on the loop.

    Not `ssl.create_default_context`: that has SSL_CERT_FILE and SSL_CERT_DIR decide whom to
    trust, and writes the keys of every session to the file that SSLKEYLOGFILE names.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _trust_the_systems_authorities(context)
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as exc:  # ssl.SSLError is one
            raise ConfigurationError(
                f"{ca_file} holds no readable certificates ({exc.strerror or exc}).",
                next_step="Point VODUP_CA_FILE at a file of PEM certificates.",
            ) from exc
    return context


def _trust_the_systems_authorities(context: ssl.SSLContext) -> None:
    """Load them from where this build of OpenSSL expects them; no environment is asked."""
    where = ssl.get_default_verify_paths()
    for name, path in (("cafile", where.openssl_cafile), ("capath", where.openssl_capath)):
        with suppress(OSError):  # one of the two is usual; ssl.SSLError is an OSError
            context.load_verify_locations(**{name: path})


# --- the body goes out ----------------------------------------------------------------


class _Buffers:
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


class _Outflow(Payload):
    """A body on its way out; used once. Mutable: how far it has come.

    aiohttp calls `write_with_length` in a task of its own. A buffer may be used again
    only when no transport refers to it: asyncio's keep a view of what the kernel did
    not take (uvloop always, asyncio since 3.12), so each unit waits until the write
    buffer is empty.
    """

    def __init__(
        self, body: Body, pace: Pace, buffers: _Buffers, sockets: _Sockets, *, needs_md5: bool
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
        cls, request: SignedRequest, pace: Pace, buffers: _Buffers, sockets: _Sockets
    ) -> _Outflow | None:
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


# --- the answer comes in --------------------------------------------------------------


class _Unusable(Exception):
    """An answer arrived that we do not take."""


async def _read_answer(answer: aiohttp.ClientResponse) -> bytes:
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    is_head = answer.method == "HEAD"  # there it describes the stored object
    if encoding not in {"", "identity"} and not is_head:
        raise _Unusable("the answer is compressed although that was not asked for")
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > ANSWER_SIZE_LIMIT:
            raise _Unusable(f"the answer is longer than {ANSWER_SIZE_LIMIT} bytes")
    return bytes(body)


def _first_of_each(answer: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in answer.headers.items():
        headers.setdefault(name.lower(), value)
    return headers


async def _without_hidden_retry(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending idempotent requests again when a connection breaks.

    It does so for these two errors, once and uncounted. Retrying is decided elsewhere,
    with a new signature.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # there was no connection; aiohttp does not retry these
    except aiohttp.ServerDisconnectedError:
        message = "the server closed the connection without an answer"
    except aiohttp.ClientOSError as exc:
        message = f"the connection broke ({_reason(exc)})"
    raise _Unusable(message)


# --- watchdog -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Patience:
    connect_s: float
    stall_s: float


class _Watch:
    """Ends an exchange with TimeoutError when the peer takes or gives nothing any more.

    Progress is what the peer's kernel has acknowledged: bytes in our own buffers prove
    nothing. While nothing is under way the peer owes us nothing, so waiting for the disk
    or for bandwidth is not its fault. Once the body is out, the whole answer is due.
    Mutable: when there was progress last.
    """

    def __init__(
        self, outflow: _Outflow | None, patience: _Patience, answer_timeout_s: float
    ) -> None:
        self._outflow = outflow
        self._patience = patience
        self._answer_s = answer_timeout_s
        self._interval_s = max(0.01, min(0.5, patience.stall_s / 8, answer_timeout_s / 8))
        self._acked_mark = -1
        self._is_answering = False
        self._is_sending = False

    @contextmanager
    def over(self, scope: asyncio.Timeout) -> Iterator[None]:
        """Watch while the block runs; `scope` is the time-out around it."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()
        self._look()
        try:
            yield
        finally:
            self._timer.cancel()

    def answer_has_begun(self) -> None:
        """From now on only the answer counts; one that came early has its full time."""
        if self._is_sending:
            self._moved_at = self._loop.time()
        self._is_answering, self._is_sending = True, False
        self._extend()

    def verdict(self) -> str:
        """What was waited for in vain."""
        if self._is_sending and self._outflow is not None:
            return (
                f"the server took no byte for {self._patience.stall_s:g} s "
                f"after {self._outflow.handed_size} bytes were sent"
            )
        return f"no complete answer within {self._answer_s:g} s"

    def _look(self) -> None:
        outflow = self._outflow
        if outflow is not None and outflow.transport is not None and not self._is_answering:
            unacked_size = _unacked_size(outflow.transport)
            self._is_sending = not outflow.is_complete or unacked_size > 0
            if self._has_progress(outflow, unacked_size):
                self._moved_at = self._loop.time()
        self._extend()
        self._timer = self._loop.call_later(self._interval_s, self._look)

    def _has_progress(self, outflow: _Outflow, unacked_size: int) -> bool:
        mark, self._acked_mark = self._acked_mark, _acked_size(outflow)
        is_our_turn = not outflow.is_complete and unacked_size == 0
        return is_our_turn or self._acked_mark > mark

    def _extend(self) -> None:
        if not self._scope.expired():
            self._scope.reschedule(self._moved_at + self._allowed_s())

    def _allowed_s(self) -> float:
        if self._is_answering:
            return self._answer_s
        if self._outflow is None or self._outflow.transport is None:
            return self._patience.connect_s + self._answer_s  # aiohttp bounds the connecting
        return self._patience.stall_s if self._is_sending else self._answer_s


def _unacked_size(transport: asyncio.Transport) -> int:
    """Bytes handed over that the peer has not acknowledged, as far as is known."""
    buffered = transport.get_write_buffer_size()
    info = _tcp_info_of(transport)
    return buffered + (info.unacked_size if info else 0)


def _acked_size(outflow: _Outflow) -> int:
    """Bytes the peer has acknowledged; where the kernel does not tell, bytes it took."""
    if outflow.transport is None:
        return 0
    info = _tcp_info_of(outflow.transport)
    if info is not None:
        return info.acked_bytes
    return outflow.handed_size - outflow.transport.get_write_buffer_size()


# --- errors ---------------------------------------------------------------------------

_CERTIFICATE_HELP: Final = (
    "Check this machine's clock and its CA certificates; behind a proxy that inspects TLS, "
    "point VODUP_CA_FILE at the proxy's certificate (SSL_CERT_FILE is not read). Verification "
    "cannot be switched off."
)


def _translated(exc: Exception, request: SignedRequest) -> TransportError:
    """Our error for one of aiohttp's or the system's, without any of its content.

    Messages of aiohttp may quote headers and URLs with signatures.
    """
    is_sent = not isinstance(exc, _NEVER_SENT)
    next_step = _CERTIFICATE_HELP if isinstance(exc, _CERTIFICATE_ERRORS) else None
    return TransportError(
        f"{_named(request)}: {_explained(exc)}.",
        is_sent=is_sent,
        is_timeout=isinstance(exc, TimeoutError),  # aiohttp's are subclasses; errno ETIMEDOUT
        next_step=next_step,
    )


_CERTIFICATE_ERRORS: Final = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ServerFingerprintMismatch,
)

_NEVER_SENT: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.ServerFingerprintMismatch,
    ValueError,
)

# The first line that fits; subclasses stand before their bases.
_EXPLANATIONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientConnectorCertificateError, "its certificate is not trusted ({reason})"),
    (aiohttp.ServerFingerprintMismatch, "its certificate is not the expected one"),
    (aiohttp.ClientConnectorSSLError, "the TLS handshake failed ({reason})"),
    (aiohttp.ClientConnectorDNSError, "the host name cannot be resolved ({reason})"),
    (aiohttp.ClientProxyConnectionError, "the proxy cannot be reached ({reason})"),
    (aiohttp.ClientHttpProxyError, "the proxy refused the connection"),
    (aiohttp.ConnectionTimeoutError, "no connection in time"),
    (aiohttp.ClientConnectorError, "no connection ({reason})"),
    (aiohttp.ServerDisconnectedError, "the server closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the answer was cut off"),
    (aiohttp.ClientResponseError, "the answer is not valid HTTP"),
    (aiohttp.InvalidURL, "the URL is not valid"),
    (aiohttp.NonHttpUrlClientError, "the URL is not valid"),
    (ssl.SSLError, "TLS failed ({reason})"),
    (OSError, "the connection broke ({reason})"),
    (ValueError, "the request cannot be written as HTTP"),
    (Exception, "the connection broke"),
)


def _explained(exc: Exception) -> str:
    text = next(text for kind, text in _EXPLANATIONS if isinstance(exc, kind))
    return text.format(reason=_reason(exc))


def _reason(exc: BaseException) -> str:
    """Why, in the words of the system: of a certificate, of TLS, or of errno."""
    inner = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", None) or exc
    if isinstance(inner, ssl.SSLCertVerificationError):
        return getattr(inner, "verify_message", "") or "refused"
    if isinstance(inner, ssl.SSLError):
        return (getattr(inner, "reason", "") or "TLS error").replace("_", " ").lower()
    if isinstance(inner, socket.gaierror):
        return inner.strerror or "DNS error"
    if isinstance(inner, OSError) and inner.errno:
        return os.strerror(inner.errno)
    return "the other side closed it"


def _named(request: SignedRequest) -> str:
    """The request without its path and query: those may hold names and signatures."""
    try:
        host = URL(request.url, encoded=True).host
    except ValueError:
        host = None
    return f"{request.method} {host or '(no host)'}"


# --- sockets --------------------------------------------------------------------------


class _Sockets:
    """Makes our sockets and remembers the open ones. Mutable."""

    def __init__(
        self,
        congestion: str | None,
        near_rtt_s: float,
        notsent_lowat: int | None,
        stall_timeout_s: float,
    ) -> None:
        self._far_congestion = "bbr" if congestion == "bbr" else None
        self._first_congestion = "cubic" if self._far_congestion else congestion
        self._near_rtt_us = near_rtt_s * 1e6
        self._options = _socket_options(notsent_lowat, stall_timeout_s)
        self._serials = count(1)
        self._made: WeakKeyDictionary[socket.socket, int] = WeakKeyDictionary()
        self._by_number: WeakValueDictionary[int, socket.socket] = WeakValueDictionary()
        self._fitted: WeakSet[socket.socket] = WeakSet()
        self.congestion = ""

    def make(self, address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """A socket for that address (aiohttp's `socket_factory`)."""
        family, kind, protocol, _, _ = address
        made = socket.socket(family=family, type=kind, proto=protocol)
        for option, value in self._options:
            _set_option(made, option, value)
        self.congestion = _choose_congestion(made, self._first_congestion)
        self._made[made] = next(self._serials)
        self._by_number[made.fileno()] = made
        return made

    def fitted(self, transport: asyncio.Transport) -> socket.socket | None:
        """The socket of `transport`, fit for its path; None where it is not ours to use."""
        shown = transport.get_extra_info("socket")
        made = None if shown is None else self._by_number.get(shown.fileno())
        if made is None or made.fileno() < 0 or sys.platform == "win32":
            return None
        self.fit(made)
        return made

    def fit(self, made: socket.socket) -> None:
        """Go over to bbr where the peer is far; once for each connection.

        Near ones keep what they began with: bbr's pacing costs a timer for every few
        segments, and there a loss is made good at once. The other way round does not work,
        for a socket that once was paced stays so. The round trip is the handshake's.
        """
        if self._far_congestion is None or made in self._fitted:
            return
        info = _tcp_info(made)
        if info is None or info.rtt_us == 0:
            return  # there is no connection yet
        self._fitted.add(made)
        if info.rtt_us >= self._near_rtt_us:
            self.congestion = _choose_congestion(made, self._far_congestion)

    def open(self) -> list[tuple[int, socket.socket]]:
        """Those not closed yet, each with its number."""
        return [(serial, sock) for sock, serial in self._made.items() if sock.fileno() >= 0]


def _socket_options(
    notsent_lowat: int | None, stall_timeout_s: float
) -> list[tuple[tuple[int, str], int]]:
    """(level, name), value. The kernel's own time-out stands behind the watchdog's."""
    options = [
        ((socket.SOL_SOCKET, "SO_KEEPALIVE"), 1),
        ((socket.IPPROTO_TCP, "TCP_NODELAY"), 1),
        ((socket.IPPROTO_TCP, "TCP_KEEPIDLE"), 15),
        ((socket.IPPROTO_TCP, "TCP_KEEPINTVL"), 5),
        ((socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"), int(stall_timeout_s * 2000)),
    ]
    if notsent_lowat is not None:
        options.append(((socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT"), notsent_lowat))
    return options


def _set_option(made: socket.socket, option: tuple[int, str], value: int) -> None:
    """Set it where the system knows it; none of them is needed for correctness."""
    level, name = option
    number = getattr(socket, name, None)
    if number is not None:
        with suppress(OSError):
            made.setsockopt(level, number, value)


def _choose_congestion(made: socket.socket, wanted: str | None) -> str:
    """Ask for it, and tell what is in use: the kernel may not have it, or not allow it."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is not None and wanted:
        with suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, option, wanted.encode())
    return _congestion_of(made)


def may_use_congestion(name: str) -> bool:
    """Whether the kernel has that congestion control and lets this process use it."""
    with socket.socket() as probe:
        return _choose_congestion(probe, name) == name


def _congestion_of(sock: socket.socket) -> str:
    """What the socket uses; while it connects, a route may have put another in its place."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is None:
        return ""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, option, 16).rstrip(b"\0").decode()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class _TcpInfo:
    """What we read of Linux's `struct tcp_info` (include/uapi/linux/tcp.h)."""

    unacked_size: int
    rtt_us: int
    retransmit_count: int
    acked_bytes: int
    min_rtt_us: int


_TCP_INFO: Final = struct.Struct("=68xI28xI16xQ20xI")  # rtt, retransmits, acked, min_rtt
_NO_RTT_US: Final = 2**32 - 1  # nothing was acknowledged yet
_SIOCOUTQ: Final = 0x5411  # unacknowledged bytes in the send queue (linux/sockios.h)


def _tcp_info_of(transport: asyncio.Transport) -> _TcpInfo | None:
    sock = transport.get_extra_info("socket")
    return _tcp_info(sock) if sock is not None else None


def _tcp_info(sock: socket.socket) -> _TcpInfo | None:
    """None where the system is not Linux, or the socket is closed."""
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        queued = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return None
    if len(raw) < _TCP_INFO.size:
        return None
    fields = _TCP_INFO.unpack(raw)
    return _TcpInfo(int.from_bytes(queued, sys.byteorder), *fields)


def _link_sample(serial: int, sock: socket.socket) -> LinkSample | None:
    info = _tcp_info(sock)
    if info is None:
        return None
    return LinkSample(
        connection=serial,
        acked_bytes=info.acked_bytes,
        rtt_s=info.rtt_us / 1e6,
        min_rtt_s=0.0 if info.min_rtt_us == _NO_RTT_US else info.min_rtt_us / 1e6,
        retransmit_count=info.retransmit_count,
        is_slowed_by_loss=not _congestion_of(sock).startswith("bbr"),
    )
