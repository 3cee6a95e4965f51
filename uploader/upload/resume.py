"""What an earlier run left: its result, or a record that this run continues with the same source.

A source is the same if its fingerprint is, or if it is read again and holds the bytes that OSS
has: a file that was copied or touched is still the same file.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from uploader.errors import ConfigurationError, SourceChanged, UnsupportedState
from uploader.events import UploadResult
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.integrity import join_crc64
from uploader.protocol.part_sizes import plan_stream
from uploader.protocol.plan import MAX_PART_COUNT, Part, Plan, read_plan
from uploader.protocol.vod import is_unsendable
from uploader.sources import Fingerprint, PartStream, Source
from uploader.state import PartAck, Phase, UploadRecord
from uploader.upload.proof import AckedParts
from uploader.upload.request import UploadContext, first_reference_id

CHANGED_CHOICES: Final = (
    "To upload it into a new video, pass --changed new-video; to replace the content of its video, "
    "pass --changed overwrite or --overwrite. Nothing is sent if only its times have changed."
)


async def earlier_result(ctx: UploadContext) -> UploadResult | None:
    """The result of an earlier run, if the source is still the one that it sent.

    Raises:
        SourceChanged: it is not, and the video must not be overwritten.
    """
    record = ctx.journal.record
    if record is None or record.phase is not Phase.DONE or record.result is None:
        return None
    result = _result_of(record.result)
    if not await _is_source_of(ctx, record, result):
        choice, names_video = ctx.request.on_source_change, ctx.request.video_id is not None
        if ctx.request.overwrite or choice == "overwrite":
            return None
        if choice == "new-video" and not names_video:
            return None
        raise SourceChanged(
            f"{ctx.source.name} has changed since it was uploaded as video {record.video_id}.",
            next_step=CHANGED_CHOICES,
        )
    result = replace(result, is_earlier_result=True, sent_bytes=0)
    ctx.progress.video_id = record.video_id
    ctx.progress.emit_finished(result)
    return result


async def _is_source_of(ctx: UploadContext, record: UploadRecord, result: UploadResult) -> bool:
    stream = ctx.source.stream
    if stream is not None and not stream.is_rereadable:
        return await read_stream(ctx.source, stream) == (result.size, result.crc64)
    await _wait_for_end(ctx.source, result.size)
    now = (await ctx.source.fingerprint()).to_text()
    if now == record.fingerprint:
        return True
    size = ctx.source.size
    if size != result.size or (await ctx.source.read_crc(0, size))[0] != result.crc64:
        return False
    await ctx.journal.update_fingerprint(now)
    return True


async def _wait_for_end(source: Source, size: int) -> None:
    """Wait until a file that may still be written can be compared with one of this size."""
    stream = source.stream
    if stream is not None and stream.is_rereadable and size:
        await stream.wait_for(Part(MAX_PART_COUNT, size, 1))


async def read_stream(source: Source, stream: PartStream) -> tuple[int, int]:
    """Read a stream to its end and keep nothing; returns its size and CRC-64."""
    await stream.begin("")
    pieces: list[tuple[int, int]] = []
    plan = plan_stream(largest_size=stream.max_part_size)
    for part in plan.parts:  # pragma: no branch - a stream ends before the numbers do
        size = await stream.wait_for(part)
        if size:
            pieces.append(((await source.read_crc(part.offset, size))[0], size))
            await stream.release(part)
        if size < part.size:
            break
    return sum(size for _, size in pieces), join_crc64(pieces)


async def record_upload(ctx: UploadContext) -> bool:
    """Record the upload, or accept the source for its record; True if it was recorded before.

    Raises:
        SourceChanged: the record is about other bytes.
        ConfigurationError: it belongs to another video than the caller names.
    """
    record = ctx.journal.record
    if record is None or record.phase in {Phase.DONE, Phase.ABORTED}:
        await ctx.journal.create_record(await _new_record(ctx, record))
        return False
    requested = ctx.request.video_id
    if requested is not None and record.video_id is not None and requested != record.video_id:
        raise ConfigurationError(
            f"The upload {ctx.key} belongs to video {record.video_id}, not to {requested}.",
            next_step="Pass another --key, or leave --video-id out to continue it.",
        )
    await _require_same_source(ctx, record)
    return True


async def _new_record(ctx: UploadContext, former: UploadRecord | None) -> UploadRecord:
    video_id, choice = ctx.request.video_id, ctx.request.on_source_change
    is_again = former is not None and former.phase is Phase.DONE
    if former is not None and is_again and choice != "new-video":
        video_id = video_id or former.video_id  # an overwrite keeps its video
    fingerprint = await ctx.source.fingerprint()
    return UploadRecord(
        key=ctx.key,
        phase=Phase.NEW,
        source=_recorded_source(ctx.source),
        fingerprint=fingerprint.to_text(),
        size=ctx.source.size,
        scope=ctx.scope,
        reference_id=_reference_id(ctx, fingerprint, former),
        meta=ctx.request.meta.to_text(),
        video_id=video_id,
        is_overwrite=ctx.request.overwrite or (is_again and choice == "overwrite"),
    )


def _recorded_source(source: Source) -> str:
    """Its name, from which it can be resumed; the path itself where the name has lost bytes."""
    if "?" not in source.name:  # what stands for a lost byte
        return source.name
    identity = source.identity
    has_lost_bytes = os.path.isabs(identity) and is_unsendable(identity)
    return identity if has_lost_bytes else source.name


def _reference_id(ctx: UploadContext, fingerprint: Fingerprint, former: UploadRecord | None) -> str:
    """Derived where no record names an earlier video, which may exist; else drawn.

    Nothing but its key distinguishes a stream from the next one, so its ReferenceId is drawn, too.
    """
    if ctx.source.stream is not None or former is not None:
        return f"vodup-{secrets.token_hex(16)}"
    return first_reference_id(ctx, fingerprint)


async def _require_same_source(ctx: UploadContext, record: UploadRecord) -> None:
    await _wait_for_end(ctx.source, record.size)
    now = await ctx.source.fingerprint()
    if now.to_text() == record.fingerprint:
        return
    if now.size != record.size or not await _holds_acked_bytes(ctx, record):
        raise SourceChanged(
            f"{ctx.source.name} is not the file that this upload was started with "
            f"({_changes_of(record, now)})."
        )
    await ctx.journal.update_fingerprint(now.to_text())


async def _holds_acked_bytes(ctx: UploadContext, record: UploadRecord) -> bool:
    """Read again what OSS has acked.

    Where nothing is acked, nothing of the former file is stored for good; what became of a
    PutObject without an answer is found out by comparing the object with this file.
    """
    acks = ctx.journal.acks
    if record.plan is None:
        return record.phase is not Phase.COMPLETING
    plan = plan_of(record.plan)
    if plan.is_single and record.upload_id is None and not acks:
        return True
    if not await _holds(ctx.source, plan, acks.values()):
        return False
    return bool(acks) or record.phase is not Phase.COMPLETING


async def _holds(source: Source, plan: Plan, acks: Iterable[PartAck]) -> bool:
    for ack in acks:
        if ack.number > plan.part_count:
            return False
        crc64, _ = await source.read_crc(plan.part(ack.number).offset, ack.size)
        if crc64 != ack.crc64:
            return False
    return True


async def require_unchanged(ctx: UploadContext, acked: AckedParts) -> None:
    """Refuse a file that was rewritten while it was sent: OSS would hold a mixture of the two.

    Where nothing but its change time is new, everything that was sent is read again and compared.

    Raises:
        SourceChanged: it was rewritten, or is touched while it is compared.
    """
    now, record = await ctx.source.fingerprint(), ctx.record
    if now.to_text() == record.fingerprint:
        return
    changed = SourceChanged(
        f"{ctx.source.name} changed while it was sent ({_changes_of(record, now)}).",
        next_step="Nothing was completed. Put the original back and run the same command, "
        f"or abort this upload with `vodup abort {record.key}` and start over.",
    )
    if not _fingerprint_of(record).is_touched(now):
        raise changed
    acks = [ack for part in acked.plan.parts if (ack := acked.get(part.number)) is not None]
    if not await _holds(ctx.source, acked.plan, acks):
        if record.phase is Phase.UPLOADING:
            # Some acked parts hold bytes of before the edit, some of after it: with neither
            # version could a later run continue.
            await ctx.journal.restart()
            changed = SourceChanged(
                changed.message,
                next_step="Nothing was completed, and the parts were discarded. Run the same "
                "command again once nothing writes to the file.",
            )
        raise changed
    if await ctx.source.fingerprint() != now:
        raise changed
    await ctx.journal.update_fingerprint(now.to_text())


def _changes_of(record: UploadRecord, now: Fingerprint) -> str:
    return f"changed: {', '.join(_fingerprint_of(record).changes(now))}"


def _fingerprint_of(record: UploadRecord) -> Fingerprint:
    try:
        return Fingerprint.from_text(record.fingerprint)
    except MalformedDocument as error:
        raise _unreadable("fingerprint", error) from None


def _result_of(text: str) -> UploadResult:
    try:
        return UploadResult(**json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise _unreadable("result", error) from None


@functools.lru_cache(maxsize=256)
def plan_of(text: str) -> Plan:
    """Read a recorded plan.

    Raises:
        UnsupportedState: it is none, or of a newer version.
    """
    try:
        return read_plan(text)
    except MalformedDocument as error:
        raise _unreadable("plan", error) from None


def _unreadable(what: str, error: Exception) -> UnsupportedState:
    """The error for a field of a record that is damaged, or written by a newer version."""
    return UnsupportedState(
        f"The {what} in the checkpoint is not readable: {error}.",
        next_step="If no newer vodup wrote it, the record is damaged: `vodup clean` removes it, "
        "and --video-id continues the video.",
    )
