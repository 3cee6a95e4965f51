"""Pages people read: axe-core has no findings, and nothing is wider than the window."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from uploader.bulk.dashboard import serving
from uploader.bulk.ledger import Record
from uploader.bulk.progress import BatchProgress, Sample
from uploader.bulk.report import write_report

from .chromium import Chromium, Tab
from .test_example import Page, page

__all__ = ["page"]

pytestmark = pytest.mark.slow

LONG = "/archive/2026/" + "a-very-long-name-without-a-break-" * 5 + "影片.mp4"
AXE = "axe.run().then(r => r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html)]))"
WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture
def check(packages: Path, tmp_path: Path) -> Callable[[Tab], Awaitable[None]]:
    script = (packages / "axe-core/axe.min.js").read_text("utf-8")
    pictures = Path(os.environ.get("PICTURES", tmp_path))

    async def check(tab: Tab) -> None:
        title = await tab.evaluate("document.title")
        for width in (390, 1200):
            for scheme in ("light", "dark"):
                await tab.size(width, 800, scheme)
                await tab.picture(pictures / f"{title}-{width}-{scheme}.png")
                await tab.call("Runtime.evaluate", expression=script)
                assert await tab.evaluate(AXE) == [], (width, scheme)
                assert await tab.evaluate(WIDTH) <= width, scheme

    return check


Check = Callable[[Tab], Awaitable[None]]


def batch() -> BatchProgress:
    made = BatchProgress(asyncio.get_running_loop().time)
    made.read_count, made.done_count, made.failed_count = 10_000, 4_000, 2
    made.samples.extend(
        Sample(float(i), i * 5_000_000 + i % 3 * 1_000_000, i * 40) for i in range(30)
    )
    made.failures.append((LONG, "PermissionDenied: The RAM policy does not allow it."))
    return made


def record(number: int, **fields: object) -> Record:
    return {
        "manifest": "/data/videos.csv", "row": number, "path": LONG, "size": 10**number,
        "seconds": 2.0**number, "video_id": "a" * 32, "renewal_count": 1, "retry_count": 2,
        "verified_by": "crc64", "status": "done", **fields,
    }  # fmt: skip


async def test_the_report_of_a_batch(browser: Chromium, check: Check, tmp_path: Path) -> None:
    failed = record(
        9, status="failed", error="PermissionDenied", message="The RAM policy does not allow it.",
        request_id="A" * 36, next_step="Add vod:CreateUploadVideo to the policy.",
    )  # fmt: skip
    progress = batch()
    progress.stopped = "the disk is full"
    write_report(tmp_path / "report.html", progress, [*map(record, range(1, 9)), failed])
    tab = await browser.tab()
    await tab.open((tmp_path / "report.html").as_uri())
    await check(tab)


async def test_the_live_page_of_a_batch(browser: Chromium, check: Check) -> None:
    async with serving(batch(), 0) as url:
        tab = await browser.tab()
        await tab.open(url)
        await tab.wait("document.querySelector('table')")
        await check(tab)


async def test_the_page_that_uploads(browser: Chromium, page: Page, check: Check) -> None:
    page.server.set_options(bandwidth=3e6)
    tab = await page.start(browser)
    await tab.wait("!document.getElementById('unfinished').hidden")
    await check(tab)
    await tab.evaluate("document.getElementById('pause').click()")
    await tab.wait("!document.getElementById('upload').disabled")
    await check(tab)
