"""A live page of a batch, on loopback: figures once a second as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from uploader.errors import ConfigurationError
from uploader.units import duration, rate, size

from .progress import BatchProgress
from .report import html_figures, html_page, html_table, rates, svg_line

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

_HOST: Final = "127.0.0.1"
_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_INTERVAL_S: Final = 1.0
_MAX_READERS: Final = 16
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'self'; connect-src 'self'; frame-ancestors 'none'",
}

_PAGE: Final = html_page(
    "vodup batch, live",
    '<h1>Batch</h1><p id="state" role="status">Connecting</p><div id="live"></div>'
    '<script src="page.js"></script>',
)

_SCRIPT: Final = files(__package__).joinpath("page.js").read_text()


@web.middleware
async def _only_loopback(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other names and sites: a web page may point its own name at this address."""
    if request.host.rpartition(":")[0] not in _NAMES and request.host not in _NAMES:
        raise web.HTTPForbidden(text="Only 127.0.0.1 and localhost are served here.")
    if request.headers.get("Origin", f"http://{request.host}") != f"http://{request.host}":
        raise web.HTTPForbidden(text="Other sites are not served.")
    return await handler(request)


@asynccontextmanager
async def serving(
    progress: BatchProgress, port: int, health: Callable[[], Mapping[str, Any]] | None = None
) -> AsyncIterator[str]:
    """Serve the page while the block runs; yields its URL.

    Args:
        health: what /health answers as JSON, with status 200 if its "status" is "ok", else 503.

    Raises:
        ConfigurationError: the port is taken.
    """
    app = web.Application(middlewares=[_only_loopback])
    readers = _Readers(progress)
    app.router.add_get("/", _page)
    app.router.add_get("/page.js", _script)
    app.router.add_get("/events", readers.serve)

    async def show_health(request: web.Request) -> web.Response:
        figures = health() if health else {"status": "ok", **progress.figures()}
        status = 200 if figures["status"] == "ok" else 503
        return web.json_response(figures, status=status, headers=_HEADERS)

    app.router.add_get("/health", show_health)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, _HOST, port).start()
        except OSError as error:
            raise ConfigurationError(
                f"--dashboard: cannot use port {port}: {error.strerror}.",
                next_step="Choose another port, or 0 for any free one.",
            ) from error
        yield f"http://{_HOST}:{runner.addresses[0][1]}/"
    finally:
        readers.ended.set()
        await runner.cleanup()


def page_data(progress: BatchProgress, *, has_ended: bool = False) -> dict[str, Any]:
    """Return what the page shows: a sentence, and the rest as escaped HTML."""
    ended = f"Finished: {progress.done_count:,} uploaded, {progress.failed_count:,} failed"
    sent = rates(progress.samples, lambda sample: sample.sent_bytes)
    slowest = (
        (one.source, f"{100 * one.done_bytes // max(1, one.size)} %", size(one.size))
        for one in progress.slowest
    )
    pieces = (
        html_figures(_totals(progress)),
        svg_line("Throughput", sent, rate),
        f"<h2>Longest running</h2>{html_table(('file', 'done', 'size'), slowest)}",
        f"<h2>Latest failures</h2>{html_table(('file', 'error'), reversed(progress.failures))}",
    )
    return {
        "ended": has_ended,
        "state": progress.stopped or (ended if has_ended else "Running"),
        "html": "".join(pieces),
    }


def _totals(progress: BatchProgress) -> list[tuple[str, str]]:
    tracker, expected, remaining_s = progress.tracker, progress.expected_count, progress.remaining_s
    about = "" if progress.is_read else "about "
    of = "" if expected is None else f" of {about}{expected:,}"
    return [
        ("done", f"{progress.ended_count:,}{of}"),
        ("uploaded and verified", f"{progress.done_count:,}"),
        ("done in an earlier run", f"{progress.skipped_count:,}"),
        ("failed", f"{progress.failed_count:,}"),
        ("waiting to retry", f"{progress.deferred_count:,}"),
        ("uploading", f"{len(tracker.active):,}"),
        ("sent", size(tracker.sent_bytes)),
        ("throughput", rate(tracker.bytes_per_s())),
        ("files per second", f"{progress.rows_per_s:,.1f}"),
        ("elapsed", duration(tracker.seconds)),
        ("remaining", "?" if remaining_s is None else duration(remaining_s)),
        ("credential renewals", f"{tracker.renewal_count:,}"),
        ("requests retried", f"{tracker.retry_count:,}"),
    ]


class _Readers:
    """Browsers that show the page. Mutable: how many, and whether the batch has ended."""

    def __init__(self, progress: BatchProgress) -> None:
        self._progress = progress
        self._count = 0
        self.ended = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send the figures until the batch ends or the browser disconnects."""
        if self._count >= _MAX_READERS:
            raise web.HTTPServiceUnavailable
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        self._count += 1
        try:
            await response.prepare(request)
            has_ended = False
            while not has_ended:
                has_ended = self.ended.is_set()
                data = page_data(self._progress, has_ended=has_ended)
                async with asyncio.timeout(10):
                    await response.write(f"data: {json.dumps(data)}\n\n".encode())
                with suppress(TimeoutError):
                    async with asyncio.timeout(_INTERVAL_S):
                        await self.ended.wait()
        except (ConnectionError, TimeoutError):
            pass  # the browser has disconnected
        finally:
            self._count -= 1
        return response


async def _page(request: web.Request) -> web.Response:
    return web.Response(text=_PAGE, content_type="text/html", headers=_HEADERS)


async def _script(request: web.Request) -> web.Response:
    return web.Response(text=_SCRIPT, content_type="text/javascript", headers=_HEADERS)
