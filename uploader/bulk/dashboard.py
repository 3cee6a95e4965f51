"""A live page of a batch, on loopback: figures once a second as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from uploader.errors import ConfigurationError
from uploader.units import duration, rate, size

from .page import STYLE, rates
from .tally import Tally

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

__all__ = ["serving", "told"]

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
stroke="#0969da" stroke-width="1.5"/><text id="most" x="4" y="20"></text>
<text x="4" y="135">0</text><text id="begin" x="80" y="152"></text>
<text id="end" x="580" y="152"></text></svg>
<h2>Under way for longest</h2><table id="slowest"></table>
<h2>Failed last</h2><table id="failures"></table>
<script src="page.js"></script></body></html>
"""

# Everything that comes from a manifest or a server is set as text, never as markup.
_SCRIPT: Final = """"use strict";
const byId = (id) => document.getElementById(id);
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
  byId("figures").replaceChildren(...values.map(([name, value]) => {
    const box = document.createElement("div");
    cell(box, "dt", name);
    cell(box, "dd", value);
    return box;
  }));
}
function plot(told) {
  const points = told.rates, most = Math.max(1, ...points.map(([, rate]) => rate));
  const begin = points.length ? points[0][0] : 0, end = points.length ? points.at(-1)[0] : 1;
  byId("rate").setAttribute("points", points.map(([at, rate]) =>
    `${80 + 550 * (at - begin) / Math.max(end - begin, 1e-9)},${135 - 120 * rate / most}`
  ).join(" "));
  ["most", "begin", "end"].forEach((id) => { byId(id).textContent = told.axis[id]; });
}
const source = new EventSource("events");
source.onmessage = (message) => {
  const told = JSON.parse(message.data);
  byId("state").textContent = told.state;
  figures(told.totals);
  table("slowest", told.slowest);
  table("failures", told.failures);
  plot(told);
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
    """What the page is told: figures in words, the rate over time, the slowest, the failures."""
    points = rates(tally.samples, lambda sample: sample.sent_bytes)
    return {
        "state": tally.stopped or "Running",
        "totals": _totals(tally),
        "rates": [[round(at_s, 1), round(value)] for at_s, value in points],
        "axis": {
            "most": rate(max([value for _, value in points], default=0)),
            "begin": duration(points[0][0] if points else 0),
            "end": duration(tally.seconds),
        },
        "slowest": [
            [one.name, f"{100 * one.done_bytes // max(1, one.size)} %", size(one.size)]
            for one in tally.slowest
        ],
        "failures": [list(failure) for failure in reversed(tally.failures)],
    }


def _totals(tally: Tally) -> list[tuple[str, str]]:
    expected, left_s = tally.expected_count, tally.left_s
    about = "" if tally.is_read else "about "
    return [
        ("rows through", f"{tally.ended_count:,}"),
        ("of", "?" if expected is None else f"{about}{expected:,}"),
        ("stored and verified", f"{tally.done_count:,}"),
        ("done by earlier runs", f"{tally.skipped_count:,}"),
        ("failed", f"{tally.failed_count:,}"),
        ("to be tried again", f"{tally.deferred_count:,}"),
        ("under way", f"{len(tally.active):,}"),
        ("sent", size(tally.sent_bytes)),
        ("rate", rate(tally.bytes_per_s)),
        ("rows a second", f"{tally.rows_per_s:,.1f}"),
        ("since", duration(tally.seconds)),
        ("left", "?" if left_s is None else duration(left_s)),
        ("credential renewals", f"{tally.renewal_count:,}"),
        ("requests repeated", f"{tally.retry_count:,}"),
    ]


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
                async with asyncio.timeout(10):
                    await response.write(line.encode())
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
