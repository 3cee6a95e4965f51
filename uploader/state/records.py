"""The record of an upload. It never contains a credential."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Phase(StrEnum):
    """How far an upload has come, as a crash leaves it.

    NEW         recorded, no VideoId known; CreateUploadVideo may or may not have happened
    UPLOADING   VideoId and target known, UploadId as soon as OSS has given one
    COMPLETING  Complete (or PutObject) may or may not have been carried out
    DONE        verified; the record holds the result
    ABORTED     aborted; the next run starts a new upload
    """

    NEW = "new"
    UPLOADING = "uploading"
    COMPLETING = "completing"
    DONE = "done"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class PartAck:
    """OSS's answer for one part, compared with what was sent.

    Attributes:
        number: from 1.
        size: bytes.
        etag: as OSS gave it, without quotes.
        crc64: ours, over the bytes sent.
        md5: ours, upper-case hex, if it was computed.
    """

    number: int
    size: int
    etag: str
    crc64: int
    md5: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A multipart upload that is still to be aborted; its parts cost money."""

    upload_id: str
    video_id: str | None
    endpoint: str
    region: str | None
    bucket: str
    object_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """A notification that is to be delivered.

    Attributes:
        message_id: the same whenever it is sent again.
        receiver: opaque; who it is for.
        body: the text to send.
    """

    message_id: str
    receiver: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """One upload. Times are aware UTC; other modules define the texts marked opaque.

    Attributes:
        key: what the caller calls this upload; unique in a store.
        source: where the bytes come from (a path or a URL without query), for people and `resume`.
        fingerprint: opaque; how we know that the source is still the same.
        size: bytes of the source; 0 while a stream has no end.
        scope: which service and region the video lives in, for example "vod.cn-shanghai".
        reference_id: sent with CreateUploadVideo so that the video of a lost answer is found.
        meta: opaque JSON of the parameters of CreateUploadVideo.
        video_id: unique in a store once known.
        endpoint, region, bucket, object_key: the target, fixed once known.
        upload_id: OSS's multipart UploadId; None before Initiate and for PutObject.
        plan: opaque; how the source is cut into parts.
        result: opaque JSON of what a verified upload returned, once DONE.
        error: the last failure as text, for `status`.
        is_overwrite: whether overwriting a finished video was requested.
    """

    key: str
    phase: Phase
    source: str
    fingerprint: str
    size: int
    scope: str = ""
    reference_id: str | None = None
    meta: str | None = None
    video_id: str | None = None
    endpoint: str | None = None
    region: str | None = None
    bucket: str | None = None
    object_key: str | None = None
    upload_id: str | None = None
    plan: str | None = None
    result: str | None = None
    error: str | None = None
    is_overwrite: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None

    def orphan(self) -> Orphan | None:
        """The multipart upload that is known from this record alone."""
        if self.upload_id is None:
            return None
        return Orphan(
            upload_id=self.upload_id,
            video_id=self.video_id,
            endpoint=self.endpoint or "",
            region=self.region,
            bucket=self.bucket or "",
            object_key=self.object_key or "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStatus:
    """A record with what `status` shows beside it.

    Attributes:
        acked_part_count, acked_bytes: what OSS has confirmed so far.
        owner: who holds the lease, for people; None if it is free.
        lease_expires_at: when the lease runs out unless it is renewed.
    """

    record: UploadRecord
    acked_part_count: int
    acked_bytes: int
    owner: str | None
    lease_expires_at: datetime | None
