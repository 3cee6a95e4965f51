"""Who hands out grants, and renewing them: one at a time, ahead of time, with an end."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import secrets
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable
from urllib.parse import quote, urlsplit

from uploader.clock import Clock
from uploader.commands import (
    CommandNotStarted,
    CommandOutputTooLong,
    describe_status,
    run_command,
)
from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    CredentialsRejected,
    InvalidGrant,
    OverwriteRefused,
    PermissionDenied,
    ServiceError,
    TransportError,
    UntrustedEndpoint,
    VideoError,
    VideoGone,
    VodupError,
)
from uploader.pace import Pace
from uploader.protocol import oss, vod
from uploader.protocol.documents import clean_text
from uploader.protocol.failures import APP_SERVER, VOD, Meaning, is_outcome_known
from uploader.protocol.grants import StsCredentials, UploadGrant, UploadTarget, decode_answer
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import AccessKey, VideoFacts, VideoMeta
from uploader.protocol.wire import BytesBody, Operation, Request, Response, SignedRequest, Transport
from uploader.session import Retried, RetryPolicy, Session
from uploader.threads import in_thread

__all__ = [
    "DOCUMENTED_LIFE_S",
    "CallbackProvider",
    "CommandProvider",
    "GrantProvider",
    "GrantSource",
    "LiveGrant",
    "Network",
    "NewVideo",
    "UrlProvider",
    "VodProvider",
    "life_s",
]

DOCUMENTED_LIFE_S = 3000.0
"""VOD doc "Upload URLs and credentials": 3,000 s, whatever `Expiration` says."""

_RENEW_AHEAD_S = 300.0
_MAX_REFUSED_IN_A_ROW = 2
_RENEWAL_PAUSE_S = 10.0

_COMMAND_GRACE_S = 1.0
"""Renewals of the upload wait while a command ends. Too short: it cannot remove its files."""

_ANSWER_LIMIT = 1024 * 1024
"""Bytes; an answer has about two thousand."""

Answer = UploadGrant | str | bytes | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Network:
    """What a provider needs to talk to anybody.

    Attributes:
        congestion: tells which TCP congestion control the connections use, "" if unknown.
    """

    transport: Transport
    pace: Pace
    clock: Clock
    retry: RetryPolicy
    trust: TrustPolicy
    on_retry: Callable[[Retried], None] = field(default=lambda _: None)
    congestion: Callable[[], str] = field(default=lambda: "")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVideo:
    """A video to be made. `is_repeat`: an earlier run may have made it already."""

    meta: VideoMeta
    file_name: str
    file_size: int
    reference_id: str
    is_repeat: bool = False


class GrantSource(Protocol):
    """Hands out grants over an open network."""

    async def create(self, video: NewVideo) -> UploadGrant:
        """Make a video. Called again after a crash it must not make a second one."""

    async def renew(self, video_id: str) -> UploadGrant:
        """Return a grant with new credentials for the same video."""

    async def facts(self, video_id: str) -> VideoFacts | None:
        """Tell what VOD knows of the video; None where that cannot be asked."""


@runtime_checkable
class GrantProvider(Protocol):
    """Describes who hands out grants. Immutable; may be shared between uploaders."""

    @property
    def scope(self) -> str:
        """Which service and region: a part of the default key of an upload."""

    def connect(self, network: Network) -> GrantSource:
        """Begin to use `network`; nothing is sent yet."""


# --- one upload's credentials ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Held:
    """Credentials with the time they came and the time they end, on `Clock.elapsed_s`."""

    credentials: StsCredentials
    generation: int
    received_s: float
    deadline_s: float

    @property
    def life_s(self) -> float:
        return self.deadline_s - self.received_s


def life_s(credentials: StsCredentials, *, clock: Clock) -> float:
    """Return how long these credentials will last from now, in seconds.

    The earliest of what the document says, `Expiration` and `ExpireUTCTime`: they
    contradict each other in practice. 0 or less: they have run out.
    """
    signals = [DOCUMENTED_LIFE_S]
    if credentials.life_s is not None:
        signals.append(credentials.life_s)
    if credentials.expires_at is not None:
        signals.append((credentials.expires_at - clock.utc_now()).total_seconds())
    return min(signals)


def renew_ahead_s(life_s: float, *, slow_part_s: float) -> float:
    """Return how long before their end credentials are renewed, in seconds.

    Five minutes, or three slow parts if that is more, so that what is under way still
    finishes; in proportion for credentials that live less than the documented time.
    """
    usual = min(_RENEW_AHEAD_S, life_s / 10)
    return min(max(usual, 3 * slow_part_s), life_s / 2)


class LiveGrant:
    """Signs for one OSS object with credentials that are replaced while parts are sent.

    Mutable state: the held credentials, which of them OSS has refused or accepted, and
    where VOD points by now (`moved_to`, None while that is our target). A `Signer` (see
    `protocol.wire`).
    """

    def __init__(
        self,
        target: UploadTarget,
        renew: Callable[[], Awaitable[UploadGrant]] | None,
        *,
        clock: Clock,
        dialect: oss.OssDialect,
        grant: UploadGrant | None = None,
        on_renewed: Callable[[int], None] = lambda _: None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`grant` may be missing or stale: it is renewed when first needed.

        `renew` None: nobody can renew; the given credentials must do.
        """
        self._target, self._renew, self._clock, self._dialect = target, renew, clock, dialect
        self._on_renewed, self._draw = on_renewed, draw
        self._lock = asyncio.Lock()
        self._refused_in_a_row = 0
        self._refused_generation = self._accepted_generation = -1
        self._failure: tuple[int, VodupError] | None = None
        self._held: _Held | None = None
        self._slow_part_s = 0.0
        self.moved_to: UploadTarget | None = None
        if grant is not None and self._is_usable(grant.credentials):
            self._held = self._hold(grant.credentials, generation=0)

    @property
    def _generation(self) -> int:
        """0 until the first renewal, whether a usable grant was given or not."""
        return self._held.generation if self._held else 0

    def _is_usable(self, credentials: StsCredentials) -> bool:
        return self._renew is None or life_s(credentials, clock=self._clock) > 0

    def _hold(self, credentials: StsCredentials, *, generation: int) -> _Held:
        now_s = self._clock.elapsed_s()
        life = life_s(credentials, clock=self._clock)
        if life <= 0:
            # Just received, and yet over by our wall clock, which may be the one that is
            # wrong. OSS decides; if it refuses them, that is counted.
            life = min(credentials.life_s or DOCUMENTED_LIFE_S, DOCUMENTED_LIFE_S)
        return _Held(credentials, generation, now_s, now_s + life)

    async def prepare(self) -> None:
        """Make sure there are credentials that are neither refused nor past their end."""
        if not self.is_ready() or self._has_run_out():
            await self._replace(self._generation)

    def is_ready(self) -> bool:
        """Whether there are credentials that OSS has not refused.

        What ran out while a call waited for its turn is tried all the same: our deadline is
        the earliest of several guesses.
        """
        return self._held is not None and self._generation != self._refused_generation

    def _has_run_out(self) -> bool:
        held = self._held
        if held is None or self._renew is None:
            return False
        return self._clock.elapsed_s() >= held.deadline_s

    def sign(self, operation: Operation[Any], *, clock_offset_s: float) -> SignedRequest:
        """Sign with the newest credentials."""
        held = self._held
        if held is None:
            raise RuntimeError("prepare() comes first")
        return oss.sign(
            operation,
            held.credentials,
            at=self._clock.utc_now() + timedelta(seconds=clock_offset_s),
            generation=held.generation,
            dialect=self._dialect,
        )

    def is_aged(self, signed: SignedRequest) -> bool:
        """Whether the credentials were replaced since, or four fifths of their life is over."""
        held = self._held
        if held is None or signed.generation != held.generation:
            return True
        return self._clock.elapsed_s() > held.deadline_s - held.life_s / 5

    def accepted(self, signed: SignedRequest) -> None:
        """OSS took these credentials: renewing makes progress."""
        if signed.generation == self._generation:
            self._accepted_generation = signed.generation
            self._refused_in_a_row = 0

    async def renew(self, refused: SignedRequest) -> None:
        """Replace the credentials that signed `refused`, unless somebody has done so."""
        self._note_refused(refused.generation)
        await self._replace(refused.generation)

    def _note_refused(self, generation: int) -> None:
        """Sign nothing more with these: `prepare` waits from here on.

        A renewal counts as one made in vain only when OSS has refused what it brought:
        while no request is sent, credentials come and go without having been tried.
        """
        if generation != self._generation or generation == self._refused_generation:
            return
        self._refused_generation = generation
        if generation > 0 and generation != self._accepted_generation:
            self._refused_in_a_row += 1

    def note_part_time(self, seconds: float) -> None:
        """Remember how long slow parts take: renewals must come that much earlier."""
        self._slow_part_s = max(seconds, self._slow_part_s * 0.9)

    def move(self, target: UploadTarget) -> None:
        """Sign for another object from now on; the credentials are for that one already."""
        self._target, self.moved_to = target, None

    async def keep_fresh(self) -> None:
        """Renew ahead of the deadline for as long as this runs; uploading goes on meanwhile.

        While the old credentials still work a failing renewal is no failure of the
        upload; what VOD says of the video itself is.
        """
        if self._renew is None:
            return
        while True:
            await self._clock.sleep(self._until_renewal_s())
            held = self._held
            if held is None or self._until_renewal_s() > 0:
                continue
            try:
                await self._replace(held.generation)
            except VideoError:
                raise
            except VodupError:
                self._failure = None
                await self._clock.sleep(min(_RENEWAL_PAUSE_S, held.life_s / 20))

    def _until_renewal_s(self) -> float:
        held = self._held
        if held is None:
            return 1.0
        ahead_s = renew_ahead_s(held.life_s, slow_part_s=self._slow_part_s)
        jitter_s = self._draw() * ahead_s / 5
        return max(0.0, held.deadline_s - ahead_s - jitter_s - self._clock.elapsed_s())

    async def _replace(self, refused_generation: int) -> None:
        """Renew once for all who were refused with the same generation."""
        async with self._lock:
            current = self._generation
            if current != refused_generation:
                return  # another caller renewed while this one waited
            if self._failure is not None and self._failure[0] == refused_generation:
                raise self._failure[1]
            try:
                fresh = await self._ask()
            except VodupError as error:
                self._failure = (refused_generation, error)
                raise
            self._note_target(fresh.target)
            self._held = self._hold(fresh.credentials, generation=current + 1)
        self._on_renewed(current + 1)

    async def _ask(self) -> UploadGrant:
        if self._renew is None:
            raise CredentialsRejected(
                "The upload credentials have run out, and nobody was named who renews them.",
                next_step="Run the same command with a new --grant (an answer of "
                "RefreshUploadVideo), or with --auth-command or --auth-url.",
            )
        if self._refused_in_a_row >= _MAX_REFUSED_IN_A_ROW:
            raise CredentialsRejected(
                f"OSS refused the credentials of {self._refused_in_a_row} renewals in a row."
            )
        return await self._renew()

    def _note_target(self, target: UploadTarget) -> None:
        """Keep the first bucket and key, as the official SDKs do; remember where VOD points.

        Another endpoint alone means nothing: acceleration is asked for on Create only.
        """
        ours = (self._target.bucket, self._target.object_key)
        is_same = (target.bucket, target.object_key) == ours
        self.moved_to = None if is_same else target


class PlainSigner:
    """For requests that carry their right in their URL, or need none."""

    async def prepare(self) -> None:
        """Nothing to wait for."""

    def is_ready(self) -> bool:
        """There is nothing that could run out."""
        return True

    def sign(self, operation: Operation[Any], *, clock_offset_s: float) -> SignedRequest:
        """Send it as it is: `endpoint` is the whole URL."""
        request = operation.request
        return SignedRequest(request.method, request.endpoint, request.headers, request.body)

    def is_aged(self, signed: SignedRequest) -> bool:
        """There are no credentials."""
        return False

    async def renew(self, refused: SignedRequest) -> None:
        """Nothing can be renewed."""
        raise CredentialsRejected("This address was refused.")

    def accepted(self, signed: SignedRequest) -> None:
        """Nothing to note."""


# --- VOD itself ------------------------------------------------------------------


AccessKeys = Callable[[], AccessKey | Awaitable[AccessKey]]


@dataclass(frozen=True, slots=True)
class VodProvider:
    """ApsaraVideo VOD, called with the caller's own AccessKey.

    Attributes:
        access_key: a key, or a callable (plain or async) that returns the newest one.
        region: of the VOD service, for example "cn-shanghai". Videos of another region
            are not found.
        endpoint: overrides "https://vod.<region>.aliyuncs.com".
    """

    access_key: AccessKey | AccessKeys = field(repr=False)
    region: str = "cn-shanghai"
    endpoint: str | None = None

    @classmethod
    def from_env(cls, *, region: str | None = None, endpoint: str | None = None) -> VodProvider:
        """Take the AccessKey from ALIBABA_CLOUD_ACCESS_KEY_ID, _SECRET and _SECURITY_TOKEN.

        Without them, the default chain of alibabacloud-credentials is asked (config
        files, ECS role, OIDC), if that package is installed. Region and endpoint default
        to VODUP_REGION and VODUP_VOD_ENDPOINT.

        Raises:
            CallerNotAuthenticated: there is neither.
        """
        return cls(
            access_key_from_env(),
            region or os.environ.get("VODUP_REGION") or "cn-shanghai",
            endpoint or os.environ.get("VODUP_VOD_ENDPOINT") or None,
        )

    @property
    def scope(self) -> str:
        """For example "https://vod.cn-shanghai.aliyuncs.com"."""
        return self.endpoint or f"https://vod.{self.region}.aliyuncs.com"

    def connect(self, network: Network) -> GrantSource:
        """Check the endpoint; nothing is sent yet."""
        return _VodSource(network.trust.check_vod_endpoint(self.scope), self.access_key, network)


def access_key_from_env() -> AccessKey | AccessKeys:
    """The caller's AccessKey as `VodProvider.from_env` finds it."""
    return _key_from_env() or _default_chain()


def _key_from_env() -> AccessKey | None:
    key_id = os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_ID", "").strip()
    secret = os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "").strip()
    if bool(key_id) != bool(secret):
        raise CallerNotAuthenticated(
            "Only one of ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET is set."
        )
    token = os.environ.get("ALIBABA_CLOUD_SECURITY_TOKEN", "").strip()
    return AccessKey(id=key_id, secret=secret, security_token=token or None) if key_id else None


def _default_chain() -> AccessKeys:
    try:
        from alibabacloud_credentials.client import Client
    except ImportError:
        raise CallerNotAuthenticated(
            "There is no AccessKey: ALIBABA_CLOUD_ACCESS_KEY_ID is not set.",
            next_step="Set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or "
            "install vodup[credentials] for config files and roles, or push with --grant, "
            "--auth-command or --auth-url, which need no AccessKey.",
        ) from None
    client: list[Any] = []

    def ask() -> AccessKey:
        # Its own async path holds a thread lock on the event loop; a thread does not.
        if not client:
            client.append(Client())
        found = client[0].get_credential()
        return AccessKey(
            id=found.access_key_id,
            secret=found.access_key_secret,
            security_token=found.security_token or None,
        )

    async def ask_in_thread() -> AccessKey:
        try:
            return await in_thread(ask)
        except Exception as error:  # the chain raises bare exceptions of many kinds
            raise CallerNotAuthenticated(
                f"The default credential chain found no AccessKey ({type(error).__name__})."
            ) from None

    return ask_in_thread


class CallerSigner:
    """Signs calls of RPC style with the caller's AccessKey. Mutable state: the newest key.

    One upload may ask VOD for credentials and for facts at a time, so keys are asked for
    one at a time, too.
    """

    def __init__(self, access_key: AccessKey | AccessKeys, clock: Clock) -> None:
        self._source, self._clock = access_key, clock
        self._key: AccessKey | None = None
        self._generation = 0
        self._lock = asyncio.Lock()

    async def prepare(self) -> None:
        """Get the key."""
        async with self._lock:
            if self._key is not None:
                return
            self._key = await self._ask()

    def is_ready(self) -> bool:
        """Whether there is one."""
        return self._key is not None

    async def _ask(self) -> AccessKey:
        if isinstance(self._source, AccessKey):
            return self._source
        found = self._source()
        return await found if inspect.isawaitable(found) else found

    def sign(self, operation: Operation[Any], *, clock_offset_s: float) -> SignedRequest:
        """Sign with the newest key."""
        if self._key is None:  # pragma: no cover - a Session prepares before it signs
            raise RuntimeError("prepare() comes first")
        at = self._clock.utc_now() + timedelta(seconds=clock_offset_s)
        nonce = secrets.token_hex(16)
        return vod.sign(operation, self._key, at=at, nonce=nonce, generation=self._generation)

    def is_aged(self, signed: SignedRequest) -> bool:
        """Whether it was replaced since."""
        return signed.generation != self._generation

    async def renew(self, refused: SignedRequest) -> None:
        """Ask for another one."""
        async with self._lock:
            if refused.generation != self._generation:
                return
            fresh = await self._ask()
            if fresh == self._key:
                raise CallerNotAuthenticated(
                    "VOD does not accept this AccessKey, or it has expired."
                )
            self._key, self._generation = fresh, self._generation + 1

    def accepted(self, signed: SignedRequest) -> None:
        """Nothing to note."""


class _VodSource:
    """A `GrantSource` on VOD's API."""

    def __init__(self, endpoint: str, access_key: AccessKey | AccessKeys, network: Network) -> None:
        self._endpoint = endpoint
        self._session = Session(
            network.transport,
            CallerSigner(access_key, network.clock),
            clock=network.clock,
            service=VOD,
            slot=lambda: vod_call(network.pace),
            retry=network.retry,
            on_retry=network.on_retry,
        )

    async def create(self, video: NewVideo) -> UploadGrant:
        """Make the video, or find the one that an attempt without an answer has made."""
        operation = vod.create_upload_video(
            self._endpoint,
            video.meta,
            file_name=video.file_name,
            file_size=video.file_size,
            reference_id=video.reference_id,
        )
        reference_id = operation.request.params["ReferenceId"]
        if video.is_repeat and (found := await self._find(reference_id)):
            return found
        has_doubt = video.is_repeat
        for _ in range(_CREATE_ATTEMPTS):
            try:
                return await self._session.call(operation)
            except VodupError as failure:
                has_doubt = has_doubt or not is_outcome_known(failure)
                if not has_doubt:
                    raise
                # Perhaps carried out, or a duplicate of what was: never a second video.
                if found := await self._find(reference_id):
                    return found
                last = failure
        raise last

    async def _find(self, reference_id: str) -> UploadGrant | None:
        """Return a grant for the video of this ReferenceId; None if there is none.

        Where that cannot be told, as in a region that does not know ReferenceId yet, it
        raises: the video may exist, and a second one must not be made.
        """
        operation = vod.refresh_upload_video(self._endpoint, reference_id=reference_id)
        try:
            grant = await self._session.call(operation)
        except VideoGone:
            return None
        except VodupError as error:
            if VOD.meaning(error) is Meaning.BAD_PARAMETER:
                error.next_step = _LOOK_YOURSELF
            raise
        if grant.video_id is None:
            raise TransportError("RefreshUploadVideo did not tell the VideoId.", is_sent=True)
        facts = await self.facts(grant.video_id)
        if facts is not None and not facts.is_waiting:
            raise OverwriteRefused(
                f"The ReferenceId {reference_id} belongs to the finished video {grant.video_id}.",
                video_id=grant.video_id,
            )
        return grant

    async def renew(self, video_id: str) -> UploadGrant:
        """Call RefreshUploadVideo."""
        operation = vod.refresh_upload_video(self._endpoint, video_id=video_id)
        return of_video(await self._session.call(operation), video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        """Call GetMezzanineInfo."""
        return await self._session.call(vod.get_mezzanine_info(self._endpoint, video_id))


_CREATE_ATTEMPTS = 3

_LOOK_YOURSELF = (
    "Look in the VOD console whether the video was made, for its ReferenceId cannot be asked for "
    "here: if it was, pass its VideoId (--video-id), else run `vodup abort`; then run again."
)


@asynccontextmanager
async def vod_call(pace: Pace) -> AsyncIterator[None]:
    """Wait for a turn: calls a second are limited for the account."""
    await pace.vod_call()
    yield


def of_video(grant: UploadGrant, video_id: str) -> UploadGrant:
    """Require that a grant is for this video; the answer need not say so."""
    if grant.video_id is None:
        return replace(grant, video_id=video_id)
    if grant.video_id != video_id:
        raise InvalidGrant(
            f"The renewed grant is for video {grant.video_id}, not {video_id}; it was not used.",
            video_id=video_id,
            next_step="Check who hands out grants: the VideoId of an upload never changes.",
        )
    return grant


# --- others who hand out grants --------------------------------------------------


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
