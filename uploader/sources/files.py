"""Regular files.

A file is opened once, and every read goes through that descriptor. Pages in the cache are
read on the event loop (`preadv2` with RWF_NOWAIT never waits for a disk), all others in
threads of our own.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import stat
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeVar

import aiofiles

from uploader import portable
from uploader.errors import ConfigurationError, SourceChanged, SourceUnreadable, UnsafePath
from uploader.protocol.wire import Body
from uploader.sources.contract import (
    Checksums,
    Fingerprint,
    RandomAccess,
    Ranges,
    changed_source,
    empty_source,
    irregular_source,
    require_open,
    unreadable_source,
)
from uploader.threads import DISKS

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncFileIO

P = ParamSpec("P")
T = TypeVar("T")


class FileSource(Ranges):
    """A regular file. Mutable: open or not.

    Args:
        path: of the file.
        follow_symlinks: whether the last component may be a symbolic link. In folders
            that others may write to, a link can point to any file this process may read.
        root: a folder that the file must be in, without a link on the way from there;
            `path` begins with it. None: any folder.
        read_timeout_s: how long one read may take. Too small fails on a tape or a
            sleeping disk; too large hangs on a dead file server.
    """

    stream = None  # all of it is there

    def __init__(
        self,
        path: str | Path,
        *,
        follow_symlinks: bool = True,
        root: str | None = None,
        read_timeout_s: float = 120.0,
    ) -> None:
        self._path = os.fspath(path)
        self.name = self._path.encode(errors="replace").decode()  # "?" for what is not UTF-8
        self._follow_symlinks = follow_symlinks
        self._root = root
        self._read_timeout_s = read_timeout_s
        self._file: OpenFile | None = None

    @property
    def identity(self) -> str:
        """The absolute path; see `path_identity`."""
        return path_identity(self._path)

    @property
    def size(self) -> int:
        """Bytes when the file was opened."""
        return self._opened().fingerprint.size

    async def __aenter__(self) -> Self:
        """Open the file and make sure that it can be uploaded.

        Raises:
            SourceUnreadable: it is missing, empty, not a regular file, or not permitted.
            UnsafePath: it is not below the root, or a link is on the way.
        """
        handle = await self._open()
        try:
            self._file = self._open_file(handle, self._read_timeout_s)
        except BaseException:
            await handle.close()
            raise
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.close()

    async def fingerprint(self) -> Fingerprint:
        """Return what identifies the file right now.

        Raises:
            SourceChanged: the path names another file by now, or none.
        """
        file = self._opened()
        return await file.in_thread(file.current_fingerprint, self._follow_symlinks)

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return the range as a request body."""
        file = self._opened()
        is_whole = size == file.fingerprint.size
        return (_WholeFile(file) if is_whole else file).body(offset, size, on_sent)

    async def read_crc(self, offset: int, size: int, *, with_md5: bool = False) -> Checksums:
        """Return the checksums of the range, read again from the file."""
        return await self._opened().read_crc(offset, size, with_md5=with_md5)

    async def _open(self) -> AsyncFileIO:
        opener = functools.partial(
            open_regular_file, follow_symlinks=self._follow_symlinks, root=self._root
        )
        threads = _UninterruptedDisks()
        try:
            return await aiofiles.open(
                self._path, "rb", buffering=0, opener=opener, executor=threads
            )
        except asyncio.CancelledError:
            threads.close_when_opened()
            raise
        except (OSError, ValueError) as exc:
            raise unreadable_source(self._path, exc) from exc

    def _open_file(self, handle: AsyncFileIO, read_timeout_s: float) -> OpenFile:
        file = OpenFile(self._path, handle, read_timeout_s)
        if file.fingerprint.size == 0:
            raise empty_source(self._path)
        return file

    def _opened(self) -> OpenFile:
        return require_open(self._file)


class OpenFile(RandomAccess):
    """A descriptor, its fingerprint when it was opened, and its running reads. Mutable.

    A thread that reads cannot be stopped. When its task is cancelled, it continues to fill
    its buffer, so neither the buffer nor the descriptor may be used for anything else
    before it has returned.
    """

    _CLOSE_TIMEOUT_S: Final = 5.0

    def __init__(self, path: str, handle: AsyncFileIO, read_timeout_s: float) -> None:
        self._path = path
        self._handle = handle  # referenced, so that it is not closed under a blocked thread
        self._descriptor = handle.fileno()
        self._read_timeout_s = read_timeout_s
        self._can_read_now = portable.CAN_READ_CACHED
        self._jobs: set[Future[Any]] = set()
        self.fingerprint = Fingerprint.of_file(os.fstat(self._descriptor))

    def read_now(self, into: memoryview, offset: int) -> int | None:
        """Read from the page cache; return None when some of it is not there."""
        if not self._can_read_now:
            return None
        try:
            return portable.read_cached(self._descriptor, into, offset)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno not in _NOWAIT_UNSUPPORTED:
                raise unreadable_source(self._path, exc) from exc
            self._can_read_now = False
            return None

    async def read(self, into: memoryview, offset: int) -> int:
        """Fill `into` in a thread."""
        return await self.in_thread(self._fill, into, offset)

    async def check(self) -> None:
        """Raise `SourceChanged` if the file has changed since it was opened."""
        await self.in_thread(self.check_now)

    def check_now(self) -> None:
        """The same on the event loop: files that `read_now` can read are local.

        A new change time alone is left to the end of the upload, which compares all bytes.
        """
        now = Fingerprint.of_file(os.fstat(self._descriptor))
        if now != self.fingerprint and not self.fingerprint.is_touched(now):
            raise changed_source(self._path, *self.fingerprint.changes(now))

    def check_untouched_now(self) -> None:
        """Raise `SourceChanged` also if only the change time is new."""
        now = Fingerprint.of_file(os.fstat(self._descriptor))
        if now != self.fingerprint:
            error = changed_source(self._path, *self.fingerprint.changes(now))
            if self.fingerprint.is_touched(now):
                error.is_temporary = True
                error.next_step = "Run the same command again: the file is read again."
            raise error

    def current_fingerprint(self, follow_symlinks: bool) -> Fingerprint:
        """Return the fingerprint of the descriptor, which must still be the file at the path."""
        now = Fingerprint.of_file(os.fstat(self._descriptor))
        try:
            named = Fingerprint.of_file(os.stat(self._path, follow_symlinks=follow_symlinks))
        except OSError as exc:
            raise SourceChanged(f"{self._path} does not exist any more.") from exc
        if (named.inode, named.device) != (now.inode, now.device):
            raise SourceChanged(f"{self._path} has been replaced by another file.")
        return now

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on the descriptor in one of the threads for disks."""
        job = DISKS.submit(work, *args, **kwargs)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await asyncio.wrap_future(job)
        except TimeoutError as exc:
            raise SourceUnreadable(
                f"{self._path} cannot be read: its disk does not answer within "
                f"{self._read_timeout_s:g} s.",
                next_step="Check the disk or file server, then run the same command again.",
            ) from exc

    async def close(self) -> None:
        """Close the file once no thread uses it; a thread that never returns keeps it open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._CLOSE_TIMEOUT_S):
                if running := [asyncio.wrap_future(job) for job in tuple(self._jobs)]:
                    await asyncio.wait(running)
                await self._handle.close()

    def _fill(self, into: memoryview, offset: int) -> int:
        filled = 0
        try:
            while filled < len(into):
                size = portable.read_at(self._descriptor, into[filled:], offset + filled)
                if size == 0:
                    raise changed_source(self._path, f"it ends at byte {offset + filled}")
                filled += size
        except OSError as exc:
            raise unreadable_source(self._path, exc) from exc
        return filled


@dataclass(frozen=True, slots=True)
class _WholeFile(RandomAccess):
    """A file that one request stores: nothing is compared later, so it must not be touched."""

    file: OpenFile

    def read_now(self, into: memoryview, offset: int) -> int | None:
        return self.file.read_now(into, offset)

    async def read(self, into: memoryview, offset: int) -> int:
        return await self.file.read(into, offset)

    def check_now(self) -> None:
        self.file.check_untouched_now()

    async def check(self) -> None:
        await self.file.in_thread(self.file.check_untouched_now)


class _UninterruptedDisks(Executor):
    """The threads for disks as one file is opened and closed by. Mutable: its last job.

    Opening and closing run to their end when the task that waits is cancelled: what is
    dropped from the queue would leave the file open.
    """

    _job: Future[Any] | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` in a thread; the returned future cannot be cancelled."""
        self._job = job = DISKS.submit(fn, *args, **kwargs)
        job.cancel = lambda: False  # type: ignore[method-assign]  # asyncio calls it
        return job

    def close_when_opened(self) -> None:
        """Close the file as soon as the thread has opened it."""
        if self._job is not None:
            self._job.add_done_callback(_close_result)


def _close_result(job: Future[FileIO]) -> None:
    if job.exception() is None:
        job.result().close()


_NOWAIT_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


def path_identity(path: str) -> str:
    """The absolute path with the links of its folder resolved: one file, one upload.

    A link to the file itself keeps its own name: it is another video.
    """
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(folder), name)


def open_regular_file(
    path: str, flags: int = os.O_RDONLY, *, follow_symlinks: bool = True, root: str | None = None
) -> int:
    """Open only a regular file, and never wait for one: a FIFO would block until written.

    Raises `SourceUnreadable` for anything else, and `UnsafePath`; see `FileSource`.
    """
    flags |= portable.CLOSE_ON_EXEC | portable.NO_WAIT
    if not follow_symlinks:
        flags |= portable.NO_LINK
        _refuse_link(path)
    if not (portable.NO_WAIT or root) and not stat.S_ISREG(mode := os.stat(path).st_mode):
        raise irregular_source(path, mode)
    descriptor = os.open(path, flags) if root is None else _open_below(root, path, flags)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise irregular_source(path, mode)
    return descriptor


def _refuse_link(path: str) -> None:
    """As O_NOFOLLOW does, where there is none."""
    if not portable.NO_LINK and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _names_below(root: str, path: str) -> list[str]:
    prefix = root if root.endswith(os.sep) else root + os.sep
    names = path.removeprefix(prefix).split(os.sep)
    if not path.startswith(prefix) or {"", os.curdir, os.pardir} & {*names}:
        raise UnsafePath(f"{path} is not below {root}.")
    return names


def open_folder_below(root: str, path: str) -> tuple[int, str]:
    """Open the folder of a file below `root`, and return its descriptor and the file's name.

    One component is opened after the other: no folder can be swapped for a link meanwhile.

    Raises:
        UnsafePath: it is not below the root, or a link is on the way.
    """
    if not portable.HAS_FOLDER_DESCRIPTORS:
        raise ConfigurationError("This system cannot open files below a folder safely.")
    *folders, name = _names_below(root, path)
    folder = os.open(root, portable.FOLDER)
    try:
        for each in folders:
            above, folder = folder, os.open(each, portable.FOLDER, dir_fd=folder)
            os.close(above)
    except OSError as error:
        os.close(folder)
        if isinstance(error, NotADirectoryError):
            raise UnsafePath(f"{path} leads through a symbolic link.") from error
        raise
    return folder, name


def _open_below(root: str, path: str, flags: int) -> int:
    if not portable.HAS_FOLDER_DESCRIPTORS:
        _names_below(root, path)
        folder_path = os.path.dirname(path)
        if os.path.realpath(folder_path) != os.path.abspath(folder_path):
            raise UnsafePath(f"{path} leads through a symbolic link.")
        _refuse_link(path)
        return os.open(path, flags)
    folder, name = open_folder_below(root, path)
    try:
        return os.open(name, flags | portable.NO_LINK, dir_fd=folder)
    finally:
        os.close(folder)
