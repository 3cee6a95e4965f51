"""Sources behind a URL, read through a proxy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.forward_proxy import forwarding, tls_front
from tests.rawserver import Authority
from uploader.errors import PolicyError, ProxyRefused, SourceUnreadable, VodupError
from uploader.protocol.integrity import crc64
from uploader.sources import UrlPolicy
from uploader.sources.urls import UrlSource

from .web import Site, serving

HOST = "media.example.com"
LOGIN = ("user", "word")


def source(scheme: str, proxy: str, ca_file: Path | None = None, **allowed: bool) -> UrlSource:
    allowed = {"allow_private": True} | allowed
    policy = UrlPolicy(proxy=proxy, ca_file=ca_file, **allowed)
    return UrlSource(f"{scheme}://{HOST}/films/movie.mp4", policy=policy, patience_s=0.1)


async def failure(of: UrlSource) -> VodupError:
    async with asyncio.timeout(10):
        with pytest.raises(VodupError) as caught:
            await of.__aenter__()
        await of.__aexit__(None, None, None)
    assert "word" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_source_is_read_through_a_proxy_with_a_login(tmp_path: Path, scheme: str) -> None:
    authority = Authority.in_folder(tmp_path)
    async with serving(Site(bytes(50_000))) as site:
        parts = urlsplit(site.url)
        plain = (parts.hostname or "", parts.port or 0)
        async with (
            tls_front(plain, authority.server(HOST)) as secure,
            forwarding({HOST: plain if scheme == "http" else secure}, login=LOGIN) as proxy,
        ):
            url = proxy.url.replace("//", "//user:word@")
            async with source(scheme, url, authority.ca_file) as opened:
                assert opened.size == 50_000
                assert await opened.read_crc(0, 50_000) == (crc64(bytes(50_000)), None)
            assert set(proxy.hosts()) == {HOST}
            refused = await failure(source(scheme, proxy.url, authority.ca_file))
    assert isinstance(refused, ProxyRefused)
    assert refused.code == "ProxyLogin"
    if scheme == "https":  # end to end: the login is for the proxy alone
        assert all("proxy-authorization" not in headers for headers in site.headers)


async def test_only_a_trusted_url_is_read_where_the_proxy_resolves_names() -> None:
    async with forwarding({}) as proxy:
        error = await failure(source("https", proxy.url, allow_private=False))
        assert proxy.requests == []
    assert isinstance(error, PolicyError)
    assert "--allow-private-sources" in error.next_step


async def test_a_proxy_that_cannot_connect_is_a_temporary_failure() -> None:
    async with forwarding({}) as proxy:
        error = await failure(source("https", proxy.url))
    assert isinstance(error, SourceUnreadable)
    assert error.is_temporary
    assert "answers 502" in error.message


async def test_a_proxy_that_is_not_there_is_named() -> None:
    error = await failure(source("https", "http://127.0.0.1:9"))
    assert "no connection to the proxy 127.0.0.1:9" in error.message


async def test_a_proxy_of_the_environment_is_named_where_it_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:word@proxy.example.com:3128")
    policy = UrlPolicy(allow_private=True)
    error = await failure(UrlSource("https://media.invalid/a.mp4", policy=policy, patience_s=0.1))
    assert "HTTPS_PROXY is not used without --proxy env" in error.message
