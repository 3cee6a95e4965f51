"""The page of docs/examples/browser in a real Chromium, with its app server and the devserver."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from uploader import VodProvider
from uploader.devserver import DevServer, DevServerOptions, Fault

from .chromium import Chromium, Tab

pytestmark = pytest.mark.slow

PART = 1024 * 1024  # bytes, as upload.js has it
SCRIPT = Path(__file__).parents[2] / "docs/examples/browser/serve.py"
STATUS = "document.getElementById('status').textContent"
PERCENT = "document.getElementById('progress').value"
IS_FINISHED = f"{STATUS}.startsWith('Finished')"


def serve_module() -> Any:  # noqa: ANN401 - a module that mypy does not see
    spec = importlib.util.spec_from_file_location("example_browser", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@dataclass
class Page:
    """The page, the server behind it and one file."""

    url: str
    server: DevServer
    file: Path

    async def open(self, browser: Chromium, token: str = "secret") -> Tab:
        tab = await browser.tab()
        await tab.open(f"{self.url}#token={token}")
        return tab

    async def choose(self, tab: Tab) -> None:
        await tab.choose_file("#file", self.file)

    async def start(self, browser: Chromium) -> Tab:
        tab = await self.open(browser)
        await self.choose(tab)
        await tab.evaluate("document.getElementById('upload').click()")
        return tab

    async def assert_finished(self, tab: Tab) -> None:
        """The page names the one video that was created, which has the bytes of the file."""
        await tab.wait(IS_FINISHED, 60)
        (video_id,) = self.server.videos
        assert await tab.evaluate(STATUS) == f"Finished. VideoId: {video_id}"
        expected = await asyncio.to_thread(self.file.read_bytes)
        assert self.server.object_bytes(video_id) == expected
        assert await tab.evaluate("document.getElementById('unfinished').hidden")

    def parts_sent(self) -> Counter[int | None]:
        """How often each part was received whole."""
        log = self.server.stats.log
        return Counter(
            r.part_number for r in log if r.operation == "UploadPart" and r.status == 200
        )


@pytest.fixture
async def page(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Page]:
    module = serve_module()
    file = tmp_path / "movie.mp4"
    file.write_bytes(random.Random(5).randbytes(24 * PART + 123))
    script = packages / "ali-oss/dist/aliyun-oss-sdk.min.js"
    limits = DevServerOptions(credential_ttl_s=4, bandwidth=6e6, check_expiry_at_end=True)
    async with DevServer(limits) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        with closing(module.Owners(str(tmp_path / "owners.db"))) as owners:
            endpoint = module.browser_endpoint(server.oss_endpoint)
            app = module.make_app(
                VodProvider.from_env(), {"secret": "me"}, owners, oss_endpoint=endpoint
            )
            runner = web.AppRunner(module.add_page(app, script), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield Page(f"http://127.0.0.1:{runner.addresses[0][1]}/", server, file)
            await runner.cleanup()


async def test_a_tab_that_is_killed_resumes_when_the_page_is_opened_again(
    browser: Chromium, page: Page
) -> None:
    tab = await page.start(browser)
    await tab.wait(f"{PERCENT} >= 40")
    await tab.kill()
    before = page.parts_sent()
    assert 8 <= len(before) < 25

    tab = await page.open(browser)
    assert "movie.mp4" in await tab.evaluate("document.getElementById('records').innerText")
    await page.choose(tab)
    await tab.evaluate("document.getElementById('upload').click()")
    await page.assert_finished(tab)

    sent, stats = page.parts_sent(), page.server.stats
    assert len(sent) == 25
    # Parts whose answer the tab did not live to see are sent again: at most the 3 under way.
    assert sum(sent.values()) <= 25 + 3
    assert stats.creates == 1
    assert stats.initiates == 1
    assert stats.refreshes >= 2  # by the clock, and to resume


async def test_a_paused_upload_resumes_from_the_keyboard(browser: Chromium, page: Page) -> None:
    tab = await page.open(browser)
    await page.choose(tab)
    await tab.evaluate("document.getElementById('file').focus()")
    await tab.press("Tab", 9)  # to the title
    await tab.press("Enter", 13, "\r")
    await tab.wait(f"{PERCENT} >= 20")
    assert await tab.evaluate("document.activeElement.id") == "pause"
    await tab.press("Enter", 13, "\r")
    await tab.wait(f"{STATUS}.startsWith('Paused')")
    await tab.wait("document.activeElement.id === 'upload'")
    await tab.press("Enter", 13, "\r")
    await page.assert_finished(tab)
    assert page.server.stats.creates == 1
    assert page.server.stats.initiates == 1


async def test_a_discarded_upload_is_aborted(browser: Chromium, page: Page) -> None:
    tab = await page.start(browser)
    await tab.wait(f"{PERCENT} >= 10")
    await tab.evaluate("document.getElementById('pause').click()")
    await tab.wait("!document.getElementById('upload').disabled")
    await tab.evaluate("document.querySelector('#records button').click()")
    await tab.wait(f"{STATUS} === 'The upload of movie.mp4 was discarded.'")
    assert page.server.stats.aborts == 1
    assert page.server.open_upload_count == 0
    assert await tab.evaluate("localStorage.length") == 0


async def test_lost_answers_and_failures_are_retried(browser: Chromium, page: Page) -> None:
    faults = [
        Fault(action="drop_answer", operation="CreateUploadVideo"),
        Fault(
            action="error", operation="UploadPart", part=5, status=503, code="ServiceUnavailable"
        ),
        Fault(action="expire_credentials", operation="UploadPart", part=12, attempt=1),
        Fault(action="drop_answer", operation="CompleteMultipartUpload"),
    ]
    for fault in faults:
        page.server.faults.add(fault)
    tab = await page.start(browser)
    await page.assert_finished(tab)
    assert page.server.faults.unconsumed == ()
    assert page.server.stats.completes == 1


async def test_a_wrong_token_is_reported(browser: Chromium, page: Page) -> None:
    tab = await page.open(browser, "guessed")
    await page.choose(tab)
    await tab.evaluate("document.getElementById('upload').click()")
    await tab.wait(f"{STATUS}.includes('access token is not valid')")
    assert page.server.stats.creates == 0


async def test_a_second_tab_leaves_the_upload_alone(browser: Chromium, page: Page) -> None:
    first = await page.start(browser)
    await first.wait(f"{PERCENT} >= 10")
    second = await page.start(browser)
    await second.wait(f"{STATUS}.includes('Another tab')")
    await page.assert_finished(first)
