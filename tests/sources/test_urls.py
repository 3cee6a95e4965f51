"""URLs: pinned to one object, read on after a break, and never a way into a private network."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from uploader import (
    ConfigurationError,
    PolicyError,
    SourceChanged,
    SourceUnreadable,
    Spool,
    UrlPolicy,
    UrlSource,
    VodupError,
)
from uploader.clock import SystemClock
from uploader.sources import as_source
from uploader.sources.url_client import CheckedResolver, checked_socket
from uploader.sources.url_policy import identity_of, is_public

from ..engine.harness import PART, Desk, content
from .test_files import read_all
from .test_streams import cancelled_after_its_end
from .web import Site, serving

PRIVATE = UrlPolicy(allow_private=True)
DATA = content(5 * PART + 3)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Site(DATA)) as running:
        yield running


def source_of(site: Site, name: str | None = None, **given: Any) -> UrlSource:
    usual: dict[str, Any] = {"policy": PRIVATE, "patience_s": 1.0}
    return UrlSource(site.url, name, **usual | given)


class Patient(SystemClock):
    """A clock that must not be waited for."""

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing has failed")


async def refusal(source: UrlSource) -> VodupError:
    with pytest.raises(VodupError) as caught:
        async with source:
            pass
    return caught.value


# --- reading --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda site: None,
        lambda site: setattr(site, "with_etag", False),
        lambda site: setattr(site, "with_date", False),
        lambda site: setattr(site, "weak", True),
    ],
    ids=["both", "date", "etag", "weak etag"],
)
async def test_every_range_is_pinned(site: Site, change: Callable[[Site], None]) -> None:
    change(site)
    async with source_of(site) as source:
        assert await read_all(source.body(7, 3 * PART)) == DATA[7 : 7 + 3 * PART]
        request = site.headers[-1]
        assert "if-match" in request or "if-unmodified-since" in request
        site.put(DATA[::-1])
        with pytest.raises(SourceChanged):
            await read_all(source.body(0, PART))
        with pytest.raises(SourceChanged):
            await source.read_crc(0, PART)


async def test_a_server_that_ignores_conditions_is_detected_by_its_validators(site: Site) -> None:
    async with source_of(site) as source:
        site.obeys = False
        site.put(DATA[::-1])
        with pytest.raises(SourceChanged, match="another object"):
            await read_all(source.body(0, PART))


async def test_without_a_validator_it_is_read_once_as_a_stream(site: Site) -> None:
    site.with_etag = site.with_date = False
    async with source_of(site) as source:
        assert source.stream is not None
    site.with_etag = True
    async with source_of(site) as source:
        assert source.stream is None


async def test_an_interrupted_response_is_resumed_where_it_broke(site: Site) -> None:
    async with source_of(site) as source:
        site.breaks_after, site.breaks = 70_000, 3
        assert await read_all(source.body(0, len(DATA))) == DATA
    firsts = [request["range"] for request in site.headers if "range" in request]
    assert len(firsts) == 5
    assert len(set(firsts)) == 5, "never from the beginning again"


async def test_an_interrupted_download_continues_the_upload(desk: Desk, site: Site) -> None:
    site.breaks_after, site.breaks = 30_000, 5
    result = await desk.push(source_of(site))
    await desk.assert_stored(result, DATA)
    assert result.retry_count == 0, "OSS sees no retry"


async def test_an_interrupted_stream_completes_nothing(desk: Desk, site: Site) -> None:
    site.with_ranges = False
    site.breaks_after, site.breaks = 3 * PART, 2  # the first look breaks as well
    error = await desk.fail(source_of(site))
    assert isinstance(error, SourceUnreadable)
    assert error.is_temporary
    assert desk.server.stats.completes == 0

    result = await desk.push(source_of(site))
    await desk.assert_stored(result, DATA)
    assert desk.server.stats.creates == 1, "a URL names its upload, so that it resumes"


async def test_a_url_without_ranges_resumes_from_its_spool(desk: Desk, site: Site) -> None:
    """Parts that OSS has are not in the spool any more; their CRC-64s are."""
    site.with_ranges = False
    folder = desk.folder / "spool"
    first = source_of(site, "movie.mp4", buffer=Spool(folder, "movie.mp4"))
    await cancelled_after_its_end(desk, first, folder)
    site.data = b"not needed any more"

    source = source_of(site, "movie.mp4", buffer=Spool(folder, "movie.mp4"))
    result = await desk.push(source)

    await desk.assert_stored(result, DATA)
    assert result.resumed_part_count >= 4


async def test_a_stream_in_chunks_has_an_end(desk: Desk, site: Site) -> None:
    site.with_ranges, site.ends_by = False, "chunks"
    await desk.assert_stored(await desk.push(source_of(site)), DATA)


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_response_delimited_by_its_connection_is_refused(
    desk: Desk, site: Site, is_late: bool
) -> None:
    site.with_ranges = False
    if is_late:
        answers = itertools.count()
        site.before_answer = lambda: setattr(
            site, "ends_by", "connection" if next(answers) else "length"
        )
    else:
        site.ends_by = "connection"

    error = await desk.fail(source_of(site))

    assert isinstance(error, SourceUnreadable)
    assert "has no length" in error.message
    assert desk.server.stats.completes == 0
    assert is_late or not desk.server.videos


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_server_is_retried(site: Site, status: int) -> None:
    site.statuses = [status]
    async with source_of(site) as source:
        site.statuses = [status]
        assert await read_all(source.body(0, 10)) == DATA[:10]


async def test_a_server_that_stays_busy_is_a_temporary_failure(site: Site) -> None:
    site.statuses = [503] * 100
    error = await refusal(source_of(site, patience_s=0.3))
    assert isinstance(error, SourceUnreadable)
    assert error.is_temporary
    assert str(error).count("cannot be read") == 1


async def test_a_server_that_sends_nothing_times_out(site: Site) -> None:
    site.silent = True
    async with asyncio.timeout(10):
        error = await refusal(source_of(site, patience_s=0.3, read_timeout_s=0.2))
    assert error.is_temporary


@pytest.mark.parametrize(
    ("status", "words"), [(404, "does not exist"), (403, "presigned"), (401, "presigned")]
)
async def test_a_refusal_is_reported_at_once(site: Site, status: int, words: str) -> None:
    site.statuses = [status]
    error = await refusal(source_of(site))
    assert isinstance(error, SourceUnreadable)
    assert not error.is_temporary
    assert words in str(error)


@pytest.mark.parametrize("encoding", ["", "identity", "Identity", "aws-chunked", "identity, "])
async def test_these_encodings_are_not_compression(site: Site, encoding: str) -> None:
    """S3 stores the aws-chunked of an upload as if it described the object."""
    site.extra["Content-Encoding"] = encoding
    async with source_of(site) as source:
        assert await read_all(source.body(0, len(DATA))) == DATA


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, aws-chunked"])
async def test_a_compressed_response_is_refused(site: Site, encoding: str) -> None:
    site.extra["Content-Encoding"] = encoding
    error = await refusal(source_of(site))
    assert "compressed" in error.message
    assert "gzip" in error.message or "br" in error.message


ERROR_PAGES = ["text/html", "TEXT/HTML; charset=utf-8", "application/xml", "application/json"]


@pytest.mark.parametrize("with_ranges", [True, False])
@pytest.mark.parametrize("content_type", ERROR_PAGES)
async def test_a_page_is_not_stored_as_a_video(
    desk: Desk, site: Site, content_type: str, with_ranges: bool
) -> None:
    """A login page or an error that a server sends with status 200."""
    site.extra["Content-Type"] = content_type
    site.with_ranges = with_ranges
    error = await desk.fail(source_of(site))
    assert isinstance(error, SourceUnreadable)
    assert content_type.partition(";")[0].lower() in error.message
    assert "--any-content-type" in error.next_step
    assert not desk.server.videos

    policy = UrlPolicy(allow_private=True, any_content_type=True)
    await desk.assert_stored(await desk.push(source_of(site, policy=policy)), DATA)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/octet-stream", "x"])
async def test_servers_that_do_not_know_videos_are_read(site: Site, content_type: str) -> None:
    site.extra["Content-Type"] = content_type
    async with source_of(site) as source:
        assert await read_all(source.body(0, 10)) == DATA[:10]


async def test_a_login_page_during_the_download_completes_nothing(desk: Desk, site: Site) -> None:
    site.with_ranges = False
    answers = itertools.count()
    site.before_answer = lambda: site.extra.update(
        {"Content-Type": "text/html"} if next(answers) else {}
    )
    error = await desk.fail(source_of(site))
    assert "text/html" in error.message
    assert desk.server.stats.completes == 0


async def test_a_server_that_does_not_listen(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"http://127.0.0.1:{port}/movie.mp4"
        error = await refusal(UrlSource(url, policy=PRIVATE, patience_s=0.1))
    assert error.is_temporary


async def test_a_range_shorter_than_requested_is_continued(desk: Desk, site: Site) -> None:
    """RFC 9110, 15.3.7: a server may send a part of what was requested."""
    site.longest_range = 70_000
    async with source_of(site, clock=Patient()) as source:
        assert await read_all(source.body(3, 200_000)) == DATA[3:200_003]
        assert [r["range"] for r in site.headers[1:]] == [
            "bytes=3-200002", "bytes=70003-200002", "bytes=140003-200002",
        ]  # fmt: skip
    await desk.assert_stored(await desk.push(source_of(site)), DATA)


async def test_a_server_that_drops_the_range_is_retried(site: Site) -> None:
    async with source_of(site) as source:
        site.dropped_ranges = 1
        assert await read_all(source.body(7, 100)) == DATA[7:107]
        site.dropped_ranges = 1
        assert (await source.fingerprint()).size == len(DATA)


async def test_a_server_that_keeps_dropping_the_range_is_named(site: Site) -> None:
    async with source_of(site, patience_s=0.3) as source:
        site.with_ranges = False
        with pytest.raises(SourceUnreadable, match="ignored the requested range") as caught:
            await source.read_crc(7, 100)
        assert caught.value.is_temporary
        assert "download the file" in caught.value.next_step.lower()
        with pytest.raises(SourceUnreadable, match="ignored the requested range"):
            await source.fingerprint()


async def test_all_of_another_object_instead_of_a_range_is_a_change(site: Site) -> None:
    async with source_of(site) as source:
        site.obeys, site.with_date, site.dropped_ranges = False, False, 1
        site.put(DATA[::-1])
        with pytest.raises(SourceChanged, match="another object"):
            await source.read_crc(7, 100)


async def test_another_range_than_requested_is_named(site: Site) -> None:
    async with source_of(site) as source:
        site.shift = 5
        with pytest.raises(SourceUnreadable, match="bytes 12 to 106 instead of 7 to 106") as caught:
            await source.read_crc(7, 100)
        assert "download the file" in caught.value.next_step.lower()


# --- secrets --------------------------------------------------------------------------


async def test_no_credential_is_sent_and_the_query_is_shown_nowhere(
    desk: Desk, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    result = await desk.push(source_of(site))
    record = await desk.record()
    seen = f"{result} {record} {desk.events} {caplog.text} {source_of(site)!r}"
    assert "SECRET" not in seen
    for request in site.headers:
        assert not {"authorization", "cookie", "proxy-authorization"} & request.keys()
        assert not [name for name in request if name.startswith(("x-oss", "x-acs"))]


@pytest.mark.parametrize("url", ["http://user:pass@example.com/a.mp4", "http://user@example.com/"])
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="user name or password") as caught:
        UrlSource(url)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://", "gopher://a/b", "no url"])
def test_other_kinds_of_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        UrlSource(url)


def test_a_new_signature_resumes_the_same_upload() -> None:
    base = "https://bucket.s3.amazonaws.com/a.mp4?versionId=7"
    one = URL(f"{base}&X-Amz-Signature=1&X-Amz-Date=2&X-Amz-Credential=3")
    other = URL(f"{base}&X-Amz-Signature=4&X-Amz-Date=5&X-Amz-Credential=6")
    assert identity_of(one) == identity_of(other) == base


SIGNED = {
    "OSS V1": "OSSAccessKeyId=k{}&Expires=1{}&Signature=s{}",
    "OSS V4": "x-oss-credential=k{}&x-oss-date=d{}&x-oss-expires=6{}&x-oss-signature=s{}"
    "&x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-security-token=t{}",
    "S3 V2": "AWSAccessKeyId=k{}&Expires=1{}&Signature=s{}",
    "S3 V4": "X-Amz-Algorithm=a&X-Amz-Credential=k{}&X-Amz-Date=d{}&X-Amz-Expires=6{}"
    "&X-Amz-SignedHeaders=host&X-Amz-Signature=s{}&X-Amz-Security-Token=t{}",
    "GCS V2": "GoogleAccessId=g{}&Expires=1{}&Signature=s{}",
    "GCS V4": "X-Goog-Algorithm=a&X-Goog-Credential=c{}&X-Goog-Date=d{}&X-Goog-Expires=1{}"
    "&X-Goog-SignedHeaders=host&X-Goog-Signature=s{}",
    "Azure": "sv=2024-01-0{}&st=1{}&se=2{}&sr=b&sp=r&sig=s{}",
    "CloudFront": "Expires=1{}&Signature=s{}&Key-Pair-Id=K{}",
    "COS": "q-sign-algorithm=sha1&q-ak=k{}&q-sign-time=1;{}&q-key-time=1;{}&q-signature=s{}",
    "CDN": "auth_key=170000000{}-0-0-0123456789abcdef0123456789abcdef",
}


@pytest.mark.parametrize("way", SIGNED)
def test_a_url_that_is_signed_anew_names_the_same_object(way: str) -> None:
    base = "https://host.example/a.mp4?id=7"
    urls = [f"{base}&{SIGNED[way].replace('{}', digit)}" for digit in "12"]
    assert {identity_of(URL(url)) for url in urls} == {base}


@pytest.mark.parametrize(
    "query",
    [
        "st={}",
        "sp={}",
        "sig={}",
        "expires={}",
        "signature={}",
        "policy={}",
        "sv={}&st=0",
        "auth_key={}",
        "x-amz-date={}",
        "Expires=1&Signature={}",
        "sr={}&ss=1",
    ],
)
def test_parameters_that_no_signature_explains_tell_two_objects_apart(query: str) -> None:
    base = "https://host.example/download?"
    one, other = (URL(base + query.format(value)) for value in ("1", "2"))
    assert identity_of(one) != identity_of(other)


def test_a_url_is_a_source() -> None:
    assert isinstance(as_source("https://example.com/movie.mp4"), UrlSource)


# --- addresses ------------------------------------------------------------------------

NOT_PUBLIC = [
    "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
    "169.254.169.254", "100.100.100.200", "224.0.0.1", "255.255.255.255", "::1", "::",
    "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::127.0.0.1", "nonsense", "",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_these_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "47.100.0.1", "2606:4700::1", "::ffff:8.8.8.8"])
def test_these_addresses_are_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_embedding_an_address_does_not_make_it_public(address: ipaddress.IPv4Address) -> None:
    wrapped = ipaddress.IPv6Address((0xFFFF << 32) | int(address))
    assert is_public(str(wrapped)) <= is_public(str(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1", "0177.0.0.1"]
)
async def test_no_request_is_sent_to_this_machine(site: Site, host: str) -> None:
    url = URL(site.url)
    error = await refusal(UrlSource(f"http://{host}:{url.port}/films/movie.mp4", patience_s=0.1))
    assert isinstance(error, PolicyError | SourceUnreadable)
    assert site.headers == []
    if host in ("127.0.0.1", "localhost", "[::1]"):
        assert isinstance(error, PolicyError)
        assert "--allow-private-sources" in error.next_step


async def test_a_name_whose_address_changes_gets_no_socket() -> None:
    """DNS rebinding: the address is looked at again where the socket is made."""
    address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))
    with pytest.raises(OSError, match="not a public address"):
        checked_socket(UrlPolicy(), address)


async def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    class Both(AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
            return [{"host": "8.8.8.8"}, {"host": "10.0.0.1"}]

        async def close(self) -> None:
            return None

    with pytest.raises(OSError, match=r"both.example \(10.0.0.1\) is not a public address"):
        await CheckedResolver(UrlPolicy(), Both()).resolve("both.example")


class Rebinding(AbstractResolver):
    """A name whose owner points it at this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET,
                 "proto": 0, "flags": 0}]  # fmt: skip

    async def close(self) -> None:
        return None


async def test_a_name_that_resolves_to_this_machine_is_refused(site: Site) -> None:
    url = f"http://rebound.example:{URL(site.url).port}/films/movie.mp4"
    source = UrlSource(url, resolver=Rebinding())
    assert isinstance(await refusal(source), PolicyError)
    assert site.headers == []


# --- redirects ------------------------------------------------------------------------


async def test_redirects_are_followed_and_counted(site: Site) -> None:
    site.locations = [site.url] * 5
    async with source_of(site) as source:
        assert source.size == len(DATA)
    site.locations = [site.url] * 6
    error = await refusal(source_of(site))
    assert "redirects more than 5 times" in error.message


async def test_redirects_to_forbidden_targets_are_refused(site: Site) -> None:
    policy = UrlPolicy(allow_private=True)
    here = URL("https://example.com/a")
    for location in ("http://example.com/a", "file:///etc/passwd", "https://u:p@example.com/", ""):
        if location:
            with pytest.raises(PolicyError):
                policy.next_hop(here, location)
    with pytest.raises(PolicyError):
        policy.next_hop(here, None)
    assert str(policy.next_hop(here, "/b")) == "https://example.com/b"


async def test_no_redirects_where_none_are_allowed(site: Site) -> None:
    site.locations = [site.url]
    policy = UrlPolicy(allow_private=True, max_redirects=0)
    assert isinstance(await refusal(source_of(site, policy=policy)), PolicyError)


@pytest.mark.parametrize("host", ["%zz", "exa mple", 'a"b', "*.example.com", "a,b", "[::1"])
def test_what_is_no_host_is_not_looked_up(host: str) -> None:
    with pytest.raises(ConfigurationError, match="malformed URL"):
        UrlSource(f"https://{host}/movie.mp4")


@pytest.mark.parametrize(
    "host", ["a_b.example.", "xn--bcher-kva.example", "bücher.example", "[::1]"]
)
def test_hosts_have_many_forms(host: str) -> None:
    assert UrlSource(f"https://{host}/movie.mp4").name
