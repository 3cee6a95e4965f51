"""A Chromium, the packages of package-lock.json and a site whose pages use them."""

from __future__ import annotations

import fcntl
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from uploader.devserver import DevServer

from ..devserver.clients import Vod
from .chromium import Chromium, Tab, program

HERE = Path(__file__).parent
OSS_HOST = "oss-cn-shanghai.localhost"
_PAGE = """<!DOCTYPE html><html lang="en"><title>Clients</title>
<script src="/packages/ali-oss/dist/aliyun-oss-sdk.min.js"></script>
<script>window["ali-oss"] = OSS</script>
<script src="/packages/aliyun-upload-vod/dist/aliyun-upload-vod.min.js"></script>
<script src="/clients.js"></script>"""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the npm packages, installed as package-lock.json names them."""
    folder, lock = HERE / "node_modules", HERE / "package-lock.json"
    with (tmp_path_factory.getbasetemp().parent / "npm.lock").open("w") as only_one:
        fcntl.flock(only_one, fcntl.LOCK_EX)  # pytest-xdist has several workers
        install(folder, lock)
    return folder


def install(folder: Path, lock: Path) -> None:
    """Install the packages if they are not there; skip the test where that is impossible."""
    installed = folder / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm, which installs the packages of tests/browsers, is not installed")
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm ci in tests/browsers failed: {done.stderr[-300:]}")


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Chromium]:
    if program() is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    async with Chromium(tmp_path / "browser") as running:
        yield running


@pytest.fixture
async def tab(browser: Chromium) -> Tab:
    return await browser.tab()


class Site:
    """The site of somebody who uses VOD: its page, and grants from its server. Mutable."""

    def __init__(self, packages: Path) -> None:
        self._app = web.Application()
        self._app.router.add_get("/", self._page)
        self._app.router.add_get("/clients.js", self._script)
        self._app.router.add_get("/grant", self._grant)
        self._app.router.add_static("/packages", packages)
        self._runner = web.AppRunner(self._app)
        self.server: DevServer | None = None
        self.url = ""

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=_PAGE, content_type="text/html")

    async def _script(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(HERE / "clients.js")

    async def _grant(self, request: web.Request) -> web.Response:
        """Create a video, or refresh the credentials of the one that is named."""
        assert self.server is not None
        vod, video_id = Vod(self.server), request.query.get("video")
        new = {"Title": "A title", "FileName": "movie.mp4"}
        target = (
            vod.target("RefreshUploadVideo", VideoId=video_id)
            if video_id
            else vod.target("CreateUploadVideo", **new)
        )
        url, context = self.server.vod_endpoint + target, ssl.create_default_context()
        if self.server.ca_file is not None:
            context.load_verify_locations(self.server.ca_file)
        async with ClientSession() as session, session.get(url, ssl=context) as answer:
            return web.json_response(await answer.json(), status=answer.status)


@pytest.fixture
async def site(packages: Path) -> AsyncIterator[Site]:
    running = Site(packages)
    await running.start()
    yield running
    await running.stop()
