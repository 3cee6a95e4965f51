"""Many uploads at once: which of a stream is sent next, and how each of them ends."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from uploader.errors import ConfigurationError, VodupError
from uploader.events import UploadResult
from uploader.log import get_logger
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import VideoMeta
from uploader.sources import AnySource
from uploader.threads import DISKS

__all__ = [
    "DEFAULT_FILES",
    "Outcome",
    "UploadItem",
    "descriptor_share",
    "require_files",
    "upload_all",
]

DEFAULT_FILES = 32
"""Small files are bound by round trips: as many at once as connections may be used."""

_LARGE_SIZE = 64 * 2**20
_LARGE_AT_ONCE = 4
"""Four files of many parts keep every connection busy; more of them would only be
further from done when the batch is interrupted."""

_LOOK_AHEAD = 5000
"""Items of about 1 KiB. Fewer: a large file far down the list begins late, and the batch
waits for it. More: memory, and the first upload waits until so many sizes are known."""
_SIZING_BATCH = 64
_DESCRIPTOR_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadItem:
    """One of many uploads; `source` and the rest are what `Uploader.upload` takes.

    Attributes:
        size: bytes, where the caller knows them: large ones are begun first. It decides
            nothing else.
        tag: the caller's own; comes back with the outcome.
    """

    source: AnySource
    meta: VideoMeta | None = None
    video_id: str | None = None
    grant: UploadGrant | None = None
    key: str | None = None
    overwrite: bool = False
    size: int | None = None
    tag: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one item ended: either `result` or `error` is set.

    Attributes:
        seconds: from its start to its end.
    """

    item: UploadItem
    result: UploadResult | None = None
    error: VodupError | None = None
    seconds: float = 0.0


Items = Iterable[UploadItem] | AsyncIterable[UploadItem]
Upload = Callable[[UploadItem], Awaitable[UploadResult]]


async def upload_all(
    upload: Upload, items: Items, *, files: int, look_ahead: int = _LOOK_AHEAD
) -> AsyncGenerator[Outcome, None]:
    """Carry out `upload` for every item, `files` at a time, and yield how each ended.

    Reads `look_ahead` items ahead and begins the largest of them first, so that the end
    of the batch does not wait for one straggler. Whoever stops reading early must close
    the iterator (`contextlib.aclosing`): what is under way is cancelled then.
    """
    window = _Window(look_ahead)
    ended: asyncio.Queue[Outcome | Exception | None] = asyncio.Queue(maxsize=2 * files)
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_fill(window, items, ended)),
            group.create_task(_send_all(upload, window, ended, min(files, descriptor_share()))),
        ]
        try:
            while (outcome := await ended.get()) is not None:
                if isinstance(outcome, Exception):
                    failure = outcome  # raised below, where the group cannot wrap it
                    break
                yield outcome
        except GeneratorExit:
            pass  # closed early: ends like any other way, once nothing is under way
        finally:
            window.abandon()
            for task in tasks:
                task.cancel()
    if failure is not None:
        raise failure


def descriptor_share() -> int:
    """How many descriptors files may take, and how many connections may.

    The rest is for the state and the caller.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return max(1, soft // _DESCRIPTOR_SHARE)
    return 1024


def require_files(files: int | None) -> int:
    """How many uploads at once, the default filled in.

    Raises:
        ConfigurationError: it is below 1.
    """
    if files is not None and files < 1:
        raise ConfigurationError("files must be at least 1.")
    return files or DEFAULT_FILES


async def _fill(
    window: _Window, items: Items, ended: asyncio.Queue[Outcome | Exception | None]
) -> None:
    """Read the items; what goes wrong with reading them ends the whole."""
    try:
        async with _reading(items) as reading:
            await _read(reading, window)
    except Exception as error:  # handed over: raised here it would cancel whoever consumes
        await ended.put(error)
    finally:
        window.close()


async def _read(reading: AsyncIterable[UploadItem], window: _Window) -> None:
    unsized: list[UploadItem] = []
    async for item in reading:
        if item.size is not None:
            await window.put(item, item.size)
            continue
        unsized.append(item)
        if len(unsized) == _SIZING_BATCH:
            await _put_sized(unsized, window)
            unsized.clear()
    await _put_sized(unsized, window)


async def _put_sized(items: list[UploadItem], window: _Window) -> None:
    """Ask for their sizes first, in a thread: a disk may take its time."""
    sizes = await DISKS.run(lambda: [_size_of(item.source) for item in items])
    for item, size in zip(items, sizes, strict=True):
        await window.put(item, size)


@asynccontextmanager
async def _reading(items: Items) -> AsyncIterator[AsyncIterable[UploadItem]]:
    """Items as an asynchronous iterator, closed at the end if that can be done."""
    reading = items if isinstance(items, AsyncIterable) else _each(items)
    try:
        yield reading
    finally:
        if isinstance(reading, AsyncGenerator):
            await reading.aclose()


async def _each(items: Iterable[UploadItem]) -> AsyncGenerator[UploadItem, None]:
    for item in items:
        yield item


def _size_of(source: AnySource) -> int:
    """Bytes; 0 where it cannot be told, which the upload itself will complain about."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, str | os.PathLike):
        with suppress(OSError, ValueError):
            return os.stat(source).st_size
    return 0


async def _send_all(
    upload: Upload,
    window: _Window,
    ended: asyncio.Queue[Outcome | Exception | None],
    files: int,
) -> None:
    async def worker() -> None:
        while (taken := await window.take()) is not None:
            item, size = taken
            try:
                outcome = await _carried_out(upload, item)
                if window.is_abandoned:  # and it has outlived its cancellation
                    return
                await ended.put(outcome)
            finally:
                window.returned(size)

    async with asyncio.TaskGroup() as workers:
        for _ in range(files):
            workers.create_task(worker())
    await ended.put(None)


async def _carried_out(upload: Upload, item: UploadItem) -> Outcome:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    result: UploadResult | None = None
    error: VodupError | None = None
    try:
        result = await upload(item)
    except VodupError as failure:
        error = failure
    except Exception as unexpected:  # a bug that meets one file must not stop the others
        get_logger().exception("upload.crashed", error=type(unexpected).__name__)
        error = VodupError(
            f"Something unexpected happened ({type(unexpected).__name__}).",
            next_step="Report it: this is a bug in vodup. The checkpoint is kept.",
        )
        error.__cause__ = unexpected
    return Outcome(item=item, result=result, error=error, seconds=loop.time() - began_s)


class _Window:
    """The items read ahead. Mutable; gives out the largest first.

    Of files with many parts only a few are out at a time, and smaller ones pass them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._large: list[tuple[int, int, UploadItem]] = []
        self._small: list[tuple[int, int, UploadItem]] = []
        self._order = itertools.count()
        self._large_out = 0
        self._is_closed = False
        self.is_abandoned = False
        self._takers: deque[asyncio.Future[None]] = deque()
        self._putters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._large) + len(self._small)

    async def put(self, item: UploadItem, size: int) -> None:
        """Add an item, once there is room."""
        while len(self) >= self._most:
            await _wait(self._putters)
        heap = self._large if size >= _LARGE_SIZE else self._small
        heapq.heappush(heap, (-size, next(self._order), item))
        _wake_one(self._takers)

    async def take(self) -> tuple[UploadItem, int] | None:
        """The next to send; None when there will be no more."""
        while (heap := self._next_heap()) is None:
            if self._is_closed and not len(self):
                return None
            await _wait(self._takers)
        negative_size, _, item = heapq.heappop(heap)
        self._large_out += -negative_size >= _LARGE_SIZE
        _wake_one(self._putters)
        if self._is_closed and not len(self):
            self._send_takers_home()
        return item, -negative_size

    def returned(self, size: int) -> None:
        """An item that was taken has ended."""
        self._large_out -= size >= _LARGE_SIZE
        _wake_one(self._takers)

    def close(self) -> None:
        """There are no more items."""
        self._is_closed = True
        self._send_takers_home()

    def abandon(self) -> None:
        """Nobody asks any more how items end."""
        self.is_abandoned = True

    def _send_takers_home(self) -> None:
        for _ in range(len(self._takers)):
            _wake_one(self._takers)

    def _next_heap(self) -> list[tuple[int, int, UploadItem]] | None:
        if self._large and self._large_out < _LARGE_AT_ONCE:
            return self._large
        return self._small or None


async def _wait(queue: deque[asyncio.Future[None]]) -> None:
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue.append(turn)
    await turn


def _wake_one(queue: deque[asyncio.Future[None]]) -> None:
    while queue:
        turn = queue.popleft()
        if not turn.done():
            turn.set_result(None)
            return
