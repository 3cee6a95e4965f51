"""Binary file objects of a caller: read by position where they can seek, else as a stream."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import AsyncGenerator, Callable
from typing import ParamSpec, Protocol, Self, TypeVar, runtime_checkable

from uploader.errors import ConfigurationError, SourceUnreadable
from uploader.sources.contract import (
    Fingerprint,
    RandomAccess,
    Source,
    changed_source,
    empty_source,
    require_open,
)
from uploader.sources.files import FileSource
from uploader.sources.readers import READ_SIZE
from uploader.sources.streams import StreamSource
from uploader.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")


@runtime_checkable
class BinaryFile(Protocol):
    """What `open(path, "rb")`, `io.BytesIO` and the like are."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; b"" at the end."""


class _Seekable(BinaryFile, Protocol):
    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


def of_file_object(file: BinaryFile) -> Source:
    """Return the source of what lies between a file object's position and its end.

    A regular file that still has its name is read as a file, at its full speed.
    """
    if hasattr(file, "encoding") and hasattr(file, "newlines"):  # as io.TextIOBase has
        raise ConfigurationError(
            f"{_name_of(file)} is open as text.", next_step="Open it in binary mode."
        )
    seekable = getattr(file, "seekable", None)
    if seekable is None or not seekable():
        name = _name_of(file)
        return StreamSource(_pieces_of(file, name), name)
    if (path := _path_of(file)) is not None:
        return FileSource(path)
    return FileObjectSource(file)  # type: ignore[arg-type]  # `seekable` says so


async def _pieces_of(file: BinaryFile, name: str) -> AsyncGenerator[bytes, None]:
    """Read a file object that cannot seek.

    In a thread of its own: the producer may block it for ever, and the reads of other sources
    must not wait behind it.
    """
    read_some = getattr(file, "read1", file.read)  # read() may wait for all of it
    thread = Threads("vodup-stream", 1)
    try:
        while piece := await thread.run(read_some, READ_SIZE):
            yield piece
    except (OSError, ValueError) as error:
        raise SourceUnreadable(f"{name} cannot be read ({error}).") from error
    finally:
        thread.shutdown()


def _name_of(file: object) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name else f"<{type(file).__name__}>"


def _path_of(file: object) -> str | None:
    """The path of a regular file that is open at its beginning, if it still leads there."""
    path = getattr(file, "name", None)
    if not isinstance(path, str) or not isinstance(file, io.BufferedReader | io.FileIO):
        return None
    try:
        opened, named = os.fstat(file.fileno()), os.stat(path)
        is_it = stat.S_ISREG(opened.st_mode) and os.path.samestat(opened, named)
        return path if is_it and file.tell() == 0 else None
    except OSError:
        return None


class FileObjectSource(RandomAccess):
    """A seekable binary file object from its position on. It is not closed.

    Nothing else may use the object during the upload. All of it is read when the source is
    opened, for a CRC-64 to identify it, and again before the upload completes, always in
    one thread: it has one position. Mutable: open or not.
    """

    stream = None  # all of it is there

    def __init__(self, file: _Seekable) -> None:
        self._file = file
        self.name = _name_of(file)
        self._thread: Threads | None = None
        self._begin = 0
        self.size = 0
        self._crc64 = 0

    @property
    def identity(self) -> str:
        """The size and CRC-64 of the content: it has no other identity."""
        return f"bytes:{self.size}:{self._crc64:016x}"

    async def fingerprint(self) -> Fingerprint:
        """Read all of it; return the size and the CRC-64 of the content."""
        size = await self._in_thread(self._file.seek, 0, os.SEEK_END) - self._begin
        if size < 1:
            raise empty_source(self.name)
        return Fingerprint.of_content(size, (await self.read_crc(0, size))[0])

    async def __aenter__(self) -> Self:
        """Read all of it once.

        Raises:
            SourceUnreadable: it is empty, or closed.
        """
        self._thread = Threads("vodup-object", 1)
        try:
            self._begin = await self._in_thread(self._file.tell)
            found = await self.fingerprint()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self.size, self._crc64 = found.size, found.inode
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()

    async def read(self, into: memoryview, offset: int) -> int:
        """Fill `into` in the thread."""
        return await self._in_thread(self._fill, into, offset)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        thread = require_open(self._thread)
        try:
            return await thread.run(work, *args, **kwargs)
        except (OSError, ValueError) as error:
            raise SourceUnreadable(f"{self.name} cannot be read ({error}).") from error

    def _fill(self, into: memoryview, offset: int) -> int:
        self._file.seek(self._begin + offset)
        filled = 0
        while filled < len(into):
            piece = self._file.read(len(into) - filled)
            if not piece:
                raise changed_source(self.name, f"it ends at byte {offset + filled}")
            into[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled
