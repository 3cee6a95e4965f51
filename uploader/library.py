"""`VodLibrary`: what VOD holds, and when a video can be played."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from uploader.credentials import GrantProvider, Network, VodProvider
from uploader.credentials.caller import CallerSigner
from uploader.errors import ConfigurationError, NotPlayable, VideoGone, VodupError
from uploader.protocol import media
from uploader.protocol.failures import VOD
from uploader.protocol.media import (
    FAILED_STATUSES,
    MAX_VIDEO_IDS,
    MediaKind,
    PlayStream,
    StoredMedia,
    VideoInfo,
)

_GATHER_S: Final = 0.02
_GRIDS_A_PAUSE: Final = 8
"""Pauses end on a common grid, so that one call reads the videos of many uploads."""

OnStatus = Callable[[VideoInfo], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayableVideo:
    """A video that plays, and how.

    Attributes:
        duration_s: None where VOD does not say.
        cover_url, streams: their URLs may be signed, and expire then.
    """

    video_id: str
    title: str
    duration_s: float | None
    cover_url: str = field(repr=False)
    streams: tuple[PlayStream, ...]


def open_library(provider: GrantProvider | None, network: Network | None) -> VodLibrary:
    """Return the library of a provider's account. Sends nothing.

    Raises:
        ConfigurationError: the provider does not call VOD itself, or nothing is open.
    """
    if network is None:
        raise RuntimeError("An Uploader works inside its block: async with Uploader(…) as up:")
    if not isinstance(provider, VodProvider):
        raise ConfigurationError(
            "This needs calls to VOD with an AccessKey.",
            next_step="Set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, and "
            "leave out --auth-command, --auth-url and --service ims.",
        )
    return VodLibrary(provider, network)


class VodLibrary:
    """Calls on what VOD holds. Mutable: the call that is about to read several videos.

    All calls count towards the account's a second (`UploadOptions.vod_calls_per_s`).
    """

    def __init__(self, provider: VodProvider, network: Network) -> None:
        self._endpoint = network.trust.check_endpoint("VOD", provider.scope)
        self._session = network.session(CallerSigner(provider, network.clock), VOD)
        self._network = network
        self._next: _Reading | None = None

    async def videos(self, video_ids: Sequence[str]) -> Mapping[str, VideoInfo]:
        """Read videos, `MAX_VIDEO_IDS` a call; what VOD does not know is left out."""
        found: dict[str, VideoInfo] = {}
        for start in range(0, len(video_ids), MAX_VIDEO_IDS):
            operation = media.get_video_infos(
                self._endpoint, video_ids[start : start + MAX_VIDEO_IDS]
            )
            try:
                answered = await self._session.call(operation)
            except VideoGone:  # VOD knows none of them
                continue
            found |= answered
        return found

    async def media(self, kind: MediaKind, media_id: str) -> StoredMedia:
        """Read an image or attached media: its URL, and whether VOD has the file."""
        return await self._session.call(media.get_media(self._endpoint, kind, media_id))

    async def set_cover(self, video_id: str, cover_url: str) -> None:
        """Set the cover of a video."""
        await self._session.call(media.set_cover(self._endpoint, video_id, cover_url))

    async def wait_until_playable(
        self,
        video_id: str,
        *,
        timeout_s: float | None = None,
        on_status: OnStatus | None = None,
    ) -> PlayableVideo:
        """Wait until a video plays, and return how.

        Reads its status after pauses that grow up to `RetryPolicy.cap_s`; one call reads up to
        `MAX_VIDEO_IDS` videos that are waited for.

        Args:
            timeout_s: None: as long as it takes, which is hours for long videos.
            on_status: called with each new status, and with the first.

        Raises:
            NotPlayable: VOD has failed to make it playable, or `timeout_s` has passed
                (`is_temporary`).
            VideoGone: VOD does not know the video.
            VodupError: VOD cannot be called.
        """
        clock, status, pause_count = self._network.clock, "", 0
        end_s = math.inf if timeout_s is None else clock.elapsed_s() + timeout_s
        while True:
            info = await self._read(video_id)
            if info.status != status:
                status, pause_count = info.status, 0
                if on_status is not None:
                    on_status(info)
            if status == media.PLAYABLE:
                return await self._playable(info)
            if status in FAILED_STATUSES:
                raise await self._failure(info)
            if clock.elapsed_s() >= end_s:
                raise _not_yet(info)
            pause_count += 1
            await clock.sleep(min(self._pause_s(pause_count), end_s - clock.elapsed_s()))

    def _pause_s(self, count: int) -> float:
        """A pause that ends on the grid of all pauses of about its length."""
        policy, now_s = self._network.retry, self._network.clock.elapsed_s()
        pause_s = policy.pause_s(count, draw=random.uniform(0.5, 1.0))
        grid_s = policy.pause_s(count, draw=1 / _GRIDS_A_PAUSE)
        return math.ceil((now_s + pause_s) / grid_s) * grid_s - now_s if grid_s else pause_s

    async def _read(self, video_id: str) -> VideoInfo:
        """Read one video, in the same call as others that are read now."""
        reading = self._next
        if reading is None or len(reading.video_ids) == MAX_VIDEO_IDS:
            reading = self._next = _Reading()
        reading.video_ids.append(video_id)
        async with reading.lock:  # the first one reads for all
            if reading.found is None:
                await self._network.clock.sleep(_GATHER_S)
                if self._next is reading:
                    self._next = None
                try:
                    reading.found = await self.videos(reading.video_ids)
                except VodupError as error:
                    reading.found = error
        if isinstance(reading.found, VodupError):
            raise reading.found
        if (info := reading.found.get(video_id)) is None:
            raise VideoGone(f"VOD does not know the video {video_id}.", video_id=video_id)
        return info

    async def _playable(self, info: VideoInfo) -> PlayableVideo:
        operation = media.get_play_info(self._endpoint, info.video_id)
        try:
            streams = await self._session.call(operation)
        except VodupError as error:
            if error.code != "InvalidVideo.NoneStream":
                raise
            streams = ()
        if not streams:
            raise NotPlayable(
                f"Video {info.video_id} is stored, and VOD has no stream of it that plays.",
                next_step="Have it transcoded (--template-group-id), or upload MP4, FLV, MP3, M3U8 "
                "or WEBM, which play without transcoding.",
                video_id=info.video_id,
            )
        return PlayableVideo(
            video_id=info.video_id,
            title=info.title,
            duration_s=info.duration_s or streams[0].duration_s,
            cover_url=info.cover_url,
            streams=streams,
        )

    async def _failure(self, info: VideoInfo) -> NotPlayable:
        """What has failed, with the transcoder's reason where VOD gives one."""
        reasons: tuple[str, ...] = ()
        if info.status == "TranscodeFail":
            operation = media.get_transcode_summary(self._endpoint, info.video_id)
            try:
                reasons = await self._session.call(operation)
            except VodupError as error:
                reasons = (f"the reason cannot be read: {error.message}",)
        reason = f" ({'; '.join(reasons).rstrip('.')})" if reasons else ""
        return NotPlayable(
            f"VOD cannot make video {info.video_id} playable: {info.status}{reason}.",
            video_id=info.video_id,
        )


class _Reading:
    """One call for several videos. Mutable: which, and what it has found."""

    def __init__(self) -> None:
        self.video_ids: list[str] = []
        self.lock = asyncio.Lock()
        self.found: Mapping[str, VideoInfo] | VodupError | None = None


def _not_yet(info: VideoInfo) -> NotPlayable:
    error = NotPlayable(
        f"Video {info.video_id} is not playable yet: {info.status}.",
        next_step="Run the same command again to go on waiting; nothing is sent again.",
        video_id=info.video_id,
    )
    error.is_temporary = True
    return error
