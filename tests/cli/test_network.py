"""What the command line reports of the network: proxies, and why there is no connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.forward_proxy import (
    OSS_HOST,
    SERVICE_HOSTS,
    VOD_HOST,
    ForwardProxy,
    forwarding,
    services_at,
)
from tests.rawserver import Authority, Connection, serving
from uploader.cli import flags

from .conftest import Cli, Ended

LOGIN = ("user", "pass:word")
CLEARED = {f"{name}_PROXY": "" for name in ("HTTPS", "HTTP", "ALL", "NO")}


@dataclass
class Office:
    """A network with a proxy behind which the services are."""

    cli: Cli
    proxy: ForwardProxy
    authority: Authority

    @property
    def url(self) -> str:
        return self.proxy.url.replace("//", "//user:pass%3Aword@")

    async def run(self, *words: str, **env: str) -> Ended:
        usual = {"VODUP_CA_FILE": str(self.authority.ca_file), "VODUP_VOD_ENDPOINT": ""}
        env = CLEARED | usual | {"VODUP_ALLOW_LOOPBACK_HTTP": ""} | env
        return await asyncio.to_thread(self.cli.run, *words, env=env)

    async def doctor(self, *words: str, **env: str) -> tuple[Ended, dict[str, dict[str, str]]]:
        ended = await self.run("doctor", "--json", *words, **env)
        return ended, {line["name"]: line for line in ended.lines}


@pytest.fixture
async def office(cli: Cli, tmp_path: Path) -> AsyncIterator[Office]:
    authority = Authority.in_folder(tmp_path)
    before = cli.server.backend.oss_endpoint
    async with (
        services_at(cli.server, authority.server(*SERVICE_HOSTS)) as routes,
        forwarding(routes, login=LOGIN) as proxy,
    ):
        yield Office(cli, proxy, authority)
    cli.server.backend.oss_endpoint = before


def movie(office: Office) -> Path:
    path = office.cli.folder / "movie.mp4"
    path.write_bytes(bytes(300_000))
    return path


async def test_push_through_a_proxy(office: Office) -> None:
    login = office.cli.folder / "login"
    login.write_text("user:pass:word\n")

    ended = await office.run(
        "push", str(movie(office)), "--proxy", office.proxy.url, "--proxy-login-file", str(login)
    )

    assert ended.code == 0, ended.err
    assert "word" not in ended.out + ended.err
    assert VOD_HOST in office.proxy.hosts()
    assert all(host.endswith(".aliyuncs.com") for host in office.proxy.hosts())


async def test_a_password_on_the_command_line_is_refused(office: Office) -> None:
    ended = await office.run("push", "movie.mp4", "--proxy", "http://user:hunter2@proxy:3128")

    assert ended.code == 2
    assert "VODUP_PROXY_PASSWORD" in ended.err
    assert "hunter2" not in ended.out + ended.err


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (("--proxy", "ftp://proxy:21"), {}, "is not the URL of an HTTP proxy"),
        (("--proxy", "socks5://proxy:1080"), {}, "names a SOCKS proxy"),
        (("--proxy", "http://proxy:1"), {"VODUP_PROXY_USER": "user"}, "needs a user name and a"),
        (("--proxy", "http://proxy:1", "--proxy-login-file", "none"), {}, "cannot read none"),
        (("--ca-file", "none.pem"), {}, "no such file: none.pem"),
    ],
)
async def test_what_cannot_be_a_proxy_is_a_usage_error(
    office: Office, words: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    ended = await office.run("push", str(movie(office)), *words, **env)

    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize("command", "push ingest resume worker abort clean verify doctor".split())
def test_every_command_that_uses_the_network_has_the_flags(command: str) -> None:
    kind = getattr(flags, f"{command.capitalize()}Flags")
    assert {"proxy", "proxy_login_file", "ca_file"} <= set(dir(kind))


# --- doctor -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["VODUP_PROXY", "VODUP_PROXY_USER", "HTTPS_PROXY"])
async def test_doctor_through_a_proxy(office: Office, how: str) -> None:
    name, with_login = office.proxy.url.removeprefix("http://"), office.url
    env = {
        "VODUP_PROXY": {"VODUP_PROXY": with_login},
        "VODUP_PROXY_USER": {
            "VODUP_PROXY": name,
            "VODUP_PROXY_USER": LOGIN[0],
            "VODUP_PROXY_PASSWORD": LOGIN[1],
        },
        "HTTPS_PROXY": {"VODUP_PROXY": "ENV", "HTTPS_PROXY": with_login},
    }[how]
    ended, found = await office.doctor(**env)

    assert ended.code == 0, ended.out
    assert found["proxy"]["detail"] == name
    assert found["VOD"]["status"] == found["OSS"]["status"] == "ok"
    assert "word" not in ended.out


async def test_doctor_names_a_proxy_that_requires_a_login(office: Office) -> None:
    ended, found = await office.doctor("--proxy", office.proxy.url)

    assert ended.code == 7
    assert found["VOD"]["cause"] == found["OSS"]["cause"] == "ProxyLogin"
    assert "VODUP_PROXY_USER" in found["VOD"]["next_step"]


async def test_doctor_names_a_proxy_that_is_not_used(office: Office) -> None:
    ended, found = await office.doctor("--region", "nowhere", HTTPS_PROXY=office.proxy.url)

    assert ended.code == 5
    assert (found["proxy"]["status"], found["proxy"]["cause"]) == ("ok", "ProxyNotUsed")
    assert found["VOD"]["cause"] == found["OSS"]["cause"] == "NameNotResolved"
    assert "--proxy env" in found["VOD"]["next_step"]


async def test_doctor_names_a_proxy_that_inspects_tls(office: Office) -> None:
    ended, found = await office.doctor(VODUP_PROXY=office.url, VODUP_CA_FILE="")

    assert ended.code == 7
    assert found["VOD"]["cause"] == "CertificateIssuer"
    assert "issued by 'trustme" in found["VOD"]["detail"]
    assert "--ca-file" in found["VOD"]["next_step"]


@asynccontextmanager
async def _portal(office: Office, answer: bytes) -> AsyncIterator[ForwardProxy]:
    async def serve(connection: Connection) -> None:
        await connection.read_head()
        await connection.write(answer)

    async with serving(serve, tls=office.authority.server(*SERVICE_HOSTS)) as portal:
        parts = urlsplit(portal.url)
        address = (parts.hostname or "", parts.port or 0)
        async with forwarding({VOD_HOST: address, OSS_HOST: address}) as proxy:
            yield proxy


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 403 No\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    ],
    ids=["redirect", "page", "refusal"],
)
async def test_doctor_names_a_login_page(office: Office, answer: bytes) -> None:
    async with _portal(office, answer) as proxy:
        ended, found = await office.doctor("--proxy", proxy.url)

    assert ended.code == 5
    assert found["VOD"]["cause"] == found["OSS"]["cause"] == "WebPage"
    assert "log in" in found["VOD"]["next_step"]


@pytest.mark.parametrize(("days", "status", "code"), [(0.1, "warning", 0), (3, "failed", 1)])
async def test_doctor_names_a_wrong_clock(
    office: Office, days: float, status: str, code: int
) -> None:
    office.cli.server.set_options(clock_offset_s=days * 86400)
    try:
        ended, found = await office.doctor(VODUP_PROXY=office.url)
    finally:
        office.cli.server.set_options(clock_offset_s=0)

    assert (found["VOD"]["status"], found["VOD"]["cause"]) == (status, "Clock")
    assert found["VOD"]["next_step"] == "Set this machine's clock."
    assert ended.code == code


def test_doctor_names_a_closed_port_for_people(cli: Cli) -> None:
    ended = cli.run("doctor", env=CLEARED | {"VODUP_VOD_ENDPOINT": "http://127.0.0.1:9"})

    assert ended.code == 5
    assert "Connection refused" in ended.out
    assert "next:        Check the endpoint. A firewall" in ended.out
