"""Processes that die, the disk that outlives them, and a file that may change."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, closing
from datetime import datetime
from typing import Any

from uploader import (
    AccessKey,
    Event,
    MemoryState,
    RetryPolicy,
    TrustPolicy,
    Uploader,
    UploadOptions,
    UploadRecord,
    UploadResult,
    VideoMeta,
    VodProvider,
)
from uploader.errors import SourceChanged
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources import Fingerprint
from uploader.state import Journal, PartAck
from uploader.state.journal import UploadClaim

from .virtual import VirtualClock, VirtualLoop
from .world import PART, Line, World

__all__ = ["KEY", "Disk", "File", "OpenFile", "Process", "Stepwise", "options"]

KEY = "film"
PATIENT = RetryPolicy(patience_s=120.0, first_contact_patience_s=60.0, base_s=0.5, cap_s=8.0)


def options(**changes: Any) -> UploadOptions:
    """The smallest parts, three connections."""
    usual: dict[str, Any] = {"part_size": PART, "concurrency": 3, "retry": PATIENT}
    return UploadOptions(**usual | changes)


# --- what survives ------------------------------------------------------------------------


class Disk(MemoryState):
    """A store whose content outlives its processes. Mutable: who holds what.

    Every write takes effect somewhere between two suspensions, so that a process can die
    before it, and after it without knowing.
    """

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock=clock)
        self.seen_upload_ids: set[str] = set()
        self.recorded_upload_ids: set[str] = set()  # of former lives of the key as well

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[Journal]:
        """Take an upload until the block ends or the lease is broken."""
        async with super().claim(key) as journal:
            journal._claim = self.stepwise(journal._claim)
            yield journal

    def stepwise(self, claim: UploadClaim) -> Stepwise:
        """How a process writes."""
        return Stepwise(claim, self)

    def break_lease(self, key: str) -> None:
        """Whoever holds it, holds it no longer, and cannot write any more."""
        if (holder := self._claims.get(key)) is not None:
            self._end(holder)

    def is_claimed(self, key: str) -> bool:
        """Whether it is held."""
        return key in self._claims

    def record(self, key: str = KEY) -> UploadRecord | None:
        """The record as it is on the disk."""
        entry = self._entries.get(key)
        return entry.record if entry else None

    def acks(self, key: str = KEY) -> dict[int, PartAck]:
        """The acks as they are on the disk."""
        entry = self._entries.get(key)
        return entry.acks if entry else {}

    def orphan_ids(self) -> set[str]:
        """The uploads that still have to be aborted."""
        return set(self._orphans)

    def has_ack(self, upload_id: str, number: int) -> bool:
        """Whether a part's ack is on the disk."""
        record = self.record()
        return record is not None and record.upload_id == upload_id and number in self.acks()

    def note(self) -> None:
        """Remember every UploadId that was ever on the disk."""
        for entry in self._entries.values():
            if entry.record.upload_id:
                self.seen_upload_ids.add(entry.record.upload_id)
                self.recorded_upload_ids.add(entry.record.upload_id)


class Stepwise:
    """A `UploadClaim` that suspends before and after every write."""

    def __init__(self, inner: UploadClaim, disk: Disk) -> None:
        self._inner, self._disk = inner, disk
        self.key = inner.key

    async def add_record(self, record: UploadRecord) -> datetime:
        return await self._keep(self._inner.add_record(record))

    async def update(self, fields: Mapping[str, Any], **more: Any) -> datetime:
        return await self._keep(self._inner.update(fields, **more))

    async def add_ack(self, ack: PartAck, *, patience_s: float = 0.0) -> None:
        await asyncio.sleep(0)
        await self._inner.add_ack(ack)
        await asyncio.sleep(0)

    @property
    def is_certainly_ours(self) -> bool:
        return self._inner.is_certainly_ours

    async def confirm(self) -> None:
        await asyncio.sleep(0)
        await self._inner.confirm()
        await asyncio.sleep(0)

    async def _keep(self, write: Coroutine[Any, Any, datetime]) -> datetime:
        with closing(write):
            await asyncio.sleep(0)
            time = await write
        self._disk.note()
        await asyncio.sleep(0)
        return time


# --- what is sent -------------------------------------------------------------------------


class File:
    """A file on some disk. Mutable: its content, and a version that never goes back."""

    def __init__(self, data: bytes, name: str = "/films/film.mp4") -> None:
        self.data, self.name = data, name
        self.version = 1

    def write(self, data: bytes) -> None:
        """Change it in place."""
        self.data = data
        self.version += 1


class OpenFile:
    """A `Source` on a `File`. Mutable: which version was opened."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._version = 0

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def identity(self) -> str:
        return self._file.name

    @property
    def size(self) -> int:
        return len(self._file.data)

    @property
    def stream(self) -> None:
        return None

    async def fingerprint(self) -> Fingerprint:
        await asyncio.sleep(0)
        return Fingerprint(len(self._file.data), self._file.version, self._file.version, 1, 1)

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        return _Piece(self, offset, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        await asyncio.sleep(0)
        piece = self._file.data[offset : offset + size]
        self.check()
        return crc64(piece), _md5(piece) if with_md5 else None

    async def __aenter__(self) -> OpenFile:
        self._version = self._file.version
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    def read(self, offset: int, size: int) -> bytes:
        return self._file.data[offset : offset + size]

    def check(self) -> None:
        """Fail if it was written to since it was opened."""
        if self._version != self._file.version:
            raise SourceChanged(f"{self.name} was changed while it was read.")


class _Piece:
    """A range as a request's body; only every other piece is at hand."""

    def __init__(
        self, source: OpenFile, offset: int, size: int, on_sent: Callable[[int], None] | None
    ) -> None:
        self._source, self._offset, self.size, self._on_sent = source, offset, size, on_sent

    def read_now(self, into: memoryview, position: int) -> int | None:
        return None if position else self._copy(into, position)

    async def read(self, into: memoryview, position: int) -> int:
        await asyncio.sleep(0)
        return self._copy(into, position)

    def sent(self, position: int) -> None:
        if self._on_sent is not None:
            self._on_sent(position)

    def _copy(self, into: memoryview, position: int) -> int:
        size = min(len(into), self.size - position)
        piece = self._source.read(self._offset + position, size)
        into[: len(piece)] = piece
        if not piece or position + len(piece) == self.size:
            self._source.check()
        if not piece:
            raise SourceChanged("it has become shorter.")
        return len(piece)


def _md5(piece: bytes) -> str:
    return hashlib.md5(piece, usedforsecurity=False).hexdigest().upper()


# --- who sends it ---------------------------------------------------------------------------


class Process:
    """One run of one command. Mutable: its task and its arguments."""

    def __init__(
        self, loop: VirtualLoop, clock: VirtualClock, world: World, disk: Disk, **changes: Any
    ) -> None:
        self._loop, self._clock, self._disk = loop, clock, disk
        self.line: Line = world.line()
        self.events: list[Event] = []
        self._options = options(**changes)
        self._task: asyncio.Task[UploadResult | None] | None = None

    def uploader(self) -> Uploader:
        """An uploader as a new process makes it."""
        return Uploader(
            VodProvider(AccessKey(id="LTAI-caller", secret="caller-secret")),
            state=self._disk,
            options=self._options,
            trust=TrustPolicy(),
            on_event=self.events.append,
            transport=self.line,
            clock=self._clock,
        )

    def start(self, file: File, **arguments: Any) -> None:
        """Begin to upload."""
        self._task = self._loop.create_task(self.upload(OpenFile(file), **arguments))
        self._loop.settle()

    def start_abort(self) -> None:
        """Begin to give the upload up."""
        self._task = self._loop.create_task(self._abort())
        self._loop.settle()

    async def upload(self, source: OpenFile, **arguments: Any) -> UploadResult:
        """Upload with an uploader of its own."""
        async with self.uploader() as up:
            return await up.upload(source, key=KEY, meta=VideoMeta(title="A film"), **arguments)

    async def _abort(self) -> None:
        async with self.uploader() as up:
            await up.abort(KEY)

    @property
    def is_over(self) -> bool:
        return self._task is None or self._task.done()

    @property
    def error(self) -> BaseException | None:
        """What it ended with."""
        assert self._task is not None
        return self._task.exception()

    @property
    def result(self) -> UploadResult | None:
        """What it returned."""
        assert self._task is not None
        return self._task.result()

    def kill(self, *, is_holder: bool = True) -> None:
        """End it as SIGKILL does: whatever its cleaning up would still do has no effect."""
        self.line.is_cut = True
        if is_holder:
            self._disk.break_lease(KEY)
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._loop.settle()
            assert self._task.done(), "a cancelled upload goes on"
