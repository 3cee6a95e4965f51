"""Whom the transport trusts: a certificate decides, and nothing in the environment does."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import ssl
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import trustme

from tests.rawserver import Authority, echo_checksums, serving
from uploader import (
    AccessKey,
    SourceUnreadable,
    TrustPolicy,
    Uploader,
    UrlPolicy,
    UrlSource,
    VodProvider,
)
from uploader.cli.run import exit_code
from uploader.errors import TransportError, UntrustedCertificate, VodupError
from uploader.protocol.wire import BytesBody, SignedRequest
from uploader.transport import AiohttpTransport
from uploader.transport.tls import issuer_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.in_folder(tmp_path)


async def refused(
    tls: ssl.SSLContext, ca_file: Path | None, kind: type[VodupError] = UntrustedCertificate
) -> VodupError:
    """The error of sending there; nothing of the request was seen by the server."""
    async with (
        serving(echo_checksums, tls=tls) as server,
        AiohttpTransport(ca_file=ca_file, stall_timeout_s=2.0) as transport,
    ):
        request = SignedRequest("PUT", f"{server.url}/bucket/key", {}, BytesBody(b"x"))
        with pytest.raises(kind) as caught:
            await transport.send(request, answer_timeout_s=2.0)
        assert server.heads == []
    return caught.value


async def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)

    error = await refused(authority.server(not_after=past), authority.ca_file)

    assert "certificate has expired" in error.message
    assert "clock" in error.next_step


async def test_a_certificate_signed_by_itself_is_refused(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"
    authority.cert_pem.write_to_path(str(certificate))
    authority.private_key_pem.write_to_path(str(key))
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate, key)

    assert "certificate is not trusted" in (await refused(own, None)).message


async def test_an_upload_ends_at_the_first_certificate_that_is_not_trusted(
    authority: Authority, tmp_path: Path
) -> None:
    movie = tmp_path / "movie.mp4"
    movie.write_bytes(b"film")
    async with serving(echo_checksums, tls=authority.server()) as server:
        provider = VodProvider(AccessKey(id="id", secret="secret"), endpoint=server.url)
        trust = TrustPolicy(allow_loopback=True)
        async with Uploader(provider, state=tmp_path / "state", trust=trust) as up:
            with pytest.raises(UntrustedCertificate) as caught:
                await asyncio.wait_for(up.upload(movie), 20)
        assert server.heads == []
    assert exit_code(caught.value) == 7


async def test_a_source_whose_certificate_is_not_trusted_is_not_retried(
    authority: Authority,
) -> None:
    async with serving(echo_checksums, tls=authority.server()) as server:
        source = UrlSource(
            f"{server.url}/movie.mp4", policy=UrlPolicy(allow_private=True), patience_s=600.0
        )
        with pytest.raises(SourceUnreadable, match="certificate is not trusted") as caught:
            await asyncio.wait_for(source.__aenter__(), 20)
        await source.__aexit__(None, None, None)
    assert not caught.value.is_temporary
    assert exit_code(caught.value) == 4


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_an_old_version_of_tls_is_refused(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    old = authority.server()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = version

    error = await refused(old, authority.ca_file, TransportError)

    assert isinstance(error, TransportError)
    assert not error.is_sent


def test_the_issuer_is_read_from_a_certificate_of_any_length(authority: Authority) -> None:
    pem = authority.ca.issue_cert("example.com").cert_chain_pems[0].bytes().decode()
    der = ssl.PEM_cert_to_DER_cert(pem)
    assert issuer_of(der).startswith("trustme v")
    for end in range(len(der)):
        assert issuer_of(der[:end]) == "" or issuer_of(der).startswith(issuer_of(der[:end])[:4])
    assert issuer_of(b"\x30\x84\xff\xff\xff\xff" * 9) == ""


# --- the environment --------------------------------------------------------------------

_SEND = """
    import asyncio, json, sys
    from pathlib import Path
    from uploader.errors import UntrustedCertificate
    from uploader.protocol.wire import BytesBody, SignedRequest
    from uploader.transport import AiohttpTransport

    async def main(url, ca_file):
        async with AiohttpTransport(ca_file=Path(ca_file) if ca_file else None) as transport:
            request = SignedRequest("PUT", url + "/bucket/key", {}, BytesBody(b"x"))
            try:
                answer = await transport.send(request, answer_timeout_s=5)
            except UntrustedCertificate as error:
                print(json.dumps([error.message]))
            else:
                print(json.dumps(answer.status))

    asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def sent_with(env: dict[str, str], url: str, ca_file: Path | None) -> object:
    """What a process with that environment gets from `url`."""

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(_SEND), url, str(ca_file or "")],
        cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_nothing_in_the_environment_adds_a_trusted_authority(
    authority: Authority, tmp_path: Path
) -> None:
    lax = tmp_path / "openssl.cnf"
    lax.write_text(
        "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n"
        "[c]\nMinProtocol = TLSv1\nCipherString = ALL:@SECLEVEL=0\n"
    )
    directory = tmp_path / "hashed"
    directory.mkdir()
    (directory / "any.0").write_bytes(authority.ca_file.read_bytes())
    hostile = {
        "SSL_CERT_FILE": str(authority.ca_file),
        "SSL_CERT_DIR": str(directory),
        "REQUESTS_CA_BUNDLE": str(authority.ca_file),
        "CURL_CA_BUNDLE": str(authority.ca_file),
        "PYTHONHTTPSVERIFY": "0",
        "OPENSSL_CONF": str(lax),
    }
    async with serving(echo_checksums, tls=authority.server()) as server:
        outcome = await sent_with(hostile, server.url, None)

    assert isinstance(outcome, list), f"it was sent: {outcome}"
    assert "certificate is not trusted" in outcome[0]


async def test_no_variable_makes_tls_log_its_keys(authority: Authority, tmp_path: Path) -> None:
    """Whoever has them reads the Authorization headers out of a recording of the traffic."""
    keys = tmp_path / "keys.log"
    async with serving(echo_checksums, tls=authority.server()) as server:
        outcome = await sent_with({"SSLKEYLOGFILE": str(keys)}, server.url, authority.ca_file)

    assert outcome == 200
    # aiohttp makes contexts of its own on import: they open the file, and nobody uses them.
    assert "SECRET" not in (keys.read_text() if keys.exists() else "")


async def test_no_proxy_of_the_environment_sees_a_request(authority: Authority) -> None:
    async with (
        serving(echo_checksums, tls=authority.server()) as server,
        serving(echo_checksums) as proxy,
    ):
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        outcome = await sent_with(dict.fromkeys(names, proxy.url), server.url, authority.ca_file)

        assert outcome == 200
        assert proxy.connection_count == 0
