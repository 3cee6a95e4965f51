"""Many uploads at once: in which order they start, and how each of them ends."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from uploader.errors import ConfigurationError, VodupError, require_type
from uploader.events import UploadResult
from uploader.log import get_logger
from uploader.portable import descriptor_limit
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import VideoMeta
from uploader.sources import AnySource, require_source
from uploader.tasks import beside, cancel_count, one_error
from uploader.threads import DISKS
from uploader.unexpected import unexpected
from uploader.upload.request import OnSourceChange

if TYPE_CHECKING:
    from uploader.protocol.media import MediaKind

DEFAULT_FILES: Final = 32
"""Small files are bound by round trips: as many at once as there are connections."""

_LARGE_SIZE: Final = 64 * 2**20
_MAX_LARGE: Final = 4
"""Four files of many parts keep every connection busy. With more of them, less would be
finished when the batch is interrupted."""

_LOOK_AHEAD: Final = 5000
"""Items of about 1 KiB. Fewer: a large file far down the list starts late, and the batch
waits for it. More: memory, and the first upload waits until so many sizes are known."""

_SIZING_BATCH: Final = 64
_DESCRIPTOR_SHARE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadItem:
    """One of many uploads; `source` and the rest are what `Uploader.upload` takes.

    Attributes:
        on_source_change: if the upload is finished and its source has changed since: "fail",
            upload it into a "new-video", or "overwrite" the content of its video.
        media: store the source as an image or attached media, not as a video; the result's
            `video_id` is its id.
        size: bytes, if the caller knows them. Large files start first; nothing else depends
            on it.
        priority: higher ones start first; those above 0 that are not large need not wait until
            one of the uploads under way ends.
        tag: anything of the caller's; comes back with the outcome.
    """

    source: AnySource
    meta: VideoMeta | None = None
    video_id: str | None = None
    grant: UploadGrant | None = None
    key: str | None = None
    overwrite: bool = False
    on_source_change: OnSourceChange = "fail"
    media: MediaKind | None = None
    size: int | None = None
    priority: int = 0
    tag: Any = None

    def __post_init__(self) -> None:
        require_source(self.source)
        require_type("meta", self.meta, VideoMeta, instead='Pass VideoMeta(title="…").')
        require_type("video_id", self.video_id, str)
        require_type("grant", self.grant, UploadGrant, instead="Pass what `decode_grant` returns.")
        require_type("key", self.key, str)
        require_type("overwrite", self.overwrite, bool)
        require_type("size", self.size, int)


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
Ended = asyncio.Queue[Outcome | Exception | None]
"""Outcomes, an error that ends the batch, or None after the last outcome."""


async def upload_batch(
    upload: Upload, items: Items, *, files: int, look_ahead: int = _LOOK_AHEAD
) -> AsyncGenerator[Outcome, None]:
    """Call `upload` for every item, `files` at a time, and yield how each ended.

    Reads `look_ahead` items ahead and starts those with the highest priority first, and of these
    the largest, so that the end of the batch does not wait for one large file. Whoever stops
    reading early must close the iterator (`contextlib.aclosing`), which cancels the uploads under
    way.

    Raises:
        VodupError: not every item has an outcome; a bug.
    """
    files = min(files, descriptor_share())
    ahead = _LookAhead(look_ahead, most_large=min(_MAX_LARGE, max(1, files - 1)))
    ended: Ended = asyncio.Queue(maxsize=2 * files)
    ended_count = 0
    async with beside(
        _read(items, ahead, ended),
        _upload_all(upload, ahead, ended, files),
    ):
        try:
            while (outcome := await ended.get()) is not None:
                if isinstance(outcome, Exception):
                    raise outcome
                ended_count += 1
                yield outcome
        finally:
            ahead.is_abandoned = True
    if ended_count != ahead.put_count:
        raise VodupError(
            f"{ahead.put_count} uploads were started and {ended_count} have ended.",
            next_step="Report it: this is a bug in vodup. Run it again; what is done stays done.",
        )


def descriptor_share() -> int:
    """How many descriptors files may use, and how many connections may.

    The rest is for the state and the caller.
    """
    limit = descriptor_limit()
    return 1024 if limit is None else max(1, limit // _DESCRIPTOR_SHARE)


def require_files(files: int | None) -> int:
    """Return the number of uploads at once, by default `DEFAULT_FILES`.

    Raises:
        ConfigurationError: it is below 1.
    """
    if files is not None and files < 1:
        raise ConfigurationError("files must be at least 1.")
    return files or DEFAULT_FILES


# --- reading items --------------------------------------------------------------------


async def _read(items: Items, ahead: _LookAhead, ended: Ended) -> None:
    """Read all items. An error goes through the queue: raised here, it would cancel the caller."""
    reading = items if isinstance(items, AsyncIterable) else _each(items)
    try:
        await _put_all(reading, ahead)
    except asyncio.CancelledError as error:
        if cancel_count():
            raise
        await ended.put(unexpected(error))
    except Exception as error:
        await ended.put(error)
    finally:
        ahead.close()
        if isinstance(reading, AsyncGenerator):
            await reading.aclose()


async def _each(items: Iterable[UploadItem]) -> AsyncGenerator[UploadItem, None]:
    for item in items:
        yield item


async def _put_all(items: AsyncIterable[UploadItem], ahead: _LookAhead) -> None:
    unsized: list[UploadItem] = []
    async for item in items:
        if item.size is not None:
            await ahead.put(item, item.size)
            continue
        unsized.append(item)
        if len(unsized) == _SIZING_BATCH:
            await _put_unsized(unsized, ahead)
            unsized.clear()
    await _put_unsized(unsized, ahead)


async def _put_unsized(items: list[UploadItem], ahead: _LookAhead) -> None:
    """Look up the sizes first, in a thread: a disk may take its time."""
    sizes = await DISKS.run(lambda: [_size_of(item.source) for item in items])
    for item, size in zip(items, sizes, strict=True):
        await ahead.put(item, size)


def _size_of(source: AnySource) -> int:
    """Bytes; 0 where it is unknown, or where the upload itself will fail."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, str | os.PathLike):
        with suppress(OSError, ValueError):
            return os.stat(source).st_size
    return 0


# --- uploading them -------------------------------------------------------------------


async def _upload_all(upload: Upload, ahead: _LookAhead, ended: Ended, files: int) -> None:
    async def upload_each(take: Callable[[], Awaitable[_Taken | None]]) -> None:
        while (taken := await take()) is not None:
            item, size = taken
            try:
                outcome = await outcome_of(upload, item)
                if ahead.is_abandoned:  # the caller stopped reading outcomes
                    return
                await ended.put(outcome)
            finally:
                ahead.end(size)

    async with one_error() as group:
        for _ in range(files):
            group.create_task(upload_each(ahead.take))
        group.create_task(upload_each(ahead.take_urgent))
    await ended.put(None)


async def outcome_of(upload: Upload, item: UploadItem) -> Outcome:
    """Return how an upload ends; only a cancellation of the calling task is raised."""
    loop = asyncio.get_running_loop()
    began_s, cancels = loop.time(), cancel_count()
    result: UploadResult | None = None
    error: VodupError | None = None
    try:
        result = await upload(item)
    except VodupError as failure:
        error = failure
    except asyncio.CancelledError as stray:
        if cancel_count() > cancels:
            raise
        error = unexpected(stray)  # something that the upload awaited was cancelled
    except Exception as bug:  # must not stop the other uploads
        get_logger().exception("upload.crashed", error=type(bug).__name__)
        error = unexpected(bug)
    return Outcome(item=item, result=result, error=error, seconds=loop.time() - began_s)


_Heap = list[tuple[int, int, int, UploadItem]]
_Taken = tuple[UploadItem, int]


class _LookAhead:
    """The items read ahead, the most urgent and then the largest first. Mutable; one task puts,
    many take.

    Of large files only a few are under way at a time, and one upload at least is left for others;
    smaller ones pass those that wait.
    """

    def __init__(self, limit: int, *, most_large: int) -> None:
        self._limit, self._most_large = limit, most_large
        self._large: _Heap = []
        self._small: _Heap = []
        self._order = itertools.count()
        self._large_count = 0
        self._is_closed = False
        self._changed = asyncio.Event()
        self._taking = asyncio.Lock()  # one waits at a time: a change wakes one task, not all
        self.put_count = 0
        self.is_abandoned = False

    def __len__(self) -> int:
        return len(self._large) + len(self._small)

    async def put(self, item: UploadItem, size: int) -> None:
        """Add an item, once fewer than the limit wait."""
        await self._until(lambda: len(self) < self._limit)
        heap = self._large if size >= _LARGE_SIZE else self._small
        heapq.heappush(heap, (-item.priority, -size, next(self._order), item))
        self.put_count += 1
        self._changed.set()

    async def take(self) -> _Taken | None:
        """Return the next item to upload and its size; None after the last one."""
        async with self._taking:
            await self._until(lambda: self._next_heap() or (self._is_closed and not len(self)))
        return self._pop(self._next_heap())

    async def take_urgent(self) -> _Taken | None:
        """Return the next item of those that do not wait for others; None after the last one."""
        await self._until(lambda: self._has_urgent() or self._is_closed)
        return self._pop(self._small if self._has_urgent() else [])

    def _has_urgent(self) -> bool:
        return bool(self._small) and self._small[0][0] < 0

    def _pop(self, heap: _Heap) -> _Taken | None:
        if not heap:
            return None
        _, negative_size, _, item = heapq.heappop(heap)
        self._large_count += -negative_size >= _LARGE_SIZE
        self._changed.set()
        return item, -negative_size

    def end(self, size: int) -> None:
        """An item that was taken has ended."""
        self._large_count -= size >= _LARGE_SIZE
        self._changed.set()

    def close(self) -> None:
        """No more items will be put."""
        self._is_closed = True
        self._changed.set()

    def _next_heap(self) -> _Heap:
        if not self._large or self._large_count >= self._most_large:
            return self._small
        if self._small and self._small[0][0] < self._large[0][0]:
            return self._small
        return self._large

    async def _until(self, is_true: Callable[[], object]) -> None:
        while not is_true():
            self._changed.clear()
            await self._changed.wait()
