"""A web server that serves bytes, and misbehaves on request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate

from aiohttp import web

from uploader.protocol.integrity import crc64


@dataclass
class Site:
    """What it gives, and how.

    Attributes:
        with_ranges, with_etag, with_date, obeys: what it can do, tells, and makes of `If-Match`.
        breaks_after: bytes of an answer after which the connection breaks, once for each
            of `breaks` left.
        statuses: what the next requests are answered instead.
        longest_range: bytes of the largest range it gives, however many are requested.
        dropped_ranges: how many of the next requests are answered with all there is.
        shift: how far its ranges begin behind the requested ones.
        extra: headers of every response with bytes.
        headers: of each request, as it came.
    """

    data: bytes = b""
    with_ranges: bool = True
    with_etag: bool = True
    with_date: bool = True
    weak: bool = False
    obeys: bool = True
    breaks_after: int = 0
    breaks: int = 0
    silent: bool = False
    longest_range: int | None = None
    dropped_ranges: int = 0
    shift: int = 0
    ends_by: str = "length"
    extra: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    changed_at: float = 1.7e9
    url: str = ""
    before_answer: Callable[[], None] = lambda: None

    def put(self, data: bytes) -> None:
        if data != self.data:
            self.changed_at += 10
        self.data = data

    @property
    def etag(self) -> str:
        return f'{"W/" if self.weak else ""}"{crc64(self.data):x}-{len(self.data)}"'

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.before_answer()
        if self.silent:
            await asyncio.sleep(60)
        if self.locations:
            return web.Response(status=302, headers={"Location": self.locations.pop(0)})
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        wanted = request.headers.get("If-Match")
        if self.obeys and wanted is not None and wanted != self.etag:
            return web.Response(status=412)
        unmodified = request.headers.get("If-Unmodified-Since")
        if unmodified is not None and unmodified != formatdate(self.changed_at, usegmt=True):
            return web.Response(status=412)
        return await self._send(request)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        data, size = self.data, len(self.data)
        headers = {"Content-Type": "video/mp4", **self.extra}
        if self.with_etag:
            headers["ETag"] = self.etag
        if self.with_date:
            headers["Last-Modified"] = formatdate(self.changed_at, usegmt=True)
        status, piece = 200, data
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if found and self.dropped_ranges:
            self.dropped_ranges -= 1
        elif found and self.with_ranges:
            first, last = int(found[1]) + self.shift, min(int(found[2]), size - 1)
            if self.longest_range is not None:
                last = min(last, first + self.longest_range - 1)
            if first >= size:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
            status, piece = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if self.ends_by == "connection":
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + piece)
            request.transport.close()
            raise ConnectionResetError
        if self.ends_by == "length":  # else in chunks
            headers["Content-Length"] = str(len(piece))
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            return response  # a body would be taken for the next answer
        if self.breaks and len(piece) > self.breaks_after:
            self.breaks -= 1
            await response.write(piece[: self.breaks_after])
            assert request.transport is not None
            request.transport.abort()
            return response
        with suppress(ConnectionResetError):  # the client has gone
            await response.write(piece)
        return response


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Site]:
    """Serve it on loopback; its URL has a query that nobody may see."""
    app = web.Application()
    app.router.add_get("/films/movie.mp4", site.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    host, port = runner.addresses[0][:2]
    site.url = f"http://{host}:{port}/films/movie.mp4?token=SECRET"
    try:
        yield site
    finally:
        await runner.cleanup()
