"""What became of a request that makes the object, where its answer was lost.

An object is ours because of what it holds, never because it exists.
"""

from __future__ import annotations

from uploader.errors import IntegrityError, UnverifiedCompletion, VodupError
from uploader.protocol.vod import VideoFacts
from uploader.upload.grant import finished_video, new_plan, refuse_finished
from uploader.upload.object import ObjectUpload, Vanished, another_object
from uploader.upload.proof import ABSENT, UNKNOWN, FoundObject
from uploader.upload.verify import with_figures


async def at_vod(upload: ObjectUpload) -> FoundObject | None:
    """Before credentials are requested, query VOD whether an earlier run has finished the video.

    If it has, only the object itself, read through a URL of VOD's, can prove what it holds.
    None: the upload goes on.

    Raises:
        OverwriteRefused: another upload has finished it.
        IntegrityError, UnverifiedCompletion: it is finished, and not, or not provably, with
            what was sent.
    """
    ctx = upload.ctx
    if upload.is_new or ctx.may_overwrite or ctx.request.grant:
        return None
    ctx.progress.phase = "settle"
    if not upload.is_completing or not upload.has_plan:
        await refuse_finished(ctx)  # our Complete was never sent
        return None
    facts = await finished_video(ctx)
    if facts is None:
        return None
    found = await _look_by_facts(upload, facts)
    finished = (
        f"VOD has finished video {ctx.record.video_id} (status {facts.status}, {facts.size} bytes) "
        "after a run that ended while completing it"
    )
    if found is None:
        raise UnverifiedCompletion(f"{finished}; its bytes could not be compared.")
    if not upload.acked.is_proved_by(found.facts):
        raise IntegrityError(
            f"{finished}, but its file is not what was sent.",
            next_step="Pass --overwrite (overwrite=True) to send it again in its place.",
        )
    upload.resumed_part_count = len(upload.acked)
    return found


async def after_put(upload: ObjectUpload) -> None:
    """Count the last part as acked if an earlier PutObject has stored it."""
    if not upload.is_completing:
        return
    await upload.read_put_ack()
    found = await upload.look()
    if found is None or not upload.acked.is_proved_by(found.facts):
        upload.acked.remove(upload.acked.plan.part_count)
        upload.replaces = found is not None and found.facts != ABSENT


async def after_exists(upload: ObjectUpload) -> FoundObject:
    """There is an object before anything was sent: VOD may name the video of a lost checkpoint.

    Raises:
        OverwriteRefused: it is not the source.
    """
    ctx = upload.ctx
    ctx.progress.phase = "settle"
    found = await upload.look() if ctx.source.stream is None else None
    if found is not None:
        await upload.set_plan(new_plan(ctx))  # Initiate was refused, so there is none yet
        await upload.read_missing_acks()
        if upload.acked.is_proved_by(found.facts):
            upload.resumed_part_count = len(upload.acked)
            await ctx.journal.start_completing()
            return found
    raise another_object(ctx, upload.target)


async def after_vanished(upload: ObjectUpload, failure: VodupError) -> FoundObject:
    """NoSuchUpload at Complete: completed, or gone? Decided by what the object is, if any.

    Raises:
        Vanished: there is no object, or another one, or one that we may not read and may replace.
    """
    upload.ctx.progress.phase = "settle"
    found = await upload.look()
    if found is None:
        found = await _look_at_vod(upload)
    is_left = found is not None and found.facts == UNKNOWN and not upload.ctx.may_overwrite
    if found is not None and (is_left or upload.acked.is_proved_by(found.facts)):
        return found
    raise Vanished(
        "the upload was gone before it was completed",
        failure,
        is_damaged=found is not None and found.facts != ABSENT,
    )


async def after_error(upload: ObjectUpload) -> FoundObject | None:
    """Complete reported success with an error inside: the object, if it is what was sent."""
    upload.ctx.progress.phase = "settle"
    if (found := await upload.look()) is None:
        return None
    found = await with_figures(upload, found)
    return found if upload.acked.is_proved_by(found.facts) else None


async def _look_at_vod(upload: ObjectUpload) -> FoundObject | None:
    """Query VOD where OSS does not let us look. None: VOD still waits for the file."""
    ctx = upload.ctx
    if ctx.record.video_id is None:
        return None  # a file of a package: VOD does not know it, and sending it again is harmless
    if ctx.grants is None or (facts := await ctx.grants.facts(ctx.record.video_id)) is None:
        return FoundObject(UNKNOWN)
    if not facts.is_finished:
        return None
    found = await _look_by_facts(upload, facts)
    return found if found and upload.acked.is_proved_by(found.facts) else FoundObject(UNKNOWN)


async def _look_by_facts(upload: ObjectUpload, facts: VideoFacts) -> FoundObject | None:
    """The object behind VOD's URL, with figures to compare; None where it has none."""
    if facts.file_url is None:
        return None
    if upload.acked.is_put or upload.ctx.source.stream is not None:
        await upload.read_put_ack()
    else:
        await upload.read_missing_acks()
    found = await upload.look_by_url(facts.file_url)
    if found is None or (found.facts.crc64 is None and found.facts.etag is None):
        return None
    return await with_figures(upload, found)
