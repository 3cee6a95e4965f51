"""Sends a source while it grows, part by part, up to its end.

What an earlier run has sent is compared with what arrives now: a stream must repeat those
bytes, and of a file that is rewritten the changed parts are sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from uploader.errors import SourceChanged, SourceError, SourceUnreadable
from uploader.protocol.plan import MAX_PART_COUNT, Part, Plan
from uploader.sources import Fingerprint, PartStream
from uploader.tasks import one_error
from uploader.upload.object import ObjectUpload
from uploader.upload.parts import add_sent, send_part

T = TypeVar("T")
Queue = asyncio.Queue[Part | None]

_MAX_REWRITES: Final = 5
"""How often a file may change after its end before it has no end at all."""


async def send_stream(upload: ObjectUpload) -> None:
    """Send a source to its end as it arrives; complete sources are left to `parts`.

    Raises:
        SourceChanged: it does not repeat what was sent.
        SourceUnreadable: it is longer than 10,000 parts hold.
    """
    plan, stream = upload.acked.plan, upload.ctx.source.stream
    is_sent = not plan.is_open and not upload.acked.missing()
    if stream is None or is_sent:
        return
    upload.ctx.progress.phase = "send"
    with upload.watching_target():
        size, fingerprint = await _StreamUpload(upload, stream, plan).send()
    if plan.is_open:
        await upload.close_stream(plan.closed(size), fingerprint.to_text())


@dataclass(frozen=True, slots=True)
class _StreamUpload:
    """One source that grows. `plan` is open, or closed by an earlier run."""

    upload: ObjectUpload
    stream: PartStream
    plan: Plan

    @property
    def _name(self) -> str:
        return self.upload.ctx.source.name

    async def send(self) -> tuple[int, Fingerprint]:
        """Send everything; returns the size, which the acks add up to, and what was sent."""
        await self.stream.begin(self.upload.ctx.record.reference_id or "")
        if self.stream.is_rereadable:
            await self._send_concurrently(self._arriving, self._send_unless_first)
            return await self._send_rewritten()
        size = await self._send_concurrently(self._arriving, self._send_or_compare)
        self._require_acked_within(size)
        return size, await self.upload.ctx.source.fingerprint()

    async def _send_concurrently(
        self, fill: Callable[[Queue], Awaitable[T]], send: Callable[[Part], Awaitable[None]]
    ) -> T:
        """Send what `fill` puts into a queue, several parts at a time; returns what it returns."""
        parts = Queue()  # bounded by what the source buffers
        concurrency = self.upload.ctx.network.pace.max_concurrency

        async def worker() -> None:
            while (part := await parts.get()) is not None:
                await send(part)

        async with one_error() as group:
            for _ in range(concurrency):
                group.create_task(worker())
            filled = await fill(parts)
            for _ in range(concurrency):
                parts.put_nowait(None)
        return filled

    async def _arriving(self, parts: Queue) -> int:
        """Wait for part after part; returns the size of the source."""
        for part in self.plan.parts:
            arrived_size = await self.stream.wait_for(part)
            if arrived_size:
                parts.put_nowait(replace(part, size=arrived_size))
            if arrived_size < part.size:
                return self._require_size(part.offset + arrived_size)
        end = Part(MAX_PART_COUNT, self.plan.size, 1)
        if self.plan.is_open or await self.stream.wait_for(end):
            raise self._too_long()
        return self.plan.size

    async def _send_unless_first(self, part: Part) -> None:
        """The first part of a file is sent last: headers are rewritten at the end."""
        if part.number > 1 and part.number not in self.upload.acked:
            await self._send(part)

    async def _send_or_compare(self, part: Part) -> None:
        if part.number not in self.upload.acked:
            await self._send(part)
        elif not await self._is_as_sent(part):
            raise SourceChanged(
                f"{self._name} does not repeat what was sent of it: bytes {part.offset} to "
                f"{part.offset + part.size} differ.",
                next_step="Nothing was completed. Run the producer that this upload was started "
                "with, or abort the upload with `vodup abort` and start over.",
            )
        await self.stream.release(part)

    async def _send(self, part: Part) -> None:
        await add_sent(self.upload, await send_part(self.upload, part))

    async def _is_as_sent(self, part: Part) -> bool:
        ack = self.upload.acked.get(part.number)
        if ack is None or ack.size != part.size:
            return False
        crc64, _ = await self.upload.ctx.source.read_crc(part.offset, part.size)
        return crc64 == ack.crc64

    async def _send_rewritten(self) -> tuple[int, Fingerprint]:
        """Read all of a file again and send what differs, until nothing changes meanwhile."""
        source = self.upload.ctx.source

        async def differing(parts: Queue) -> None:
            for part in self.plan.closed(self._require_size(before.size)).parts:
                if not await self._is_as_sent(part):
                    parts.put_nowait(part)

        for _ in range(_MAX_REWRITES):
            before = await source.fingerprint()
            await self._send_concurrently(differing, self._send)
            if await source.fingerprint() == before:
                return before.size, before
        raise SourceChanged(
            f"{self._name} keeps changing after its end.",
            next_step="Nothing was completed. Run the same command again once its writer has "
            "finished.",
        )

    def _require_size(self, size: int) -> int:
        if not self.plan.is_open and size != self.plan.size:
            raise SourceChanged(
                f"{self._name} ends at byte {size} now; before, it had {self.plan.size}."
            )
        return size

    def _require_acked_within(self, size: int) -> None:
        """Parts beyond the end were sent of another stream, or of a longer one."""
        end = self.upload.acked.end
        if end > size:
            raise SourceChanged(
                f"{self._name} ends at byte {size}, and {end} were sent of it before."
            )

    def _too_long(self) -> SourceError:
        if not self.plan.is_open:
            return SourceChanged(
                f"{self._name} is longer than before: it had {self.plan.size} bytes."
            )
        return SourceUnreadable(
            f"{self._name} is longer than the {self.plan.capacity} bytes that {MAX_PART_COUNT} "
            "parts of this upload hold; nothing was completed.",
            next_step="Abort it with `vodup abort`, and start over with --expected-size and room "
            "for larger parts (--spool DIR, --memory).",
        )
