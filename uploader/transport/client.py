"""`AiohttpTransport`: one signed request out, the whole answer in, over one aiohttp session."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from uploader.errors import TransportError
from uploader.pace import LinkSample, Pace
from uploader.protocol.wire import Response, SentBody, SignedRequest
from uploader.threads import in_thread
from uploader.transport.body_writer import Buffers, Outflow
from uploader.transport.errors import Unusable, named, reason, translated
from uploader.transport.sockets import Sockets, congestion_of, link_sample
from uploader.transport.tls import tls_context
from uploader.transport.watchdog import Patience, Watch

__all__ = ["AiohttpTransport", "ConnectionFacts"]

ANSWER_SIZE_LIMIT: Final = 1024 * 1024
"""Answers are XML or JSON of a few KiB; a page of ListParts has 0.3 MiB."""

HEADER_SIZE_LIMIT: Final = 8190
"""Of one header line; there may be 128 of them."""

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
        self._patience = Patience(connect_timeout_s, stall_timeout_s)
        self._connection_limit = max(connection_limit, self._pace.max_concurrency + 8)
        self._ca_file = ca_file
        self._keepalive_s = keepalive_s
        self._proxy = proxy
        self._buffers = Buffers(unit_size)
        lowat = None if notsent_lowat is None else max(notsent_lowat, unit_size)
        self._sockets = Sockets(congestion, near_rtt_s, lowat, stall_timeout_s)
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
        used = next(filter(None, map(congestion_of, sockets)), self._sockets.congestion)
        return ConnectionFacts(used, len(sockets))

    def sample(self) -> list[LinkSample]:
        """The kernel's view of every open connection (`LinkProbe`).

        Each has the congestion control of its path by then: whoever looks decides by it.
        """
        connections = self._sockets.open()
        for _, sock in connections:
            self._sockets.fit(sock)
        return [s for serial, sock in connections if (s := link_sample(serial, sock))]

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        """Send `request` once and read the whole answer (`Transport`).

        An answer of 300 and above that comes before the body is out ends the sending;
        `Response.sent` tells how much was sent, and the connection is not used again.

        Raises:
            TransportError: there is no usable answer.
            SourceError: the body could not be read.
        """
        session = await self._open_session()
        outflow = Outflow.of(request, self._pace, self._buffers, self._sockets)
        watch = Watch(outflow, self._patience, answer_timeout_s)
        try:
            return await self._exchange(session, request, outflow, watch)
        except Unusable as exc:
            failure = TransportError(f"{named(request)}: {exc}.", is_sent=True)
        except aiohttp.ClientError as exc:
            failure = translated(exc, request)
        except TimeoutError:
            failure = TransportError(
                f"{named(request)}: {watch.verdict()}.", is_sent=True, is_timeout=True
            )
        except (OSError, ValueError) as exc:
            failure = translated(exc, request)
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
        outflow: Outflow | None,
        watch: Watch,
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
            ssl=await in_thread(tls_context, self._ca_file),
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


async def _read_answer(answer: aiohttp.ClientResponse) -> bytes:
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    is_head = answer.method == "HEAD"  # there it describes the stored object
    if encoding not in {"", "identity"} and not is_head:
        raise Unusable("the answer is compressed although that was not asked for")
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > ANSWER_SIZE_LIMIT:
            raise Unusable(f"the answer is longer than {ANSWER_SIZE_LIMIT} bytes")
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
        message = f"the connection broke ({reason(exc)})"
    raise Unusable(message)
