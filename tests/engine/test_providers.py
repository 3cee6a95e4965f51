"""Hosts without an AccessKey: another service creates and renews."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from uploader import (
    CallerNotAuthenticated,
    CommandProvider,
    ConfigurationError,
    CredentialError,
    InvalidGrant,
    PermissionDenied,
    ServiceError,
    TransferError,
    TransportError,
    UntrustedEndpoint,
    UrlProvider,
    VodupError,
)
from uploader.devserver import Fault

from .harness import PART, Desk, called, until

EXPIRE = Fault(action="expire_credentials", operation="UploadPart", part=3)


@dataclass
class AppServer:
    """The platform's own backend: it has the AccessKey, its clients have not."""

    desk: Desk
    url: str = ""
    answer: Any = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)

    async def post(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._respond(request, body)

    async def get(self, request: web.Request) -> web.StreamResponse:
        return await self._respond(request, {"action": "renew", **request.match_info})

    async def _respond(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.requests.append(body)
        self.authorizations.add(request.headers.get("authorization"))
        if self.answer is not None:
            return web.Response(**self.answer)
        return web.json_response(await granted(self.desk, body))


async def granted(desk: Desk, body: dict[str, Any]) -> dict[str, Any]:
    if body["action"] == "renew":
        return await called(desk.server, "RefreshUploadVideo", VideoId=body["video_id"])
    return await called(
        desk.server, "CreateUploadVideo", Title=body["title"], FileName=body["file_name"],
        FileSize=body["file_size"], ReferenceId=body["reference_id"],
    )  # fmt: skip


@pytest.fixture
async def app(desk: Desk) -> AsyncIterator[AppServer]:
    backend = AppServer(desk)
    application = web.Application()
    application.router.add_post("/grants", backend.post)
    application.router.add_get("/grants/{video_id}", backend.get)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    backend.url = f"http://127.0.0.1:{runner.addresses[0][1]}/grants"
    yield backend
    await runner.cleanup()


async def test_an_app_server_creates_and_renews(desk: Desk, app: AppServer) -> None:
    desk.order(EXPIRE)
    movie = desk.file(6 * PART)

    result = await desk.push(movie, provider=UrlProvider(app.url, bearer_token="of this device"))

    await desk.assert_stored(result, movie)
    assert [body["action"] for body in app.requests] == ["create", "renew"]
    assert app.requests[1]["video_id"] == result.video_id
    assert app.authorizations == {"Bearer of this device"}


async def test_an_app_server_that_only_renews_gets_a_get_request(
    desk: Desk, app: AppServer
) -> None:
    video = await called(desk.server, "CreateUploadVideo", Title="t", FileName="movie.mp4")
    movie = desk.file(6 * PART)
    provider = UrlProvider(app.url + "/{video_id}")

    result = await desk.push(movie, provider=provider, video_id=video["VideoId"])

    await desk.assert_stored(result, movie)
    assert isinstance(
        await desk.fail(desk.file(PART, "b.mp4", seed=2), provider=provider), ConfigurationError
    )


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        ({"status": 500, "text": "oops"}, ServiceError, "HTTP500"),
        ({"status": 404, "text": "no such route"}, ServiceError, "HTTP404"),
        ({"status": 403, "text": "not yours"}, PermissionDenied, "HTTP403"),
        ({"status": 401, "text": "who?"}, CallerNotAuthenticated, "HTTP401"),
        ({"status": 200, "text": "<html>login</html>"}, CredentialError, ""),
        ({"status": 200, "text": "{}"}, InvalidGrant, ""),
        ({"status": 200, "text": "[" * 100_000}, VodupError, ""),
    ],
    ids=["500", "404", "403", "401", "html", "empty", "bomb"],
)
async def test_an_app_server_in_trouble_is_a_typed_error(
    desk: Desk, app: AppServer, answer: dict[str, Any], kind: type[VodupError], code: str
) -> None:
    app.answer = answer
    movie = desk.file(3 * PART)

    error = await desk.fail(movie, provider=UrlProvider(app.url))

    assert isinstance(error, kind)
    assert error.is_resumable
    assert error.code == code
    if code:
        assert "run the same command again" in error.next_step
    app.answer = None
    await desk.assert_stored(await desk.push(movie, provider=UrlProvider(app.url)), movie)
    assert desk.server.stats.creates == 1


async def test_an_app_server_in_plain_http_elsewhere_is_refused(desk: Desk) -> None:
    error = await desk.fail(desk.file(PART), provider=UrlProvider("http://example.com/grants"))

    assert isinstance(error, UntrustedEndpoint)


# --- a command -----------------------------------------------------------------------------

HELPER = """#!{python}
import json, os, sys, urllib.request
fields = {{"action": os.environ["VODUP_ACTION"], "video_id": os.environ["VODUP_VIDEO_ID"]}}
for name in ("title", "file_name", "file_size", "reference_id"):
    if (value := os.environ.get("VODUP_" + name.upper())) is not None:
        fields[name] = value
request = urllib.request.Request({url!r}, json.dumps(fields).encode())
print(urllib.request.urlopen(request).read().decode())
"""


def command(folder: Path, text: str) -> str:
    """A program in a file of its own; returns how to call it."""
    path = folder / "auth helper"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"'{path}'"


@pytest.mark.posix
async def test_a_command_creates_and_renews(desk: Desk, app: AppServer) -> None:
    desk.order(EXPIRE)
    movie = desk.file(6 * PART)
    helper = command(desk.folder, HELPER.format(python=sys.executable, url=app.url))

    result = await desk.push(movie, provider=CommandProvider(helper))

    await desk.assert_stored(result, movie)
    assert [body["action"] for body in app.requests] == ["create", "renew"]
    assert app.requests[1]["video_id"] == result.video_id


@pytest.mark.parametrize(
    ("script", "kind", "says"),
    [
        ("exit 3", TransportError, "exit status 3"),
        ("echo hello", InvalidGrant, ""),
        ("echo '{}'", InvalidGrant, ""),
        ("exec sleep 60", TransportError, "within 0.3 s"),
        ("kill -9 $$", TransferError, "was ended by SIGKILL"),
        ("sleep 60; echo '{}'", TransportError, "within 0.3 s"),
        ("(sleep 60; sleep 60) & wait", TransportError, "within 0.3 s"),
        ("yes", InvalidGrant, "printed more than"),
    ],
    ids=["fails", "not json", "empty", "hangs", "dies", "child hangs", "job hangs", "endless"],
)
@pytest.mark.posix
async def test_a_command_in_trouble_is_a_typed_error(
    desk: Desk, script: str, kind: type[VodupError], says: str
) -> None:
    helper = command(desk.folder, f"#!/bin/sh\n{script}\n")
    provider = CommandProvider(helper, timeout_s=0.3 if "sleep" in script else 20)

    began = time.monotonic()

    error = await desk.fail(desk.file(3 * PART), provider=provider)

    assert time.monotonic() - began < 20
    assert isinstance(error, kind)
    assert says in error.message
    assert error.is_resumable


async def test_a_command_that_is_missing_is_named(desk: Desk) -> None:
    error = await desk.fail(desk.file(PART), provider=CommandProvider("no-such-program-here"))

    assert isinstance(error, ConfigurationError)
    assert "no-such-program-here" in error.message


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("script", ["exec sleep 60", "sleep 60; echo '{}'", "sleep 60 & wait"])
@pytest.mark.posix
async def test_a_cancelled_command_is_not_left_running(desk: Desk, script: str) -> None:
    pid_file = desk.folder / "pid"
    helper = command(desk.folder, f"#!/bin/sh\necho $$ > '{pid_file}'\n{script}\n")
    task = asyncio.create_task(desk.push(desk.file(PART), provider=CommandProvider(helper)))
    while not (pid_file.exists() and pid_file.read_text().strip()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert time.monotonic() - began < 10
    group = int(pid_file.read_text())
    await until(lambda: not is_there(group))  # the system may take a moment to reap orphans


def test_the_scope_of_a_provider_holds_no_secret() -> None:
    assert UrlProvider("https://app.example.com/a?token=x").scope == "https://app.example.com/a"
    assert "x" not in CommandProvider("/usr/bin/helper --key x").scope
    assert json.dumps(repr(UrlProvider("https://a.example.com", bearer_token="secret-1"))).find(
        "secret-1"
    ) == -1  # fmt: skip
