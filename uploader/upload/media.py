"""Images and attached media: one request each, within the life of credentials that nothing renews.

Whatever an interrupted run leaves cannot be continued, so it is abandoned, and reported: VOD keeps
its id without a file, or with one that nothing refers to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from uploader.credentials.vod import MediaSource
from uploader.errors import ConfigurationError, CredentialsRejected
from uploader.events import MediaAbandoned, UploadResult
from uploader.protocol.media import MediaKind
from uploader.protocol.plan import MAX_PART_SIZE
from uploader.state import Phase
from uploader.upload.main import upload_video
from uploader.upload.request import UploadContext, media_scope

_MAX_GRANTS: Final = 3
"""Of one run. A file that is not sent within the life of three credentials needs more bandwidth."""


async def upload_media(ctx: UploadContext, kind: MediaKind) -> UploadResult:
    """Store `ctx.source` as media of this kind and return what OSS holds, verified.

    Raises:
        ConfigurationError: it cannot be stored as this kind.
        CredentialsRejected: three times it was not sent within the life of its credentials.
    """
    _require_file(ctx, kind)
    ctx = replace(
        ctx,
        grants=MediaSource(ctx.grants, kind),
        scope=media_scope(ctx.scope, kind),
        options=replace(ctx.options, part_size=MAX_PART_SIZE, hooks=()),
    )
    record = ctx.journal.record
    if record is not None and record.phase not in {Phase.DONE, Phase.ABORTED}:
        await _abandon(ctx, "an earlier run was interrupted")
    for attempt in range(1, _MAX_GRANTS + 1):  # pragma: no branch - the last one returns or raises
        try:
            return await upload_video(ctx)
        except CredentialsRejected:
            if attempt == _MAX_GRANTS:
                raise
            await _abandon(ctx, "its credentials have run out, and nothing renews them")
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


async def _abandon(ctx: UploadContext, reason: str) -> None:
    ctx.progress.emit(MediaAbandoned, media_id=ctx.record.video_id, reason=reason)
    ctx.progress.video_id = None
    await ctx.journal.abort()


def _require_file(ctx: UploadContext, kind: MediaKind) -> None:
    request = ctx.request
    kind.extension_of(ctx.source.name)
    if ctx.source.stream is not None or ctx.source.size > MAX_PART_SIZE:
        raise ConfigurationError("Images and attached media are files of at most 5 GiB.")
    if request.video_id is not None or request.grant is not None or request.overwrite:
        raise ConfigurationError(
            "An image or attached media is always a new one.",
            next_step="Leave out --video-id, --grant and --overwrite.",
        )
