"""What a grant provider is given, and what it must return."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from uploader.clock import Clock
from uploader.errors import InvalidGrant, OverwriteRefused
from uploader.pace import Pace
from uploader.protocol.failures import Service
from uploader.protocol.grants import UploadGrant, UploadTarget
from uploader.protocol.signing import OssDialect
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import VideoFacts, VideoMeta
from uploader.protocol.wire import Signer, Transport
from uploader.session import Retried, RetryPolicy, Session

Slot = AbstractAsyncContextManager[object]
if TYPE_CHECKING:
    from uploader.endpoints import OssEndpoints

Answer = UploadGrant | str | bytes | Mapping[str, Any]
"""A grant, or an answer of CreateUploadVideo or RefreshUploadVideo to decode."""


@dataclass(frozen=True, slots=True)
class Network:
    """What it takes to call a service.

    Attributes:
        dialect: how requests to OSS are signed.
        endpoints: chooses the host that they go to; None: the address does.
        congestion: returns the TCP congestion control of the connections, "" if unknown.
        unprotected_buckets: buckets that refuse `x-oss-forbid-overwrite`; mutable, grows.
    """

    transport: Transport
    pace: Pace
    clock: Clock
    retry: RetryPolicy
    trust: TrustPolicy
    dialect: OssDialect = field(default_factory=OssDialect)
    endpoints: OssEndpoints | None = None
    on_retry: Callable[[Retried], None] = field(default=lambda _: None)
    congestion: Callable[[], str] = field(default=lambda: "")
    unprotected_buckets: set[str] = field(default_factory=set)

    def session(
        self, signer: Signer, service: Service, slot: Callable[[], Slot] | None = None
    ) -> Session:
        """Return a session; without a `slot` its calls count towards the account's a second."""
        return Session(
            self.transport,
            signer,
            clock=self.clock,
            service=service,
            slot=slot or self._vod_call,
            retry=self.retry,
            on_retry=self.on_retry,
        )

    async def dialect_for(self, target: UploadTarget) -> OssDialect:
        """Return how requests for a checked target are sent and signed.

        Raises:
            ConfigurationError, TransportError: the endpoint that the caller chose cannot be used.
        """
        return await self.endpoints.dialect(target) if self.endpoints else self.dialect

    @asynccontextmanager
    async def _vod_call(self) -> AsyncIterator[None]:
        await self.pace.vod_call()
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVideo:
    """A video to create. `is_repeat`: an earlier run may have created it already."""

    meta: VideoMeta
    file_name: str
    file_size: int
    reference_id: str
    is_repeat: bool = False

    @property
    def fields(self) -> dict[str, str]:
        """What an app server or a command needs to create it."""
        return {
            "title": self.meta.title or self.file_name,
            "file_name": self.meta.file_name or self.file_name,
            "file_size": str(self.file_size),
            "reference_id": self.meta.reference_id or self.reference_id,
            "meta": self.meta.to_text(),
        }


class ReferenceUsed(OverwriteRefused):
    """The ReferenceId belongs to a video that nothing more can be sent to.

    Attributes:
        facts: of that video, which is finished; None: it is gone.
    """

    def __init__(self, reference_id: str, video_id: str | None, facts: VideoFacts | None) -> None:
        state = f"the finished video {video_id}" if facts is not None else "a video that is gone"
        super().__init__(f"The ReferenceId {reference_id} belongs to {state}.", video_id=video_id)
        self.facts = facts


class GrantSource(Protocol):
    """Issues grants over an open network."""

    async def create(self, video: NewVideo) -> UploadGrant:
        """Create a video. Called again after a crash it must not create a second one.

        Raises:
            ReferenceUsed: `video.reference_id` is that of an earlier video.
        """

    async def renew(self, video_id: str) -> UploadGrant:
        """Return a grant with new credentials for the same video."""

    async def facts(self, video_id: str) -> VideoFacts | None:
        """Return VOD's record of the video; None where it cannot be read."""


@runtime_checkable
class GrantProvider(Protocol):
    """Describes who issues grants. Immutable; may be shared between uploaders."""

    @property
    def scope(self) -> str:
        """Which service and region: a part of the default key of an upload."""

    def connect(self, network: Network) -> GrantSource:
        """Return a source that uses `network`. Sends nothing."""


def of_video(grant: UploadGrant, video_id: str) -> UploadGrant:
    """Require that a grant is for this video; the answer need not name it."""
    if grant.video_id is None:
        return replace(grant, video_id=video_id)
    if grant.video_id != video_id:
        raise InvalidGrant(
            f"The renewed grant is for video {grant.video_id}, not {video_id}; it was not used.",
            video_id=video_id,
            next_step="Correct the grant service: an upload must keep its VideoId. Then run the "
            "same command again.",
        )
    return grant
