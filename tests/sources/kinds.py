"""Every kind of source, as a table: where it comes from, and what it promises.

An `Origin` holds bytes and returns a new source of them as often as a new run would
open one. The suite in test_every_source.py tests all of them alike.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec

from uploader import (
    FollowedFile,
    FsspecSource,
    MemoryBuffer,
    Spool,
    StreamSource,
    Until,
    UrlPolicy,
    UrlSource,
)
from uploader.sources import AnySource, DescriptorReader

from ..engine.harness import PART
from .web import Site, serving

BUFFER_SIZE = 12 * PART
"""Of streams in these tests: less than they have."""


@dataclass
class Origin:
    """Bytes somewhere, and sources of them.

    Attributes:
        data: what it holds; `put` changes it.
        is_stream: whether its bytes can be read only once, so that a failed run must be
            followed by one that starts from the first byte.
        may_change: whether other bytes count as a later state of the same file.
    """

    data: bytes = b""
    is_stream: bool = False
    may_change: bool = False
    put: Callable[[bytes], None] = lambda data: None
    source: Callable[[], AnySource] = lambda: b""
    threads: list[threading.Thread] = field(default_factory=list)

    def holds(self, data: bytes) -> bytes:
        """Hold these bytes from now on; returns them."""
        self.data = data
        self.put(data)
        return data


@dataclass(frozen=True)
class Kind:
    """One row of the table."""

    name: str
    origin: Callable[[Path], AbstractAsyncContextManager[Origin]]
    is_quick: bool = True


# --- in memory ------------------------------------------------------------------------


@asynccontextmanager
async def of_bytes(folder: Path) -> AsyncIterator[Origin]:
    origin = Origin()
    origin.source = lambda: origin.data
    yield origin


@asynccontextmanager
async def of_memoryview(folder: Path) -> AsyncIterator[Origin]:
    origin = Origin()
    origin.source = lambda: memoryview(bytearray(b"x" + origin.data))[1:]
    yield origin


@asynccontextmanager
async def of_bytes_io(folder: Path) -> AsyncIterator[Origin]:
    """Read from where the caller has left it."""
    origin = Origin()

    def source() -> io.BytesIO:
        file = io.BytesIO(b"header" + origin.data)
        file.seek(6)
        return file

    origin.source = source
    yield origin


# --- files ----------------------------------------------------------------------------


@asynccontextmanager
async def of_file(folder: Path) -> AsyncIterator[Origin]:
    await asyncio.to_thread(folder.mkdir)
    path = folder / "movie.mp4"
    yield Origin(put=lambda data: _write(path, data), source=lambda: path)


@asynccontextmanager
async def of_open_file(folder: Path) -> AsyncIterator[Origin]:
    await asyncio.to_thread(folder.mkdir)
    path = folder / "movie.mp4"
    opened: list[io.BufferedReader] = []

    def source() -> io.BufferedReader:
        opened.append(path.open("rb"))
        return opened[-1]

    try:
        yield Origin(put=lambda data: _write(path, data), source=source)
    finally:
        for file in opened:
            file.close()


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@asynccontextmanager
async def of_followed_file(folder: Path) -> AsyncIterator[Origin]:
    """One that is at its end already."""
    await asyncio.to_thread(folder.mkdir)
    path = folder / "movie.mp4"
    until = Until(marker=path)
    yield Origin(
        may_change=True,
        put=lambda data: _write(path, data),
        source=lambda: FollowedFile(path, until),
    )


# --- streams --------------------------------------------------------------------------


async def pieces(data: bytes, size: int = 70_001) -> AsyncGenerator[bytes, None]:
    """`data` in pieces that fit no part."""
    for offset in range(0, len(data), size):
        await asyncio.sleep(0)
        yield data[offset : offset + size]


@asynccontextmanager
async def of_iterator(folder: Path) -> AsyncIterator[Origin]:
    origin = Origin(is_stream=True)
    origin.source = lambda: StreamSource(
        pieces(origin.data), "movie.mp4", buffer=MemoryBuffer(BUFFER_SIZE)
    )
    yield origin


@asynccontextmanager
async def of_spooled_iterator(folder: Path) -> AsyncIterator[Origin]:
    origin = Origin(is_stream=True)
    origin.source = lambda: StreamSource(
        pieces(origin.data), "movie.mp4", buffer=Spool(folder, "movie.mp4", BUFFER_SIZE)
    )
    yield origin


class Unseekable(io.RawIOBase):
    """A binary file object without positions."""

    name = "movie.mp4"

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(min(size, 50_000))


@asynccontextmanager
async def of_unseekable_file(folder: Path) -> AsyncIterator[Origin]:
    origin = Origin(is_stream=True)
    origin.source = lambda: Unseekable(origin.data)
    yield origin


@asynccontextmanager
async def of_pipe(folder: Path) -> AsyncIterator[Origin]:
    """A pipe that another thread writes, as a process would."""
    origin = Origin(is_stream=True)
    descriptors: list[int] = []

    def source() -> StreamSource:
        reading, writing = os.pipe()
        descriptors.append(reading)
        thread = threading.Thread(target=_pour, args=(writing, origin.data))
        origin.threads.append(thread)
        thread.start()
        return StreamSource(
            DescriptorReader(reading, "a pipe"), "movie.mp4", buffer=MemoryBuffer(BUFFER_SIZE)
        )

    origin.source = source
    try:
        yield origin
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        for thread in origin.threads:
            await asyncio.to_thread(thread.join)


def _pour(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except BrokenPipeError:
        pass  # nobody reads it to its end
    finally:
        os.close(descriptor)


# --- URLs -----------------------------------------------------------------------------

PRIVATE = UrlPolicy(allow_private=True)


@asynccontextmanager
async def of_url(folder: Path) -> AsyncIterator[Origin]:
    async with serving(Site()) as site:
        yield Origin(put=site.put, source=lambda: UrlSource(site.url, policy=PRIVATE))


@asynccontextmanager
async def of_url_without_ranges(folder: Path) -> AsyncIterator[Origin]:
    async with serving(Site(with_ranges=False)) as site:
        yield Origin(
            is_stream=True,
            put=site.put,
            source=lambda: UrlSource(site.url, policy=PRIVATE, buffer=MemoryBuffer(BUFFER_SIZE)),
        )


# --- fsspec ---------------------------------------------------------------------------


@asynccontextmanager
async def of_fsspec_memory(folder: Path) -> AsyncIterator[Origin]:
    store = fsspec.filesystem("memory")
    yield Origin(
        put=lambda data: store.pipe("/vodup/movie.mp4", data),
        source=lambda: FsspecSource("memory://vodup/movie.mp4"),
    )
    store.rm("/vodup", recursive=True)


@asynccontextmanager
async def of_fsspec_file(folder: Path) -> AsyncIterator[Origin]:
    await asyncio.to_thread(folder.mkdir)
    path = folder / "movie.mp4"
    yield Origin(put=lambda data: _write(path, data), source=lambda: f"file://{path}")


KINDS = (
    Kind("bytes", of_bytes, is_quick=False),
    Kind("memoryview", of_memoryview, is_quick=False),
    Kind("BytesIO", of_bytes_io),
    Kind("file", of_file),
    Kind("open file", of_open_file, is_quick=False),
    Kind("followed file", of_followed_file),
    Kind("iterator", of_iterator),
    Kind("spooled iterator", of_spooled_iterator),
    Kind("unseekable file", of_unseekable_file, is_quick=False),
    Kind("pipe", of_pipe),
    Kind("URL", of_url),
    Kind("fsspec memory", of_fsspec_memory),
    Kind("fsspec file", of_fsspec_file, is_quick=False),
    Kind("URL without ranges", of_url_without_ranges),
)
