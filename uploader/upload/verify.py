"""Proves that the object at OSS is what was sent, and compares an object with a source again."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Final

from uploader.errors import IntegrityError, SourceChanged, SourceNotRepeatable, UnverifiedCompletion
from uploader.events import UploadResult
from uploader.protocol.oss import ObjectFacts
from uploader.protocol.plan import Part
from uploader.upload.grant import finished_video
from uploader.upload.object import ObjectUpload
from uploader.upload.proof import FoundObject, Proof

# Hooks fail in a run, which is nothing of the object. `asdict` copies each value, also a string.
_RECORDED: Final = [f.name for f in fields(UploadResult) if f.name != "hook_failures"]


async def finish(upload: ObjectUpload, found: FoundObject) -> UploadResult:
    """Prove that the object is what was sent, record the result, and return it.

    Raises:
        IntegrityError: it is not. The next run sends everything again.
        UnverifiedCompletion: OSS returns nothing that would prove it.
    """
    result = await record_result(upload, found)
    upload.ctx.progress.emit_finished(result)
    return result


async def record_result(upload: ObjectUpload, found: FoundObject) -> UploadResult:
    """As `finish`, without reporting it.

    Raises:
        IntegrityError, UnverifiedCompletion: as `finish`.
    """
    upload.ctx.progress.phase = "verify"
    found, proof = await prove(upload, found)
    result = _result(upload, found, proof)
    recorded = {name: getattr(result, name) for name in _RECORDED}
    await upload.ctx.journal.finish(json.dumps(recorded))
    return result


async def prove(upload: ObjectUpload, found: FoundObject) -> tuple[FoundObject, Proof]:
    """Compare the object with what was sent; returns the figures that prove it.

    Raises:
        IntegrityError, UnverifiedCompletion: as `finish`.
    """
    found = await with_figures(upload, found)
    try:
        proof = upload.acked.proof(found.facts)
    except IntegrityError:
        # VOD may have taken the damaged object for the film: sending again replaces it.
        await upload.ctx.journal.restart(overwrite=True)
        raise
    if proof is None:
        raise UnverifiedCompletion(
            "OSS completed the object, but returns neither a CRC-64 nor an ETag that would "
            "prove what it holds."
        )
    return found, proof


async def with_figures(upload: ObjectUpload, found: FoundObject) -> FoundObject:
    """Get a CRC-64 by HEAD where the answer had none; else prepare to check the ETag.

    One that contradicts us is worth a second look: the object may be intact, and sending
    everything again is expensive.
    """
    has_proof = found.facts.crc64 is not None and upload.acked.is_proved_by(found.facts)
    if not found.how and not has_proof:
        looked = await upload.look()
        if looked is not None and looked.facts.crc64 is not None:
            return looked
        if found.facts.etag is None and looked is not None:
            found = looked
    if found.facts.crc64 is None and found.facts.etag is not None:
        await _compute_md5s(upload)
    return found


async def _compute_md5s(upload: ObjectUpload) -> None:
    """Read the source again for MD5s that nothing needed until now; their CRC-64s must agree."""
    source, acked = upload.ctx.source, upload.acked
    for ack in acked.of_object():
        if ack.md5 is not None:
            continue
        offset = acked.plan.part(ack.number).offset
        try:
            crc64, md5 = await source.read_crc(offset, ack.size, with_md5=True)
        except SourceNotRepeatable:
            return  # without its MD5s an ETag proves nothing, and `prove` says so
        if crc64 != ack.crc64:
            raise SourceChanged(f"{source.name} changed after it was sent.")
        acked.add(replace(ack, md5=md5))


def _result(upload: ObjectUpload, found: FoundObject, proof: Proof) -> UploadResult:
    record, progress, network = upload.ctx.record, upload.ctx.progress, upload.ctx.network
    if record.video_id is None:  # pragma: no cover - without one nothing is sent
        raise RuntimeError("a verified upload has a VideoId")
    return UploadResult(
        key=record.key,
        video_id=record.video_id,
        upload_id=record.upload_id,
        bucket=upload.target.bucket,
        object_key=upload.target.object_key,
        size=record.size,
        crc64=upload.acked.crc64,
        etag=found.facts.etag,
        part_count=upload.acked.plan.part_count,
        resumed_part_count=upload.resumed_part_count,
        renewal_count=progress.renewal_count,
        retry_count=progress.retry_count,
        sent_bytes=progress.sent_bytes,
        verified_by=f"crc64{found.how}" if proof == "crc64" else proof,
        seconds=round(network.clock.elapsed_s() - upload.began_s, 3),
        endpoint=upload.live.endpoint,
        earlier_video_id=progress.earlier_video_id,
        congestion=network.congestion(),
    )


async def compare(upload: ObjectUpload, part: Part | None = None) -> ObjectFacts:
    """Read the source again and compare it with the object; `part` is what the object holds.

    Raises:
        IntegrityError: they differ.
        UnverifiedCompletion: OSS does not let us look.
    """
    upload.ctx.progress.phase = "verify"
    source = upload.ctx.source
    offset, size = (part.offset, part.size) if part else (0, source.size)
    # Looked at through VOD's URL where the video is finished: renewing would be to overwrite it.
    facts, found = await finished_video(upload.ctx), None
    if facts is None:
        found = await upload.look()
    elif facts.file_url is not None:
        found = await upload.look_by_url(facts.file_url)
    if found is None or found.facts.crc64 is None:
        raise UnverifiedCompletion(
            "OSS does not let us read the object's CRC-64.",
            next_step="Allow vod:GetMezzanineInfo to return the file's URL, then run `vodup "
            "verify` again. If the upload is not finished, push it again with --overwrite.",
        )
    crc64, _ = await source.read_crc(offset, size)
    if (found.facts.crc64, found.facts.size) != (crc64, size):
        raise IntegrityError(
            f"The object in OSS is not {source.name}: {found.facts.size} bytes with "
            f"CRC-64 {found.facts.crc64}, the source has {size} bytes with {crc64}."
        )
    return found.facts
