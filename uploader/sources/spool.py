"""A folder that keeps the parts of a stream until OSS has them."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from uploader.errors import SourceChanged, SourceNotRepeatable, SourceUnreadable
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources.part_buffer import SHARES, Fill, Kept, Room, filled_from, require_room
from uploader.sources.ranges import REREAD_SIZE, Checksums, Range
from uploader.sources.readers import READ_SIZE
from uploader.threads import DISKS, in_thread

__all__ = ["KEPT_IN_SPOOL", "Spool"]

P = ParamSpec("P")
T = TypeVar("T")

KEPT_IN_SPOOL: Final = 8 * 1024**3
"""Bytes of a stream on disk. Too small: parts cannot grow, so that 10,000 of them hold
less. Too large: it is disk space."""

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class _Entry:
    """One part in the journal."""

    offset: int
    size: int
    crc64: int


@dataclass(slots=True)
class _Journal:
    """What a journal says. Mutable while it is read."""

    identity: str | None = None
    reference: str | None = None
    size: int = 0
    entries: dict[int, _Entry] = field(default_factory=dict)


class Spool:
    """Keeps parts as files in a folder, and a journal beside them.

    A spool that has seen the stream's end is all a later run needs: what OSS has is not
    in the folder any more, and the rest is. One that has not is of no use to it, because
    its stream has to come again from the first byte.

    A folder is used by one process at a time, which a lock guards. Mutable.

    Args:
        folder: where; each stream has a folder of its own below it.
        name: of the stream, as it names that folder.
        most: bytes kept at once.
    """

    def __init__(self, folder: str | Path, name: str, most: int = KEPT_IN_SPOOL) -> None:
        require_room(most, "--spool-size")
        self._folder = Path(folder).absolute() / f"{name.replace(os.sep, '_')}.spool"
        self._most = most
        self._room = Room(most)
        self._lock: int | None = None
        self._journal: int | None = None
        self._has_dropped = False
        self._reference = ""
        self._former = _read_journal(self._folder)
        self._identity = self._former.identity or f"spool:{uuid.uuid4().hex}"

    @property
    def identity(self) -> str:
        """That of the stream in the folder, or a new one."""
        return self._identity

    @property
    def largest_part(self) -> int:
        """An eighth of it."""
        return self._most // SHARES

    async def open(self, reference: str) -> int:
        """Lock the folder, and see what a former run left there.

        Raises:
            SourceUnreadable: another process uses it, or it cannot be written.
        """
        if self._lock is None:
            await self._blocking(self._open, reference)
        elif self._has_dropped:
            await self._blocking(self._forget)  # all parts are wanted again, and some are gone
        return self._former.size

    async def former(self, offset: int) -> Kept | None:
        """A part of the former run, in its file or with OSS already.

        Raises:
            SourceNotRepeatable: its file is damaged; the folder is emptied.
        """
        entry = self._former.entries.get(offset)
        if entry is None:
            return None
        file = await self._blocking(self._file_of, entry)
        if file is None:
            return Kept(entry.size, _WithOss(entry, self._forget))
        if (await file.read_crc(0, entry.size))[0] != entry.crc64:
            await self._blocking(self._forget)
            raise SourceNotRepeatable(f"The spool {self._folder} is damaged; it was emptied.")
        await self._room.take(entry.size)
        return Kept(entry.size, file)

    async def keep(self, offset: int, size: int, fill: Fill) -> Kept | None:
        """Write a file."""
        await self._room.take(size)
        path = self._path(offset)
        written, crc = await self._write(path, size, fill)
        self._room.give_back(size - written)
        if not written:
            return None
        entry = _Entry(offset, written, crc)
        await self._blocking(self._append, "part", offset, written, crc)
        return Kept(written, await self._blocking(_SpooledPart.at, path, entry))

    async def ended(self, size: int) -> None:
        """Make the folder all that a later run needs."""
        await self._blocking(self._append, "end", size)

    async def drop(self, offset: int, kept: Kept) -> None:
        """Remove the file."""
        if isinstance(kept.content, _SpooledPart):
            self._has_dropped = True
            await self._blocking(self._path(offset).unlink, missing_ok=True)
            self._room.give_back(kept.size)

    async def close(self, *, is_done: bool) -> None:
        """Unlock the folder; remove it if nobody needs it any more."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None
        if is_done:
            await DISKS.run(shutil.rmtree, self._folder, ignore_errors=True)
        os.close(lock)

    # --- on disk --------------------------------------------------------------------

    def _path(self, offset: int) -> Path:
        return self._folder / f"{offset:015}.part"

    async def _blocking(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await DISKS.run(work, *args, **kwargs)
        except OSError as error:
            raise SourceUnreadable(
                f"The spool {self._folder} cannot be used ({error.strerror or error}).",
                next_step="Free space or mend permissions there, or choose another --spool.",
            ) from error

    def _open(self, reference: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(self._folder)
        self._reference = reference
        self._former = _read_journal(self._folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        self._journal = os.open(self._folder / "journal", flags, 0o600)
        if not self._former.size or self._former.reference != reference:
            self._forget()

    def _forget(self) -> None:
        """Drop the parts; the journal first, so that nobody trusts the rest.

        Which upload the folder belongs to is kept: its stream can come again.
        """
        self._former = _Journal()
        if self._journal is not None:
            os.ftruncate(self._journal, 0)
        if self._reference:
            self._append("spool", _VERSION, self._identity, self._reference)
        for path in self._folder.glob("*.part"):
            path.unlink()

    def _file_of(self, entry: _Entry) -> _SpooledPart | None:
        path = self._path(entry.offset)
        return _SpooledPart.at(path, entry) if path.exists() else None

    async def _write(self, path: Path, size: int, fill: Fill) -> tuple[int, int]:
        """Write up to `size` bytes; returns how many, and their CRC-64."""
        buffer = memoryview(bytearray(min(size, READ_SIZE)))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
        descriptor = await self._blocking(os.open, path, flags, 0o600)
        written = crc = 0
        try:
            while written < size:
                piece = buffer[: size - written]
                count = await filled_from(fill, piece)
                crc = crc64(piece[:count], crc)
                await self._blocking(_write_all, descriptor, piece[:count])
                written += count
                if count < len(piece):
                    break
        finally:
            os.close(descriptor)
        if not written:
            await self._blocking(path.unlink)
        return written, crc

    def _append(self, *words: object) -> None:
        if self._journal is None:
            raise RuntimeError("the spool is not open")
        _write_all(self._journal, memoryview(json.dumps(words).encode() + b"\n"))


def _locked(folder: Path) -> int:
    """Lock the folder; returns the descriptor that holds the lock."""
    import fcntl

    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(folder / "lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SourceUnreadable(
            f"The spool {folder} is used by another process.",
            next_step="Wait for it, or choose another --spool.",
        ) from None
    return descriptor


def _read_journal(folder: Path) -> _Journal:
    """Read a journal; a line that a crash cut off, and what is none, counts as nothing."""
    journal = _Journal()
    with suppress(OSError, ValueError, TypeError):
        for line in (folder / "journal").read_text(encoding="utf-8").splitlines():
            match json.loads(line):
                case ["spool", int(version), str(identity), str(reference)] if version == _VERSION:
                    journal = _Journal(identity, reference)
                case ["part", int(offset), int(size), int(crc)]:
                    journal.entries[offset] = _Entry(offset, size, crc)
                case ["end", int(size)] if journal.reference is not None:
                    journal.size = size
    return journal


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


# --- parts ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SpooledPart:
    """A part in its file, which is opened for each read: there may be thousands of them."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path, entry: _Entry) -> _SpooledPart:
        """The file as it is now."""
        return cls(path, entry.size, path.stat().st_mtime_ns)

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """The range as a request's body."""
        return Range(self, offset, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """Checksums of the range."""
        checksums = Checksums(with_md5=with_md5)
        buffer = memoryview(bytearray(min(size, REREAD_SIZE)))
        for position in range(offset, offset + size, REREAD_SIZE):
            piece = buffer[: min(REREAD_SIZE, offset + size - position)]
            count = await self.read(piece, position)
            await in_thread(checksums.update, piece[:count])
        return checksums.result()

    def read_now(self, into: memoryview, offset: int) -> int | None:
        """Never: opening may have to wait."""
        return None

    async def read(self, into: memoryview, offset: int) -> int:
        """Fill `into` in a thread."""
        try:
            return await DISKS.run(self._read, into, offset)
        except OSError as error:
            raise SourceChanged(
                f"{self.path} of the spool cannot be read any more ({error.strerror or error})."
            ) from error

    def check_now(self) -> None:
        """Each read has looked."""

    async def check(self) -> None:
        """Each read has looked."""

    def _read(self, into: memoryview, offset: int) -> int:
        descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
                raise SourceChanged(f"{self.path} of the spool was changed.")
            return os.preadv(descriptor, [into], offset)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _WithOss:
    """A part that a former run has sent: nothing but its CRC-64 is left of it.

    If it is wanted after all, the spool is of no use any more: `forget` empties it, so
    that the producer can come again.
    """

    entry: _Entry
    forget: Callable[[], None]

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """There is none any more."""
        self.forget()
        raise SourceNotRepeatable(
            f"The {size} bytes from {self.entry.offset + offset} were sent by an earlier run, OSS "
            "has lost them, and they are not in the spool any more."
        )

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """What the journal says of the whole part."""
        if (offset, size) != (0, self.entry.size) or with_md5:
            self.body(offset, size)
        return self.entry.crc64, None
