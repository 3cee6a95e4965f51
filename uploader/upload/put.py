"""Objects stored with one request, which replaces nothing that another run has stored.

The PutObject of a killed run may reach OSS after a newer run has verified its object. So each has
the header `x-oss-forbid-overwrite` (OSS API: PutObject), unless overwriting was requested, or what
is there is an older or damaged object of this upload.
"""

from __future__ import annotations

from dataclasses import replace

from uploader.errors import (
    IntegrityError,
    ServiceError,
)
from uploader.protocol import oss
from uploader.protocol.failures import OSS, Meaning
from uploader.protocol.grants import UploadTarget
from uploader.protocol.integrity import same_etag
from uploader.protocol.oss import ObjectFacts
from uploader.protocol.plan import Part
from uploader.state import PartAck
from uploader.upload.object import ObjectUpload, another_object
from uploader.upload.proof import ABSENT, UNKNOWN, FoundObject


async def put_object(upload: ObjectUpload) -> FoundObject:
    """Store the last part as the object, unless that turned out to have happened."""
    part, progress = upload.acked.plan.last_part, upload.ctx.progress
    clock = upload.ctx.network.clock
    if part.number in upload.acked:
        ack = upload.acked.in_order()[-1]
        return FoundObject(ObjectFacts(ack.etag or None, ack.crc64, ack.size, ""), "-head")
    if not upload.is_completing:
        await upload.ctx.journal.start_completing()
    began_s = clock.elapsed_s()
    try:
        with upload.watching_target():
            ack, found = await put_part(upload, part, upload.target)
    except IntegrityError:
        # What is there now is no success of an earlier run: the next one replaces it.
        await upload.ctx.journal.restart(overwrite=True)
        raise
    except ServiceError as error:
        if OSS.meaning(error) is not Meaning.STORED:
            raise
        await upload.read_put_ack()
        return await upload.look() or FoundObject(UNKNOWN)
    # Not recorded by itself: the result follows at once, and holds all of it.
    upload.acked.add(ack)
    progress.count_acked(part.number)
    progress.emit_stored(part.number, part.size, clock.elapsed_s() - began_s)
    return found


async def put_part(
    upload: ObjectUpload, part: Part, target: UploadTarget
) -> tuple[PartAck, FoundObject]:
    """Store a part as an object of its own; returns its ack, and what OSS says of the object.

    Raises:
        OverwriteRefused: another upload has stored another object there.
    """
    ctx = upload.ctx
    is_last = part.number == upload.acked.plan.part_count
    headers = upload.headers() if is_last else {}
    may_replace = (is_last and upload.replaces) or ctx.may_overwrite
    while True:
        body = ctx.source.body(part.offset, part.size, ctx.progress.watch_part(part.number))
        operation = oss.put_object(target, body, headers, needs_md5=upload.needs_md5)
        operation = replace(operation, part_number=None if is_last else part.number)
        is_protected = not may_replace and target.bucket not in ctx.network.unprotected_buckets
        try:
            call = upload.call_protected if is_protected else upload.call_final
            answer = await call(operation)
        except ServiceError as error:
            if not is_protected or OSS.meaning(error) is not Meaning.EXISTS:
                raise
            proved = await _compare(upload, part, target, is_repeat=error.is_repeat)
            if proved is not None:
                return proved
        else:
            if (ack := await upload.accept(part, answer)) is not None:
                facts = ObjectFacts(answer.etag, answer.crc64, part.size, answer.request_id)
                return ack, FoundObject(facts)
        may_replace = True


async def _compare(
    upload: ObjectUpload, part: Part, target: UploadTarget, *, is_repeat: bool
) -> tuple[PartAck, FoundObject] | None:
    """Compare the object that is there with the part; None if it is not the part, and is ours.

    It is ours if an earlier attempt, of this run or of a killed one, may have stored it. Where
    we may not look at it, sending it again is the proof.
    """
    found = await upload.look(target)
    if found is not None:
        ack = await upload.read_ack(part)
        if _is_stored(ack, found.facts):
            return replace(ack, etag=found.facts.etag or ack.etag), found
    if is_repeat or not upload.is_new or (found is not None and found.facts == ABSENT):
        return None
    raise another_object(upload.ctx, target)


def _is_stored(ack: PartAck, facts: ObjectFacts) -> bool:
    if facts.size != ack.size:
        return False
    if facts.crc64 is not None:
        return facts.crc64 == ack.crc64
    return facts.etag is not None and ack.md5 is not None and same_etag(facts.etag, ack.md5)
