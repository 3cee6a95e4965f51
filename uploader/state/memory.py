"""`MemoryState`: nothing survives the process. For tests, and for callers who want it so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from uploader.clock import Clock, SystemClock
from uploader.errors import LeaseLost, UploadLocked
from uploader.state.journal import Journal, UploadClaim, video_taken
from uploader.state.records import Orphan, OutboxMessage, PartAck, Phase, UploadRecord, UploadStatus


@dataclass(slots=True)
class _MemoryRecord:
    """One upload as the store holds it. Mutable."""

    record: UploadRecord
    acks: dict[int, PartAck] = field(default_factory=dict)


class MemoryState:
    """A store that is forgotten with the process. Uploads exclude each other by key as ever.

    Mutable. Leaving it as a context manager keeps its content: it can be entered again.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._entries: dict[str, _MemoryRecord] = {}  # oldest first
        self._key_of_video: dict[str, str] = {}
        self._orphans: dict[str, Orphan] = {}
        self._claims: dict[str, _MemoryClaim] = {}
        # Until when somebody delivers a message; None once it is delivered.
        self._outbox: dict[OutboxMessage, float | None] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[Journal]:
        """Take the upload `key` for ourselves until the block ends."""
        self._require_free(key)
        claim = self._claims[key] = _MemoryClaim(self, key)
        try:
            yield self._journal(claim)
        finally:
            self._end(claim)

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
                owner="this process" if entry.record.key in self._claims else None,
                lease_expires_at=None,
            )

    async def forget(self, key: str) -> None:
        """Delete a record and its acks; its unfinished multipart upload becomes an orphan."""
        self._require_free(key)
        record = self._remove(key)
        if record is not None and record.phase in (Phase.UPLOADING, Phase.COMPLETING):
            self._add_orphan(record.orphan())

    async def orphans(self) -> list[Orphan]:
        """Multipart uploads that still have to be aborted, oldest first."""
        return list(self._orphans.values())

    async def forget_orphan(self, upload_id: str) -> None:
        """Delete an orphan that was aborted."""
        self._orphans.pop(upload_id, None)

    async def add_message(self, message: OutboxMessage) -> None:
        """Keep a message until it is delivered."""
        known = {(each.message_id, each.receiver) for each in self._outbox}
        if (message.message_id, message.receiver) not in known:
            self._outbox[message] = 0.0

    async def take_messages(
        self, receiver: str, *, count: int, for_s: float
    ) -> list[OutboxMessage]:
        """Messages that nobody else delivers for so many seconds, oldest first."""
        now = self._clock.elapsed_s()
        free = [
            message
            for message, until in self._outbox.items()
            if message.receiver == receiver and until is not None and until <= now
        ][:count]
        self._outbox |= dict.fromkeys(free, now + for_s)
        return free

    async def end_messages(self, messages: Sequence[OutboxMessage], *, is_delivered: bool) -> None:
        """Record that messages were delivered, or return them to be delivered later."""
        self._outbox |= dict.fromkeys(messages, None if is_delivered else 0.0)

    async def count_waiting(self, receiver: str) -> int:
        """How many messages for a receiver are not delivered."""
        waiting = (each for each, until in self._outbox.items() if until is not None)
        return sum(message.receiver == receiver for message in waiting)

    def _journal(self, claim: UploadClaim) -> Journal:
        entry = self._entries.get(claim.key)
        if entry is None:
            return Journal(claim, None, {})
        return Journal(claim, entry.record, entry.acks)

    def _require_free_video(self, record: UploadRecord) -> None:
        owner = self._key_of_video.get(record.video_id or "")
        if record.video_id and owner is not None and owner != record.key:
            raise video_taken(record.video_id, owner)

    def _put(self, record: UploadRecord, acks: dict[int, PartAck]) -> None:
        """Write a record in place of the one with its key, or at the end."""
        if (former := self._entries.get(record.key)) is not None:
            self._key_of_video.pop(former.record.video_id or "", None)
        self._entries[record.key] = _MemoryRecord(record, acks)
        if record.video_id:
            self._key_of_video[record.video_id] = record.key

    def _remove(self, key: str) -> UploadRecord | None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._key_of_video.pop(entry.record.video_id or "", None)
        return entry.record

    def _add_orphan(self, orphan: Orphan | None) -> None:
        if orphan is not None:
            self._orphans.setdefault(orphan.upload_id, orphan)

    def _end(self, claim: _MemoryClaim) -> None:
        claim.is_over = True
        if self._claims.get(claim.key) is claim:
            del self._claims[claim.key]

    def _require_free(self, key: str) -> None:
        if key in self._claims:
            raise UploadLocked(f"{key!r} is already being uploaded by this process.")


class _MemoryClaim:
    """One claimed upload in a `MemoryState`. Mutable: whether the claim is over."""

    def __init__(self, state: MemoryState, key: str) -> None:
        self._state = state
        self.key = key
        self.is_over = False

    @property
    def is_certainly_ours(self) -> bool:
        return not self.is_over

    async def confirm(self) -> None:
        if self.is_over:
            raise LeaseLost(f"the claim on upload {self.key!r} is over.")

    async def add_record(self, record: UploadRecord) -> datetime:
        await self.confirm()
        self._state._require_free_video(record)
        self._state._remove(self.key)  # a new one goes to the end
        now = self._now()
        self._state._put(replace(record, created_at=now, updated_at=now), {})
        return now

    async def update(
        self, fields: Mapping[str, Any], *, drop_acks: bool = False, orphan: Orphan | None = None
    ) -> datetime:
        await self.confirm()
        entry = self._state._entries[self.key]
        now = self._now()
        record = replace(entry.record, **fields, updated_at=now)
        self._state._require_free_video(record)
        self._state._add_orphan(orphan)
        self._state._put(record, {} if drop_acks else entry.acks)
        return now

    async def add_ack(self, ack: PartAck, *, patience_s: float = 0.0) -> None:
        await self.confirm()
        self._state._entries[self.key].acks[ack.number] = ack

    def _now(self) -> datetime:
        return self._state._clock.utc_now().astimezone(UTC)
