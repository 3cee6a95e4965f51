"""Uploads the cover and the subtitles that lie beside a video."""

from __future__ import annotations

from uploader.companions import upload_cover, upload_subtitle
from uploader.events import UploadResult
from uploader.protocol.media import StoredMedia
from uploader.sources import FileSource
from uploader.uploader import Uploader
from uploader.watch.carrying import Attach
from uploader.watch.scan import Companions


def attach_companions(uploader: Uploader, root: str) -> Attach:
    """Return what a `Watcher` is given as `attach`, to upload pictures and subtitles.

    Args:
        root: the watched folder, absolute with links resolved: nothing outside of it is read.
    """

    def source(path: str) -> FileSource:
        return FileSource(path, follow_symlinks=False, root=root)

    async def attach(result: UploadResult, companions: Companions) -> list[StoredMedia]:
        stored = []
        if companions.cover is not None:
            stored.append(await upload_cover(uploader, source(companions.cover), result.video_id))
        for language, path in companions.subtitles:
            stored.append(await upload_subtitle(uploader, source(path), language=language))
        return stored

    return attach
