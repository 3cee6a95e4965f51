"""The JavaScript clients that web sites upload with, in a real Chromium, against the devserver."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from uploader.devserver import DevServer, DevServerOptions, Fault
from uploader.devserver.stats import RequestRecord

from .chromium import Chromium, Json, Tab
from .conftest import OSS_HOST, Site

pytestmark = pytest.mark.slow

PART = 100 * 1024
SIZE = 20 * PART + 7
VERSIONS = pytest.mark.parametrize("v4", ["false", "true"], ids=["v1", "v4"])


def content(size: int, seed: int) -> bytes:
    """What clients.js puts into a file."""
    return bytes((i * 31 + (i >> 8) * seed) & 255 for i in range(size))


def options(**changes: Any) -> DevServerOptions:
    return DevServerOptions(oss_host=OSS_HOST, **changes)


async def run(tab: Tab, site: Site, server: DevServer, script: str) -> Json:
    """The value of a call of clients.js in a page of the site."""
    site.server = server
    await tab.open(site.url)
    return await tab.evaluate(script)


def assert_stored(server: DevServer, video_id: str, seed: int) -> None:
    """The one video that was created has the bytes of the file."""
    assert list(server.videos) == [video_id]
    assert server.object_bytes(video_id) == content(SIZE, seed)


def requests(server: DevServer, operation: str) -> list[RequestRecord]:
    return [record for record in server.stats.log if record.operation == operation]


def completed_parts(server: DevServer) -> Counter[int | None]:
    """How often each part was stored."""
    return Counter(r.part_number for r in requests(server, "UploadPart") if r.status == 200)


@VERSIONS
async def test_ali_oss_puts_an_object_after_its_first_credentials_have_expired(
    tab: Tab, site: Site, v4: str
) -> None:
    versions = ("v4",) if v4 == "true" else ("v1",)
    async with DevServer(options(signature_versions=versions, credential_ttl_s=1)) as server:
        done = await run(tab, site, server, f"put({v4}, {SIZE}, 3, 1500)")
        assert_stored(server, done["video"], 3)
        stored = server.backend.storage.objects(server.videos[done["video"]].bucket)
        assert [done["crc"]] == [str(item.crc64) for item in stored]  # exposed to the page
        assert done["requestId"]
        assert server.stats.refreshes == 1


@VERSIONS
async def test_ali_oss_uploads_in_parts_while_credentials_expire(
    tab: Tab, site: Site, v4: str
) -> None:
    expiring = options(credential_ttl_s=1.5, bandwidth=600_000)
    async with DevServer(expiring) as server:
        done = await run(tab, site, server, f"multipart({v4}, {SIZE}, 5, 600)")
        assert_stored(server, done["video"], 5)
        assert server.stats.refreshes >= 2


@VERSIONS
async def test_ali_oss_resumes_from_its_checkpoint(tab: Tab, site: Site, v4: str) -> None:
    async with DevServer(options(credential_ttl_s=1.5)) as server:
        done = await run(tab, site, server, f"multipart({v4}, {SIZE}, 7, 600, 8, 2000)")
        assert_stored(server, done["video"], 7)
        sent = Counter(r.part_number for r in requests(server, "UploadPart"))
        assert len(sent) == 21
        # The part that was under way when the upload was cancelled is not in the checkpoint.
        assert sum(sent.values()) <= 22
        assert len(requests(server, "InitiateMultipartUpload")) == 1
        assert server.stats.refreshes >= 1


async def test_the_web_uploader_of_vod_uploads_and_resumes_with_new_credentials(
    tab: Tab, site: Site
) -> None:
    faults = [Fault(action="expire_credentials", operation="UploadPart", part=9, attempt=1)]
    async with DevServer(options(), faults) as server:
        seen = await run(tab, site, server, f"vodUpload({SIZE}, 11)")
        assert (seen["failed"], seen["created"]) == (None, 1)
        assert seen["renewed"] >= 1
        assert_stored(server, seen["video"], 11)


async def test_the_web_uploader_of_vod_resumes_after_the_page_was_loaded_again(
    tab: Tab, site: Site
) -> None:
    async with DevServer(options(bandwidth=1e6)) as server:
        await run(tab, site, server, f"void vodUpload({SIZE}, 17)")
        while len(completed_parts(server)) < 8:  # noqa: ASYNC110 - the page is another process
            await asyncio.sleep(0.05)
        # A part that ends while the page is left would undo the uploader's note.
        server.set_options(bandwidth=1)
        await asyncio.sleep(0.5)
        await tab.open(site.url)
        server.set_options(bandwidth=None)
        seen = await run(tab, site, server, f"vodUpload({SIZE}, 17)")
        assert (seen["failed"], seen["created"]) == (None, 0)
        assert_stored(server, seen["video"], 17)
        sent = completed_parts(server)
        assert len(sent) == 21
        assert sum(sent.values()) <= 21 + 2  # those whose answer the first page did not see
        assert server.stats.initiates == 1


async def test_a_bucket_without_cors_rules_fails_as_a_network_error(tab: Tab, site: Site) -> None:
    async with DevServer(options(cors="none")) as server:
        failed = await run(tab, site, server, "failure(() => put(true, 1000, 1))")
        assert failed["status"] == -1
        assert "RequestError" in failed["name"]
        (preflight,) = requests(server, "OptionObject")
        assert (preflight.status, preflight.code) == (403, "AccessForbidden")
        assert not requests(server, "PutObject")


async def test_the_web_uploader_of_vod_reports_a_bucket_without_cors_rules(
    tab: Tab, site: Site
) -> None:
    async with DevServer(options(cors="none")) as server:
        seen = await run(tab, site, server, f"vodUpload({SIZE}, 1)")
        assert seen["failed"]["code"] == "RequestError"
        assert not requests(server, "InitiateMultipartUpload")


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "unknown"])
@pytest.mark.skipif(not shutil.which("certutil"), reason="certutil (libnss3-tools) is missing")
async def test_https_works_for_browsers_that_trust_the_authority(
    site: Site, tmp_path: Path, trusted: bool
) -> None:
    async with DevServer(options(tls=True)) as server:
        assert server.oss_endpoint.startswith(f"https://{OSS_HOST}:")
        assert server.ca_file is not None
        if trusted:
            await trust(tmp_path / "browser", server.ca_file)
        async with Chromium(tmp_path / "browser") as browser:
            script = f"failure(() => put(true, {SIZE}, 13))"
            failed = await run(await browser.tab(), site, server, script)
        if trusted:
            assert failed is None
            assert_stored(server, next(iter(server.videos)), 13)
        else:
            assert failed["status"] == -1
            assert not server.stats.requests["OptionObject"]


async def trust(home: Path, ca_file: Path) -> None:
    """Add an authority to the database that Chromium reads on Linux."""
    folder = home / ".pki" / "nssdb"
    await asyncio.to_thread(folder.mkdir, parents=True)
    database = f"sql:{folder}"
    for arguments in (
        ("-N", "--empty-password"),
        ("-A", "-t", "C,,", "-n", "devserver", "-i", str(ca_file)),
    ):
        process = await asyncio.create_subprocess_exec("certutil", "-d", database, *arguments)
        assert await process.wait() == 0
