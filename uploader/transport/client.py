"""`AiohttpTransport`: sends one signed request and reads the whole answer."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import aiohttp
from yarl import URL

from uploader.errors import PolicyError, TransportError
from uploader.pace import LinkSample, Pace
from uploader.protocol.wire import Response, SentBody, SignedRequest
from uploader.threads import in_thread
from uploader.transport.body_writer import BodyWriter, Buffers
from uploader.transport.errors import (
    FOREIGN_ERRORS,
    UNTRUSTED,
    UnusableAnswer,
    is_of_proxy,
    transport_error,
    without_hidden_retry,
)
from uploader.transport.sockets import Sockets, congestion_of, link_sample
from uploader.transport.tls import presented_issuer, tls_context
from uploader.transport.watchdog import Watchdog

if TYPE_CHECKING:
    from uploader.transport.proxies import Proxies, Proxy

ANSWER_SIZE_LIMIT: Final = 1024 * 1024
"""Bytes. Answers are XML or JSON of a few KiB; a page of ListParts has 0.3 MiB."""

HEADER_SIZE_LIMIT: Final = 8190
"""Bytes of one header line; there may be 128 of them."""

PROXY_DELAY_S: Final = 120.0
"""A proxy acknowledges bytes before it has sent them on. Too small: a part is given up on a slow
uplink while the proxy still sends it. Too large: a proxy that hangs is noticed late."""

CLOSE_TIMEOUT_S: Final = 5.0
"""Connections are cut, not shut down in order; only a DNS query could take this long."""

_AUTO_HEADERS: Final = ("Accept", "Content-Type", "User-Agent")
"""aiohttp would add these after signing; OSS signs Content-Type."""


class AiohttpTransport:
    """`Transport` on one aiohttp session; an async context manager. Mutable; one event loop.

    Args:
        pace: the budget whose bandwidth limit it keeps; None for no limit.
        stall_timeout_s: a request fails when the peer takes no byte for so long. Too
            small breaks on a link that pauses; too large wastes a slot on a dead one.
        connect_timeout_s: for DNS, TCP and TLS together. Too small fails far away; too
            large delays the next address.
        ca_file: one more file of trusted certificates, for a TLS-inspecting proxy.
        unit_size: bytes read, checked and sent at once. Below 256 KiB the overhead shows
            (TLS: +20 % CPU at 128 KiB); above 1 MiB the caches overflow, and memory is
            this times the number of bodies in flight.
        congestion: TCP congestion control to request; None for the system's. Where the
            kernel refuses, the system's stays. "cubic" slows down on lossy links. "bbr" is
            for peers that are far away, others get "cubic".
        near_rtt_s: a peer whose handshake takes less is near. Too large loses bbr's
            strength on lossy paths; too small pays for its pacing within a data centre.
        notsent_lowat: bytes the kernel may hold unsent, at least one unit: less cuts
            every unit into pieces. Too large costs kernel memory and sends on after a
            refusal. None for no limit.
        keepalive_s: how long an idle connection is kept. Too small reconnects between
            parts; with more than the server's own limit, requests fail on connections
            that the server has closed.
        proxy: URL of an HTTP proxy, "env" or "none" (see `Proxies`).
    """

    def __init__(
        self,
        *,
        pace: Pace | None = None,
        stall_timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        ca_file: Path | None = None,
        unit_size: int = 512 * 1024,
        congestion: str | None = "bbr",
        near_rtt_s: float = 0.001,
        notsent_lowat: int | None = 512 * 1024,
        keepalive_s: float = 15.0,
        proxy: str | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._connect_s, self._stall_s = connect_timeout_s, stall_timeout_s
        self._ca_file = ca_file
        self._keepalive_s = keepalive_s
        self._is_proxy_chosen = proxy is not None
        self._proxies = None if proxy in (None, "", "none") else _proxies(proxy)
        self._buffers = Buffers(unit_size)
        lowat = None if notsent_lowat is None else max(notsent_lowat, unit_size)
        self._sockets = Sockets(congestion, near_rtt_s, lowat, stall_timeout_s)
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None
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
        async with self._opening:  # also a session that is just being made
            session, self._session = self._session, None
        if session is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await session.close()
            await asyncio.sleep(0)  # lets the transports close their sockets

    def congestion(self) -> str:
        """The congestion control of our sockets; "" before the first connection."""
        used = (congestion_of(sock) for _, sock in self._sockets.open_sockets())
        return next(filter(None, used), self._sockets.congestion)

    def sample(self) -> list[LinkSample]:
        """The kernel's view of every open connection (`LinkProbe`)."""
        found = self._sockets.open_sockets()
        return [s for serial, sock in found if (s := link_sample(serial, sock))]

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        """Send `request` once and read the whole answer (`Transport`).

        An answer of 300 and above that comes before the end of the body stops the sending;
        `Response.sent` holds how much was sent, and the connection is not used again.

        Raises:
            TransportError, UntrustedCertificate, ProxyRefused: there is no usable answer.
            SourceError: the body could not be read.
        """
        session = await self._open_session(is_tls=request.url.startswith("https:"))
        writer = self._writer_of(request)
        if (proxy := self._proxy_for(request)) is not None and writer is not None:
            answer_timeout_s += PROXY_DELAY_S
        watchdog = Watchdog(
            writer, connect_s=self._connect_s, stall_s=self._stall_s, answer_s=answer_timeout_s
        )
        try:
            return await self._exchange(session, request, writer, watchdog, proxy)
        except (UnusableAnswer, *FOREIGN_ERRORS) as exc:
            failure = exc.with_traceback(None)
        finally:
            if writer is not None:
                writer.release()
        if writer is not None and writer.source_error is not None:
            raise writer.source_error
        # Outside the handler, and forgotten: aiohttp's error has the request's headers, and error
        # reporters send the context of an error and the variables of its frames.
        error = await self._error_of(failure, request, proxy, watchdog.reason())
        del failure
        raise error

    def _proxy_for(self, request: SignedRequest) -> Proxy | None:
        if self._proxies is None:
            return None
        try:
            url = URL(request.url, encoded=True)
        except ValueError:
            return None  # aiohttp refuses it
        proxy = self._proxies.proxy_for(url)
        if proxy is not None and url.scheme != "https":
            raise PolicyError(
                f"Refusing to send credentials to {url.host_subcomponent} without TLS through "
                f"the proxy {proxy}.",
                next_step='Use an https endpoint, or --proxy none (proxy="none" in code).',
            )
        return proxy

    async def _error_of(
        self, failure: Exception, request: SignedRequest, proxy: Proxy | None, timeout_reason: str
    ) -> TransportError | PolicyError:
        issuer = unused = ""
        with suppress(ValueError):
            url = URL(request.url, encoded=True)
            unused = "" if self._is_proxy_chosen else _proxies(None).unused_variable(url)
            if isinstance(failure, UNTRUSTED) and not is_of_proxy(failure, proxy):
                issuer = await self._issuer_at(url, proxy)
        return transport_error(
            failure,
            request,
            timeout_reason=timeout_reason,
            proxy=proxy,
            unused_variable=unused,
            issuer=issuer,
        )

    async def _issuer_at(self, url: URL, proxy: Proxy | None) -> str:
        with suppress(*FOREIGN_ERRORS, EOFError, asyncio.LimitOverrunError):
            async with asyncio.timeout(self._connect_s):
                return await presented_issuer(url.host or "", url.port or 443, proxy)
        return ""

    def _writer_of(self, request: SignedRequest) -> BodyWriter | None:
        """None for a request without a body: aiohttp sends Content-Length: 0 by itself."""
        body, needs_md5 = request.body, request.needs_md5
        if body is None or body.size == 0:
            return None
        return BodyWriter(body, self._pace, self._buffers, self._sockets, needs_md5=needs_md5)

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        request: SignedRequest,
        writer: BodyWriter | None,
        watchdog: Watchdog,
        proxy: Proxy | None,
    ) -> Response:
        async with asyncio.timeout(None) as scope:
            with watchdog.watch(scope):
                async with session.request(
                    request.method,
                    URL(request.url, encoded=True),
                    data=writer,
                    headers={"Accept-Encoding": "identity", **request.headers},
                    allow_redirects=False,
                    proxy=proxy.url if proxy else None,
                    proxy_headers=proxy.headers if proxy else None,
                    ssl=self._tls or True,
                ) as answer:
                    if writer is not None and answer.status >= 300:
                        writer.stop_sending()
                    watchdog.start_answer()
                    body = await _read_answer(answer)
        sent = writer.sent() if writer else SentBody()
        return Response(answer.status, _first_of_each(answer), body, sent)

    async def _open_session(self, *, is_tls: bool) -> aiohttp.ClientSession:
        async with self._opening:
            if is_tls and self._tls is None:
                self._tls = await in_thread(tls_context, self._ca_file)
            if self._is_closed:
                raise RuntimeError("the transport is closed")
            if self._session is None:
                self._session = self._new_session()
            return self._session

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            # Room for calls that need no slot; the slots limit the others.
            limit=max(64, self._pace.max_concurrency + 8),
            keepalive_timeout=self._keepalive_s,
            socket_factory=self._sockets.make,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=[without_hidden_retry],
            skip_auto_headers=_AUTO_HEADERS,
            auto_decompress=False,
            trust_env=False,
            max_line_size=HEADER_SIZE_LIMIT,
            max_field_size=HEADER_SIZE_LIMIT,
        )


def _proxies(setting: str | None) -> Proxies:
    """Most uploads load no module for this."""
    from uploader.transport.proxies import Proxies

    return Proxies(setting)


async def _read_answer(answer: aiohttp.ClientResponse) -> bytes:
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    is_head = answer.method == "HEAD"  # there it describes the stored object
    if encoding not in {"", "identity"} and not is_head:
        raise UnusableAnswer("the answer is compressed, which was not requested")
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > ANSWER_SIZE_LIMIT:
            raise UnusableAnswer(f"the answer is longer than {ANSWER_SIZE_LIMIT} bytes")
    return bytes(body)


def _first_of_each(answer: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in answer.headers.items():
        headers.setdefault(name.lower(), value)
    return headers
