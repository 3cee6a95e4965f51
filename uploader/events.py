"""The events of an upload, and its result.

Lifecycle events are never dropped; `UploadProgress` is sent a few times a second and only
the newest counts. Every event has a stable `type`, which is also its name in logs and in
the CLI's JSON lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadResult:
    """What OSS holds, verified.

    Attributes:
        size: bytes.
        crc64: CRC-64/XZ of the object, computed here over the bytes sent, and equal to
            OSS's where OSS returned one.
        etag: the object's, without quotes; None if OSS did not return it.
        part_count: parts of the plan; 1 for PutObject.
        resumed_part_count: of these, not sent by this run.
        renewal_count: credentials renewed by this run.
        retry_count: requests repeated by this run.
        sent_bytes: bytes of file content this run handed to the network, repeats included.
        verified_by: the proof: "crc64" (in the answer of Complete or PutObject),
            "crc64-head", "crc64-url" or "etag".
        seconds: what this run took.
        is_earlier_result: an earlier run had finished the upload; nothing was sent.
        endpoint: the OSS endpoint that it was sent to, "" in results of other versions.
        earlier_video_id: a finished video of this source from a run whose checkpoint is lost;
            it holds other content, so this video was created beside it.
        congestion: the TCP congestion control that carried it ("bbr", "cubic"), "" if unknown.
        hook_failures: hooks that failed after it was verified (`Hooks.after_verify`), a sentence
            each; only in what `upload` returns, because they run after `UploadFinished`.
    """

    key: str
    video_id: str
    upload_id: str | None
    bucket: str
    object_key: str
    size: int
    crc64: int
    etag: str | None
    part_count: int
    resumed_part_count: int
    renewal_count: int
    retry_count: int
    sent_bytes: int
    verified_by: str
    seconds: float
    is_earlier_result: bool = False
    endpoint: str = ""
    earlier_video_id: str | None = None
    congestion: str = ""
    hook_failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base: which upload it is about.

    Attributes:
        key: in the state; "" where the caller gave none and the source could not be opened.
        video_id: None until it is known.
    """

    type: ClassVar[str] = "event"
    key: str
    video_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierVideoFound(Event):
    """A run whose checkpoint is lost has created a video of this source.

    `is_same`: it is finished and holds the source, so nothing is sent. Otherwise it holds
    something else, or is gone (`earlier_video_id` is None), and a new video is created.
    """

    type: ClassVar[str] = "video.found"
    earlier_video_id: str | None
    is_same: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStarted(Event):
    """Parts are about to be sent. `done_bytes`, `resumed_part_count`: from earlier runs.

    `size` and `part_count` are 0 while a stream has no end.
    """

    type: ClassVar[str] = "upload.started"
    source: str
    size: int
    part_count: int
    done_bytes: int
    resumed_part_count: int
    upload_id: str | None
    is_resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStored(Event):
    """OSS has a part, and its ack is durable. The parts of a package are its files.

    `member_number`: it is a part of this file of a package, which is too large for one
    request; such a file is reported by its parts alone. `seconds`: since the part was begun,
    including the wait for a slot and all retries.
    """

    type: ClassVar[str] = "part.stored"
    part_number: int
    size: int
    seconds: float
    member_number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsAdopted(Event):
    """OSS had parts whose answers were lost; they were compared with the source and kept."""

    type: ClassVar[str] = "parts.adopted"
    part_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRestarted(Event):
    """The multipart upload vanished: all parts are sent again under the same VideoId."""

    type: ClassVar[str] = "upload.restarted"
    reason: str
    lost_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaAbandoned(Event):
    """An image or attached media was not stored and cannot be continued: another one is created.

    `media_id`: it stays at VOD; None where the run that created it has not recorded it.
    """

    type: ClassVar[str] = "media.abandoned"
    media_id: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadProgress(Event):
    """`done_bytes` of `size` are at OSS or on the way there.

    `size` and `part_count` are 0 while a stream has no end. The last one before every
    `UploadFinished` has `done_bytes == size`, also where an earlier run had sent everything.
    """

    type: ClassVar[str] = "upload.progress"
    done_bytes: int
    size: int
    acked_part_count: int
    part_count: int
    renewal_count: int
    retry_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsRenewed(Event):
    """VOD gave new credentials; `renewal_count` in this run so far.

    `seconds`: what the renewal took.
    """

    type: ClassVar[str] = "credentials.renewed"
    renewal_count: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRetried(Event):
    """A request failed and will be sent again after `pause_s` seconds.

    `action` is what comes first: RETRY (nothing), SLOW_DOWN (send fewer requests at a time), RENEW
    (get new credentials) FIX_CLOCK (sign for the
    service's clock) or FIX_REGION (sign for the region that OSS names).
    `left_s` is how long the request may keep failing before the upload ends; 0 where time does not
    limit it. `service` ("OSS", "VOD") and `address` (host and port) are where it was sent.
    """

    type: ClassVar[str] = "request.retried"
    operation: str
    part_number: int | None
    reason: str
    code: str
    request_id: str
    action: str
    pause_s: float
    left_s: float = 0.0
    service: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFinished(Event):
    """The upload is finished and verified."""

    type: ClassVar[str] = "upload.finished"
    result: UploadResult


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFailed(Event):
    """The upload failed; `error` is the class. Where `is_resumable`, the checkpoint is kept."""

    type: ClassVar[str] = "upload.failed"
    error: str
    message: str
    code: str
    request_id: str
    is_resumable: bool
    next_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HookFailed(Event):
    """A hook for the end of the upload failed; the upload itself is not affected."""

    type: ClassVar[str] = "hook.failed"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadCancelled(Event):
    """The upload was cancelled; the checkpoint is kept."""

    type: ClassVar[str] = "upload.cancelled"


Listener = Callable[[Event], None]
"""Called on the event loop; must return quickly. An error that it raises is logged, once."""
