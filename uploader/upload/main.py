"""One upload, from a source to a verified object: the order of its steps, and nothing else.

Where an upload is in its work is the call stack; what survives a crash is its journal. Comments
name the method of `state.journal.Journal` that commits a step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from uploader.credentials import ReferenceUsed
from uploader.errors import ServiceError, VideoGone
from uploader.events import UploadResult, UploadStarted
from uploader.log import get_logger
from uploader.protocol.failures import OSS, Meaning, is_vanished
from uploader.protocol.grants import UploadGrant
from uploader.protocol.plan import Plan
from uploader.tasks import beside
from uploader.upload import settle, verify
from uploader.upload.grant import (
    finished_video,
    live_grant,
    meta_from_hooks,
    plan_before_grant,
    video_and_target,
)
from uploader.upload.object import ObjectUpload, Vanished
from uploader.upload.parts import put_object, reconcile, send_missing_parts
from uploader.upload.proof import UNKNOWN, FoundObject
from uploader.upload.request import UploadContext
from uploader.upload.resume import earlier_result, record_upload, require_unchanged
from uploader.upload.streaming import send_stream

_MAX_RESTARTS: Final = 2
"""A multipart upload that vanishes more often in one run is being removed by another client."""

_PROGRESS_INTERVAL_S: Final = 0.25

_PIECE_SIZE: Final = 512 * 1024
"""What the transport hands to the network at once."""


async def upload_video(ctx: UploadContext) -> UploadResult:
    """Store `ctx.source` as a video and return what OSS holds, verified."""
    if (result := await earlier_result(ctx)) is not None:
        return result  # the same source was uploaded before: nothing is sent
    ctx = await meta_from_hooks(ctx)
    is_repeat = await record_upload(ctx)  # create_record
    is_new = ctx.record.endpoint is None
    grant = await video_or_result(ctx, plan_before_grant(ctx), is_repeat=is_repeat)  # set_target
    if isinstance(grant, UploadResult):
        return grant  # a finished video holds the source, though its checkpoint is lost
    upload = ObjectUpload(ctx, await live_grant(ctx, grant), is_new=is_new)
    if (found := await settle.at_vod(upload)) is not None:
        return await verify.finish(upload, found)  # an earlier run died around Complete
    async with under_way(upload):
        found = await until_stored(upload, send_and_complete)
        return await verify.finish(upload, found)  # finish


async def video_or_result(
    ctx: UploadContext, plan: Plan | None, *, is_repeat: bool
) -> UploadGrant | UploadResult | None:
    """As `video_and_target`; the result where a finished video holds the source already."""
    try:
        return await video_and_target(ctx, plan, is_repeat=is_repeat)
    except ReferenceUsed as used:
        from uploader.upload.former import result_or_next_video  # few uploads need it

        return await result_or_next_video(ctx, plan, used)


async def until_stored(
    upload: ObjectUpload, store: Callable[[ObjectUpload], Awaitable[FoundObject]]
) -> FoundObject:
    """Store the object; start over if its multipart upload vanishes."""
    restart_count = 0
    while True:
        try:
            return await store(upload)
        except Vanished as vanished:
            if restart_count == _MAX_RESTARTS:
                if vanished.is_damaged:  # the next run may replace it
                    await upload.ctx.journal.restart(overwrite=True)
                raise vanished.failure from None
            await upload.restart(vanished)  # restart, change_target
            restart_count += 1


async def send_and_complete(upload: ObjectUpload) -> FoundObject:
    """Send what is missing and make the object."""
    try:
        await start_or_resume(upload)  # set_upload_id
    except ServiceError as error:
        if OSS.meaning(error) is not Meaning.EXISTS:
            raise
        return await settle.after_exists(upload)  # start_completing
    await send_stream(upload)  # add_part, close_stream
    await send_missing_parts(upload)  # add_part
    return await complete(upload)  # start_completing


async def start_or_resume(
    upload: ObjectUpload, plan: Callable[[UploadContext], Plan | None] = plan_before_grant
) -> None:
    """Make sure that there are a plan and an UploadId, and know which parts OSS has.

    `plan` returns None where the parts are decided once OSS has answered.
    """
    ctx = upload.ctx
    ctx.progress.phase = "start"
    # A target without a plan is of an earlier run, except for a file of a package.
    is_left = upload.has_plan or ctx.record.video_id is not None
    is_resumed = is_left and not upload.is_new and not upload.has_started
    if not upload.has_plan and (known := plan(ctx)) is not None:
        await upload.set_plan(known)
    if upload.has_plan and upload.acked.is_put:
        if is_resumed:
            await settle.after_put(upload)
    elif ctx.record.upload_id is None:
        await upload.start()
    else:
        await reconcile(upload)
    acked = upload.acked
    upload.resumed_part_count = len(acked)
    upload.has_started = True
    ctx.progress.emit(
        UploadStarted,
        source=ctx.source.name,
        size=acked.plan.size,
        part_count=0 if acked.plan.is_open else acked.plan.part_count,
        done_bytes=acked.size,
        resumed_part_count=len(acked),
        upload_id=ctx.record.upload_id,
        is_resumed=is_resumed,
    )


async def complete(upload: ObjectUpload) -> FoundObject:
    """Make the object, and find out what happened where that is not clear."""
    upload.ctx.progress.phase = "complete"
    await require_unchanged(upload.ctx, upload.acked)
    if upload.acked.is_put:
        return await put_object(upload)
    try:
        with upload.watching_target():
            return await upload.complete()
    except ServiceError as error:
        if is_vanished(error):
            return await settle.after_vanished(upload, error)
        if OSS.meaning(error) is Meaning.REPAIR:
            return await _repair(upload, error)
        if OSS.meaning(error) is Meaning.STORED:
            return await upload.look() or FoundObject(UNKNOWN)
        if error.status < 300 and (found := await settle.after_error(upload)) is not None:
            return found
        raise


async def _repair(upload: ObjectUpload, failure: ServiceError) -> FoundObject:
    """Send again what OSS lists otherwise than we do, then complete once more."""
    await upload.ctx.journal.stop_completing()
    await reconcile(upload)
    if not upload.acked.missing():
        raise Vanished(f"OSS cannot join the parts ({failure.code})", failure)
    await send_missing_parts(upload)
    return await upload.complete()


@asynccontextmanager
async def under_way(upload: ObjectUpload) -> AsyncIterator[None]:
    """Keep credentials fresh and report progress for as long as the block runs.

    Not for what is sent in one piece: there is nothing to report in between, and its one
    request renews by itself what has run out.
    """
    if upload.has_plan and upload.acked.is_put and upload.acked.plan.size <= _PIECE_SIZE:
        yield
        return
    async with beside(upload.live.keep_fresh(), report_progress(upload)):
        yield


async def report_progress(upload: ObjectUpload) -> None:
    """Report how much is sent, until cancelled."""
    while True:
        await upload.ctx.network.clock.sleep(_PROGRESS_INTERVAL_S)
        if upload.has_started and upload.has_plan:
            upload.ctx.progress.emit_progress(upload.acked)


async def abort_upload(ctx: UploadContext) -> None:
    """Remove the parts, then record that.

    Where VOD has the file already, credentials would be for overwriting it: what may be left
    of the parts becomes an orphan. For a video that is gone nothing issues credentials any
    more to remove them with; OSS's lifecycle rules do it then.
    """
    ctx.progress.phase = "abort"
    if ctx.record.upload_id is None:
        await ctx.journal.abort()
        return
    upload = ObjectUpload(ctx, await live_grant(ctx, None))
    try:
        if upload.is_completing and await finished_video(ctx) is not None:
            # An earlier Complete may have done that, and our parts still be there.
            await ctx.journal.abort_later()
            return
        await upload.abort()
    except VideoGone as error:
        get_logger(key=ctx.key).warning("parts.not_removed", reason=error.message)
    await ctx.journal.abort()
