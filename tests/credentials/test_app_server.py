"""Grants from elsewhere: callbacks, commands and URLs."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clocks import SkippingClock
from tests.credentials.script import (
    NEW,
    VIDEO_ID,
    Vod,
    a_grant,
    granted,
    network,
)
from uploader.credentials import NewVideo
from uploader.credentials.app_server import CallbackProvider, CommandProvider, UrlProvider
from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    InvalidGrant,
    PermissionDenied,
    ServiceError,
    TransportError,
    UntrustedEndpoint,
    VideoGone,
    VodupError,
)
from uploader.protocol.grants import UploadGrant
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.wire import Response

# --- callbacks -----------------------------------------------------------------------


async def test_callbacks_return_grants_or_answers() -> None:
    async def renew(video_id: str) -> UploadGrant:
        return replace(a_grant(), video_id=None)

    async def create(video: NewVideo) -> bytes:
        assert video is NEW
        return granted().body

    source = CallbackProvider(renew, create).connect(network(Vod()))
    assert (await source.renew(VIDEO_ID)).video_id == VIDEO_ID
    assert (await source.create(NEW)).video_id == VIDEO_ID
    assert await source.facts(VIDEO_ID) is None


async def test_a_callback_may_not_change_the_video() -> None:
    async def renew(video_id: str) -> bytes:
        return granted("other").body

    with pytest.raises(InvalidGrant):
        await CallbackProvider(renew).connect(network(Vod())).renew(VIDEO_ID)


async def test_without_on_create_no_video_can_be_made() -> None:
    async def renew(video_id: str) -> UploadGrant:
        return a_grant()

    with pytest.raises(ConfigurationError, match=r"^This callback .* cannot create a video\."):
        await CallbackProvider(renew).connect(network(Vod())).create(NEW)


@pytest.mark.parametrize("name", ["on_renew", "on_create"])
async def test_what_a_callback_raises_becomes_ours_without_its_text(name: str) -> None:
    async def fail(_: object) -> UploadGrant:
        raise KeyError("canary")

    source = CallbackProvider(fail, fail).connect(network(Vod()))
    call = source.renew(VIDEO_ID) if name == "on_renew" else source.create(NEW)
    with pytest.raises(TransportError, match=f"{name} raised KeyError") as caught:
        await call
    assert "canary" not in str(caught.value)
    assert (
        caught.value.next_step == "Fix the error in the callback, then run the same command again."
    )
    assert isinstance(caught.value.__cause__, KeyError)


async def test_our_own_errors_pass_through_a_callback() -> None:
    async def fail(video_id: str) -> UploadGrant:
        raise VideoGone("It is gone.")

    with pytest.raises(VideoGone):
        await CallbackProvider(fail).connect(network(Vod())).renew(VIDEO_ID)


async def test_a_callback_that_ends_as_cancelled_has_failed() -> None:
    async def wait(video_id: str) -> UploadGrant:
        future: asyncio.Future[UploadGrant] = asyncio.get_running_loop().create_future()
        future.cancel()
        return await future

    with pytest.raises(TransportError, match="on_renew raised RuntimeError"):
        await CallbackProvider(wait).connect(network(Vod())).renew(VIDEO_ID)


async def test_a_callback_may_leave_a_count_of_cancellations_behind() -> None:
    async def renew(video_id: str) -> UploadGrant:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        return a_grant()

    await CallbackProvider(renew).connect(network(Vod())).renew(VIDEO_ID)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


# --- commands ------------------------------------------------------------------------

# Prints an answer that names what it was started with.
_ECHO = (
    "import json, os, sys\n"
    "env = {n: v for n, v in os.environ.items() if n.startswith('VODUP_')}\n"
    "open(sys.argv[1], 'w').write(json.dumps([sys.argv[2:], env]))\n"
    "print(os.environ['ANSWER'])\n"
)


Echo = Callable[..., Awaitable[tuple[list[str], dict[str, str]]]]


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Echo:
    """Run a command that notes its arguments and `VODUP_*` variables."""
    recorded = tmp_path / "recorded"
    monkeypatch.setenv("ANSWER", granted().body.decode())

    async def run(*more: str, video: NewVideo | None = None) -> tuple[list[str], dict[str, str]]:
        command = [sys.executable, "-c", _ECHO, str(recorded), *more]
        source = CommandProvider(command).connect(network(Vod()))
        grant = await (source.create(video) if video else source.renew(VIDEO_ID))
        assert grant.video_id == VIDEO_ID
        arguments, variables = json.loads(recorded.read_text())
        return arguments, variables

    return run


async def test_a_command_gets_the_video_id_at_its_end(echo: Echo) -> None:
    arguments, variables = await echo("--quiet")
    assert arguments == ["--quiet", VIDEO_ID]
    assert variables == {"VODUP_ACTION": "renew", "VODUP_VIDEO_ID": VIDEO_ID}


async def test_a_command_gets_the_video_id_where_it_wants_it(echo: Echo) -> None:
    arguments, _ = await echo("--id={video_id}", "{video_id}", "$(rm -rf x)")
    assert arguments == [f"--id={VIDEO_ID}", VIDEO_ID, "$(rm -rf x)"]


async def test_a_command_that_creates_gets_the_fields_of_the_video(echo: Echo) -> None:
    arguments, variables = await echo("--new", video=NEW)
    assert arguments == ["--new"]
    assert variables == {
        "VODUP_ACTION": "create",
        "VODUP_VIDEO_ID": "",
        "VODUP_TITLE": "Movie",
        "VODUP_FILE_NAME": "a.mp4",
        "VODUP_FILE_SIZE": "9",
        "VODUP_REFERENCE_ID": "vodup-1",
        "VODUP_META": '{"title": "Movie"}',
    }


def test_a_command_is_split_like_in_a_shell_but_not_run_by_one() -> None:
    assert CommandProvider("get-grant 'a b' --x").argv == ["get-grant", "a b", "--x"]
    assert CommandProvider(["/opt/get grant", "s3cret"]).scope == "command:get grant"


@pytest.mark.parametrize("command", ["", "  ", []])
def test_an_empty_command_is_refused(command: str | list[str]) -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        _ = CommandProvider(command).scope


async def test_a_command_has_no_facts() -> None:
    assert await CommandProvider("false").connect(network(Vod())).facts(VIDEO_ID) is None


def test_a_command_with_an_open_quote_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="quotation"):
        _ = CommandProvider("get 'grant").argv


async def test_a_command_that_is_not_there_is_named() -> None:
    source = CommandProvider(["/no/such/command"]).connect(network(Vod()))
    with pytest.raises(ConfigurationError, match="/no/such/command"):
        await source.renew(VIDEO_ID)


async def test_a_command_that_finds_no_room_on_the_machine_is_temporary() -> None:
    source = CommandProvider(["true"]).connect(network(Vod()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(TransportError, match="Too many open files") as caught:
            await source.renew(VIDEO_ID)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not caught.value.is_sent


async def test_a_command_that_prints_without_end_is_ended() -> None:
    with pytest.raises(InvalidGrant, match="printed more than 1048576 bytes"):
        await CommandProvider("yes").connect(network(Vod())).renew(VIDEO_ID)


async def test_a_command_that_fails_is_temporary() -> None:
    source = CommandProvider(["sh", "-c", "echo no route >&2; exit 3"]).connect(network(Vod()))
    reason = r"sh failed with exit status 3 \(its last output: no route\)\."
    with pytest.raises(TransportError, match=reason) as caught:
        await source.renew(VIDEO_ID)
    assert caught.value.is_temporary
    assert caught.value.next_step.startswith("Run it by hand to see why")


async def test_a_command_that_hangs_is_ended() -> None:
    sleep = ["sh", "-c", "echo dialing >&2; sleep 60"]
    source = CommandProvider(sleep, timeout_s=0.2).connect(network(Vod()))
    with pytest.raises(TransportError, match=r"0\.2 s \(its last output: dialing\)\."):
        await asyncio.wait_for(source.renew(VIDEO_ID), 10)


# --- URLs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://grants.example.com/x",
        "http://127.0.0.1:8000/x",
        "http://[::1]/x",
        "http://localhost/x",
        "ftp://grants.example.com/x",
        "grants.example.com/x",
        "",
    ],
)
def test_an_auth_url_is_https(url: str) -> None:
    with pytest.raises(UntrustedEndpoint, match="must be https") as caught:
        UrlProvider(url).connect(network(Vod()))
    assert caught.value.next_step.startswith("Use https. For a test on this machine, a loopback ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/x", "http://[::1]/x"])
def test_a_loopback_literal_may_be_allowed(url: str) -> None:
    UrlProvider(url).connect(network(Vod(), trust=TrustPolicy(allow_loopback=True)))


@pytest.mark.parametrize(
    "url", ["http://localhost/x", "http://127.0.0.1.evil.com/x", "http://127.0.0.1@evil.com/x"]
)
def test_allowing_loopback_allows_literals_alone(url: str) -> None:
    with pytest.raises(UntrustedEndpoint):
        UrlProvider(url).connect(network(Vod(), trust=TrustPolicy(allow_loopback=True)))


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        UrlProvider("https://[::1/x").connect(network(Vod()))


async def test_a_url_with_a_place_for_the_video_id_is_got() -> None:
    transport = Vod(any=[granted(None)])
    source = UrlProvider("https://h/v/{video_id}?x=1", "b0").connect(network(transport))
    assert (await source.renew("a/b?c")).video_id == "a/b?c"
    (request,) = transport.requests
    assert (request.method, request.url) == ("GET", "https://h/v/a%2Fb%3Fc?x=1")
    assert request.headers["authorization"] == "Bearer b0"
    with pytest.raises(ConfigurationError):
        await source.create(NEW)


async def test_a_url_without_one_is_posted_to() -> None:
    transport = Vod(any=[granted()])
    source = UrlProvider("https://h/grants").connect(network(transport))
    await source.renew(VIDEO_ID)
    await source.create(NEW)
    assert {request.method for request in transport.requests} == {"POST"}
    renewed, made = (json.loads(call["body"]) for call in transport.calls)
    assert renewed == {"action": "renew", "video_id": VIDEO_ID}
    assert made == {
        "action": "create",
        "title": "Movie",
        "file_name": "a.mp4",
        "file_size": "9",
        "reference_id": "vodup-1",
        "meta": '{"title": "Movie"}',
    }
    assert "authorization" not in transport.requests[0].headers


async def test_retry_after_of_an_app_server_is_respected() -> None:
    transport = Vod(any=[Response(503, {"retry-after": "7"}, b"busy"), granted()])
    net = network(transport)
    await UrlProvider("https://h/grants").connect(net).renew(VIDEO_ID)
    assert isinstance(net.clock, SkippingClock)
    assert net.clock.pauses == [7.0]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, ServiceError),
        (401, CallerNotAuthenticated),
        (403, PermissionDenied),
        (404, ServiceError),
    ],
)
async def test_a_refusal_of_an_app_server_is_final(status: int, kind: type[VodupError]) -> None:
    transport = Vod(any=[Response(status, {}, b"no")])
    with pytest.raises(kind, match=str(status)) as caught:
        await UrlProvider("https://h/grants").connect(network(transport)).renew(VIDEO_ID)
    assert caught.value.next_step.split()[0] in {"Ask", "Check"}
    assert len(transport.requests) == 1


async def test_an_answer_that_is_no_grant_is_not_repeated_in_the_error() -> None:
    transport = Vod(any=[Response(200, {}, b"<html>canary</html>")])
    with pytest.raises(InvalidGrant) as caught:
        await UrlProvider("https://h/grants").connect(network(transport)).renew(VIDEO_ID)
    assert "canary" not in str(caught.value)


def test_the_scope_of_a_url_is_without_its_query_and_token() -> None:
    provider = UrlProvider("https://h/grants?key=canary", "canary")
    assert provider.scope == "https://h/grants"
    assert UrlProvider("https://u:canary@h/grants").scope == "https://h/grants"
    assert "canary" not in repr(provider)


def test_arguments_of_a_command_are_not_shown() -> None:
    assert "canary" not in repr(CommandProvider(["get", "--secret=canary"]))
