"""Where bytes come from: by position, as often as needed, and only while they stay the same.

A file is opened once and every read goes through that descriptor. Pages in the cache are
read on the event loop (`preadv2` with RWF_NOWAIT never waits for a disk), the rest in
threads of our own: DNS shares asyncio's default pool, and must not wait for a disk.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import os
import stat
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

import aiofiles

from uploader.errors import SourceChanged, SourceUnreadable
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.integrity import crc64

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from aiofiles.threadpool.binary import AsyncFileIO

    from uploader.protocol.wire import Body

__all__ = ["BytesSource", "FileSource", "Fingerprint", "Source"]

P = ParamSpec("P")
T = TypeVar("T")

READING_THREAD_COUNT: Final = 8
"""Threads that wait for disks. Fewer starve fast disks, more only queue in the kernel."""

REREAD_SIZE: Final = 4 * 1024 * 1024
"""Bytes per hop into a thread where a range is read only for its checksum."""


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

    def to_text(self) -> str:
        """As it is kept in a checkpoint."""
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    @classmethod
    def from_text(cls, text: str) -> Fingerprint:
        """The reverse of `to_text`.

        Raises:
            MalformedDocument: it is something else.
        """
        found = dict(word.partition("=")[::2] for word in text.split())
        if found.keys() != {f.name for f in fields(cls)}:
            raise MalformedDocument("it is not a fingerprint")
        try:
            return cls(**{name: int(value) for name, value in found.items()})
        except ValueError:
            raise MalformedDocument("it is not a fingerprint") from None

    def changes(self, other: Fingerprint) -> list[str]:
        """The names of the fields in which `other` differs."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


class Source(Protocol):
    """Something to upload; an async context manager, open only inside it.

    Between entering and leaving, every read yields the bytes that were there on
    entering, or raises `SourceChanged`: never other bytes and never fewer.
    """

    @property
    def name(self) -> str:
        """For people: a path, without secrets."""

    @property
    def identity(self) -> str:
        """What stays the same from run to run: an absolute path, a URL. Names the upload."""

    @property
    def size(self) -> int:
        """Bytes, at least 1; known once entered."""

    async def fingerprint(self) -> Fingerprint:
        """What identifies the source right now.

        Raises:
            SourceChanged: the name stands for something else by now.
        """

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """The range as a request's body; `on_sent` is told how far it has been sent."""

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """CRC-64 of the range, and its MD5 (upper-case hex) if asked for; reads it again."""

    async def __aenter__(self) -> Self:
        """Open it. Raises `SourceUnreadable`."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; bodies must not be read any more."""


# --- bytes in memory ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BytesSource:
    """Bytes that are in memory anyway; they must not be changed meanwhile."""

    data: bytes | memoryview = field(repr=False)
    name: str = "<bytes>"

    @property
    def identity(self) -> str:
        """The content, for there is nothing else to go by."""
        return f"bytes:{self.size}:{crc64(self.data):016x}"

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    async def fingerprint(self) -> Fingerprint:
        """The size and the CRC-64 of the content."""
        return Fingerprint(self.size, 0, 0, crc64(self.data), 0)

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """The range as a request's body."""
        return _Range(_Memory(memoryview(self.data)), offset, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """Checksums of the range."""
        checksums = _Checksums(with_md5=with_md5)
        checksums.update(memoryview(self.data)[offset : offset + size])
        return checksums.result()

    async def __aenter__(self) -> Self:
        if not self.data:
            raise _empty(self.name)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Memory:
    data: memoryview

    def read_now(self, into: memoryview, offset: int) -> int | None:
        piece = self.data[offset : offset + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    async def read(self, into: memoryview, offset: int) -> int:
        return self.read_now(into, offset) or 0

    async def check(self) -> None:
        return None

    def check_now(self) -> None:
        return None


# --- files ----------------------------------------------------------------------------


class FileSource:
    """A regular file. Mutable: open or not.

    Args:
        path: where it is.
        follow_symlinks: whether the last component may be a symbolic link. In folders
            others may write to, a link can lead to any file this process may read.
        read_timeout_s: a disk that does not deliver for so long is given up. Too small
            breaks on a tape or a sleeping disk; too large hangs on a dead server.
    """

    def __init__(
        self, path: str | Path, *, follow_symlinks: bool = True, read_timeout_s: float = 120.0
    ) -> None:
        self._path = os.fspath(path)
        self._follow_symlinks = follow_symlinks
        self._read_timeout_s = read_timeout_s
        self._file: _OpenFile | None = None

    @property
    def name(self) -> str:
        """The path as it was given; "?" for bytes that are no UTF-8."""
        return self._path.encode(errors="replace").decode()

    @property
    def identity(self) -> str:
        """The absolute path."""
        return os.path.abspath(self._path)

    @property
    def size(self) -> int:
        """Bytes when it was opened."""
        return self._opened().fingerprint.size

    async def __aenter__(self) -> Self:
        """Open the file and make sure that it can be uploaded.

        Raises:
            SourceUnreadable: it is missing, empty, no regular file, or not permitted.
        """
        handle = await self._open()
        try:
            self._file = _OpenFile(self._path, handle, self._read_timeout_s)
        except BaseException:
            await handle.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.close()

    async def fingerprint(self) -> Fingerprint:
        """What identifies the file right now.

        Raises:
            SourceChanged: the path names another file by now, or none.
        """
        file = self._opened()
        return await file.in_thread(file.current_fingerprint, self._follow_symlinks)

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """The range as a request's body."""
        return _Range(self._opened(), offset, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """Checksums of the range, read again from the file."""
        file = self._opened()
        checksums = _Checksums(with_md5=with_md5)
        buffer = memoryview(bytearray(min(size, REREAD_SIZE)))
        for position in range(offset, offset + size, REREAD_SIZE):
            piece = buffer[: min(REREAD_SIZE, offset + size - position)]
            await file.read(piece, position)
            await file.in_thread(checksums.update, piece)
        await file.check()
        return checksums.result()

    async def _open(self) -> AsyncFileIO:
        opener = functools.partial(_open_descriptor, follow_symlinks=self._follow_symlinks)
        threads = _OpeningThreads()
        try:
            return await aiofiles.open(
                self._path, "rb", buffering=0, opener=opener, executor=threads
            )
        except asyncio.CancelledError:
            threads.close_what_is_opened()
            raise
        except (OSError, ValueError) as exc:
            raise _unreadable(self._path, exc) from exc

    def _opened(self) -> _OpenFile:
        if self._file is None:
            raise RuntimeError("the source is not open: use it inside `async with`")
        return self._file


class _OpenFile:
    """A descriptor, what it was when it was opened, and the reads under way. Mutable.

    A thread that reads cannot be stopped. When its task is cancelled it goes on and
    fills its buffer, so neither that buffer nor the descriptor may be used for anything
    else before it has returned.
    """

    _CLOSE_TIMEOUT_S: Final = 5.0

    def __init__(self, path: str, handle: AsyncFileIO, read_timeout_s: float) -> None:
        self._path = path
        self._handle = handle  # kept: a thread that never returns must not see it closed
        self._descriptor = handle.fileno()
        self._read_timeout_s = read_timeout_s
        self._can_read_now = hasattr(os, "preadv") and hasattr(os, "RWF_NOWAIT")
        self._under_way = 0
        self._silent = asyncio.Event()
        self._seeking = threading.Lock()
        self.fingerprint = _fingerprint_of(os.fstat(self._descriptor))
        if self.fingerprint.size == 0:
            raise _empty(path)

    def read_now(self, into: memoryview, offset: int) -> int | None:
        """Read from the page cache; None when some of it would have to be waited for."""
        if not self._can_read_now:
            return None
        try:
            return os.preadv(self._descriptor, [into], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno not in _NOWAIT_UNSUPPORTED:
                raise _unreadable(self._path, exc) from exc
            self._can_read_now = False
            return None

    async def read(self, into: memoryview, offset: int) -> int:
        """Fill `into`, waiting for the disk in a thread."""
        return await self.in_thread(self._fill, into, offset)

    async def check(self) -> None:
        """Make sure that nobody has changed the file since it was opened."""
        await self.in_thread(self.check_now)

    def check_now(self) -> None:
        """The same without waiting: for files that `read_now` can read, which are local."""
        changed = self.fingerprint.changes(_fingerprint_of(os.fstat(self._descriptor)))
        if changed:
            raise _changed(self._path, changed)

    def current_fingerprint(self, follow_symlinks: bool) -> Fingerprint:
        """What the descriptor is now, which is what the path names now."""
        now = _fingerprint_of(os.fstat(self._descriptor))
        try:
            named = _fingerprint_of(os.stat(self._path, follow_symlinks=follow_symlinks))
        except OSError as exc:
            raise SourceChanged(f"{self._path} is not there any more.") from exc
        if (named.inode, named.device) != (now.inode, now.device):
            raise SourceChanged(f"{self._path} has been replaced by another file.")
        return now

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work on the descriptor in one of the reading threads."""
        job = _reading_threads().submit(work, *args, **kwargs)
        loop = asyncio.get_running_loop()
        self._under_way += 1
        self._silent.clear()
        job.add_done_callback(lambda _: _call_if_open(loop, self._has_returned))
        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await asyncio.wrap_future(job)
        except TimeoutError as exc:
            raise SourceUnreadable(
                f"{self._path} could not be read: its disk does not answer within "
                f"{self._read_timeout_s:g} s."
            ) from exc

    async def close(self) -> None:
        """Close it once no thread uses it; one that never returns keeps it open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._CLOSE_TIMEOUT_S):
                if self._under_way:
                    await self._silent.wait()
                await self._handle.close()

    def _has_returned(self) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._silent.set()

    def _fill(self, into: memoryview, offset: int) -> int:
        filled = 0
        while filled < len(into):
            size = self._read_some(into[filled:], offset + filled)
            if size == 0:
                raise _ends_early(self._path, offset + filled)
            filled += size
        return filled

    def _read_some(self, into: memoryview, offset: int) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self._descriptor, [into], offset)
            return self._read_after_seek(into, offset)
        except OSError as exc:
            raise _unreadable(self._path, exc) from exc

    def _read_after_seek(self, into: memoryview, offset: int) -> int:
        """For Windows, whose descriptors have one position for all."""
        with self._seeking:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            piece = os.read(self._descriptor, len(into))
        into[: len(piece)] = piece
        return len(piece)


_NOWAIT_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


@functools.cache
def _reading_threads() -> ThreadPoolExecutor:
    """One pool per process, so that threads do not grow with the number of files."""
    return ThreadPoolExecutor(READING_THREAD_COUNT, thread_name_prefix="vodup-read")


class _OpeningThreads(Executor):
    """The reading threads as one opening sees them. Mutable: its last job.

    A thread goes on opening when the task that waits for it is cancelled, and closing
    is never dropped from the queue: the file would stay open.
    """

    _job: Future[Any] | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run it in a reading thread, whatever becomes of the task that waits for it."""
        self._job = promised = Future[T]()
        promised.set_running_or_notify_cancel()  # from here on it cannot be cancelled
        job = _reading_threads().submit(fn, *args, **kwargs)
        job.add_done_callback(functools.partial(_pass_on, promised))
        return promised

    def close_what_is_opened(self) -> None:
        """Close the file as soon as the thread has opened it."""
        if self._job is not None:
            self._job.add_done_callback(_close_result)


def _pass_on(promised: Future[T], job: Future[T]) -> None:
    if (error := job.exception()) is not None:
        promised.set_exception(error)
    else:
        promised.set_result(job.result())


def _close_result(job: Future[FileIO]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result().close()


def _call_if_open(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """A thread may return after its loop is gone; then nobody waits for it."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


def _open_descriptor(path: str, flags: int, *, follow_symlinks: bool) -> int:
    """Open only a regular file, and never wait for one: a FIFO would block until written."""
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow_symlinks:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _NotRegular(_kind_of(mode))
    return descriptor


class _NotRegular(ValueError):
    """What the path names instead of a regular file."""


def _kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a device" if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else "something else"


# --- ranges ---------------------------------------------------------------------------


class _Positioned(Protocol):
    """What a range reads from."""

    def read_now(self, into: memoryview, offset: int) -> int | None: ...

    async def read(self, into: memoryview, offset: int) -> int: ...

    def check_now(self) -> None: ...

    async def check(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Range:
    """A range of a source as a `Body`; after its last byte the source is checked."""

    origin: _Positioned
    offset: int
    size: int
    on_sent: Callable[[int], None] | None = None

    def read_now(self, into: memoryview, position: int) -> int | None:
        count = self.origin.read_now(into[: self.size - position], self.offset + position)
        if count is not None and self._has_ended(count, position):
            self.origin.check_now()
            self._require_bytes(count, position)
        return count

    async def read(self, into: memoryview, position: int) -> int:
        count = await self.origin.read(into[: self.size - position], self.offset + position)
        if self._has_ended(count, position):
            await self.origin.check()
            self._require_bytes(count, position)
        return count

    def sent(self, position: int) -> None:
        if self.on_sent is not None:
            self.on_sent(position)

    def _has_ended(self, count: int, position: int) -> bool:
        return count == 0 or position + count == self.size

    def _require_bytes(self, count: int, position: int) -> None:
        if count == 0:
            raise SourceChanged(f"the source ends at byte {self.offset + position}.")


class _Checksums:
    """CRC-64 and, if wanted, MD5 of what it is given. Mutable."""

    def __init__(self, *, with_md5: bool) -> None:
        self._crc = 0
        self._md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None

    def update(self, piece: memoryview) -> None:
        """Go on with `piece`."""
        self._crc = crc64(piece, self._crc)
        if self._md5 is not None:
            self._md5.update(piece)

    def result(self) -> tuple[int, str | None]:
        """CRC-64, and MD5 as upper-case hex."""
        return self._crc, self._md5.hexdigest().upper() if self._md5 else None


# --- errors ---------------------------------------------------------------------------


def _fingerprint_of(status: os.stat_result) -> Fingerprint:
    return Fingerprint(
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
        device=status.st_dev,
    )


def _empty(name: str) -> SourceUnreadable:
    return SourceUnreadable(f"{name} is empty; VOD refuses empty files.")


def _ends_early(name: str, offset: int) -> SourceChanged:
    return SourceChanged(f"{name} has become shorter: it ends at byte {offset}.")


def _changed(name: str, changed: list[str]) -> SourceChanged:
    return SourceChanged(f"{name} was changed while it was read ({', '.join(changed)}).")


_REASONS: Final = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist: a part of its path is no directory",
    errno.EACCES: "may not be read by this user",
    errno.EPERM: "may not be read by this user",
    errno.EISDIR: "is a directory, not a regular file",
    errno.ELOOP: "is a symbolic link, and links are not followed here",
    errno.ENXIO: "is a socket or a device without a driver, not a regular file",
    errno.EMFILE: "cannot be opened: this process has too many open files",
    errno.ENFILE: "cannot be opened: this machine has too many open files",
    errno.EIO: "cannot be read: its disk reports an error",
    errno.ESTALE: "cannot be read: its network file system lost it",
}


def _unreadable(name: str, exc: OSError | ValueError) -> SourceUnreadable:
    if isinstance(exc, _NotRegular):
        return SourceUnreadable(f"{name} is {exc}, not a regular file.")
    if isinstance(exc, OSError):
        reason = _REASONS.get(exc.errno or 0) or f"cannot be read ({exc.strerror or exc})"
        return SourceUnreadable(f"{name} {reason}.")
    return SourceUnreadable(f"{name!r} is not a path.")
