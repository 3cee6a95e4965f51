"""A live page of a batch, on loopback: figures once a second as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from uploader.errors import ConfigurationError

from .page import STYLE
from .tally import Tally

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

__all__ = ["serving"]

_HOST: Final = "127.0.0.1"
_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_INTERVAL_S: Final = 1.0
_MAX_LISTENERS: Final = 16
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'self'; connect-src 'self'; frame-ancestors 'none'",
}

_PAGE: Final = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vodup batch, live</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>Batch</h1><p id="state">Connecting</p><dl id="figures"></dl>
<h2>Bytes a second</h2><svg viewBox="0 0 640 160" role="img"><polyline id="rate" fill="none"
stroke="#0969da" stroke-width="1.5"/></svg>
<h2>Under way for longest</h2><table id="slowest"></table>
<h2>Failed last</h2><table id="failures"></table>
<script src="page.js"></script></body></html>
"""

# Everything that comes from a manifest or a server is set as text, never as markup.
_SCRIPT: Final = """"use strict";
const byId = (id) => document.getElementById(id);
const rates = [];
function cell(row, tag, text) {
  const made = document.createElement(tag);
  made.textContent = String(text);
  row.append(made);
}
function table(id, rows) {
  byId(id).replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((text) => cell(row, "td", text));
    return row;
  }));
}
function figures(values) {
  byId("figures").replaceChildren(...Object.entries(values).map(([name, value]) => {
    const box = document.createElement("div");
    cell(box, "dt", name.replaceAll("_", " "));
    cell(box, "dd", value === null ? "?" : value.toLocaleString("en"));
    return box;
  }));
}
function plot(rate) {
  rates.push(rate);
  if (rates.length > 600) rates.shift();
  const most = Math.max(1, ...rates), step = 620 / Math.max(1, rates.length - 1);
  byId("rate").setAttribute("points",
    rates.map((value, n) => `${10 + n * step},${150 - 140 * value / most}`).join(" "));
}
const source = new EventSource("events");
source.onmessage = (message) => {
  const told = JSON.parse(message.data);
  byId("state").textContent = told.figures.stopped || "Running";
  figures(told.totals);
  table("slowest", told.slowest);
  table("failures", told.failures);
  plot(told.figures.bytes_per_s);
};
source.onerror = () => {
  source.close();
  byId("state").textContent = "The batch has ended, or cannot be reached.";
};
"""


@web.middleware
async def _only_loopback(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other names: a web page elsewhere may point its own name at this address."""
    if request.host.rpartition(":")[0] not in _NAMES and request.host not in _NAMES:
        raise web.HTTPForbidden(text="Only 127.0.0.1 and localhost are served here.")
    return await handler(request)


@asynccontextmanager
async def serving(tally: Tally, port: int) -> AsyncIterator[str]:
    """Serve the page while the block runs; yields its URL.

    Raises:
        ConfigurationError: the port is taken.
    """
    app = web.Application(middlewares=[_only_loopback])
    listeners = _Listeners(tally)
    app.router.add_get("/", _page)
    app.router.add_get("/page.js", _script)
    app.router.add_get("/events", listeners.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, _HOST, port).start()
        except OSError as error:
            raise ConfigurationError(
                f"--dashboard: port {port} cannot be used: {error.strerror}.",
                next_step="Name another port, or 0 for any.",
            ) from error
        yield f"http://{_HOST}:{runner.addresses[0][1]}/"
    finally:
        listeners.ended.set()
        await runner.cleanup()


def told(tally: Tally) -> dict[str, Any]:
    """What the page is told: figures, the slowest, the failures."""
    figures = tally.figures()
    hidden = ("errors", "stopped", "receipts", "refused")
    return {
        "figures": figures,
        "totals": {name: value for name, value in figures.items() if name not in hidden},
        "slowest": [
            [one.name, f"{100 * one.done_bytes // max(1, one.size)} %", one.size]
            for one in tally.slowest
        ],
        "failures": [list(failure) for failure in reversed(tally.failures)],
    }


class _Listeners:
    """Those who look at the page. Mutable: how many, and whether the batch has ended."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._count = 0
        self.ended = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send the figures until the batch ends or the reader goes."""
        if self._count >= _MAX_LISTENERS:
            raise web.HTTPServiceUnavailable
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        self._count += 1
        try:
            await response.prepare(request)
            while True:
                line = f"data: {json.dumps(told(self._tally))}\n\n"
                await asyncio.wait_for(response.write(line.encode()), 10)
                if self.ended.is_set():
                    break
                await self._pause()
        except (ConnectionError, TimeoutError):
            pass  # the reader has gone
        finally:
            self._count -= 1
        return response

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_INTERVAL_S):
                await self.ended.wait()
        except TimeoutError:
            return


async def _page(request: web.Request) -> web.Response:
    return web.Response(text=_PAGE, content_type="text/html", headers=_HEADERS)


async def _script(request: web.Request) -> web.Response:
    return web.Response(text=_SCRIPT, content_type="text/javascript", headers=_HEADERS)
