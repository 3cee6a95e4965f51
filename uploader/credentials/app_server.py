"""Grants from elsewhere: a callback, a command or a URL. The AccessKey stays there."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar
from urllib.parse import quote, urlsplit

from uploader.commands import (
    CommandNotStarted,
    CommandOutputTooLong,
    describe_status,
    run_command,
)
from uploader.credentials.contract import Answer, GrantSource, Network, NewVideo, of_video, vod_call
from uploader.credentials.live import PlainSigner
from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    InvalidGrant,
    PermissionDenied,
    ServiceError,
    TransportError,
    UntrustedEndpoint,
    VodupError,
)
from uploader.protocol.decode import decode_answer
from uploader.protocol.documents import clean_text
from uploader.protocol.failures import APP_SERVER
from uploader.protocol.grants import UploadGrant
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import VideoFacts
from uploader.protocol.wire import BytesBody, Operation, Request, Response
from uploader.session import Session

_COMMAND_GRACE_S = 1.0
"""Renewals of the upload wait while a command ends. Too short: it cannot remove its files."""

_ANSWER_LIMIT = 1024 * 1024
"""Bytes; an answer has about two thousand."""


def _grant_of(answer: Answer) -> UploadGrant:
    return answer if isinstance(answer, UploadGrant) else decode_answer(answer)


def _cannot_create(who: str) -> NoReturn:
    raise ConfigurationError(
        f"{who} renews grants but cannot make a video.",
        next_step="Pass the VideoId (--video-id), a grant (--grant), or a provider that creates.",
    )


@dataclass(frozen=True, slots=True)
class CallbackProvider:
    """Your own coroutines hand out grants.

    Attributes:
        on_renew: gets the VideoId; returns an `UploadGrant` or an answer to decode.
        on_create: gets a `NewVideo`; must return the same video when asked again with
            the same `reference_id`.
        scope: names your service in the keys of uploads.
    """

    on_renew: Callable[[str], Awaitable[Answer]]
    on_create: Callable[[NewVideo], Awaitable[Answer]] | None = None
    scope: str = "callback"

    def connect(self, network: Network) -> GrantSource:
        """Nothing to connect."""
        return _CallbackSource(self)


_Asked = TypeVar("_Asked")


async def _answered(
    name: str, callback: Callable[[_Asked], Awaitable[Answer]], asked: _Asked
) -> Answer:
    """Call a caller's coroutine. What it raises becomes ours: a renewal that fails ahead of
    time must not end an upload that goes on.
    """
    try:
        return await callback(asked)
    except VodupError:
        raise
    except Exception as error:
        # Its text is not repeated: it may hold what the coroutine asked with.
        raise TransportError(
            f"The callback {name} raised {type(error).__name__}.",
            is_sent=True,
            next_step="Mend what it raised, then run the same command again.",
        ) from error


@dataclass(frozen=True, slots=True)
class _CallbackSource:
    provider: CallbackProvider

    async def create(self, video: NewVideo) -> UploadGrant:
        if self.provider.on_create is None:
            _cannot_create("This callback")
        return _grant_of(await _answered("on_create", self.provider.on_create, video))

    async def renew(self, video_id: str) -> UploadGrant:
        answer = await _answered("on_renew", self.provider.on_renew, video_id)
        return of_video(_grant_of(answer), video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        return None


@dataclass(frozen=True, slots=True)
class CommandProvider:
    """A command prints grants, so that no AccessKey is needed on this host.

    The command is run without a shell. `{video_id}` in an argument is replaced, without
    one the VideoId is appended; the environment has VODUP_ACTION ("renew" or "create"),
    VODUP_VIDEO_ID, and for "create" VODUP_TITLE, VODUP_FILE_NAME, VODUP_FILE_SIZE,
    VODUP_REFERENCE_ID and VODUP_META (JSON). It prints an answer of CreateUploadVideo or
    RefreshUploadVideo, JSON or XML, within `timeout_s`.
    """

    command: str | Sequence[str] = field(repr=False)
    timeout_s: float = 60.0

    @property
    def scope(self) -> str:
        """The program's name: arguments may hold what should not be recorded."""
        return f"command:{os.path.basename(self.argv[0])}"

    @property
    def argv(self) -> list[str]:
        """The command as a list."""
        try:
            parts = shlex.split(self.command) if isinstance(self.command, str) else self.command
        except ValueError as error:
            raise ConfigurationError(f"The auth command cannot be split: {error}.") from None
        if not parts:
            raise ConfigurationError("The auth command is empty.")
        return list(parts)

    def connect(self, network: Network) -> GrantSource:
        """Nothing to connect."""
        return _CommandSource(self)


@dataclass(frozen=True, slots=True)
class _CommandSource:
    provider: CommandProvider

    async def create(self, video: NewVideo) -> UploadGrant:
        return decode_answer(await self._run("create", "", _told_of(video)))

    async def renew(self, video_id: str) -> UploadGrant:
        return of_video(decode_answer(await self._run("renew", video_id, {})), video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        return None

    async def _run(self, action: str, video_id: str, told: Mapping[str, str]) -> bytes:
        argv = self.provider.argv
        if any("{video_id}" in part for part in argv):
            argv = [part.replace("{video_id}", video_id) for part in argv]
        elif video_id:
            argv = [*argv, video_id]
        variables = {f"VODUP_{name.upper()}": value for name, value in told.items()}
        variables |= {"VODUP_ACTION": action, "VODUP_VIDEO_ID": video_id}
        return await self._output_of(argv, variables)

    async def _output_of(self, argv: Sequence[str], variables: Mapping[str, str]) -> bytes:
        """What the command prints; its standard error goes where ours goes."""
        name = f"The auth command {argv[0]}"
        timeout_s = self.provider.timeout_s
        try:
            ended = await run_command(
                argv,
                timeout_s=timeout_s,
                grace_s=_COMMAND_GRACE_S,
                environment={**os.environ, **variables},
                output_limit=_ANSWER_LIMIT,
            )
        except CommandNotStarted as error:
            message = f"{name} cannot be started ({error})."
            if error.is_temporary:
                raise TransportError(message, is_sent=False) from error
            raise ConfigurationError(message) from error
        except CommandOutputTooLong as error:
            raise InvalidGrant(f"{name} was ended: {error}.") from error
        except TimeoutError:
            raise TransportError(
                f"{name} did not finish within {timeout_s:g} s.", is_sent=True
            ) from None
        if ended.status != 0:
            raise TransportError(
                f"{name} {describe_status(ended.status)}.",
                is_sent=True,
                next_step="Run it by hand to see why, then run the same command again.",
            )
        return ended.output


def _told_of(video: NewVideo) -> dict[str, str]:
    return {
        "title": video.meta.title or video.file_name,
        "file_name": video.meta.file_name or video.file_name,
        "file_size": str(video.file_size),
        "reference_id": video.meta.reference_id or video.reference_id,
        "meta": video.meta.to_text(),
    }


@dataclass(frozen=True, slots=True)
class UrlProvider:
    """An app server hands out grants, so that no AccessKey is needed on this host.

    With `{video_id}` in the URL: GET. Without: POST of a JSON object with `action`
    ("renew" or "create"), `video_id`, and for "create" `title`, `file_name`,
    `file_size`, `reference_id` and `meta` (JSON). The answer is one of CreateUploadVideo
    or RefreshUploadVideo, JSON or XML. https only, but for a loopback literal where that
    is allowed. 401 is raised as `CallerNotAuthenticated`, 403 as `PermissionDenied`.

    Attributes:
        bearer_token: sent as `Authorization: Bearer …`.
    """

    url: str = field(repr=False)
    bearer_token: str | None = field(default=None, repr=False)

    @property
    def scope(self) -> str:
        """The URL without its query and without a password."""
        scheme, _, rest = self.url.partition("?")[0].partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    def connect(self, network: Network) -> GrantSource:
        """Check the URL; nothing is sent yet."""
        _require_private(self.url, network.trust)
        return _UrlSource(self, network)


def _require_private(url: str, trust: TrustPolicy) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError("The auth URL is not a URL.") from None
    is_loopback = trust.allow_loopback and parts.hostname in {"127.0.0.1", "::1"}
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback):
        raise UntrustedEndpoint(
            "The auth URL must be https: its answer holds credentials.",
            next_step="Use https. For a test on this machine, a loopback literal is allowed "
            "with VODUP_ALLOW_LOOPBACK_HTTP=1.",
        )


class _UrlSource:
    def __init__(self, provider: UrlProvider, network: Network) -> None:
        self._provider = provider
        self._session = Session(
            network.transport,
            PlainSigner(),
            clock=network.clock,
            service=APP_SERVER,
            slot=lambda: vod_call(network.pace),
            retry=network.retry,
            on_retry=network.on_retry,
        )

    async def create(self, video: NewVideo) -> UploadGrant:
        return await self._ask({"action": "create", **_told_of(video)})

    async def renew(self, video_id: str) -> UploadGrant:
        grant = await self._ask({"action": "renew", "video_id": video_id})
        return of_video(grant, video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        return None

    async def _ask(self, told: Mapping[str, str]) -> UploadGrant:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._provider.bearer_token:
            headers["authorization"] = f"Bearer {self._provider.bearer_token}"
        url = self._provider.url
        if "{video_id}" in url:
            if not told.get("video_id"):
                _cannot_create("This auth URL")
            filled = url.replace("{video_id}", quote(told["video_id"], safe=""))
            request = Request(method="GET", endpoint=filled, headers=headers)
        else:
            body = BytesBody(json.dumps(told).encode())
            request = Request(method="POST", endpoint=url, headers=headers, body=body)
        return await self._session.call(
            Operation(name="AuthUrl", request=request, parse=_parse_auth_answer)
        )


def _parse_auth_answer(response: Response) -> UploadGrant:
    if response.status == 401:
        raise CallerNotAuthenticated(
            "The auth URL answered 401: it does not know who asks.",
            code="HTTP401",
            next_step="Look at the token that goes to the auth URL (VODUP_AUTH_URL_TOKEN), then "
            "run the same command again.",
        )
    if response.status == 403:
        raise PermissionDenied(
            "The auth URL answered 403: it gives this caller nothing for this video.",
            code="HTTP403",
            next_step="Ask its operator who may upload here, then run the same command again.",
        )
    if response.status != 200:
        raise ServiceError(
            f"The auth URL answered {response.status}.",
            operation="AuthUrl",
            status=response.status,
            code=f"HTTP{response.status}",
            retry_after_s=response.retry_after_s,
            next_step="Check the app server's log, then run the same command again.",
        )
    try:
        return decode_answer(response.body)
    except InvalidGrant as error:
        raise InvalidGrant(clean_text(f"The auth URL's answer: {error.message}")) from None
