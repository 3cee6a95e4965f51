"""What can go wrong on this machine: the source, its disk, and the checkpoint."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from uploader.errors import LeaseLost, SourceUnreadable, StateUnavailable
from uploader.protocol.wire import Body
from uploader.sources import FileSource, Fingerprint
from uploader.state import Journal, Orphan, PartAck, Phase, StateStore, UploadRecord
from uploader.state.journal import UploadClaim
from uploader.state.records import UploadStatus


class DamagedFile:
    """A file that is changed under its reader, and put back. Mutable: how it is now.

    Attributes:
        versions: what may be uploaded, each as a whole: the original, and an edit whose times
            are put back, for that leaves a file like any other.
    """

    KINDS: ClassVar = {"truncate", "grow", "replace", "edit", "unlink"}

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data = path, data
        self.versions = [data]
        self._is_damaged = False

    def damage(self, how: str) -> None:
        """Do it."""
        self._is_damaged = True
        match how:
            case "truncate":
                os.truncate(self._path, len(self._data) // 3)
            case "grow":
                with self._path.open("ab") as file:
                    file.write(b"more")
            case "replace":
                other = self._path.with_suffix(".new")
                other.write_bytes(bytes(len(self._data)))
                other.replace(self._path)
            case "edit":
                before = self._path.stat()
                with self._path.open("r+b") as file:
                    for offset in range(0, len(self._data), 50_000):
                        file.seek(offset)
                        file.write(b"edited")
                os.utime(self._path, ns=(before.st_atime_ns, before.st_mtime_ns))
                self.versions.append(self._path.read_bytes())
            case "unlink":
                self._path.unlink()

    def restore(self) -> None:
        """Put the original back, as a user would: with new times."""
        if self._is_damaged:
            self._is_damaged = False
            self._path.write_bytes(self._data)

    def clean_up(self) -> None:
        """The run is over."""
        self._path.unlink(missing_ok=True)


class UnreadableSource:
    """A file on a disk that reports errors from some moment on."""

    def __init__(self, file: FileSource, is_failing: Callable[[], bool]) -> None:
        self._file, self._is_failing = file, is_failing
        self.name, self.identity = file.name, file.identity

    @property
    def size(self) -> int:
        return self._file.size

    @property
    def stream(self) -> None:
        return None

    async def fingerprint(self) -> Fingerprint:
        return await self._file.fingerprint()

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        return _UnreadableBody(self._file.body(offset, size, on_sent), self.check)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        self.check()
        return await self._file.read_crc(offset, size, with_md5=with_md5)

    def check(self) -> None:
        """Fail like a disk."""
        if self._is_failing():
            raise SourceUnreadable(f"{self.name} cannot be read: its disk reports an error.")

    async def __aenter__(self) -> Self:
        await self._file.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._file.__aexit__(kind, error, trace)


class _UnreadableBody:
    def __init__(self, body: Body, check: Callable[[], None]) -> None:
        self._body, self._check = body, check
        self.size = body.size

    def read_now(self, into: memoryview, position: int) -> int | None:
        self._check()
        return self._body.read_now(into, position)

    async def read(self, into: memoryview, position: int) -> int:
        self._check()
        return await self._body.read(into, position)

    def sent(self, position: int) -> None:
        self._body.sent(position)


class FailingState:
    """A store whose writes fail at one step. Mutable: which step, and how often it injected."""

    def __init__(self, inner: StateStore) -> None:
        self._inner = inner
        self._step, self._how = "", ""
        self.hit_count = 0

    def arm(self, step: str, how: str) -> None:
        """From now on the step fails."""
        self._step, self._how = step, how

    def disarm(self) -> None:
        """From now on nothing fails."""
        self._step = ""

    def is_hit(self, step: str, *, is_done: bool) -> bool:
        """Whether to fail now: before the write, or after it."""
        fails_after = self._how == "write is not reported"
        return step != "" and step == self._step and is_done == fails_after

    def fail(self, step: str) -> None:
        """Raise what the store would."""
        self.hit_count += 1
        if self._how == "taken over":
            raise LeaseLost(f"another worker has taken over at {step}.")
        raise StateUnavailable(f"the disk is full at {step}.")

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._inner.__aexit__(*exc_info)

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[Journal]:
        if self.is_hit("claim", is_done=False):
            self.fail("claim")
        async with self._inner.claim(key) as journal:
            journal._claim = _FailingClaim(self, journal._claim)
            yield journal

    async def find(
        self, *, key: str | None = None, video_id: str | None = None
    ) -> UploadRecord | None:
        return await self._inner.find(key=key, video_id=video_id)

    def uploads(self) -> AsyncIterator[UploadStatus]:
        return self._inner.uploads()

    async def forget(self, key: str) -> None:
        await self._inner.forget(key)

    async def orphans(self) -> list[Orphan]:
        return await self._inner.orphans()

    async def forget_orphan(self, upload_id: str) -> None:
        await self._inner.forget_orphan(upload_id)


class _FailingClaim:
    def __init__(self, state: FailingState, inner: UploadClaim) -> None:
        self._state, self._inner = state, inner

    @property
    def key(self) -> str:
        return self._inner.key

    async def add_record(self, record: UploadRecord) -> datetime:
        with self._failing("create"):
            return await self._inner.add_record(record)

    async def update(self, fields: Mapping[str, Any], **more: Any) -> datetime:
        with self._failing("" if more else _step_of(fields)):
            return await self._inner.update(fields, **more)

    async def add_ack(self, ack: PartAck, *, patience_s: float = 0.0) -> None:
        with self._failing("ack" if ack.number == 3 else ""):
            await self._inner.add_ack(ack)

    @property
    def is_certainly_ours(self) -> bool:
        return self._inner.is_certainly_ours

    async def confirm(self) -> None:
        await self._inner.confirm()

    def _failing(self, step: str) -> _Failing:
        return _Failing(self._state, step)


class _Failing:
    """Fails before its block, or after it."""

    def __init__(self, state: FailingState, step: str) -> None:
        self._state, self._step = state, step

    def __enter__(self) -> None:
        if self._state.is_hit(self._step, is_done=False):
            self._state.fail(self._step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._state.is_hit(self._step, is_done=True):
            self._state.fail(self._step)


def _step_of(changes: Mapping[str, Any]) -> str:
    """Name the step of an upload by what it writes down."""
    if changes.get("phase") is Phase.DONE:
        return "done"
    if changes.get("phase") is Phase.COMPLETING:
        return "completing"
    for name in ("endpoint", "upload_id", "plan"):
        if changes.get(name) is not None:
            return {"endpoint": "target", "upload_id": "upload-id"}.get(name, name)
    return ""
