"""The example app server, with clients that have no AccessKey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.devserver.clients import decoded
from tests.engine.harness import LOOPBACK, PART, Desk, content, options
from tests.examples.test_engines import example
from uploader import Uploader, UploadResult, UrlProvider, VodupError
from uploader.devserver import DevServer, Fault

TOKENS = {"token-of-one": "studio-1", "token-of-two": "studio-2"}


@pytest.fixture
async def server() -> AsyncIterator[DevServer]:
    async with DevServer() as running:
        yield running


@pytest.fixture
def desk(server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("VODUP_ALLOW_LOOPBACK_HTTP", "1")
    return Desk(server, tmp_path)


@pytest.fixture
async def url(desk: Desk) -> AsyncIterator[str]:
    module = example("app_server")
    with closing(module.Owners(str(desk.folder / "owners.db"))) as owners:
        runner = web.AppRunner(module.make_app(desk.provider(), TOKENS, owners))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/grants"
        await runner.cleanup()


async def push(desk: Desk, url: str, source: Path, token: str, **arguments: object) -> UploadResult:
    """Upload as a host without an AccessKey does; each token is a separate host."""
    state = desk.folder / token / "state.db"
    provider = UrlProvider(url, bearer_token=token)
    async with Uploader(provider, state=state, options=options(), trust=LOOPBACK) as up:
        return await up.upload(source, **arguments)  # type: ignore[arg-type]


async def test_a_host_without_an_access_key_uploads_and_renews(desk: Desk, url: str) -> None:
    source = desk.file(12 * PART)
    desk.order(Fault(action="expire_credentials", operation="UploadPart", every=5, count=2))
    result = await push(desk, url, source, "token-of-one")
    desk.assert_faults_struck()
    assert result.renewal_count == 2
    await desk.assert_stored(result, source)


async def test_only_its_owner_may_renew_a_video(desk: Desk, url: str) -> None:
    source = desk.file(PART)
    result = await push(desk, url, source, "token-of-one")
    refreshes = desk.server.stats.refreshes
    with pytest.raises(VodupError, match="404"):
        await push(desk, url, source, "token-of-two", video_id=result.video_id)
    assert desk.server.stats.refreshes == refreshes


async def test_who_has_no_token_gets_nothing(desk: Desk, url: str) -> None:
    with pytest.raises(VodupError, match="401"):
        await push(desk, url, desk.file(PART), "guessed")
    assert desk.server.stats.creates == 0


async def test_a_host_that_asks_again_gets_the_same_video(desk: Desk, url: str) -> None:
    source = desk.file(PART)
    desk.order(Fault(action="drop_answer", operation="CreateUploadVideo"))
    result = await push(desk, url, source, "token-of-one")
    desk.assert_faults_struck()
    assert desk.server.stats.creates == 1
    assert desk.server.object_bytes(result.video_id) == content(PART)


async def test_an_hls_package_needs_no_access_key_either(desk: Desk, url: str) -> None:
    (desk.folder / "a.ts").write_bytes(content(PART))
    playlist = desk.folder / "index.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:4,\na.ts\n#EXT-X-ENDLIST\n")
    result = await push(desk, url, playlist, "token-of-one")
    assert len(desk.server.objects(result.video_id)) == 2


async def test_clients_are_sent_to_another_endpoint(desk: Desk) -> None:
    module = example("app_server")
    with closing(module.Owners(":memory:")) as owners:
        app = module.make_app(
            desk.provider(), TOKENS, owners, oss_endpoint="https://oss-accelerate.aliyuncs.com"
        )
        async with TestClient(TestServer(app)) as client:
            fields = {
                "action": "create",
                "title": "A title",
                "file_name": "movie.mp4",
                "file_size": "9",
                "reference_id": "reference-1",
            }
            headers = {"Authorization": "Bearer token-of-one"}
            created = await client.post("/grants", json=fields, headers=headers)
            assert created.status == 200, await created.text()
            answer = await created.json()
    assert decoded(answer["UploadAddress"])["Endpoint"] == "https://oss-accelerate.aliyuncs.com"
    assert answer["VideoId"] in desk.server.videos
