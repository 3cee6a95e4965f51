"""The parts of an object: which ones OSS has, sending what is missing, accepting the answers.

Acks bound what is sent twice after a crash. Where OSS lists our parts, a lost ack costs one
reading of the part, so acks may then be written a little later, several in one commit.

What is stored with one request replaces nothing that another run has stored. PutObject replaces
whatever is there, and that of a killed run may reach OSS after a newer run has verified its
object. So it has the header `x-oss-forbid-overwrite` (OSS API: PutObject), unless overwriting was
requested, or what is there is an older or damaged object of this upload.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from uploader.errors import IntegrityError, PermissionDenied, ServiceError, VodupError
from uploader.events import PartsAdopted
from uploader.protocol import oss
from uploader.protocol.failures import OSS, Meaning, is_vanished
from uploader.protocol.grants import UploadTarget
from uploader.protocol.integrity import same_etag
from uploader.protocol.oss import ListedPart, ObjectFacts
from uploader.protocol.plan import Part
from uploader.state import PartAck
from uploader.tasks import one_error
from uploader.upload.object import ObjectUpload, Vanished, another_object
from uploader.upload.proof import ABSENT, UNKNOWN, FoundObject

_MAX_LIST_PAGES: Final = 20

_PATIENCE_S: Final = 0.05
"""How long an ack waits for others to share a commit with: at 125 parts a second that spares
half of what the state costs. What a kill may lose of them is found again in OSS's list."""
_MAX_PENDING_ACKS: Final = 64
"""Acks on their way to the disk. Too large: a state that stalls leaves more to find again."""

SentPart = tuple[PartAck, float]
"""A part's ack, and the seconds since it was begun."""


async def reconcile(upload: ObjectUpload) -> None:
    """Compare our acks with what OSS lists. Without permission to list, ours must do.

    Raises:
        Vanished: OSS does not know the UploadId any more, and nothing was completed.
    """
    try:
        listed, is_whole = await _list_parts(upload)
    except PermissionDenied:
        upload.is_listed = False
        return
    except ServiceError as error:
        if not is_vanished(error):
            raise
        if upload.is_completing:
            return  # perhaps completed: completing again finds out
        raise _vanished(error) from None
    upload.is_listed = upload.ctx.source.stream is None
    upload.acked.remove_unlike(listed)
    if is_whole:
        upload.acked.remove_unlisted(listed)
    await _adopt(upload, listed)


async def _list_parts(upload: ObjectUpload) -> tuple[dict[int, ListedPart], bool]:
    """All parts OSS lists, and whether its pages came to an end.

    After the first page the others are requested at the same time: a page that begins
    behind part n holds at least the parts n + 1 to n + 1,000.
    """
    end = upload.acked.plan.part_count
    listed, begun = await _list_page(upload, 0)
    if begun is None or begun >= end:
        return listed, True
    async with one_error() as group:
        tasks = [
            group.create_task(_list_range(upload, start, min(start + oss.LIST_PAGE_SIZE, end)))
            for start in range(begun, end, oss.LIST_PAGE_SIZE)
        ]
    for task in tasks:
        listed |= task.result()[0]
    return listed, all(task.result()[1] for task in tasks)


async def _list_range(
    upload: ObjectUpload, start: int, end: int
) -> tuple[dict[int, ListedPart], bool]:
    """The parts start + 1 to `end` at least, and whether the pages got that far."""
    listed: dict[int, ListedPart] = {}
    marker = start
    for _ in range(_MAX_LIST_PAGES):
        page, next_marker = await _list_page(upload, marker)
        listed |= page
        if next_marker is None or next_marker >= end:
            return listed, True
        if next_marker <= marker:
            break
        marker = next_marker
    return listed, False


async def _list_page(upload: ObjectUpload, marker: int) -> tuple[dict[int, ListedPart], int | None]:
    page = await upload.call(oss.list_parts(upload.target, upload.upload_id, marker=marker))
    return {part.number: part for part in page.parts}, page.next_marker


async def _adopt(upload: ObjectUpload, listed: dict[int, ListedPart]) -> None:
    """Keep parts whose answers were lost, if the source proves to hold their bytes."""
    if upload.ctx.source.stream is not None:
        return  # its bytes are not there yet; acked parts are compared as they arrive
    adopted_count = 0
    for part in upload.acked.missing():
        known = listed.get(part.number)
        if known is not None and (ack := await _prove(upload, part, known)) is not None:
            await add_ack(upload, ack)
            adopted_count += 1
    if adopted_count:
        upload.ctx.progress.emit(PartsAdopted, part_count=adopted_count)


async def _prove(upload: ObjectUpload, part: Part, listed: ListedPart) -> PartAck | None:
    if listed.size != part.size:
        return None
    needs_md5 = listed.crc64 is None
    crc64, md5 = await upload.ctx.source.read_crc(part.offset, part.size, with_md5=needs_md5)
    is_md5_same = md5 is not None and same_etag(md5, listed.etag)
    if not (is_md5_same if needs_md5 else crc64 == listed.crc64):
        return None
    return PartAck(part.number, part.size, listed.etag, crc64, md5)


async def send_missing_parts(upload: ObjectUpload) -> None:
    """Send every part that is not acked, several at a time."""
    if not upload.acked.is_put:
        await send_all(
            upload, upload.acked.missing(), partial(send_part, upload), partial(add_sent, upload)
        )


async def send_all(
    upload: ObjectUpload,
    parts: Sequence[Part],
    send: Callable[[Part], Awaitable[SentPart]],
    add: Callable[..., Coroutine[Any, Any, None]],
) -> None:
    """Send parts, as many at a time as there may be connections.

    Args:
        send: stores one part.
        add: makes its ack durable; takes what `send` returned and `patience_s`.
    """
    upload.ctx.progress.phase = "send"
    pending = iter(parts)
    unsent_count = len(parts)
    adding: deque[asyncio.Task[None]] = deque()

    async def worker() -> None:
        nonlocal unsent_count
        for part in pending:  # a shared iterator: every part has exactly one worker
            sent = await send(part)
            unsent_count -= 1
            if not upload.is_listed or not unsent_count:
                await add(sent)
                continue
            # A kill loses nothing that OSS lists, so the connection takes its next part meanwhile.
            adding.append(workers.create_task(add(sent, patience_s=_PATIENCE_S)))
            if len(adding) > _MAX_PENDING_ACKS:
                await asyncio.wait([adding.popleft()])

    with upload.watching_target():
        async with one_error() as workers:
            # Worth knowing where many acks are to be written that a list could tell again.
            has_list = upload.ctx.record.upload_id is not None and upload.ctx.source.stream is None
            if upload.is_listed is None and has_list and len(parts) > _MAX_PENDING_ACKS:
                workers.create_task(_learn_whether_listed(upload))
            for _ in range(min(len(parts), upload.ctx.network.pace.max_concurrency)):
                workers.create_task(worker())


async def _learn_whether_listed(upload: ObjectUpload) -> None:
    """List the parts once: the policy of the credentials may not allow that."""
    try:
        await _list_page(upload, 0)
    except VodupError:
        upload.is_listed = False
    else:
        upload.is_listed = True


async def send_part(upload: ObjectUpload, part: Part) -> SentPart:
    """Store a part; returns its ack, checked, and how long that took."""
    clock, progress = upload.ctx.network.clock, upload.ctx.progress
    began_s = clock.elapsed_s()
    ack: PartAck | None = None
    while ack is None:
        body = upload.ctx.source.body(part.offset, part.size, progress.watch_part(part.number))
        operation = oss.upload_part(
            upload.target, upload.upload_id, part, body, needs_md5=upload.needs_md5
        )
        try:
            answer = await upload.call(operation)
        except ServiceError as error:
            if is_vanished(error):
                raise _vanished(error) from None
            raise
        ack = await upload.accept(part, answer)
    seconds = clock.elapsed_s() - began_s
    upload.live.record_part_time(seconds)
    return ack, seconds


async def add_sent(upload: ObjectUpload, sent: SentPart, *, patience_s: float = 0.0) -> None:
    """Make the ack of a part durable and report the part."""
    ack, seconds = sent
    await add_ack(upload, ack, patience_s=patience_s)
    upload.ctx.progress.emit_stored(ack.number, ack.size, seconds)


async def add_ack(upload: ObjectUpload, ack: PartAck, *, patience_s: float = 0.0) -> None:
    """Count a part as acked and make that durable: this bounds what is sent twice."""
    upload.acked.add(ack)
    upload.ctx.progress.count_acked(ack.number)
    await upload.ctx.journal.add_part(ack, patience_s=patience_s)


def _vanished(failure: ServiceError) -> Vanished:
    return Vanished("OSS does not know the UploadId any more", failure)


# --- objects stored with one request ------------------------------------------------------


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
