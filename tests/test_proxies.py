"""Requests through an HTTP proxy, and what is reported where there is no connection."""

from __future__ import annotations

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from tests.forward_proxy import ForwardProxy, forwarding
from tests.rawserver import Authority, Connection, RawServer, echo_checksums, serving
from uploader import Uploader, UploadOptions
from uploader.errors import (
    ConfigurationError,
    PolicyError,
    ProxyRefused,
    TransportError,
    UntrustedCertificate,
    VodupError,
)
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import BytesBody, Response, SignedRequest
from uploader.transport import AiohttpTransport
from uploader.transport.proxies import Proxies

HOST = "bucket.oss-cn-shanghai.aliyuncs.com"
SECRET = "OSS4-HMAC-SHA256 Credential=topsecret"
BIG = bytes(range(256)) * 12_000

pytestmark = pytest.mark.usefixtures("no_proxy_variables")


@pytest.fixture
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.in_folder(tmp_path_factory.mktemp("ca"))


@dataclass
class Office:
    """A network in which only the proxy knows where OSS is."""

    proxy: ForwardProxy
    oss: RawServer
    ca_file: Path

    def transport(self, proxy: str | None = None, **options: Any) -> AiohttpTransport:
        usual: dict[str, Any] = {
            "ca_file": self.ca_file,
            "stall_timeout_s": 2.0,
            "connect_timeout_s": 2.0,
        }
        return AiohttpTransport(proxy=self.proxy.url if proxy is None else proxy, **usual | options)


@asynccontextmanager
async def office(authority: Authority, **how: Any) -> AsyncIterator[Office]:
    async with serving(echo_checksums, tls=authority.server(HOST)) as oss:
        routes = {HOST: ("127.0.0.1", URL(oss.url).port or 0)}
        async with forwarding(routes, **how) as proxy:
            yield Office(proxy, oss, authority.ca_file)


async def put(transport: AiohttpTransport, body: bytes = b"abc", host: str = HOST) -> Response:
    headers = {"authorization": SECRET, "x-oss-security-token": "topsecret"}
    request = SignedRequest("PUT", f"https://{host}/key", headers, BytesBody(body))
    async with asyncio.timeout(10):
        return await transport.send(request, answer_timeout_s=2)


async def failure(transport: AiohttpTransport, host: str = HOST) -> VodupError:
    with pytest.raises(VodupError) as caught:
        await put(transport, host=host)
    assert "topsecret" not in str(caught.value)
    return caught.value


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


# --- through a proxy --------------------------------------------------------------------


async def test_tls_is_end_to_end_and_connections_are_reused(authority: Authority) -> None:
    async with office(authority) as at, at.transport() as transport:
        answers = [await put(transport, BIG) for _ in range(3)]
        assert {answer.headers["x-crc"] for answer in answers} == {str(crc64(BIG))}
        assert {answer.sent.size for answer in answers} == {len(BIG)}
        assert at.oss.connection_count == 1
        (connect,) = at.proxy.requests
    assert (connect.method, connect.path) == ("CONNECT", f"{HOST}:443")
    assert "topsecret" not in str(connect)


async def test_a_proxy_that_speaks_tls_itself(authority: Authority) -> None:
    async with office(authority, tls=authority.server()) as at, at.transport() as transport:
        answers = [await put(transport, BIG) for _ in range(2)]
        assert len(at.proxy.requests) == 1
    assert {answer.headers["x-crc"] for answer in answers} == {str(crc64(BIG))}


async def test_a_login_is_sent_to_the_proxy_only(authority: Authority) -> None:
    async with office(authority, login=("user@corp", "pä ss:word")) as at:
        url = str(URL(at.proxy.url).with_user("user@corp").with_password("pä ss:word"))
        async with at.transport(url) as transport:
            assert "word" not in repr(vars(transport)) + repr(transport)
            answers = [await put(transport), await put(transport)]
        assert [answer.status for answer in answers] == [200, 200]
        assert at.oss.connection_count == 1


async def test_a_refused_part_is_answered_through_a_proxy(authority: Authority) -> None:
    async def refuse(connection: Connection) -> None:
        await connection.read_head()
        await connection.reader.readexactly(100_000)
        await connection.answer(403, b"<Error/>")
        await asyncio.sleep(0.05)

    async with serving(refuse, tls=authority.server(HOST)) as oss:
        routes = {HOST: ("127.0.0.1", URL(oss.url).port or 0)}
        async with (
            forwarding(routes) as proxy,
            AiohttpTransport(proxy=proxy.url, ca_file=authority.ca_file) as transport,
        ):
            answer = await put(transport, bytes(40 * 2**20))
    assert (answer.status, answer.body) == (403, b"<Error/>")
    assert answer.sent.size < 40 * 2**20


async def test_a_server_that_takes_nothing_is_noticed_through_a_proxy(authority: Authority) -> None:
    async def stop(connection: Connection) -> None:
        await connection.read_head()
        await connection.idle()

    async with serving(stop, tls=authority.server(HOST)) as oss:
        routes = {HOST: ("127.0.0.1", URL(oss.url).port or 0)}
        options: dict[str, Any] = {"ca_file": authority.ca_file, "stall_timeout_s": 0.3}
        async with (
            forwarding(routes) as proxy,
            AiohttpTransport(proxy=proxy.url, **options) as transport,
        ):
            with pytest.raises(TransportError, match="took no byte"):
                await put(transport, bytes(100 * 2**20))


async def test_an_answer_may_take_longer_behind_a_proxy_that_buffers(authority: Authority) -> None:
    async def late(connection: Connection) -> None:
        await connection.read_body(await connection.read_head())
        await asyncio.sleep(0.4)
        await connection.answer()

    request = SignedRequest("PUT", f"https://{HOST}/key", {}, BytesBody(b"abc"))
    async with serving(late, tls=authority.server(HOST)) as oss, serving(late) as near:
        routes = {HOST: ("127.0.0.1", URL(oss.url).port or 0)}
        async with (
            forwarding(routes) as proxy,
            AiohttpTransport(proxy=proxy.url, ca_file=authority.ca_file) as transport,
        ):
            assert (await transport.send(request, answer_timeout_s=0.1)).status == 200
            direct = SignedRequest("PUT", f"{near.url}/key", {}, BytesBody(b"abc"))
            with pytest.raises(TransportError, match="no complete answer within"):
                await transport.send(direct, answer_timeout_s=0.1)


async def test_an_uploader_refuses_a_setting_that_is_no_proxy(tmp_path: Path) -> None:
    wrong = UploadOptions(proxy="ftp://user:password@proxy:21")
    with pytest.raises(ConfigurationError) as caught:
        async with Uploader(state=tmp_path / "state.db", options=wrong):
            pass
    assert "password" not in str(caught.value) + repr(wrong)


async def test_this_machine_is_never_reached_through_a_proxy(authority: Authority) -> None:
    async with office(authority) as at, serving(echo_checksums) as server:
        async with at.transport() as transport:
            for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
                request = SignedRequest("PUT", url, {}, BytesBody(b"x"))
                assert (await transport.send(request, answer_timeout_s=2)).status == 200
        assert at.proxy.requests == []


async def test_credentials_do_not_pass_a_proxy_without_tls(authority: Authority) -> None:
    async with office(authority) as at, at.transport() as transport:
        request = SignedRequest("PUT", f"http://{HOST}/key", {"authorization": SECRET})
        with pytest.raises(PolicyError, match="without TLS"):
            await transport.send(request, answer_timeout_s=2)
        assert at.proxy.requests == []


async def test_certificates_are_checked_behind_a_proxy(tmp_path: Path) -> None:
    async with office(Authority.in_folder(tmp_path)) as at:
        async with AiohttpTransport(proxy=at.proxy.url) as transport:
            error = await failure(transport)
        assert at.oss.heads == []
    assert isinstance(error, UntrustedCertificate)
    assert error.code == "CertificateIssuer"
    assert "issued by 'trustme v" in error.message
    assert "--ca-file" in error.next_step


# --- the proxy refuses, or is not there ---------------------------------------------------


@pytest.mark.parametrize(
    ("status", "lines", "code", "words"),
    [
        (407, ('Proxy-Authenticate: Basic realm="x"',), "ProxyLogin", "requires a login"),
        (407, ("Proxy-Authenticate: NTLM",), "ProxyLogin", "offers only NTLM"),
        (403, (), "ProxyForbidden", "does not allow this connection (403)"),
        (405, (), "ProxyForbidden", "does not allow this connection (405)"),
    ],
)
async def test_a_refusal_of_the_proxy_is_final(
    authority: Authority, status: int, lines: tuple[str, ...], code: str, words: str
) -> None:
    async with office(authority) as at, at.transport() as transport:
        at.proxy.refusals.append((status, lines))
        error = await failure(transport)
        assert at.oss.connection_count == 0
        assert (await put(transport)).status == 200
    assert isinstance(error, ProxyRefused)
    assert (error.code, error.is_temporary, error.is_resumable) == (code, False, True)
    assert words in error.message
    assert at.proxy.url.removeprefix("http://") in error.message


async def test_a_wrong_login_is_shown_nowhere(authority: Authority) -> None:
    async with office(authority, login=("user", "right")) as at:
        url = at.proxy.url.replace("//", "//user:wrongword@")
        async with at.transport(url) as transport:
            error = await failure(transport)
    assert "does not accept the user name and password" in error.message
    assert "wrongword" not in str(error) + repr(error) + str(vars(error))


async def test_a_login_that_the_proxy_echoes_is_redacted(authority: Authority) -> None:
    async with office(authority) as at:
        at.proxy.refusals.append((407, ("Proxy-Authenticate: Odd wrongword-x",)))
        async with at.transport(at.proxy.url.replace("//", "//user:wrongword-x@")) as transport:
            error = await failure(transport)
    assert "offers only Odd [redacted]" in error.message


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_proxy_that_cannot_connect_is_asked_again(
    authority: Authority, status: int
) -> None:
    async with office(authority) as at, at.transport() as transport:
        at.proxy.refusals.append((status, ()))
        error = await failure(transport)
    assert isinstance(error, TransportError)
    assert (error.code, error.is_temporary, error.is_sent) == ("ProxyFailed", True, False)
    assert f"cannot connect to it ({status})" in error.message


async def test_a_proxy_that_is_not_there_is_named(authority: Authority) -> None:
    port = unused_port()
    async with AiohttpTransport(proxy=f"http://127.0.0.1:{port}") as transport:
        error = await failure(transport)
    assert isinstance(error, TransportError)
    assert (error.code, error.is_temporary, error.is_sent) == ("ProxyUnreachable", True, False)
    assert f"the proxy 127.0.0.1:{port}: cannot connect (Connection refused)" in error.message


async def test_a_proxy_whose_name_cannot_be_resolved_is_named() -> None:
    async with AiohttpTransport(proxy="http://proxy.invalid:3128") as transport:
        error = await failure(transport)
    assert error.code == "ProxyUnreachable"
    assert "the proxy proxy.invalid:3128: the host name cannot be resolved" in error.message


async def test_a_proxy_that_never_answers_times_out() -> None:
    async def swallow(connection: Connection) -> None:
        await connection.idle()

    async with (
        serving(swallow) as proxy,
        AiohttpTransport(proxy=proxy.url, connect_timeout_s=0.2) as transport,
    ):
        error = await failure(transport)
    assert isinstance(error, TransportError)
    assert error.is_timeout
    assert "through the proxy 127.0.0.1" in error.message


async def test_an_untrusted_proxy_gets_no_login(tmp_path: Path, authority: Authority) -> None:
    foreign = Authority.in_folder(tmp_path)
    async with office(authority, tls=foreign.server()) as at:
        url = at.proxy.url.replace("//", "//user:word@")
        async with at.transport(url) as transport:
            error = await failure(transport)
        assert at.proxy.requests == []
    assert isinstance(error, UntrustedCertificate)
    assert "the proxy 127.0.0.1" in error.message


# --- which proxy ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["ftp://proxy:21", "http:///", "http://proxy:99999", "http://:3128", "socks5://h:1080"],
)
def test_what_is_no_http_proxy_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Proxies(text)
    assert text not in str(caught.value)


async def test_the_environment_is_used_on_request(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(authority) as at:
        monkeypatch.setenv("HTTPS_PROXY", at.proxy.url)
        async with at.transport("env") as transport:
            assert (await put(transport)).status == 200
        assert len(at.proxy.requests) == 1


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_a_proxy_that_is_not_used_is_named_where_there_is_no_connection(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://user:password@proxy.example.com:3128")
    for proxy, is_named in ((None, True), ("none", False)):
        async with AiohttpTransport(proxy=proxy) as transport:
            error = await failure(transport, "oss.invalid")
        assert error.code == "NameNotResolved"
        assert (f"{variable.upper()} names a proxy" in error.next_step) == is_named
        assert ("--proxy env" in error.next_step) == is_named
        assert "password" not in str(error)
    monkeypatch.setenv("NO_PROXY", ".invalid")
    async with AiohttpTransport() as transport:
        assert "--proxy env" not in (await failure(transport, "oss.invalid")).next_step


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("", "https://oss.example.com", False),
        ("*", "https://oss.example.com", True),
        ("a,*", "https://oss.example.com", True),
        ("example.com", "https://example.com", True),
        ("example.com", "https://oss.example.com", True),
        (".example.com", "https://oss.EXAMPLE.com.", True),
        ("*.example.com", "https://oss.example.com", True),
        ("example.com", "https://otherexample.com", False),
        ("other.com, example.com", "https://oss.example.com", True),
        ("other.com example.com", "https://oss.example.com", True),
        ("example.com:443", "https://oss.example.com", True),
        ("example.com:8443", "https://oss.example.com", False),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("fd00::/8", "https://[fd00::1]", True),
        ("[fd00::1]:443", "https://[fd00::1]", True),
        ("10.0.0.0/8", "https://oss.example.com", False),
        ("", "https://127.3.0.1", True),
        ("", "https://[::1]:8443", True),
        ("", "https://localhost", True),
        ("", "https://oss.localhost", True),
        ("", "http://100.100.100.200", True),
    ],
)
def test_no_proxy_lists_what_is_reached_directly(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, is_direct: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example.net:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    proxy = Proxies("env").proxy_for(URL(url))
    assert (proxy is None) == is_direct
    assert proxy is None or str(proxy) == "proxy.example.net:3128"
    assert (Proxies(None).unused_variable(URL(url)) == "") == is_direct


def test_each_scheme_has_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://secure.example.net:1")
    monkeypatch.setenv("ALL_PROXY", " http://all.example.net:2\n")
    proxies = Proxies("env")
    assert str(proxies) == "all.example.net:2, secure.example.net:1"
    assert str(proxies.proxy_for(URL("https://a.example"))) == "secure.example.net:1"
    assert str(proxies.proxy_for(URL("http://a.example"))) == "all.example.net:2"
    assert str(Proxies("none")) == str(Proxies(None)) == "none"


# --- without a connection ---------------------------------------------------------------


async def test_each_cause_has_its_own_cure(authority: Authority, tmp_path: Path) -> None:
    async def plain_http(connection: Connection) -> None:
        await connection.reader.read(100)
        await connection.write(b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n")

    async def cut(connection: Connection) -> None:
        await connection.reset()

    async def cause(host: str) -> tuple[str, str]:
        async with AiohttpTransport(connect_timeout_s=0.3, ca_file=authority.ca_file) as transport:
            error = await failure(transport, host)
        return error.code, error.next_step

    old = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    async with (
        serving(plain_http) as portal,
        serving(cut) as firewall,
        serving(echo_checksums, tls=authority.server(not_after=old)) as late,
        serving(echo_checksums, tls=authority.server("login.example")) as other,
        serving(echo_checksums, tls=Authority.in_folder(tmp_path).server()) as inspecting,
    ):
        hosts = {
            "NameNotResolved": "oss.invalid",
            "ConnectionRefused": f"127.0.0.1:{unused_port()}",
            "NetworkUnreachable": "255.255.255.255",
            "NotTls": URL(portal.url).authority,
            "TlsFailed": URL(firewall.url).authority,
            "CertificateTime": URL(late.url).authority,
            "CertificateHost": URL(other.url).authority,
            "CertificateIssuer": URL(inspecting.url).authority,
        }
        found = {code: await cause(host) for code, host in hosts.items()}
    assert {code: seen for code, (seen, _) in found.items()} == {code: code for code in hosts}
    assert len({next_step for _, next_step in found.values()}) == len(hosts)
    assert "it shows 20" in found["CertificateTime"][1]


async def test_a_port_that_swallows_packets_times_out() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        queued = [socket.socket() for _ in range(3)]
        for one in queued:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        async with AiohttpTransport(connect_timeout_s=0.3) as transport:
            error = await failure(transport, f"127.0.0.1:{full.getsockname()[1]}")
        for one in queued:
            one.close()
    assert error.code == "ConnectTimeout"
    assert "firewall may drop" in error.next_step


async def test_an_ipv6_host_is_shown_in_brackets() -> None:
    async with AiohttpTransport(connect_timeout_s=0.3) as transport:
        error = await failure(transport, f"[::1]:{unused_port()}")
    assert error.message.startswith("PUT [::1]: ")
