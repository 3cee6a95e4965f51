"""What the caller wants of one upload, and what all steps of it share."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from uploader.credentials import GrantSource, Network
from uploader.errors import (
    ConfigurationError,
    CredentialError,
    StateError,
    TransferError,
    VodupError,
)
from uploader.options import UploadOptions
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import VideoMeta, is_unsendable
from uploader.sources import Fingerprint, Source
from uploader.state import Journal, StateStore, UploadRecord
from uploader.upload.progress import Progress

if TYPE_CHECKING:
    from uploader.protocol.media import MediaKind

OnSourceChange = Literal["fail", "new-video", "overwrite"]
"""What becomes of a finished upload whose source has changed since."""

MAX_LIVES: Final = 100
"""How many earlier videos of a source are compared with it."""

_MACHINE_ID: Final = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """What the caller wants of one upload.

    Attributes:
        meta: what CreateUploadVideo is given, if a video is created.
        video_id: continue this video; None: create one, or continue the recorded one. Known
            wherever there is a grant.
        grant: a decoded UploadAddress and UploadAuth to begin with.
        overwrite: whether a finished video may be replaced.
        on_source_change: if the upload is finished and its source has changed since: fail,
            upload it into a new video, or replace the content of its video.
        media: store the source as an image or attached media, not as a video.
        resumed: requests to OSS begin only while this is set; None: it is never paused.
    """

    meta: VideoMeta = field(default_factory=VideoMeta)
    video_id: str | None = None
    grant: UploadGrant | None = None
    overwrite: bool = False
    on_source_change: OnSourceChange = "fail"
    resumed: asyncio.Event | None = None
    media: MediaKind | None = None


def known_video_id(video_id: str | None, grant: UploadGrant | None) -> str | None:
    """The VideoId that the caller or the grant names; None if there is no grant.

    Raises:
        ConfigurationError: they contradict each other, neither names the video, or the name
            is no text.
    """
    if video_id is not None and is_unsendable(video_id):
        raise ConfigurationError("video_id has control characters or is not UTF-8 text.")
    if grant is None:
        return video_id
    if grant.video_id is not None and video_id is not None and grant.video_id != video_id:
        raise ConfigurationError(f"The grant is for video {grant.video_id}, not for {video_id}.")
    if (known := video_id or grant.video_id) is None:
        raise ConfigurationError(
            "The grant does not name its VideoId, and renewing needs it.",
            next_step="Pass video_id= (--video-id) as well.",
        )
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadContext:
    """One run of one upload: what all steps share.

    Attributes:
        key: the upload's name in the state store.
        grants: issues grants; None: only `request.grant` is there.
        scope: which service and region the video is in.
    """

    key: str
    request: UploadRequest
    source: Source
    journal: Journal
    store: StateStore
    network: Network
    scope: str
    grants: GrantSource | None
    options: UploadOptions
    progress: Progress

    @property
    def record(self) -> UploadRecord:
        """The record; there is one once the upload is recorded."""
        if (record := self.journal.record) is None:  # pragma: no cover - it comes first
            raise RuntimeError(f"upload {self.key} is not recorded yet")
        return record

    @property
    def may_overwrite(self) -> bool:
        """Whether the content of a finished video may be replaced, by this run or a former one."""
        return self.request.overwrite or self.record.is_overwrite

    def require_grants(self) -> GrantSource:
        """What issues grants.

        Raises:
            ConfigurationError: nothing does.
        """
        if self.grants is None:
            raise ConfigurationError(
                "No provider issues grants for this upload.",
                next_step="Pass a provider, or a fresh grant (--grant).",
            )
        return self.grants


@asynccontextmanager
async def recording_error(ctx: UploadContext) -> AsyncIterator[None]:
    """Record an error that ends the block, for `vodup status`; the error itself matters more."""
    try:
        yield
    except VodupError as error:
        stream = ctx.source.stream
        # For a stream it takes more than running the same command again.
        if stream is not None and isinstance(error, TransferError | CredentialError | StateError):
            error.next_step = f"{error.next_step} {stream.resume_hint.format(key=ctx.key)}".strip()
        if ctx.journal.record is not None and not isinstance(error, StateError):
            text = f"{type(error).__name__}: {error.message}".encode(errors="replace").decode()
            with suppress(StateError):
                await ctx.journal.record_error(text)
        raise


def first_reference_id(ctx: UploadContext, fingerprint: Fingerprint) -> str:
    """The ReferenceId of the source's first video.

    It is derived from what tells the source on this machine from every other, so that a video
    is found again when the state is lost: the fingerprint without what may change while the
    file stays the same, its change time and the number of its device.
    """
    lasting = replace(fingerprint, ctime_ns=0, device=0).to_text()
    return _derived("\0".join((ctx.scope, ctx.key, _host_identity(), lasting)))


def following_reference_id(reference_id: str) -> str:
    """The ReferenceId of the next video of a source."""
    return _derived(reference_id)


def _derived(text: str) -> str:
    return f"vodup-{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:32]}"


@cache
def _host_identity() -> str:
    """What stays the same when this machine is started again."""
    try:
        found = _MACHINE_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        found = ""
    return found or socket.gethostname()


def media_scope(scope: str, kind: MediaKind) -> str:
    """The scope of media: a file that is uploaded as a video as well is another upload."""
    return f"{scope} {kind}"


def default_key(scope: str, identity: str) -> str:
    """The name of an upload in the state store where the caller gives none."""
    # A file's name may hold bytes that are no UTF-8; Python carries them as surrogates.
    named = f"{scope}\0{identity}".encode(errors="surrogateescape")
    return f"file-{hashlib.sha256(named).hexdigest()[:20]}"
