"""Grants from an app server: through a callback, a command or a URL.

The server has the AccessKey; this host needs none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn
from urllib.parse import quote, urlsplit

from uploader import errors
from uploader.commands import (
    CommandNotStarted,
    CommandOutputTooLong,
    describe_output,
    describe_status,
    run_command,
    split_command,
)
from uploader.credentials.contract import Answer, GrantSource, Network, NewVideo, of_video
from uploader.credentials.live import PlainSigner
from uploader.errors import InvalidGrant, TransportError, VodupError
from uploader.protocol.decode import decode_answer
from uploader.protocol.documents import clean_text
from uploader.protocol.failures import APP_SERVER
from uploader.protocol.grants import UploadGrant
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import VideoFacts
from uploader.protocol.wire import BytesBody, Operation, Request, Response
from uploader.redaction import remember
from uploader.session import Session
from uploader.tasks import in_own_task

_COMMAND_GRACE_S: Final = 1.0
"""Requests wait for a renewal until its command has ended. Too short: it cannot clean up."""

_ANSWER_LIMIT: Final = 1024 * 1024
"""Bytes that a command may print; an answer has about two thousand."""


def _cannot_create(provider: str) -> NoReturn:
    raise errors.ConfigurationError(
        f"{provider} renews grants but cannot create a video.",
        next_step="Pass the VideoId (--video-id), a grant (--grant), or a provider that creates.",
    )


class _AppServerSource:
    """A `GrantSource` on a coroutine function that takes the fields of a request."""

    def __init__(self, request: Callable[[Mapping[str, str]], Awaitable[UploadGrant]]) -> None:
        self._request = request

    async def create(self, video: NewVideo) -> UploadGrant:
        return await self._request({"action": "create", **video.fields})

    async def renew(self, video_id: str) -> UploadGrant:
        grant = await self._request({"action": "renew", "video_id": video_id})
        return of_video(grant, video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        return None


@dataclass(frozen=True, slots=True)
class CallbackProvider:
    """Coroutine functions of the caller's issue grants.

    Attributes:
        on_renew: gets the VideoId; returns an `UploadGrant` or an answer to decode.
        on_create: gets a `NewVideo`; must return the same video when it is called again
            with the same `reference_id`.
        scope: names the issuer in the keys of uploads.
    """

    on_renew: Callable[[str], Awaitable[Answer]]
    on_create: Callable[[NewVideo], Awaitable[Answer]] | None = None
    scope: str = "callback"

    def connect(self, network: Network) -> GrantSource:
        """Nothing to connect."""
        return _CallbackSource(self)


@dataclass(frozen=True, slots=True)
class _CallbackSource:
    provider: CallbackProvider

    async def create(self, video: NewVideo) -> UploadGrant:
        if self.provider.on_create is None:
            _cannot_create("This callback")
        return await _called("on_create", partial(self.provider.on_create, video))

    async def renew(self, video_id: str) -> UploadGrant:
        grant = await _called("on_renew", partial(self.provider.on_renew, video_id))
        return of_video(grant, video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        return None


async def _called(name: str, callback: Callable[[], Awaitable[Answer]]) -> UploadGrant:
    """Call a callback. A renewal ahead of time that fails must not end the upload, so
    everything that it raises becomes a `VodupError`.
    """

    async def call() -> Answer:
        return await callback()

    try:
        answer = await in_own_task(call())
    except VodupError:
        raise
    except Exception as error:
        # Its text is not repeated: it may hold what the callback authenticates with.
        raise TransportError(
            f"The callback {name} raised {type(error).__name__}.",
            is_sent=True,
            next_step="Fix the error in the callback, then run the same command again.",
        ) from error
    return answer if isinstance(answer, UploadGrant) else decode_answer(answer)


@dataclass(frozen=True, slots=True)
class CommandProvider:
    """A command prints grants, so that this host needs no AccessKey.

    The command runs without a shell. `{video_id}` in an argument is replaced; without one the
    VideoId is appended. The environment has VODUP_ACTION ("renew" or "create"),
    VODUP_VIDEO_ID, and for "create" VODUP_TITLE, VODUP_FILE_NAME, VODUP_FILE_SIZE,
    VODUP_REFERENCE_ID and VODUP_META (JSON). It prints an answer of CreateUploadVideo or
    RefreshUploadVideo, JSON or XML, within `timeout_s`; after that it is ended, with all
    processes that it has started.
    """

    command: str | Sequence[str] = field(repr=False)
    timeout_s: float = 60.0

    @property
    def scope(self) -> str:
        """The program's name: arguments may hold secrets."""
        return f"command:{os.path.basename(self.argv[0])}"

    @property
    def argv(self) -> list[str]:
        """The command as a list."""
        return split_command(self.command, "The auth command")

    def connect(self, network: Network) -> GrantSource:
        """Nothing to connect."""
        return _AppServerSource(self._request)

    async def _request(self, fields: Mapping[str, str]) -> UploadGrant:
        argv, video_id = self.argv, fields.get("video_id", "")
        if any("{video_id}" in part for part in argv):
            argv = [part.replace("{video_id}", video_id) for part in argv]
        elif video_id:
            argv = [*argv, video_id]
        fields = {"video_id": "", **fields}
        variables = {f"VODUP_{name.upper()}": value for name, value in fields.items()}
        return decode_answer(await self._output_of(argv, {**os.environ, **variables}))

    async def _output_of(self, argv: Sequence[str], environment: Mapping[str, str]) -> bytes:
        """Return what the command prints to its standard output."""
        name = f"The auth command {argv[0]}"
        try:
            ended = await run_command(
                argv,
                timeout_s=self.timeout_s,
                grace_s=_COMMAND_GRACE_S,
                environment=environment,
                output_limit=_ANSWER_LIMIT,
            )
        except CommandNotStarted as error:
            message = f"{name} cannot be started ({error})."
            if error.is_temporary:
                raise TransportError(message, is_sent=False) from error
            raise errors.ConfigurationError(message) from error
        except CommandOutputTooLong as error:
            raise InvalidGrant(f"{name} was ended: {error}.") from error
        except TimeoutError as error:
            printed = describe_output(str(error))
            message = f"{name} did not finish within {self.timeout_s:g} s{printed}."
            raise TransportError(message, is_sent=True) from None
        if ended.status != 0:
            raise TransportError(
                f"{name} {describe_status(ended.status, ended.last_output)}.",
                is_sent=True,
                next_step="Run it by hand to see why, then run the same command again.",
            )
        return ended.output


@dataclass(frozen=True, slots=True)
class UrlProvider:
    """An app server issues grants over HTTP, so that this host needs no AccessKey.

    With `{video_id}` in the URL: GET. Without: POST of a JSON object with `action`
    ("renew" or "create"), `video_id`, and for "create" `title`, `file_name`,
    `file_size`, `reference_id` and `meta` (JSON). The answer is one of CreateUploadVideo
    or RefreshUploadVideo, JSON or XML. https only, except for a loopback literal where
    that is allowed. 401 is raised as `CallerNotAuthenticated`, 403 as `PermissionDenied`.

    Attributes:
        bearer_token: sent as `Authorization: Bearer …`.
    """

    url: str = field(repr=False)
    bearer_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        remember(self.bearer_token)

    @property
    def scope(self) -> str:
        """The URL without its query and without a password."""
        scheme, _, rest = self.url.partition("?")[0].partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    def connect(self, network: Network) -> GrantSource:
        """Check the URL. Sends nothing."""
        _require_https(self.url, network.trust)
        session = network.session(PlainSigner(), APP_SERVER)
        return _AppServerSource(partial(self._request, session))

    async def _request(self, session: Session, fields: Mapping[str, str]) -> UploadGrant:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self.bearer_token:
            headers["authorization"] = f"Bearer {self.bearer_token}"
        if "{video_id}" in self.url:
            if "video_id" not in fields:
                _cannot_create("This auth URL")
            filled = self.url.replace("{video_id}", quote(fields["video_id"], safe=""))
            request = Request(method="GET", endpoint=filled, headers=headers)
        else:
            body = BytesBody(json.dumps(fields).encode())
            request = Request(method="POST", endpoint=self.url, headers=headers, body=body)
        return await session.call(
            Operation(name="AuthUrl", request=request, parse=_parse_auth_answer)
        )


def _require_https(url: str, trust: TrustPolicy) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise errors.ConfigurationError("The auth URL is not a URL.") from None
    is_loopback = trust.allow_loopback and parts.hostname in {"127.0.0.1", "::1"}
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback):
        raise errors.UntrustedEndpoint(
            "The auth URL must be https: its answer holds credentials.",
            next_step="Use https. For a test on this machine, a loopback literal is allowed "
            "with VODUP_ALLOW_LOOPBACK_HTTP=1.",
        )


def _parse_auth_answer(response: Response) -> UploadGrant:
    if response.status != 200:
        raise errors.ServiceError(
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
