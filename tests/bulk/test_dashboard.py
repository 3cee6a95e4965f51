"""The live page: figures as they come, to this machine only, and nothing as markup."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cli.conftest import Cli
from uploader.bulk.dashboard import page_data, serving
from uploader.bulk.progress import BatchProgress, Sample
from uploader.bulk.report import rates
from uploader.devserver import DevServer
from uploader.errors import ConfigurationError
from uploader.events import UploadProgress, UploadStarted
from uploader.tracker import TrackedUpload

EVIL = "<img src=x onerror=alert(1)>.mp4"


@pytest.fixture
async def progress() -> BatchProgress:
    made = BatchProgress(asyncio.get_running_loop().time)
    made.read_count, made.done_count = 10, 4
    made.tracker(
        UploadStarted(
            key="k",
            video_id="v",
            source=EVIL,
            size=100,
            part_count=1,
            done_bytes=0,
            resumed_part_count=0,
            upload_id=None,
            is_resumed=False,
        )
    )
    return made


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def events(response: aiohttp.ClientResponse, count: int) -> list[dict[str, Any]]:
    found = []
    async for line in response.content:
        if line.startswith(b"data: "):
            found.append(json.loads(line.removeprefix(b"data: ")))
        if len(found) == count:
            break
    return found


async def test_the_page_loads_its_own_script_and_nothing_else(
    progress: BatchProgress, session: aiohttp.ClientSession
) -> None:
    async with serving(progress, 0) as url:
        async with session.get(url) as response:
            text = await response.text()
            policy = response.headers["Content-Security-Policy"]
        assert response.status == 200
        assert "default-src 'none'" in policy
        assert "EventSource" not in text
        assert "http" not in text.replace("http-equiv", "")
        async with session.get(f"{url}page.js") as response:
            script = await response.text()
        assert "EventSource" in script
        assert "innerHTML" not in script


def figure(html: str, name: str) -> str:
    (value,) = re.findall(f"<dt>{name}</dt><dd>([^<]*)</dd>", html)
    return str(value)


async def test_figures_are_sent_as_events(
    progress: BatchProgress, session: aiohttp.ClientSession
) -> None:
    async with serving(progress, 0) as url, session.get(f"{url}events") as response:
        assert response.content_type == "text/event-stream"
        (first,) = await events(response, 1)
        progress.done_count = 5
        progress.tracker(
            UploadProgress(
                key="k",
                video_id="v",
                done_bytes=50,
                size=100,
                acked_part_count=0,
                part_count=1,
                renewal_count=0,
                retry_count=0,
            )
        )
        (second,) = await events(response, 1)
    assert figure(first["html"], "uploaded and verified") == "4"
    assert figure(second["html"], "uploaded and verified") == "5"
    assert figure(second["html"], "sent") == "50 bytes"
    cells = f'{escape(EVIL)}</td><td data-name="done">50 %</td><td data-name="size">100 bytes'
    assert cells in second["html"]
    assert EVIL not in second["html"]


async def test_a_page_opened_late_shows_the_whole_curve(progress: BatchProgress) -> None:
    progress.samples = [Sample(float(n), n * 1_000_000, n) for n in range(5)]
    html = page_data(progress)["html"]
    (points,) = re.findall(r'<polyline points="([^"]*)"', html)
    assert [point.partition(",")[2] for point in points.split()] == ["15.0"] * 4
    assert ">977 KiB/s</text>" in html


def test_a_last_sample_directly_after_another_makes_no_peak() -> None:
    samples = [Sample(float(n), n * 1_000_000, n) for n in range(5)]
    samples.append(Sample(4.01, 4_500_000, 5))
    points = rates(samples, lambda sample: sample.sent_bytes)
    assert max(rate for _, rate in points) == 1_000_000


async def test_the_stream_ends_with_the_batch(
    progress: BatchProgress, session: aiohttp.ClientSession
) -> None:
    async with serving(progress, 0) as url:
        response = await session.get(f"{url}events")
        await events(response, 1)
    async with asyncio.timeout(5):
        await response.read()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil", ""])
async def test_other_names_are_refused(
    progress: BatchProgress, session: aiohttp.ClientSession, host: str
) -> None:
    async with serving(progress, 0) as url:
        for path in ("", "page.js", "events"):
            async with session.get(url + path, headers={"Host": host}) as response:
                assert response.status in (400, 403)


async def test_localhost_is_allowed(
    progress: BatchProgress, session: aiohttp.ClientSession
) -> None:
    async with serving(progress, 0) as url:
        port = url.rsplit(":", 1)[1].strip("/")
        async with session.get(url, headers={"Host": f"localhost:{port}"}) as response:
            assert response.status == 200


async def test_a_port_in_use_is_a_usage_error(progress: BatchProgress) -> None:
    async with serving(progress, 0) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(ConfigurationError, match="dashboard"):
            async with serving(progress, port):
                pass


def test_the_command_serves_it_while_it_runs(cli: Cli, server: DevServer) -> None:
    cli.file("a.mp4", size=1000)
    (cli.folder / "m.csv").write_text("path\na.mp4\n")
    ended = cli.run("ingest", "m.csv", "--dashboard", "0", "-q")
    assert ended.code == 0, ended.err
    assert "the live page is at http://127.0.0.1:" in ended.err


class Watched(BatchProgress):
    """Progress that knows how often it was looked at."""

    looks = 0

    @property
    def slowest(self) -> list[TrackedUpload]:
        self.looks += 1
        return super().slowest


@pytest.mark.skipif(
    shutil.which("chromium") is None and shutil.which("google-chrome") is None,
    reason="needs a browser (chromium), and none is installed",
)
async def test_a_browser_draws_the_page_and_shows_names_as_text(
    progress: BatchProgress, tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or ""
    watched = Watched(progress.clock, read_count=10, done_count=4)
    watched.tracker.active.update(progress.tracker.active)
    watched.samples = [Sample(float(n), n * 1_000_000, n) for n in range(3)]
    async with serving(watched, 0) as url:
        process = await asyncio.create_subprocess_exec(
            browser,
            *"--headless --no-sandbox --disable-gpu --virtual-time-budget=3000 --dump-dom".split(),
            f"--user-data-dir={tmp_path}",
            url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        # The browser's virtual time stands still while the page reads events.
        async with asyncio.timeout(60):
            while watched.looks < 2:  # noqa: ASYNC110 - another process acts
                await asyncio.sleep(0.05)
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert b"&lt;img src=x onerror=alert(1)&gt;.mp4" in out
    assert b'points="80.0,15.0 630.0,15.0"' in out  # the curve is drawn
    assert b">977 KiB/s</text>" in out
    assert b"<dt>uploaded and verified</dt><dd>4</dd>" in out


@pytest.mark.parametrize("path", ["", "events", "page.js"])
async def test_other_sites_are_refused(
    progress: BatchProgress, session: aiohttp.ClientSession, path: str
) -> None:
    async with serving(progress, 0) as url:
        for origin, status in (("http://evil.example", 403), ("null", 403), (url[:-1], 200)):
            async with session.get(f"{url}{path}", headers={"Origin": origin}) as response:
                assert response.status == status
