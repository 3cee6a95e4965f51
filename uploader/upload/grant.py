"""What is decided once for an upload: its video, its target and its parts.

The rule about finished videos is `finished_video`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from uploader.credentials import DOCUMENTED_LIFE_S, LiveGrant, NewVideo, life_s
from uploader.errors import (
    ConfigurationError,
    OverwriteRefused,
    PermissionDenied,
    VideoGone,
    VodupError,
)
from uploader.hooks import PlannedVideo, run_before_create
from uploader.log import get_logger
from uploader.protocol.grants import UploadGrant, UploadTarget
from uploader.protocol.part_sizes import Outlook, plan_file, plan_stream
from uploader.protocol.plan import Plan
from uploader.protocol.vod import VideoFacts, unsendable_in
from uploader.state import Phase
from uploader.upload.request import UploadContext


async def meta_from_hooks(ctx: UploadContext) -> UploadContext:
    """Let the caller's hooks change what CreateUploadVideo is given, or forbid it.

    Raises:
        ConfigurationError: no service can be given it.
    """
    if not _needs_video(ctx):
        return ctx
    ctx.progress.phase = "create"
    planned = PlannedVideo(
        key=ctx.key, source=ctx.source.name, size=ctx.source.size, meta=ctx.request.meta
    )
    meta = await run_before_create(ctx.options.hooks, planned)
    if (problem := unsendable_in(meta)) is not None:
        raise ConfigurationError(f"VideoMeta: {problem}.")
    return replace(ctx, request=replace(ctx.request, meta=meta))


def _needs_video(ctx: UploadContext) -> bool:
    record, request = ctx.journal.record, ctx.request
    if request.video_id is not None or request.grant is not None:
        return False
    if record is None or record.phase is Phase.ABORTED or record.video_id is None:
        return True
    return record.phase is Phase.DONE and request.on_source_change == "new-video"


async def video_and_target(
    ctx: UploadContext, plan: Plan | None, *, is_repeat: bool
) -> UploadGrant | None:
    """Make sure that the upload has a video and a target; returns a grant if there is one yet.

    The first target is recorded for good: this upload goes nowhere else unless VOD moves it
    and the caller allows that. `plan` is recorded in the same commit.

    Args:
        plan: None where it depends on the grant.
        is_repeat: an earlier run may have created the video.
    """
    if ctx.record.endpoint is not None:
        ctx.progress.video_id = ctx.record.video_id
        return ctx.request.grant
    video_id = ctx.record.video_id or ctx.request.video_id
    grant = ctx.request.grant or await _issued_grant(ctx, video_id, is_repeat=is_repeat)
    await ctx.journal.set_target(
        video_id or grant.video_id,
        ctx.network.trust.check_target(grant.target),
        region=grant.credentials.region,
        plan=plan.to_text() if plan else None,
        one_request=plan is not None and plan.is_single,
    )
    ctx.progress.video_id = ctx.record.video_id
    return grant


async def _issued_grant(
    ctx: UploadContext, video_id: str | None, *, is_repeat: bool
) -> UploadGrant:
    grants = ctx.require_grants()
    if video_id is not None:
        ctx.progress.phase = "renew"
        if not ctx.may_overwrite and (facts := await finished_video(ctx, video_id)) is not None:
            raise _overwrite_refused(f"Video {video_id} is finished already", facts)
        return await grants.renew(video_id)
    ctx.progress.phase = "create"
    video = NewVideo(
        meta=ctx.request.meta,
        file_name=Path(ctx.source.name).name,
        file_size=ctx.record.size,
        reference_id=ctx.record.reference_id or "",
        is_repeat=is_repeat,
    )
    grant = await grants.create(video)
    if grant.video_id is None:
        raise ConfigurationError("The grant for the new video does not name its VideoId.")
    return grant


async def finished_video(ctx: UploadContext, video_id: str | None = None) -> VideoFacts | None:
    """VOD's facts about the video if VOD has its file; None if not, or if nothing can query VOD.

    The one rule: nothing requests credentials for a finished video, because RefreshUploadVideo
    of such a video is VOD's overwrite API: what is sent with those credentials replaces its
    content and may start transcoding again (VOD API: RefreshUploadVideo). Only the caller may
    allow that (`overwrite`), or an earlier run whose object is there and damaged.
    """
    video_id = video_id or ctx.record.video_id
    if ctx.grants is None or video_id is None:
        return None
    try:
        facts = await ctx.grants.facts(video_id)
    except PermissionDenied as error:
        error.next_step += (
            " vodup needs the answer to leave a finished video as it is; --overwrite skips that "
            "query."
        )
        raise
    return facts if facts is not None and facts.is_finished else None


async def refuse_finished(ctx: UploadContext) -> None:
    """Refuse to continue an upload whose video was finished by another one meanwhile.

    Where VOD does not answer, the upload continues: it has its own target.

    Raises:
        OverwriteRefused: the video is finished.
        VideoGone: VOD does not know it any more.
    """
    try:
        facts = await finished_video(ctx)
    except VideoGone:
        raise
    except VodupError as error:
        get_logger(key=ctx.key).info("video.not_known", reason=error.message)
        return
    if facts is not None:
        raise _overwrite_refused(
            f"Video {ctx.record.video_id} was finished by another upload", facts
        )


def _overwrite_refused(what: str, facts: VideoFacts) -> OverwriteRefused:
    return OverwriteRefused(
        f"{what} (status {facts.status}); sending to it would replace its content and may start "
        "transcoding again."
    )


def recorded_target(ctx: UploadContext) -> UploadTarget:
    """The target in the record.

    Raises:
        ConfigurationError: there is none yet.
        UntrustedEndpoint: it is not a place that may be given credentials.
    """
    record = ctx.record
    if not (record.endpoint and record.bucket and record.object_key):
        raise ConfigurationError(
            f"The upload {ctx.key} has no target yet.", next_step="Run `vodup push` for it first."
        )
    # Checked again: the store may be shared, and what it holds decides who gets credentials.
    target = UploadTarget(record.endpoint, record.bucket, record.object_key)
    return ctx.network.trust.check_target(target)


async def live_grant(ctx: UploadContext, grant: UploadGrant | None) -> LiveGrant:
    """The credentials of one upload, renewed for its video when they run out.

    `grant` may have run out or be missing: it is renewed when first needed.

    Raises:
        ConfigurationError, TransportError: the endpoint that the caller chose cannot be used.
    """

    async def renew() -> UploadGrant:
        if ctx.record.video_id is None:
            raise ConfigurationError("Without a VideoId nothing can be renewed.")
        return await ctx.require_grants().renew(ctx.record.video_id)

    target = recorded_target(ctx)
    return LiveGrant(
        target,
        renew if ctx.grants and ctx.request.media is None else None,
        clock=ctx.network.clock,
        dialect=await ctx.network.dialect_for(target),
        grant=grant,
        on_renewed=ctx.progress.count_renewal,
    )


def new_plan(ctx: UploadContext) -> Plan:
    """The parts of an upload that has none yet."""
    options, pace = ctx.options, ctx.network.pace
    if (stream := ctx.source.stream) is not None:
        return plan_stream(
            part_size=options.part_bytes,
            expected_size=stream.expected_size,
            largest_size=stream.max_part_size,
        )
    return plan_file(
        ctx.record.size,
        part_size=options.part_bytes,
        concurrency=pace.expected_concurrency,
        outlook=_outlook(ctx),
    )


def _outlook(ctx: UploadContext) -> Outlook:
    """What is known before a grant is issued; VOD's own live for the documented time."""
    pace, grant = ctx.network.pace, ctx.request.grant
    life = DOCUMENTED_LIFE_S
    if grant is not None:
        life = max(1.0, life_s(grant.credentials, clock=ctx.network.clock))
    return Outlook(
        connection_rate=pace.connection_rate,
        rtt_s=pace.rtt_s,
        is_slowed_by_loss=pace.is_slowed_by_loss,
        credential_life_s=life,
    )


def plan_before_grant(ctx: UploadContext) -> Plan | None:
    """The plan, if it can be made before the grant is issued; it then needs no commit of its own.

    Many parts wait for the round trip to the service: it decides how many are sent at once.
    """
    plan = new_plan(ctx)
    return plan if plan.is_open or plan.is_single else None
