"""The server is this user's: other sites get nothing from it, other users read nothing of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from uploader.devserver import DevServer, DevServerOptions, ThreadedDevServer

from .clients import Vod, send, start_upload

HOSTS_OF_OTHERS = ("evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "127.", "[", "")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DevServer]:
    before = os.umask(0)
    try:
        with ThreadedDevServer(DevServerOptions(data_dir=tmp_path / "data", tls=False)) as threaded:
            yield threaded.server
    finally:
        os.umask(before)


@pytest.mark.parametrize("host", HOSTS_OF_OTHERS)
def test_other_hosts_are_refused(server: DevServer, host: str) -> None:
    port = urlsplit(server.vod_endpoint).port
    named = {"Host": host.format(port=port), "X-Vodup-Token": server.admin_token}

    for method, path in (("GET", "options"), ("POST", "expire")):
        reply = send(server.vod_endpoint, method, f"/_vodup/{path}", named, None)
        assert reply.status in {400, 403}


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]", "127.8.8.8"])
def test_loopback_names_are_answered(server: DevServer, host: str) -> None:
    port = urlsplit(server.vod_endpoint).port
    named = {"Host": host.format(port=port), "X-Vodup-Token": server.admin_token}

    assert send(server.vod_endpoint, "GET", "/_vodup/stats", named, None).status == 200


def test_the_host_that_the_server_was_given_is_answered() -> None:
    with ThreadedDevServer(DevServerOptions(cname="oss.test")) as threaded:
        for host, status in (("oss.test", 200), ("oss2.test", 403)):
            endpoint = threaded.server.vod_endpoint
            reply = send(
                endpoint,
                "GET",
                "/_vodup/stats",
                {"Host": host, "X-Vodup-Token": threaded.server.admin_token},
                None,
            )
            assert reply.status == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", ""])
def test_requests_of_other_sites_are_refused(server: DevServer, origin: str) -> None:
    body = b'{"crc_headers": false}'
    reply = send(
        server.vod_endpoint,
        "POST",
        "/_vodup/options",
        {"Origin": origin, "X-Vodup-Token": server.admin_token},
        body,
    )

    assert reply.status == 403
    assert server.options.crc_headers


def test_its_own_origin_is_answered(server: DevServer) -> None:
    named = {"Origin": server.vod_endpoint, "X-Vodup-Token": server.admin_token}

    assert send(server.vod_endpoint, "GET", "/_vodup/stats", named, None).status == 200


def test_what_it_keeps_is_private_under_any_umask(server: DevServer, tmp_path: Path) -> None:
    start_upload(Vod(server))

    for path in (tmp_path / "data", tmp_path / "data" / "bodies"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (tmp_path / "data").glob("devserver.sqlite3*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_certificate_is_private(tmp_path: Path) -> None:
    with ThreadedDevServer(DevServerOptions(data_dir=tmp_path, tls=True)) as threaded:
        assert threaded.server.ca_file is not None
        assert stat.S_IMODE(threaded.server.ca_file.stat().st_mode) == 0o600


@pytest.mark.parametrize("token", [None, "", "0" * 32])
def test_only_who_read_the_token_is_answered(server: DevServer, token: str | None) -> None:
    named = {} if token is None else {"X-Vodup-Token": token}
    for method, path in (("GET", "options"), ("POST", "expire")):
        assert send(server.vod_endpoint, method, f"/_vodup/{path}", named, None).status == 403
