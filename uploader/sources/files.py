"""Regular files.

A file is opened once and every read goes through that descriptor. Pages in the cache are
read on the event loop (`preadv2` with RWF_NOWAIT never waits for a disk), the rest in
threads of our own.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeVar

import aiofiles

from uploader.errors import SourceChanged, SourceUnreadable
from uploader.protocol.wire import Body
from uploader.sources.fingerprints import Fingerprint
from uploader.sources.ranges import REREAD_SIZE, Checksums, Range
from uploader.sources.refusals import (
    NotRegular,
    changed_while_read,
    empty,
    ends_early,
    unreadable,
)
from uploader.threads import DISKS

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncFileIO

__all__ = ["FileSource", "OpenFile"]

P = ParamSpec("P")
T = TypeVar("T")


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
        self._file: OpenFile | None = None

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

    @property
    def arrival(self) -> None:
        """It is there as a whole."""

    async def __aenter__(self) -> Self:
        """Open the file and make sure that it can be uploaded.

        Raises:
            SourceUnreadable: it is missing, empty, no regular file, or not permitted.
        """
        handle = await self._open()
        try:
            self._file = self._kind()(self._path, handle, self._read_timeout_s)
            self._admit(self._file)
        except BaseException:
            self._file = None
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
        return Range(self._opened(), offset, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """Checksums of the range, read again from the file."""
        file = self._opened()
        checksums = Checksums(with_md5=with_md5)
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
            raise unreadable(self._path, exc) from exc

    def _kind(self) -> type[OpenFile]:
        return OpenFile

    def _admit(self, file: OpenFile) -> None:
        """Make sure that it can be uploaded."""
        if file.fingerprint.size == 0:
            raise empty(self._path)

    def _opened(self) -> OpenFile:
        if self._file is None:
            raise RuntimeError("the source is not open: use it inside `async with`")
        return self._file


class OpenFile:
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
                raise unreadable(self._path, exc) from exc
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
            raise changed_while_read(self._path, changed)

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
        """Do blocking work on the descriptor in one of the threads for disks."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._under_way += 1
        self._silent.clear()
        job = DISKS.submit(work, *args, **kwargs)
        # One message to the loop for both; `wrap_future` would send a second one.
        job.add_done_callback(
            lambda job: _call_if_open(loop, functools.partial(self._has_returned, job, answer))
        )
        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await answer
        except asyncio.CancelledError:
            job.cancel()  # if no thread has begun it
            raise
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

    def _has_returned(self, job: Future[T], answer: asyncio.Future[T]) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._silent.set()
        if answer.done():  # nobody waits any more
            return
        if (error := job.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(job.result())

    def _fill(self, into: memoryview, offset: int) -> int:
        filled = 0
        while filled < len(into):
            size = self._read_some(into[filled:], offset + filled)
            if size == 0:
                raise ends_early(self._path, offset + filled)
            filled += size
        return filled

    def _read_some(self, into: memoryview, offset: int) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self._descriptor, [into], offset)
            return self._read_after_seek(into, offset)
        except OSError as exc:
            raise unreadable(self._path, exc) from exc

    def _read_after_seek(self, into: memoryview, offset: int) -> int:
        """For Windows, whose descriptors have one position for all."""
        with self._seeking:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            piece = os.read(self._descriptor, len(into))
        into[: len(piece)] = piece
        return len(piece)


class _OpeningThreads(Executor):
    """The threads for disks as one opening sees them. Mutable: its last job.

    A thread goes on opening when the task that waits for it is cancelled, and closing
    is never dropped from the queue: the file would stay open.
    """

    _job: Future[Any] | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run it in one of them, whatever becomes of the task that waits for it."""
        self._job = promised = Future[T]()
        promised.set_running_or_notify_cancel()  # from here on it cannot be cancelled
        job = DISKS.submit(fn, *args, **kwargs)
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


_NOWAIT_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


def _open_descriptor(path: str, flags: int, *, follow_symlinks: bool) -> int:
    """Open only a regular file, and never wait for one: a FIFO would block until written."""
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow_symlinks:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegular(_kind_of(mode))
    return descriptor


def _kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a device" if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else "something else"


def _fingerprint_of(status: os.stat_result) -> Fingerprint:
    return Fingerprint(
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
        device=status.st_dev,
    )
