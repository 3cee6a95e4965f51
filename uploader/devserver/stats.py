"""Statistics: a log of requests, and counters for tests."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class RequestRecord:
    """One request as it was handled. Mutable until it has ended.

    ``status`` 0 means that no answer was sent. Instants are seconds of the Unix epoch.
    """

    service: str
    operation: str
    subject: str
    """The object key, or the VideoId of a VOD call."""
    part_number: int | None
    upload_id: str
    attempt: int
    connection: int
    started_at: float
    status: int = 0
    code: str = ""
    video_id: str = ""
    generation: int = 0
    body_bytes: int = 0
    is_body_complete: bool = False
    signature_version: str = ""
    faults: list[str] = field(default_factory=list)
    ended_at: float = 0.0


@dataclass(slots=True)
class Stats:
    """Counters of one server since it started. Mutable."""

    requests: Counter[str] = field(default_factory=Counter)
    """Requests by operation."""
    answers: Counter[str] = field(default_factory=Counter)
    """Answers by ``operation status code``."""
    bytes_by_generation: Counter[int] = field(default_factory=Counter)
    """Body bytes received under the n-th credentials of a video, from 1."""
    bytes_by_part: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Body bytes received by (upload_id, part_number), whole bodies or not."""
    refreshes_by_video: Counter[str] = field(default_factory=Counter)
    part_bytes: int = 0
    """Bytes of part bodies that arrived whole and were stored."""
    partial_bytes: int = 0
    """Bytes of part bodies that were cut off or refused."""
    parts_stored: int = 0
    parts_sent_twice: int = 0
    """Whole bodies received for a part that had been stored before."""
    bytes_sent_twice: int = 0
    creates: int = 0
    created_with: list[dict[str, str]] = field(default_factory=list)
    """Parameters of each CreateUploadVideo that made a video."""
    refreshes: int = 0
    overwrite_refreshes: int = 0
    initiates: int = 0
    completes: int = 0
    """CompleteMultipartUpload calls that created an object."""
    completes_by_video: Counter[str] = field(default_factory=Counter)
    aborts: int = 0
    puts: int = 0
    expired_refusals: int = 0
    """Requests refused because their token had expired."""
    connections: int = 0
    """Client connections that carried a request."""
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    """Each try to send an event: ``url``, ``attempt``, ``status`` (0: no answer), ``event``."""
    log: deque[RequestRecord] = field(default_factory=deque)

    def remember(self, record: RequestRecord, limit: int) -> None:
        """Add a request to the log when it starts."""
        self.requests[record.operation] += 1
        self.log.append(record)
        while len(self.log) > limit:
            self.log.popleft()

    def received(self, record: RequestRecord, size: int) -> None:
        """Count bytes of a body as they arrive."""
        record.body_bytes += size
        self.bytes_by_generation[record.generation] += size
        if record.part_number is not None:
            self.bytes_by_part[record.upload_id, record.part_number] += size

    def stored_part(self, size: int, *, again: bool) -> None:
        """Count a part that was received whole."""
        self.parts_stored += 1
        self.part_bytes += size
        if again:
            self.parts_sent_twice += 1
            self.bytes_sent_twice += size

    def ended(self, record: RequestRecord, at: float) -> None:
        """Close the record of a request."""
        record.ended_at = at
        self.answers[f"{record.operation} {record.status} {record.code}".rstrip()] += 1
        if record.code in ("SecurityTokenExpired", "InvalidAccessKeyId"):
            self.expired_refusals += record.generation > 0
        if record.operation == "UploadPart" and not record.is_body_complete:
            self.partial_bytes += record.body_bytes

    def snapshot(self) -> dict[str, Any]:
        """The counters as JSON values, without the log."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "log"}
        plain["bytes_by_generation"] = {str(k): v for k, v in self.bytes_by_generation.items()}
        plain["bytes_by_part"] = {f"{u}/{n}": v for (u, n), v in self.bytes_by_part.items()}
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in plain.items()}

    def requests_snapshot(self) -> list[dict[str, Any]]:
        """The log as JSON values."""
        return [asdict(record) for record in self.log]
