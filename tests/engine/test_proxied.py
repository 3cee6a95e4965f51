"""Whole uploads through a proxy, in a network where nothing else knows OSS and VOD."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.forward_proxy import (
    OSS_HOST,
    SERVICE_HOSTS,
    VOD_HOST,
    ForwardProxy,
    forwarding,
    services_at,
)
from tests.rawserver import Authority
from uploader import (
    AccessKey,
    Event,
    PolicyError,
    ProxyRefused,
    RetryPolicy,
    TransportError,
    Uploader,
    UploadFinished,
    UploadResult,
    VodProvider,
)
from uploader.devserver import DevServer
from uploader.events import Listener

from .harness import PART, content, options

LOGIN = ("us er@corp", "pass:wörd")
SECRET = "pass%3Aw%C3%B6rd"


@dataclass
class Office:
    """A company's network: a proxy that requires a login, and services behind it."""

    server: DevServer
    proxy: ForwardProxy
    ca_file: Path
    folder: Path
    events: list[Event] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.proxy.url.replace("//", f"//us%20er%40corp:{SECRET}@")

    async def push(
        self, source: Path | str, on_event: Listener | None = None, **changes: Any
    ) -> UploadResult:
        key = AccessKey(id=self.server.access_key_id, secret=self.server.access_key_secret)
        how = {"proxy": self.url, "ca_file": self.ca_file} | changes
        async with Uploader(
            VodProvider(key),
            state=self.folder / "vodup.db",
            options=options(**how),
            on_event=self.events.append,
        ) as up:
            return await up.upload(source, on_event=on_event)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with _office(tmp_path) as office:
        yield office


@asynccontextmanager
async def _office(folder: Path) -> AsyncIterator[Office]:
    authority = Authority.in_folder(folder)
    async with (
        DevServer() as server,
        services_at(server, authority.server(*SERVICE_HOSTS)) as routes,
        forwarding(routes, login=LOGIN) as proxy,
    ):
        yield Office(server, proxy, authority.ca_file, folder)


def movie(office: Office, size: int = 12 * PART) -> Path:
    path = office.folder / "movie.mp4"
    path.write_bytes(content(size))
    return path


async def test_every_request_goes_through_the_proxy(office: Office) -> None:
    result = await office.push(movie(office))

    assert result.part_count == 12
    hosts = set(office.proxy.hosts())
    assert VOD_HOST in hosts
    assert hosts - {VOD_HOST} == {f"{result.bucket}.{OSS_HOST}"}
    assert {head.method for head in office.proxy.requests} == {"CONNECT"}


async def test_credentials_are_renewed_through_the_proxy(office: Office) -> None:
    def expire(event: Event) -> None:
        if len(office.events) == 6:
            office.server.expire_credentials()

    result = await office.push(movie(office), expire, concurrency=2)

    assert result.renewal_count >= 1
    assert office.server.stats.requests["RefreshUploadVideo"] >= 1


async def test_an_upload_ends_at_once_where_the_proxy_refuses_the_login(office: Office) -> None:
    office.proxy.login = ("user", "other")

    with pytest.raises(ProxyRefused, match="does not accept the user name and password") as caught:
        async with asyncio.timeout(5):
            await office.push(movie(office))

    assert len(office.proxy.requests) == 1
    assert "w%C3" not in str(caught.value)


async def test_an_upload_survives_a_proxy_that_restarts(office: Office) -> None:
    office.proxy.refusals += [(503, ())] * 3

    result = await office.push(movie(office))

    assert result.size == 12 * PART


async def test_the_login_is_written_nowhere(office: Office) -> None:
    await office.push(movie(office))

    (finished,) = [event for event in office.events if isinstance(event, UploadFinished)]
    seen = "".join(map(repr, office.events)) + repr(finished) + repr(options(proxy=office.url))
    stored = b"".join(path.read_bytes() for path in office.folder.glob("vodup.db*"))
    for secret in (SECRET, LOGIN[1]):
        assert secret not in seen
        assert secret.encode() not in stored


async def test_without_the_proxy_there_is_no_way(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", office.proxy.url)
    key = AccessKey(id="id", secret="secret")
    async with Uploader(
        VodProvider(key, region="nowhere"),
        state=office.folder / "vodup.db",
        options=options(retry=RetryPolicy(patience_s=0.1, first_contact_patience_s=0.1)),
    ) as up:
        with pytest.raises(TransportError) as caught:
            await up.upload(movie(office))

    assert caught.value.code == "NameNotResolved"
    assert "HTTPS_PROXY names a proxy" in caught.value.next_step
    assert office.proxy.requests == []


async def test_a_source_is_read_through_the_proxy_only_where_private_addresses_may_be_read(
    office: Office,
) -> None:
    with pytest.raises(PolicyError, match="would be read through a proxy"):
        await office.push("https://media.example.com/movie.mp4")

    assert office.proxy.requests == []
