"""An HTTP proxy that resolves names as a test wants, and refuses on order.

It stands for a company's proxy: names lead to servers on loopback, so that uploads go to
`oss-cn-shanghai.aliyuncs.com` and end at a development server.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.rawserver import Connection, Head, serving
from uploader.devserver import DevServer

Address = tuple[str, int]


@dataclass
class ForwardProxy:
    """What it does and has seen. Mutable.

    Attributes:
        routes: where a host name leads, or the names below one that begins with a dot.
        login: the user and the password that it requires.
        refusals: answers to the next requests: status, and whole header lines.
        requests: heads of all requests, in order.
    """

    routes: Mapping[str, Address]
    login: tuple[str, str] | None = None
    refusals: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    requests: list[Head] = field(default_factory=list)
    url: str = ""

    def hosts(self) -> list[str]:
        """The hosts that were requested, in order."""
        return [_host_of(head) for head in self.requests]

    async def serve(self, connection: Connection) -> None:
        """One connection of a client."""
        raw = await connection.reader.readuntil(b"\r\n\r\n")
        head = Head.parsed(raw)
        self.requests.append(head)
        if self.refusals:
            status, lines = self.refusals.pop(0)
            return await connection.answer(status, b"<html>no</html>", *lines)
        if self.login is not None and head.get("proxy-authorization") != _basic(*self.login):
            return await connection.answer(407, b"", 'Proxy-Authenticate: Basic realm="x"')
        address = self._address_of(_host_of(head))
        if address is None:
            return await connection.answer(502)
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(*address)
            if head.method == "CONNECT":
                await connection.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                writer.write(raw)
            await relay(connection.reader, connection.writer, reader, writer)

    def _address_of(self, host: str) -> Address | None:
        if host in self.routes:
            return self.routes[host]
        suffixes = (name for name in self.routes if name.startswith("."))
        return next((self.routes[name] for name in suffixes if host.endswith(name)), None)


def _host_of(head: Head) -> str:
    target = f"//{head.path}" if head.method == "CONNECT" else head.path
    return urlsplit(target).hostname or ""


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


@asynccontextmanager
async def forwarding(
    routes: Mapping[str, Address],
    *,
    login: tuple[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[ForwardProxy]:
    """A proxy that listens while the block runs."""
    proxy = ForwardProxy(routes, login)
    async with serving(proxy.serve, tls=tls, host=host) as server:
        proxy.url = server.url
        yield proxy


@asynccontextmanager
async def tls_front(
    upstream: Address, tls: ssl.SSLContext, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Address]:
    """A listener that ends TLS and passes the bytes on."""

    async def serve(connection: Connection) -> None:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(*upstream)
            await relay(connection.reader, connection.writer, reader, writer)

    async with serving(serve, tls=tls, host=host, port=port) as server:
        yield _address(server.url)


async def relay(
    near_reader: asyncio.StreamReader,
    near_writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    """Pass bytes on in both directions until either side ends."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()

    copies = [
        asyncio.create_task(copy(near_reader, far_writer)),
        asyncio.create_task(copy(far_reader, near_writer)),
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        far_writer.transport.abort()
        for task in copies:
            task.cancel()
        await asyncio.wait(copies)


VOD_HOST = "vod.cn-shanghai.aliyuncs.com"
OSS_HOST = "oss-cn-shanghai.aliyuncs.com"
SERVICE_HOSTS = (VOD_HOST, OSS_HOST, f"*.{OSS_HOST}")


@asynccontextmanager
async def services_at(
    server: DevServer,
    tls: ssl.SSLContext,
    *,
    hosts: tuple[str, str] = ("127.0.0.1", "127.0.0.1"),
    port: int = 0,
) -> AsyncIterator[dict[str, Address]]:
    """Where the names of VOD and OSS lead, so that a development server answers for both.

    With a fixed `port`, `hosts` are the addresses of VOD and OSS.
    """
    upstreams = [_address(url) for url in (server.vod_endpoint, server.oss_endpoint)]
    server.backend.oss_endpoint = f"https://{OSS_HOST}"
    async with AsyncExitStack() as stack:
        vod, oss = [
            await stack.enter_async_context(tls_front(upstream, tls, host=host, port=port))
            for upstream, host in zip(upstreams, hosts, strict=True)
        ]
        yield {VOD_HOST: vod, OSS_HOST: oss, f".{OSS_HOST}": oss}


def _address(url: str) -> Address:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0
