"""What belongs to a video and is stored beside it: its cover and its subtitles."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from uploader.batch import UploadItem
from uploader.errors import PermissionDenied
from uploader.events import UploadResult
from uploader.log import get_logger
from uploader.protocol.media import MediaKind, StoredMedia
from uploader.protocol.vod import VideoMeta
from uploader.sources import AnySource
from uploader.uploader import Uploader

COVER: Final = MediaKind("image:cover")
SUBTITLE: Final = MediaKind("attached:subtitle")


async def upload_cover(
    uploader: Uploader, source: AnySource, video_id: str, *, storage_location: str | None = None
) -> StoredMedia:
    """Upload an image and set it as the cover of a video. Safe to repeat.

    Raises:
        VodupError: it was not stored, or not set.
    """
    meta = VideoMeta(storage_location=storage_location)
    stored = await store(uploader, source, COVER, meta)
    await uploader.library.set_cover(video_id, stored.url)
    return stored


async def upload_subtitle(
    uploader: Uploader,
    source: AnySource,
    *,
    language: str = "",
    storage_location: str | None = None,
) -> StoredMedia:
    """Upload a subtitle, tagged with its language. Safe to repeat.

    No operation of VOD ties it to a video: transcoding templates and players take its URL.
    """
    tags = (language,) if language else ()
    meta = VideoMeta(tags=tags, storage_location=storage_location)
    return await store(uploader, source, SUBTITLE, meta)


async def store(
    uploader: Uploader, source: AnySource, kind: MediaKind, meta: VideoMeta
) -> StoredMedia:
    """Upload an image or attached media and return where it is."""
    item = UploadItem(source=source, media=kind, meta=meta, on_source_change="new-video")
    result = await uploader.upload_item(item)
    return await located(uploader, kind, result)


async def located(uploader: Uploader, kind: MediaKind, result: UploadResult) -> StoredMedia:
    """Return where stored media is: as VOD says, or where we may not read that, at OSS."""
    try:
        return await uploader.library.media(kind, result.video_id)
    except PermissionDenied as error:
        get_logger(key=result.key).info("media.not_readable", reason=error.message)
    scheme, _, host = result.endpoint.partition("://")
    url = f"{scheme}://{result.bucket}.{host}/{quote(result.object_key)}"
    return StoredMedia(media_id=result.video_id, kind=kind, url=url, status="")
