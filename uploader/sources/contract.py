"""What every source promises, and what sources share: ranges, checksums, fingerprints, errors.

Most sources are complete before their upload begins. Others are still being produced, and
their end is not known yet: those have a `PartStream`. Everything else is the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Protocol, Self, TypeVar

from uploader.errors import SourceChanged, SourceUnreadable
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.integrity import crc64
from uploader.protocol.plan import Part
from uploader.protocol.wire import Body
from uploader.threads import in_thread

T = TypeVar("T")

BytesLike = bytes | bytearray | memoryview
Checksums = tuple[int, str | None]
"""CRC-64, and MD5 as upper-case hex where it was requested."""


# --- ranges and their checksums -------------------------------------------------------

_CHECKSUM_READ_SIZE: Final = 4 * 1024 * 1024
"""Bytes per read where a range is read only for its checksums."""

_INLINE_SIZE: Final = 256 * 1024
"""Checksums of fewer bytes than this take less time than a hop into a thread."""


class Ranges(Protocol):
    """Bytes of which any range can be read, as often as needed."""

    __slots__ = ()

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return the range as a request body; `on_sent` gets the number of bytes sent so far."""
        ...

    async def read_crc(self, offset: int, size: int, *, with_md5: bool = False) -> Checksums:
        """Read the range and return its checksums; the MD5 only if requested."""
        body, crc, position = self.body(offset, size), 0, 0
        md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
        buffer = memoryview(bytearray(min(size, _CHECKSUM_READ_SIZE)))

        def updated(piece: memoryview) -> int:
            if md5 is not None:
                md5.update(piece)
            return crc64(piece, crc)

        while position < size:
            count = await body.read(buffer, position)
            piece = buffer[:count]
            crc = updated(piece) if count < _INLINE_SIZE else await in_thread(updated, piece)
            position += count
        return crc, md5.hexdigest().upper() if md5 else None


class RandomAccess(Ranges, Protocol):
    """Bytes read by position; by default reading has to wait, and changes are not checked."""

    __slots__ = ()

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return the range as a request body."""
        return RangeBody(self, offset, size, on_sent)

    def read_now(self, into: memoryview, offset: int) -> int | None:
        """Fill `into` if that needs no waiting, else return None; 0 is the end."""
        return None

    async def read(self, into: memoryview, offset: int) -> int:
        """Fill `into`; return how many bytes were read."""
        ...

    def check_now(self) -> None:
        """Raise `SourceChanged` if it has changed; only called where `read_now` gave bytes."""
        return None

    async def check(self) -> None:
        """Raise `SourceChanged` if it has changed."""
        return None


@dataclass(frozen=True, slots=True)
class RangeBody:
    """A range as a `Body`; after its last byte the origin is checked for changes."""

    origin: RandomAccess
    offset: int
    size: int
    on_sent: Callable[[int], None] | None = None

    def read_now(self, into: memoryview, position: int) -> int | None:
        """As `Body.read_now`."""
        count = self.origin.read_now(into[: self.size - position], self.offset + position)
        if count is not None and self._is_last(count, position):
            self.origin.check_now()
            self._require_bytes(count, position)
        return count

    async def read(self, into: memoryview, position: int) -> int:
        """As `Body.read`."""
        count = await self.origin.read(into[: self.size - position], self.offset + position)
        if self._is_last(count, position):
            await self.origin.check()
            self._require_bytes(count, position)
        return count

    def sent(self, position: int) -> None:
        """As `Body.sent`."""
        if self.on_sent is not None:
            self.on_sent(position)

    def _is_last(self, count: int, position: int) -> bool:
        return count == 0 or position + count == self.size

    def _require_bytes(self, count: int, position: int) -> None:
        if count == 0:
            raise SourceChanged(f"the source ends at byte {self.offset + position}.")


# --- sources --------------------------------------------------------------------------


class Source(Ranges, Protocol):
    """Something to upload; an async context manager, open only inside its block.

    While it is open, every read returns the bytes that were there when it was opened, or
    raises `SourceChanged`: never other bytes and never fewer. A source with a `PartStream`
    promises the same of every part that `reached` has returned.
    """

    @property
    def name(self) -> str:
        """A path or URL for people, without secrets."""

    @property
    def identity(self) -> str:
        """What stays the same from run to run: an absolute path, a URL. Names the upload."""

    @property
    def size(self) -> int:
        """Bytes, at least 1; known once open. 0 while the end of the source is not known."""

    @property
    def stream(self) -> PartStream | None:
        """How its parts arrive; None if all of it is there. Known once open."""

    async def fingerprint(self) -> Fingerprint:
        """Return what identifies the source right now.

        Raises:
            SourceChanged: the name stands for something else by now.
        """
        ...

    async def __aenter__(self) -> Self:
        """Open the source. Raises `SourceUnreadable`."""

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:  # noqa: ANN401
        """Close the source; its bodies must not be read any more."""


def require_open(opened: T | None) -> T:
    """Return what a source has while it is open."""
    if opened is None:
        raise RuntimeError("the source is not open: use it inside `async with`")
    return opened


class PartStream(Protocol):
    """The parts of a source whose end is not known yet.

    Parts are reached in order, one at a time, each as it is planned; a run that starts over
    begins with the first part again.
    """

    @property
    def is_rereadable(self) -> bool:
        """Whether parts can be read at any time, or only between `reached` and `release`."""

    @property
    def max_part_size(self) -> int:
        """Bytes of the largest part that it can buffer."""

    @property
    def expected_size(self) -> int | None:
        """An estimate of the total size in bytes; None without one."""
        return None

    @property
    def resume_hint(self) -> str:
        """How a user resumes after a failure, as one sentence with `{key}` in it; or ""."""
        return ""

    async def begin(self, reference: str) -> None:
        """Prepare for the upload with this reference; parts buffered for another are removed.

        An empty `reference` means that the upload is finished and that the bytes are only
        compared. Called once before the first part, and again when a run starts over.
        """
        return None

    async def wait_for(self, part: Part) -> int:
        """Wait until the part is there; return its size, which is smaller at the end.

        Waits for free buffer space as well: the producer is not read from meanwhile.

        Raises:
            SourceNotRepeatable: the part was released before, or belongs to an earlier run.
            SourceError: the producer has failed.
        """

    async def release(self, part: Part) -> None:
        """OSS has the part; it need not be buffered any more."""
        return None


# --- fingerprints ---------------------------------------------------------------------

_FIELD_NAMES: Final = {
    "size": "size",
    "mtime_ns": "modification time",
    "ctime_ns": "change time",
    "inode": "inode",
    "device": "device",
}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """How we know that a source is still the same.

    Attributes:
        size: bytes.
        mtime_ns, ctime_ns: last change of the content, and of content or inode. The
            second one cannot be set back, so it shows an edit that hides in the first.
        inode, device: which file it is. For bytes in memory the inode is their CRC-64.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of_file(cls, status: os.stat_result) -> Self:
        """The fingerprint of a file with this status."""
        return cls(
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            inode=status.st_ino,
            device=status.st_dev,
        )

    @classmethod
    def of_content(cls, size: int, crc: int) -> Self:
        """The fingerprint of what has no other identity than its content."""
        return cls(size, 0, 0, crc, 0)

    def to_text(self) -> str:
        """As it is stored in a checkpoint."""
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    @classmethod
    def from_text(cls, text: str) -> Fingerprint:
        """The reverse of `to_text`.

        Raises:
            MalformedDocument: the text is something else.
        """
        found = dict(word.partition("=")[::2] for word in text.split())
        if found.keys() != {f.name for f in fields(cls)}:
            raise MalformedDocument("it is not a fingerprint")
        try:
            return cls(**{name: int(value) for name, value in found.items()})
        except ValueError:
            raise MalformedDocument("it is not a fingerprint") from None

    def is_touched(self, other: Fingerprint) -> bool:
        """Whether `other` differs in its change time alone; then only the content decides.

        A chmod or a new link changes nothing else, and neither does an edit after which the
        modification time is set back.
        """
        return self != other and self == replace(other, ctime_ns=self.ctime_ns)

    def changes(self, other: Fingerprint) -> list[str]:
        """Name the fields that differ, in words for people."""
        is_of_a_file = self.mtime_ns or other.mtime_ns
        names = _FIELD_NAMES if is_of_a_file else _FIELD_NAMES | {"inode": "content"}
        return [
            names[f.name] for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)
        ]


# --- errors ---------------------------------------------------------------------------


def temporary_failure(message: str, next_step: str) -> SourceUnreadable:
    """The error for a failure that may not occur again."""
    failure = SourceUnreadable(message, next_step=next_step)
    failure.is_temporary = True
    return failure


def empty_source(name: str) -> SourceUnreadable:
    """The error for a source without content."""
    return SourceUnreadable(
        f"{name} is empty; VOD refuses empty files.", next_step="Create it again with content."
    )


def changed_source(name: str, *changes: str) -> SourceChanged:
    """The error for a source that is not what it was when it was opened."""
    return SourceChanged(f"{name} changed while it was read ({', '.join(changes)}).")


_CHECK_PATH: Final = "Check the path, then run again."
_CHECK_MODE: Final = "Check its permissions and those of its folders, then run again."
_CLOSE_FILES: Final = "Raise the limit (ulimit -n), or upload fewer at once, then run again."
_CHECK_DISK: Final = "Check the disk, then run the same command again."
_REASONS: Final = {
    errno.ENOENT: ("does not exist", _CHECK_PATH),
    errno.ENOTDIR: ("does not exist: a part of its path is not a directory", _CHECK_PATH),
    errno.EACCES: ("may not be read by this user", _CHECK_MODE),
    errno.EPERM: ("may not be read by this user", _CHECK_MODE),
    errno.ELOOP: ("is a symbolic link, and links are not followed here", "Name its target."),
    errno.ENXIO: ("is a socket or a device, not a regular file", _CHECK_PATH),
    errno.EMFILE: ("cannot be opened: this process has too many open files", _CLOSE_FILES),
    errno.ENFILE: ("cannot be opened: this machine has too many open files", _CLOSE_FILES),
    errno.EIO: ("cannot be read: its disk reports an error", _CHECK_DISK),
    errno.ESTALE: ("cannot be read: its network file system lost it", _CHECK_DISK),
}


_FILE_TYPES: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def unreadable_source(name: str, exc: OSError | ValueError) -> SourceUnreadable:
    """The error for a path that the system cannot open or read."""
    if isinstance(exc, OSError):
        unknown = f"cannot be read ({exc.strerror or exc})", None
        reason, next_step = _REASONS.get(exc.errno or 0, unknown)
        return SourceUnreadable(f"{name} {reason}.", next_step=next_step)
    return SourceUnreadable(f"{name!r} is not a path.", next_step=_CHECK_PATH)


def irregular_source(name: str, mode: int) -> SourceUnreadable:
    """The error for a path that names something else than a regular file."""
    kind = _FILE_TYPES.get(stat.S_IFMT(mode), "something else")
    next_step = "Name a regular file; for a pipe, use standard input (vodup push -)."
    if stat.S_ISDIR(mode):
        next_step = f"Upload everything in it with `vodup ingest -r {name}`."
    return SourceUnreadable(f"{name} is {kind}, not a regular file.", next_step=next_step)
