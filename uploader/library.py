"""`VodLibrary`: what VOD holds, and when a video can be played."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from uploader.credentials import GrantProvider, Network, VodProvider
from uploader.credentials.caller import CallerSigner
from uploader.errors import ConfigurationError, NotPlayable, ServiceError, VideoGone, VodupError
from uploader.protocol import catalog, media
from uploader.protocol.catalog import Registered, UrlPull
from uploader.protocol.failures import VOD
from uploader.protocol.media import (
    FAILED_STATUSES,
    MAX_VIDEO_IDS,
    MediaKind,
    PlayStream,
    StoredMedia,
    VideoInfo,
)
from uploader.protocol.vod import VideoMeta

_GATHER_S: Final = 0.02
_GRIDS_A_PAUSE: Final = 8
"""Pauses end on a common grid, so that one call reads the videos of many uploads."""

_NO_PARTS: Final = frozenset({"InvalidMultipartUpload.NotFound", "InvalidFile.NotFound"})

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

    async def search(self, match: str = "") -> AsyncIterator[VideoInfo]:
        """Find videos, the newest first; `catalog.match_of` makes conditions. Any number of hits.

        Changes appear in VOD's index with a delay.
        """
        seen: set[str] = set()
        page, token, has_restarted = 1, "", False
        while True:
            operation = catalog.search_media(self._endpoint, match, page=page, scroll_token=token)
            try:
                found = await self._session.call(operation)
            except ServiceError as error:
                if error.code != "InvalidScrollToken.Expired" or has_restarted:
                    raise
                page, token, has_restarted = 1, "", True
                continue
            for video in found.videos:
                if video.video_id not in seen:
                    seen.add(video.video_id)
                    yield video
            if not found.videos or page * catalog.PAGE_SIZE >= found.total:
                return
            page, token = page + 1, found.scroll_token

    async def delete(self, video_ids: Sequence[str]) -> frozenset[str]:
        """Delete videos for good, with all their files; returns those that were not deleted."""
        kept: set[str] = set()
        for start in range(0, len(video_ids), MAX_VIDEO_IDS):
            some = video_ids[start : start + MAX_VIDEO_IDS]
            try:
                left = await self._session.call(catalog.delete_videos(self._endpoint, some))
            except VideoGone:  # VOD knows none of them
                left = frozenset(some)
            kept |= left
        return frozenset(kept)

    async def delete_unfinished(self, video_id: str) -> bool:
        """Remove the parts of a video whose upload never ended, and the video.

        Returns False, and removes nothing, if VOD reports another status than "Uploading".
        """
        info = (await self.videos([video_id])).get(video_id)
        if info is None or info.status != "Uploading":
            return False
        try:
            await self._session.call(catalog.delete_multipart_upload(self._endpoint, video_id))
        except VideoGone:
            return False
        except ServiceError as error:
            if error.code not in _NO_PARTS:
                raise
        return not await self.delete([video_id])

    async def register(
        self, file_urls: Mapping[str, str], meta: VideoMeta
    ) -> tuple[tuple[Registered, ...], tuple[str, ...]]:
        """Make videos of objects in VOD's buckets, given with titles; returns also what failed."""
        urls = [*file_urls.items()]
        found: list[Registered] = []
        failed: list[str] = []
        for start in range(0, len(urls), catalog.MAX_REGISTERED):
            some = dict(urls[start : start + catalog.MAX_REGISTERED])
            operation = catalog.register_media(self._endpoint, some, meta)
            registered, refused = await self._session.call(operation)
            found += registered
            failed += refused
        return tuple(found), tuple(failed)

    async def pull(
        self, url: str, meta: VideoMeta, *, again: bool = False
    ) -> AsyncIterator[UrlPull]:
        """Have VOD fetch a file from a URL; yields each new status, the last one when it ended.

        An earlier pull of the URL that has not failed is followed, unless `again`: VOD keeps its
        jobs for a year, so an interrupted run needs no record of its own.
        """
        job = None if again else await self._earlier_pull(url)
        if job is None:
            operation = catalog.upload_media_by_url(
                self._endpoint, [url], meta, session_id=secrets.token_hex(16)
            )
            jobs = await self._session.call(operation)
            job_id = next(iter(jobs.values()), "")
            job = UrlPull(job_id=job_id, url=url, status="PENDING")
        yield job
        pause_count = 0
        while not (job.is_done or job.has_failed):
            pause_count += 1
            await self._network.clock.sleep(self._pause_s(pause_count))
            operation_ = catalog.get_url_uploads(self._endpoint, job_ids=[job.job_id])
            found = await self._session.call(operation_)
            if found and found[0].status != job.status:
                job, pause_count = found[0], 0
                yield job

    async def _earlier_pull(self, url: str) -> UrlPull | None:
        found = await self._session.call(catalog.get_url_uploads(self._endpoint, urls=[url]))
        alive = [job for job in found if not job.has_failed]
        return max(alive, key=lambda job: job.created_at, default=None)

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
