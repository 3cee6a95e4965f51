"""`MemoryState`: nothing survives the process. For tests, and for callers who want it so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Self

from uploader.clock import Clock, SystemClock
from uploader.errors import LeaseLost, UploadLocked
from uploader.state.records import Orphan, PartAck, Phase, UploadRecord, UploadStatus
from uploader.state.rules import (
    orphan_left_by,
    require_known,
    require_replaceable,
    video_taken,
    with_changes,
)

__all__ = ["MemoryState"]


@dataclass(slots=True)
class _Entry:
    """Changes in place: one upload as the store holds it."""

    record: UploadRecord
    acks: dict[int, PartAck] = field(default_factory=dict)


class MemoryState:
    """A store that is forgotten with the process. Uploads exclude each other by key as ever.

    Leaving it as a context manager keeps its content: the same object can be entered again.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._entries: dict[str, _Entry] = {}  # oldest first
        self._key_of_video: dict[str, str] = {}
        self._orphans: dict[str, Orphan] = {}
        self._claimed: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[_MemoryCheckpoint]:
        """Take the upload `key` for ourselves until the block ends."""
        self._require_free(key)
        self._claimed.add(key)
        checkpoint = _MemoryCheckpoint(self, key)
        try:
            yield checkpoint
        finally:
            checkpoint.is_over = True
            self._claimed.discard(key)

    async def find(
        self, *, key: str | None = None, video_id: str | None = None
    ) -> UploadRecord | None:
        """Look a record up by its key or its VideoId."""
        if (key is None) == (video_id is None):
            raise TypeError("find() takes either key= or video_id=")
        if video_id is not None:
            key = self._key_of_video.get(video_id)
        entry = self._entries.get(key) if key is not None else None
        return entry.record if entry else None

    async def uploads(self) -> AsyncIterator[UploadStatus]:
        """All records, newest first."""
        for entry in reversed(list(self._entries.values())):
            yield UploadStatus(
                record=entry.record,
                acked_part_count=len(entry.acks),
                acked_bytes=sum(ack.size for ack in entry.acks.values()),
                owner="this process" if entry.record.key in self._claimed else None,
                lease_expires_at=None,
            )

    async def forget(self, key: str) -> None:
        """Delete a record and its receipts."""
        self._require_free(key)
        entry = self._take(key)
        if entry is not None and entry.record.phase in (Phase.UPLOADING, Phase.COMPLETING):
            self._note_orphan(orphan_left_by(entry.record))

    async def orphans(self) -> list[Orphan]:
        """Multipart uploads that still have to be aborted, oldest first."""
        return list(self._orphans.values())

    async def forget_orphan(self, upload_id: str) -> None:
        """Note that an orphan is gone."""
        self._orphans.pop(upload_id, None)

    def _require_free(self, key: str) -> None:
        if key in self._claimed:
            raise UploadLocked(f"upload {key!r} is being sent by this process already.")

    def _require_free_video(self, record: UploadRecord) -> None:
        owner = self._key_of_video.get(record.video_id or "")
        if record.video_id and owner is not None and owner != record.key:
            raise video_taken(record.video_id, owner)

    def _note_video(self, record: UploadRecord) -> None:
        """Note which upload the video belongs to; many uploads are not searched one by one."""
        if record.video_id:
            self._key_of_video[record.video_id] = record.key

    def _take(self, key: str) -> _Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._forget_video(entry.record)
        return entry

    def _forget_video(self, record: UploadRecord) -> None:
        if record.video_id:
            self._key_of_video.pop(record.video_id, None)

    def _note_orphan(self, orphan: Orphan | None) -> None:
        if orphan is not None:
            self._orphans.setdefault(orphan.upload_id, orphan)


class _MemoryCheckpoint:
    """One claimed upload in a `MemoryState`."""

    def __init__(self, state: MemoryState, key: str) -> None:
        self._state = state
        self._key = key
        self.is_over = False

    @property
    def _entry(self) -> _Entry | None:
        return self._state._entries.get(self._key)

    @property
    def record(self) -> UploadRecord | None:
        """The record as last written; None before the first `create`."""
        return self._entry.record if self._entry else None

    @property
    def acks(self) -> Mapping[int, PartAck]:
        """Receipts by part number."""
        return MappingProxyType(self._entry.acks if self._entry else {})

    async def create(self, record: UploadRecord) -> UploadRecord:
        """Write the first record, or replace a finished one."""
        self._require_held()
        if record.key != self._key:
            raise ValueError(f"the record is of {record.key!r}, the claim of {self._key!r}")
        require_replaceable(self.record)
        self._state._require_free_video(record)
        now = self._now()
        self._state._take(self._key)  # a new one goes to the end
        entry = _Entry(replace(record, created_at=now, updated_at=now))
        self._state._entries[self._key] = entry
        self._state._note_video(entry.record)
        return entry.record

    async def advance(self, **changes: Any) -> UploadRecord:
        """Change fields of the record."""
        self._require_held()
        changed = with_changes(require_known(self.record), changes)
        self._state._require_free_video(changed)
        return self._put(changed)

    async def ack(self, part: PartAck, *, patience_s: float = 0.0) -> None:
        """Record a receipt."""
        self._require_held()
        require_known(self.record)
        assert self._entry is not None  # noqa: S101 - has a record
        self._entry.acks[part.number] = part

    async def restart_parts(
        self, *, upload_id: str | None, plan: str | None, **changes: Any
    ) -> UploadRecord:
        """Forget all receipts, set UploadId and plan, and change other fields, in one commit."""
        self._require_held()
        record = require_known(self.record)
        self._state._note_orphan(orphan_left_by(record, upload_id))
        assert self._entry is not None  # noqa: S101 - has a record
        self._entry.acks.clear()
        return self._put(with_changes(record, {**changes, "upload_id": upload_id, "plan": plan}))

    @property
    def is_certainly_ours(self) -> bool:
        """Whether the claim still holds."""
        return not self.is_over

    async def confirm(self) -> None:
        """Make sure that it is still ours."""
        self._require_held()

    def _put(self, record: UploadRecord) -> UploadRecord:
        assert self._entry is not None  # noqa: S101 - has a record
        self._state._forget_video(self._entry.record)
        self._entry.record = replace(record, updated_at=self._now())
        self._state._note_video(record)
        return self._entry.record

    def _require_held(self) -> None:
        if self.is_over:
            raise LeaseLost(f"the claim on upload {self._key!r} is over.")

    def _now(self) -> datetime:
        return self._state._clock.utc_now().astimezone(UTC)
