"""Videos of a source from runs whose checkpoint is lost: found again by their ReferenceId.

The ReferenceId of a first video is derived (`request.first_reference_id`), and VOD creates no
second video with it. An unfinished one is continued. A finished one is compared with the source:
it is the result, or it is left alone, and a new video is created under the next ReferenceId.

Parts of an unfinished one are sent again. Only ListMultipartUploads could name their UploadId: it
acts on the bucket, and no official client calls it with the credentials of a video.
"""

from __future__ import annotations

from uploader.credentials import ReferenceUsed
from uploader.errors import UnverifiedCompletion
from uploader.events import EarlierVideoFound, UploadResult
from uploader.protocol.grants import UploadGrant, UploadTarget
from uploader.protocol.integrity import crc64
from uploader.protocol.oss import ObjectFacts
from uploader.protocol.plan import Plan
from uploader.protocol.trust import target_of_url
from uploader.protocol.vod import VideoFacts
from uploader.sources import HlsPackage
from uploader.state import PartAck
from uploader.upload import verify
from uploader.upload.grant import live_grant, new_plan, video_and_target
from uploader.upload.object import ObjectUpload, look_by_url
from uploader.upload.proof import AckedParts, FoundObject
from uploader.upload.request import MAX_LIVES, UploadContext, following_reference_id
from uploader.upload.resume import earlier_result


async def result_or_next_video(
    ctx: UploadContext, plan: Plan | None, used: ReferenceUsed
) -> UploadGrant | UploadResult | None:
    """The result where a finished video holds the source; else a new video, as `video_and_target`.

    Raises:
        ReferenceUsed: the ReferenceId is the caller's own, or too many others are used as well.
        UnverifiedCompletion: a finished video cannot be compared.
    """
    for _ in range(MAX_LIVES):
        if (result := await _result_of_earlier(ctx, used)) is not None:
            return result
        try:
            return await video_and_target(ctx, plan, is_repeat=False)
        except ReferenceUsed as error:
            used = error
    raise used


async def _result_of_earlier(ctx: UploadContext, used: ReferenceUsed) -> UploadResult | None:
    """The result, if the finished video holds the source; None: create another one.

    Raises:
        ReferenceUsed: the ReferenceId is the caller's own.
        UnverifiedCompletion: the video cannot be compared.
    """
    if ctx.source.stream is not None:
        raise used
    if used.facts is not None and (result := await _same(ctx, used, used.facts)) is not None:
        return result
    if ctx.request.meta.reference_id is not None:
        raise used
    await ctx.journal.set_reference_id(following_reference_id(ctx.record.reference_id or ""))
    ctx.progress.earlier_video_id = used.video_id
    ctx.progress.emit(EarlierVideoFound, earlier_video_id=used.video_id, is_same=False)
    return None


async def _same(ctx: UploadContext, used: ReferenceUsed, facts: VideoFacts) -> UploadResult | None:
    """Compare the finished video with the source; None if it holds other bytes."""
    package = ctx.source if isinstance(ctx.source, HlsPackage) else None
    if facts.size not in {None, ctx.record.size} and package is None:
        return None
    url = facts.file_url or ""
    target = target_of_url(url)
    found = await look_by_url(ctx, target.bucket, url) if target else None
    if target is None or found is None:
        raise _not_comparable(ctx, used, "VOD names no URL that its content can be read through")
    if package is not None:
        if _holds_another_playlist(found.facts, package):
            return None
        reason = "VOD's URL opens its playlist, which is the same, but none of its other files"
        raise _not_comparable(ctx, used, reason)
    ctx.progress.phase = "verify"
    plan, acks = new_plan(ctx), []
    for part in plan.parts:
        has_crc = found.facts.crc64 is not None
        crc, md5 = await ctx.source.read_crc(part.offset, part.size, with_md5=not has_crc)
        acks.append(PartAck(part.number, part.size, "", crc, md5))
    if AckedParts(plan, acks, is_put=plan.is_single).is_proved_by(found.facts):
        return await _adopt(ctx, used.video_id, target, plan, acks, found)
    if found.facts.crc64 is None:  # the ETag depends on how the object was cut into parts
        raise _not_comparable(ctx, used, "OSS reports no CRC-64 for it")
    return None


def _holds_another_playlist(facts: ObjectFacts, package: HlsPackage) -> bool:
    """Whether the object at the video's address is another playlist than the package's."""
    playlist = package.members[-1]
    return facts.size not in {None, playlist.size} or (
        facts.crc64 not in {None, crc64(playlist.data)}
    )


def _not_comparable(ctx: UploadContext, used: ReferenceUsed, reason: str) -> UnverifiedCompletion:
    return UnverifiedCompletion(
        f"{ctx.source.name} was uploaded as video {used.video_id} by a run whose checkpoint is "
        f"lost, and what the video holds cannot be compared: {reason}.",
        next_step="Pass --key NAME to upload it as another video, or --video-id "
        f"{used.video_id} --overwrite to replace the content of that one.",
        video_id=used.video_id,
    )


async def _adopt(
    ctx: UploadContext,
    video_id: str | None,
    target: UploadTarget,
    plan: Plan,
    acks: list[PartAck],
    found: FoundObject,
) -> UploadResult | None:
    """Record the finished video as the upload's own: a run that ends here compares it again."""
    checked = ctx.network.trust.check_target(target)
    await ctx.journal.set_target(
        video_id, checked, region=None, plan=plan.to_text(), one_request=True
    )
    ctx.progress.video_id = video_id
    ctx.progress.emit(EarlierVideoFound, earlier_video_id=video_id, is_same=True)
    upload = ObjectUpload(ctx, await live_grant(ctx, None))
    for ack in acks:
        upload.acked.add(ack)
    upload.resumed_part_count = len(acks)
    await verify.record_result(upload, found)
    return await earlier_result(ctx)
