"""Who hands out grants: what a provider is given, and what it must give."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from uploader.clock import Clock
from uploader.errors import (
    InvalidGrant,
)
from uploader.pace import Pace
from uploader.protocol.grants import UploadGrant
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import VideoFacts, VideoMeta
from uploader.protocol.wire import Transport
from uploader.session import Retried, RetryPolicy

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
