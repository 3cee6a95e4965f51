"""Sends a source while it arrives, part by part, up to its end.

What an earlier run has sent is compared with what arrives now: a stream must repeat
those bytes, and a file that is rewritten has the changed parts sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from uploader.errors import SourceChanged, SourceError, SourceUnreadable
from uploader.evidence import Receipts
from uploader.protocol.plan import MAX_PART_COUNT, Part, Plan
from uploader.sources import Fingerprint, PartStream, Source
from uploader.tasks import one_error

__all__ = ["Following"]

Send = Callable[[Part], Awaitable[None]]

_MAX_REWRITES: Final = 5
"""How often a file may change after its end before it is not at its end at all."""


@dataclass(frozen=True, slots=True)
class Following:
    """One source on its way.

    Attributes:
        plan: open, or closed by an earlier run.
        send: brings a part to OSS, and its receipt into `sent`.
        concurrency: how many parts at once.
    """

    source: Source
    stream: PartStream
    plan: Plan
    sent: Receipts
    send: Send
    concurrency: int

    async def to_the_end(self, reference: str) -> tuple[int, Fingerprint]:
        """Send everything; returns the size, which the receipts add up to, and what was sent.

        Raises:
            SourceChanged: it does not repeat what was sent.
            SourceUnreadable: it is longer than 10,000 parts hold.
        """
        await self.stream.begin(reference)
        size = await self._while_it_arrives()
        if self.stream.is_rereadable:
            return await self._until_it_is_still()
        self._require_sent_within(size)
        return size, await self.source.fingerprint()

    async def _while_it_arrives(self) -> int:
        """Read part after part, and send those that are there meanwhile."""
        parts: asyncio.Queue[Part | None] = asyncio.Queue()  # bounded by what the source keeps
        async with one_error() as group:
            for _ in range(self.concurrency):
                group.create_task(self._send_each(parts))
            size = await self._read_parts(parts)
            for _ in range(self.concurrency):
                parts.put_nowait(None)
        return size

    async def _read_parts(self, parts: asyncio.Queue[Part | None]) -> int:
        plan = self.plan
        for part in plan.parts:
            there_size = await self.stream.wait_for(part)
            if there_size:
                parts.put_nowait(replace(part, size=there_size))
            if there_size < part.size:
                return self._require_size(part.offset + there_size)
        if plan.is_open or await self.stream.wait_for(_after(plan.size)):
            raise self._too_long()
        return plan.size

    async def _send_each(self, parts: asyncio.Queue[Part | None]) -> None:
        while (part := await parts.get()) is not None:
            if not self.stream.is_rereadable:
                await self._send_or_compare(part)
            elif part.number > 1 and part.number not in self.sent:
                await self.send(part)  # the first one is sent last: headers are rewritten

    async def _send_or_compare(self, part: Part) -> None:
        if part.number in self.sent:
            if not await self._is_as_sent(part):
                raise SourceChanged(
                    f"{self.source.name} does not repeat what was sent of it: bytes "
                    f"{part.offset} to {part.offset + part.size} differ.",
                    next_step="Nothing was completed. Run the producer that this upload was begun "
                    "with, or give the upload up with `vodup abort` and start anew.",
                )
        else:
            await self.send(part)
        await self.stream.release(part)

    async def _is_as_sent(self, part: Part) -> bool:
        ack = self.sent.of(part.number)
        if ack is None or ack.size != part.size:
            return False
        crc64, _ = await self.source.read_crc(part.offset, part.size)
        return crc64 == ack.crc64

    # --- a file at its end ------------------------------------------------------------

    async def _until_it_is_still(self) -> tuple[int, Fingerprint]:
        """Read all of it again and send what differs, until nothing changes meanwhile."""
        for _ in range(_MAX_REWRITES):
            before = await self.source.fingerprint()
            await self._send_what_differs(before)
            if await self.source.fingerprint() == before:
                return before.size, before
        raise SourceChanged(
            f"{self.source.name} goes on changing after its end.",
            next_step="Nothing was completed. Run the same command again once its writer has "
            "finished.",
        )

    async def _send_what_differs(self, seen: Fingerprint) -> None:
        parts = asyncio.Queue[Part | None]()
        async with one_error() as group:
            for _ in range(self.concurrency):
                group.create_task(self._send_queued(parts))
            for part in self.plan.closed(self._require_size(seen.size)).parts:
                if not await self._is_as_sent(part):
                    parts.put_nowait(part)
            for _ in range(self.concurrency):
                parts.put_nowait(None)

    async def _send_queued(self, parts: asyncio.Queue[Part | None]) -> None:
        while (part := await parts.get()) is not None:
            await self.send(part)

    # --- the end ----------------------------------------------------------------------

    def _require_size(self, size: int) -> int:
        plan = self.plan
        if not plan.is_open and size != plan.size:
            raise SourceChanged(
                f"{self.source.name} ends at byte {size} now; before, it had {plan.size}."
            )
        return size

    def _require_sent_within(self, size: int) -> None:
        """Parts beyond the end were sent of another stream, or of a longer one."""
        end = self.sent.end
        if end > size:
            raise SourceChanged(
                f"{self.source.name} ends at byte {size}, and {end} were sent of it before."
            )

    def _too_long(self) -> SourceError:
        plan = self.plan
        if not plan.is_open:
            return SourceChanged(
                f"{self.source.name} is longer than before: it had {plan.size} bytes."
            )
        return SourceUnreadable(
            f"{self.source.name} is longer than the {plan.capacity} bytes that {MAX_PART_COUNT} "
            "parts of this upload hold; nothing was completed.",
            next_step="Give it up with `vodup abort`, and begin anew with --expected-size and room "
            "for larger parts (--spool DIR, --memory).",
        )


def _after(size: int) -> Part:
    """A part that begins where everything has ended."""
    return Part(MAX_PART_COUNT, size, 1)
