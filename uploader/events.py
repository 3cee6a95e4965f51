"""What a caller may be told while an upload runs.

Lifecycle events are never dropped; `UploadProgress` comes a few times a second and only
the newest counts. Every event has a stable `type`, which is also its name in logs and in
the CLI's JSON lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "CredentialsRenewed",
    "Event",
    "HookFailed",
    "Listener",
    "PartStored",
    "PartsAdopted",
    "RequestRetried",
    "UploadCancelled",
    "UploadFailed",
    "UploadFinished",
    "UploadProgress",
    "UploadRestarted",
    "UploadResult",
    "UploadStarted",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadResult:
    """What OSS holds, verified.

    Attributes:
        size: bytes.
        crc64: CRC-64/XZ of the object, computed here over the bytes sent, and equal to
            OSS's where OSS told one.
        etag: the object's, without quotes; None if OSS did not tell it.
        part_count: parts of the plan; 1 for PutObject.
        resumed_part_count: of these, not sent by this run.
        renewal_count: credentials renewed by this run.
        retry_count: requests repeated by this run.
        sent_bytes: bytes of file content this run handed to the network, repeats included.
        verified_by: the proof: "crc64" (in the answer of Complete or PutObject),
            "crc64-head", "crc64-url" or "etag".
        seconds: what this run took.
        is_receipt: nothing was sent: an earlier run had finished it.
        congestion: the TCP congestion control that carried it ("bbr", "cubic"), "" if unknown.
        hook_failures: hooks that failed after it was verified (`Hooks.after_verify`), a sentence
            each; only in what `upload` returns, for they are called after `UploadFinished`.
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
    is_receipt: bool = False
    congestion: str = ""
    hook_failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base: which upload it is about.

    Attributes:
        key: in the state; "" where nobody named it and its source could not be opened.
        video_id: None until VOD has given one.
    """

    type: ClassVar[str] = "event"
    key: str
    video_id: str | None


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
    """OSS has a part, and its receipt is durable. The parts of a package are its members.

    `member_number`: it is a part of this member of a package, which is too large for one
    request; such a member is told of by its parts alone. `seconds`: since the part was begun,
    with waiting for its turn and with all repeats.
    """

    type: ClassVar[str] = "part.stored"
    part_number: int
    size: int
    seconds: float
    member_number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsAdopted(Event):
    """OSS had parts whose answers were lost; proved against the source and kept."""

    type: ClassVar[str] = "parts.adopted"
    part_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRestarted(Event):
    """The multipart upload was gone: all parts are sent again under the same VideoId."""

    type: ClassVar[str] = "upload.restarted"
    reason: str
    lost_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadProgress(Event):
    """`done_bytes` of `size` are at OSS or on the way there.

    `size` and `part_count` are 0 while a stream has no end.
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

    `seconds`: from asking to having them.
    """

    type: ClassVar[str] = "credentials.renewed"
    renewal_count: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRetried(Event):
    """A request failed and will be sent again after `pause_s` seconds.

    `action` is what comes first: RETRY (nothing), SLOW_DOWN (send fewer requests at a time), RENEW
    (get new credentials) or FIX_CLOCK (sign for the service's clock).
    """

    type: ClassVar[str] = "request.retried"
    operation: str
    part_number: int | None
    reason: str
    code: str
    request_id: str
    action: str
    pause_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFinished(Event):
    """Verified."""

    type: ClassVar[str] = "upload.finished"
    result: UploadResult


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFailed(Event):
    """Ended without success; `error` is the class. Where `is_resumable` the checkpoint is kept."""

    type: ClassVar[str] = "upload.failed"
    error: str
    message: str
    code: str
    request_id: str
    is_resumable: bool
    next_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HookFailed(Event):
    """A hook could not be told how the upload ended; the upload is what it was."""

    type: ClassVar[str] = "hook.failed"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadCancelled(Event):
    """Stopped from outside; the checkpoint is kept."""

    type: ClassVar[str] = "upload.cancelled"


Listener = Callable[[Event], None]
"""Called on the event loop; must return quickly and not raise."""
