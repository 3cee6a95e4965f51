"""From what a caller asks for to a recorded upload with a VideoId and a target."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from uploader.credentials import DOCUMENTED_LIFE_S, GrantSource, Network, NewVideo, life_s
from uploader.errors import (
    ConfigurationError,
    OverwriteRefused,
    SourceChanged,
    UnsupportedState,
)
from uploader.events import UploadFinished, UploadResult
from uploader.options import UploadOptions
from uploader.progress import Progress
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.grants import UploadGrant
from uploader.protocol.integrity import join_crc64
from uploader.protocol.part_sizes import Outlook, plan_file, plan_stream
from uploader.protocol.plan import MAX_PART_COUNT, MAX_PUT_SIZE, Part, Plan, read_plan
from uploader.protocol.vod import VideoMeta
from uploader.sources import Fingerprint, PartStream, Source
from uploader.state import Journal, Phase, StateStore, UploadRecord

__all__ = [
    "Asked",
    "Job",
    "changes_of",
    "default_key",
    "drained",
    "grant_and_target",
    "is_one_request",
    "needs_video",
    "new_plan",
    "plan_of",
    "receipt_of",
    "record_of",
]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the caller wants of one upload. `going`: it sends only while this is set."""

    meta: VideoMeta
    video_id: str | None
    grant: UploadGrant | None
    overwrite: bool
    going: asyncio.Event | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one upload: what all its steps share."""

    key: str
    asked: Asked
    source: Source
    journal: Journal
    network: Network
    scope: str
    grants: GrantSource | None
    options: UploadOptions
    progress: Progress
    state: StateStore

    @property
    def record(self) -> UploadRecord:
        """The record; there is one from `record_of` on."""
        if (record := self.journal.record) is None:  # pragma: no cover - it comes first
            raise RuntimeError(f"upload {self.key} is not recorded yet")
        return record

    def require_grants(self) -> GrantSource:
        """Whoever hands out grants, or a `ConfigurationError`."""
        if self.grants is None:
            raise ConfigurationError(
                "Nobody was named who hands out grants for this upload.",
                next_step="Pass a provider, or a fresh grant (--grant).",
            )
        return self.grants


def default_key(scope: str, identity: str) -> str:
    """What an upload is called in the state where nobody names it."""
    # A file's name may hold bytes that are no UTF-8; Python carries them as surrogates.
    named = f"{scope}\0{identity}".encode(errors="surrogateescape")
    return f"file-{hashlib.sha256(named).hexdigest()[:20]}"


async def receipt_of(job: Job) -> UploadResult | None:
    """Return the result of an earlier run if the source is still the one it sent."""
    record = job.journal.record
    if record is None or record.phase is not Phase.DONE or record.receipt is None:
        return None
    result = _result_of(record.receipt)
    if not await _is_source_of(job, record, result):
        if job.asked.overwrite:
            return None
        raise SourceChanged(
            f"{job.source.name} was uploaded as video {record.video_id}, and has changed since.",
            next_step=f"To make a new video of it, pass --key NAME or run `vodup clean {job.key}` "
            "first; to replace the video's content, pass --overwrite.",
        )
    result = replace(result, is_receipt=True, sent_bytes=0)
    job.progress.tell(UploadFinished(key=job.key, video_id=record.video_id, result=result))
    return result


async def _is_source_of(job: Job, record: UploadRecord, result: UploadResult) -> bool:
    """Whether the source holds what was uploaded; a copied or touched file is read again."""
    stream = job.source.stream
    if stream is not None and not stream.is_rereadable:
        return await drained(job.source, stream) == (result.size, result.crc64)
    await _await_end(job.source, result.size)
    now = (await job.source.fingerprint()).to_text()
    if now == record.fingerprint:
        return True
    size = job.source.size
    if size != result.size or (await job.source.read_crc(0, size))[0] != result.crc64:
        return False
    await job.journal.update_fingerprint(now)
    return True


async def _await_end(source: Source, size: int) -> None:
    """Wait until a file that may still be written can be compared with one of this size."""
    stream = source.stream
    if stream is not None and stream.is_rereadable and size:
        await stream.wait_for(Part(MAX_PART_COUNT, size, 1))


async def drained(source: Source, stream: PartStream) -> tuple[int, int]:
    """Read a stream to its end and keep nothing; its size and CRC-64."""
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


def _result_of(receipt: str) -> UploadResult:
    try:
        return UploadResult(**json.loads(receipt))
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_readable("receipt", error) from None


@functools.lru_cache(maxsize=256)
def plan_of(text: str) -> Plan:
    """Read a recorded plan.

    Raises:
        UnsupportedState: it is none, or of a newer version.
    """
    try:
        return read_plan(text)
    except MalformedDocument as error:
        raise _not_readable("plan", error) from None


def _not_readable(what: str, error: Exception) -> UnsupportedState:
    return UnsupportedState(
        f"The {what} in the checkpoint is not readable: {error}.",
        next_step="If no newer vodup wrote it, the record is damaged: `vodup clean` removes it, "
        "and --video-id continues the video.",
    )


# --- the record --------------------------------------------------------------------


def needs_video(job: Job) -> bool:
    """Whether this run is to make a video: there is none, and nobody has named one."""
    record, asked = job.journal.record, job.asked
    if asked.video_id is not None or asked.grant is not None:
        return False
    return record is None or record.phase is Phase.ABORTED or record.video_id is None


async def record_of(job: Job) -> bool:
    """Write the upload down, or find it written down; tells whether an earlier run did.

    Raises:
        SourceChanged: it was begun with other bytes.
        ConfigurationError: it belongs to another video than the caller says.
    """
    record = job.journal.record
    if record is None or record.phase in {Phase.DONE, Phase.ABORTED}:
        await job.journal.create_record(await _new_record(job, record))
        return False
    _require_same_video(job, record)
    await _require_same_source(job, record)
    return True


async def _new_record(job: Job, former: UploadRecord | None) -> UploadRecord:
    video_id = job.asked.video_id
    if former is not None and former.phase is Phase.DONE:
        video_id = video_id or former.video_id  # an overwrite stays with its video
    return UploadRecord(
        key=job.key,
        phase=Phase.NEW,
        source=job.source.name,
        fingerprint=(await job.source.fingerprint()).to_text(),
        size=job.source.size,
        scope=job.scope,
        # Drawn, not derived from the key: a key may be used again after its receipt was
        # cleaned, and must not lead to the video of its former life.
        reference_id=f"vodup-{secrets.token_hex(16)}",
        meta=job.asked.meta.to_text(),
        video_id=video_id,
        is_overwrite=job.asked.overwrite,
    )


def _require_same_video(job: Job, record: UploadRecord) -> None:
    asked = job.asked.video_id
    if asked is not None and record.video_id is not None and asked != record.video_id:
        raise ConfigurationError(
            f"The upload {job.key} belongs to video {record.video_id}, not to {asked}.",
            next_step="Pass another --key, or leave --video-id away to continue it.",
        )


async def _require_same_source(job: Job, record: UploadRecord) -> None:
    """Accept the source if it is the recorded one, or proves to hold the same bytes."""
    await _await_end(job.source, record.size)
    now = await job.source.fingerprint()
    if now.to_text() == record.fingerprint:
        return
    if now.size != record.size or not await _holds_acked_bytes(job, record):
        raise SourceChanged(
            f"{job.source.name} is not the file this upload was begun with "
            f"({changes_of(record, now)})."
        )
    await job.journal.update_fingerprint(now.to_text())


def changes_of(record: UploadRecord, now: Fingerprint) -> str:
    """Say in words what is different from the recorded source."""
    try:
        changes = Fingerprint.from_text(record.fingerprint).changes(now)
    except MalformedDocument as error:
        raise _not_readable("fingerprint", error) from None
    return f"changed: {', '.join(changes)}"


async def _holds_acked_bytes(job: Job, record: UploadRecord) -> bool:
    """Re-read what OSS has confirmed: a copied or touched file is the same file.

    Where nothing is confirmed, nothing of the old file has been sent for good; what became
    of one PutObject without an answer is seen by comparing the object with this file.
    """
    if record.plan is None:
        return record.phase is not Phase.COMPLETING
    plan = plan_of(record.plan)
    if plan.is_single and record.upload_id is None and not job.journal.acks:
        return True
    for ack in job.journal.acks.values():
        if ack.number > plan.part_count:
            return False
        crc64, _ = await job.source.read_crc(plan.part(ack.number).offset, ack.size)
        if crc64 != ack.crc64:
            return False
    return bool(job.journal.acks) or record.phase is not Phase.COMPLETING


# --- the plan ------------------------------------------------------------------------


def new_plan(job: Job) -> Plan:
    """The parts of an upload that has none yet."""
    options = job.options
    if (stream := job.source.stream) is not None:
        return plan_stream(
            part_size=options.part_size,
            expected_size=stream.expected_size,
            largest_size=stream.max_part_size,
        )
    return plan_file(
        job.record.size,
        part_size=options.part_size,
        concurrency=job.network.pace.expected_concurrency,
        first_concurrency=job.network.pace.limit,
        outlook=_outlook(job),
    )


def _outlook(job: Job) -> Outlook:
    """What is known before a grant is asked for; VOD's own live for the documented time."""
    pace, grant = job.network.pace, job.asked.grant
    life = DOCUMENTED_LIFE_S
    if grant is not None:
        life = max(1.0, life_s(grant.credentials, clock=job.network.clock))
    return Outlook(connection_rate=pace.connection_rate, rtt_s=pace.rtt_s, credential_life_s=life)


def is_one_request(plan: Plan) -> bool:
    """Whether the whole is sent by one PutObject, which also completes it."""
    return plan.is_single and plan.size <= MAX_PUT_SIZE


# --- the grant -----------------------------------------------------------------------


async def grant_and_target(job: Job, plan: Plan | None, *, is_repeat: bool) -> UploadGrant | None:
    """Make sure that the upload has a VideoId and a target, and return a grant if at hand.

    `plan` is written down with them: that saves a small file a wait for the disk.

    The first target is pinned: this upload never goes anywhere else unless VOD moves it
    and the caller allows that.
    """
    record = job.record
    if record.endpoint is not None:
        return job.asked.grant
    video_id = record.video_id or job.asked.video_id
    grant = job.asked.grant or await _ask_for_grant(job, video_id, is_repeat=is_repeat)
    target = job.network.trust.check_target(grant.target)
    is_put = plan is not None and is_one_request(plan)
    await job.journal.set_target(
        video_id or grant.video_id,
        target,
        region=grant.credentials.region,
        plan=plan.to_text() if plan else None,
        one_request=is_put,
    )
    return grant


async def _ask_for_grant(job: Job, video_id: str | None, *, is_repeat: bool) -> UploadGrant:
    grants = job.require_grants()
    if video_id is not None:
        job.progress.phase = "renew"
        await _refuse_silent_overwrite(job, grants, video_id)
        return await grants.renew(video_id)
    job.progress.phase = "create"
    record = job.record
    video = NewVideo(
        meta=job.asked.meta,
        file_name=Path(record.source).name,
        file_size=record.size,
        reference_id=record.reference_id or "",
        is_repeat=is_repeat,
    )
    grant = await grants.create(video)
    if grant.video_id is None:
        raise ConfigurationError("The grant for the new video does not tell its VideoId.")
    return grant


async def _refuse_silent_overwrite(job: Job, grants: GrantSource, video_id: str) -> None:
    """Look before asking for credentials: for a finished video they are for overwriting."""
    if job.record.is_overwrite or job.asked.overwrite:
        return
    facts = await grants.facts(video_id)
    if facts is not None and not facts.is_waiting:
        raise OverwriteRefused(
            f"Video {video_id} is finished already (status {facts.status}); sending to it would "
            "replace its content and may start transcoding again."
        )
