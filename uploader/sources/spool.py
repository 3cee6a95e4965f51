"""A folder that holds the parts of a stream until OSS has them."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, ParamSpec, TypeVar

from uploader import portable
from uploader.errors import SourceChanged, SourceNotRepeatable, SourceUnreadable, UnsafePath
from uploader.private_files import make_private_folder, open_private_file, require_private_folder
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources.contract import Checksums, RandomAccess
from uploader.sources.part_buffer import (
    BUFFERED_PART_COUNT,
    BufferedPart,
    BufferSpace,
    ReadInto,
    read_fully,
    require_buffer_size,
)
from uploader.sources.readers import READ_SIZE
from uploader.threads import DISKS

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_SPOOL_SIZE: Final = 8 * 1024**3
"""Bytes of a stream on disk. Too small: parts cannot grow, so that 10,000 of them hold
less. Too large: uses disk space."""

_VERSION: Final = 1


class _Entry(NamedTuple):
    """One part in the journal."""

    size: int
    crc64: int


@dataclass(slots=True)
class _Journal:
    """The content of a journal. Mutable while it is read."""

    identity: str | None = None
    reference: str | None = None
    size: int = 0
    entries: dict[int, _Entry] = field(default_factory=dict)


class Spool:
    """A `PartBuffer` that stores parts as files in a folder, with a journal beside them.

    A spool that holds the end of its stream is all that a later run needs: what is not in
    the folder any more is stored at OSS. Without the end it is of no use to a later run,
    because the stream has to be produced again from its first byte.

    A lock makes sure that only one process uses the folder. Mutable.

    Args:
        folder: each stream has a folder of its own below it.
        name: of the stream; names its folder.
        max_size: bytes stored at once.
    """

    def __init__(self, folder: str | Path, name: str, max_size: int = DEFAULT_SPOOL_SIZE) -> None:
        require_buffer_size(max_size, "--spool-size")
        self._folder = Path(folder).absolute() / f"{name.replace(os.sep, '_')}.spool"
        self.max_part_size = max_size // BUFFERED_PART_COUNT
        self._space = BufferSpace(max_size)
        self._lock: int | None = None
        self._has_dropped = False
        self._reference = ""
        self._earlier = _read_journal(self._folder)
        self.identity = self._earlier.identity or f"spool:{uuid.uuid4().hex}"

    async def open(self, reference: str) -> int:
        """Lock the folder and read what an earlier run left there.

        Raises:
            SourceUnreadable: another process uses it, or it cannot be written.
        """
        if self._lock is None:
            await self._in_thread(self._open, reference)
        elif self._has_dropped:
            await self._in_thread(self._clear)  # all parts are needed again, and some are gone
        return self._earlier.size

    async def earlier_part(self, offset: int) -> BufferedPart | None:
        """Return a part of the earlier run: its file, or what is known of a part at OSS.

        Raises:
            SourceNotRepeatable: its file is damaged; the spool is of no use any more.
        """
        entry = self._earlier.entries.get(offset)
        if entry is None:
            return None
        file = await self._in_thread(_SpooledPart.at, self._path(offset), entry.size)
        if file is None:
            return _PartAtOss(offset, entry.size, entry.crc64, self._reset_journal)
        if (await file.read_crc(0, entry.size))[0] != entry.crc64:
            await self._in_thread(self._reset_journal)
            raise SourceNotRepeatable(
                f"The spool {self._folder} is damaged and of no use any more."
            )
        await self._space.take(entry.size)
        return file

    async def fill(self, offset: int, size: int, read: ReadInto) -> BufferedPart | None:
        """Read into a file."""
        await self._space.take(size)
        path = self._path(offset)
        written, crc = await self._fill_file(path, size, read)
        self._space.free(size - written)
        if not written:
            return None
        await self._in_thread(self._append, "part", offset, written, crc)
        return await self._in_thread(_SpooledPart.at, path, written)

    async def record_end(self, size: int) -> None:
        """Record the end; from now on the folder is all that a later run needs."""
        await self._in_thread(self._append, "end", size)

    async def drop(self, offset: int, part: BufferedPart) -> None:
        """Remove the file."""
        if isinstance(part, _SpooledPart):
            self._has_dropped = True
            await self._in_thread(self._path(offset).unlink, missing_ok=True)
            self._space.free(part.size)

    async def close(self, *, is_done: bool) -> None:
        """Unlock the folder; remove it if no later run needs it."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            if is_done:
                await DISKS.run(shutil.rmtree, self._folder, ignore_errors=True)
        finally:
            os.close(lock)

    # --- on disk --------------------------------------------------------------------

    def _path(self, offset: int) -> Path:
        return self._folder / f"{offset:015}.part"

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await DISKS.run(work, *args, **kwargs)
        except OSError as error:
            raise SourceUnreadable(
                f"The spool {self._folder} cannot be used ({error.strerror or error}).",
                next_step="Free disk space or fix its permissions, or choose another --spool.",
            ) from error

    def _open(self, reference: str) -> None:
        make_private_folder(self._folder)
        require_private_folder(self._folder, next_step="Choose a folder of your own with --spool.")
        self._lock = _locked(self._folder)
        self._reference = reference
        self._earlier = _read_journal(self._folder)
        if not self._earlier.size or self._earlier.reference != reference:
            self._clear()

    def _clear(self) -> None:
        """Remove the parts; the journal first, so that no run trusts the rest."""
        self._reset_journal()
        for path in self._folder.glob("*.part"):
            path.unlink()

    def _reset_journal(self) -> None:
        """Forget the parts. Their files may be in use; the next `open` removes them.

        Which upload the folder belongs to stays recorded: its stream can be produced again.
        """
        self._earlier = _Journal()
        _write(self._folder / "journal", b"", os.O_TRUNC)
        if self._reference:
            self._append("spool", _VERSION, self.identity, self._reference)

    def _append(self, *words: object) -> None:
        _write(self._folder / "journal", json.dumps(words).encode() + b"\n", os.O_APPEND)

    async def _fill_file(self, path: Path, size: int, read: ReadInto) -> tuple[int, int]:
        """Write up to `size` bytes; return how many, and their CRC-64."""
        buffer = memoryview(bytearray(min(size, READ_SIZE)))
        written = crc = 0
        while written < size:
            piece = buffer[: size - written]
            piece = piece[: await read_fully(read, piece)]
            if not piece:
                break
            crc = crc64(piece, crc)
            await self._in_thread(_write, path, piece, os.O_APPEND if written else os.O_TRUNC)
            written += len(piece)
        return written, crc


def _write(path: Path, data: bytes | memoryview, flags: int) -> None:
    """Write to a file that is open only meanwhile: a task that is cancelled cannot close it."""
    descriptor = open_private_file(path, os.O_WRONLY | os.O_CREAT | flags)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> int:
    """Lock the folder; return the descriptor that holds the lock."""
    descriptor = open_private_file(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        portable.lock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise SourceUnreadable(
            f"The spool {folder} is used by another process.",
            next_step="Wait for it, or choose another --spool.",
        ) from None
    return descriptor


def _read_journal(folder: Path) -> _Journal:
    """Read a journal; lines that a crash cut off or that are malformed are ignored."""
    journal = _Journal()
    with (
        suppress(OSError, ValueError, TypeError, UnsafePath),
        open(open_private_file(folder / "journal", os.O_RDONLY), encoding="utf-8") as lines,
    ):
        for line in lines:
            match json.loads(line):
                case ["spool", int(version), str(identity), str(reference)] if version == _VERSION:
                    journal = _Journal(identity, reference)
                case ["part", int(offset), int(size), int(crc)]:
                    journal.entries[offset] = _Entry(size, crc)
                case ["end", int(size)] if journal.reference is not None:
                    journal.size = size
    return journal


@dataclass(frozen=True, slots=True)
class _SpooledPart(RandomAccess):
    """A part in its file, which is opened and checked for each read: there may be thousands."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path, size: int) -> _SpooledPart | None:
        """The file as it is now, if there is one."""
        with suppress(FileNotFoundError):
            return cls(path, size, path.stat().st_mtime_ns)
        return None

    async def read(self, into: memoryview, offset: int) -> int:
        """Fill `into` in a thread."""
        try:
            return await DISKS.run(self._read, into, offset)
        except OSError as error:
            raise SourceChanged(
                f"{self.path} of the spool cannot be read any more ({error.strerror or error})."
            ) from error

    def _read(self, into: memoryview, offset: int) -> int:
        descriptor = open_private_file(self.path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
                raise SourceChanged(f"{self.path} of the spool was changed.")
            return portable.read_at(descriptor, into, offset)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _PartAtOss:
    """A part that an earlier run has sent: only its CRC-64 is still known.

    If its bytes are needed after all, the spool is of no use any more: `forget` resets its
    journal, so that the stream can be produced again.
    """

    offset: int
    size: int
    crc64: int
    forget: Callable[[], None]

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Reset the journal and raise `SourceNotRepeatable`."""
        self.forget()
        raise SourceNotRepeatable(
            f"The {size} bytes at offset {self.offset + offset} were sent by an earlier run, "
            "OSS has lost them, and they are not in the spool any more."
        )

    async def read_crc(self, offset: int, size: int, *, with_md5: bool = False) -> Checksums:
        """Return the recorded CRC-64 of the whole part."""
        if (offset, size) != (0, self.size) or with_md5:
            self.body(offset, size)
        return self.crc64, None
