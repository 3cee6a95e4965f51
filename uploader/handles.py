"""Uploads that run beside their caller, each with a handle to watch and steer it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager

from uploader.errors import ConfigurationError, unexpected
from uploader.events import Event, Listener, UploadProgress, UploadResult
from uploader.tasks import cancel_count, one_error

__all__ = ["Submissions", "UploadHandle"]

Abort = Callable[[str], Awaitable[None]]
Begin = Callable[[asyncio.Event, Listener], Awaitable[UploadResult]]
"""Carries an upload out: sends only while the event is set, and tells the listener."""


class UploadHandle:
    """One upload that runs beside its caller.

    Mutable: whether it may send, what its watchers have not read yet, how it ended. Used
    on the event loop of its uploader.

    Attributes:
        key, video_id: as soon as they are known.
    """

    def __init__(self, begin: Begin, abort: Abort) -> None:
        self._begin, self._abort = begin, abort
        self._going = asyncio.Event()
        self._going.set()
        self._ended = asyncio.Event()
        self._watchers: list[_Watcher] = []
        self._task: asyncio.Task[None] | None = None
        self._result: UploadResult | None = None
        self._failure: Exception | None = None
        self._is_heard = False
        self.key: str | None = None
        self.video_id: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._ended.is_set()

    @property
    def is_paused(self) -> bool:
        """Whether it begins no request until `go_on`."""
        return not self._going.is_set()

    @property
    def unheard(self) -> Exception | None:
        """How it failed, if nobody has asked for its result."""
        return None if self._is_heard else self._failure

    def pause(self) -> None:
        """Begin no more requests. What is under way is finished; the upload stays ours."""
        self._going.clear()

    def go_on(self) -> None:
        """The reverse of `pause`."""
        self._going.set()

    async def result(self) -> UploadResult:
        """Wait for its end; may be asked by many, and again.

        Raises:
            VodupError: how it failed.
            CancelledError: it was cancelled.
        """
        self._is_heard = True
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            raise asyncio.CancelledError("the upload was cancelled")
        return self._result

    def __await__(self) -> Generator[object, None, UploadResult]:
        return self.result().__await__()

    async def events(self) -> AsyncGenerator[Event, None]:
        """What is told from now on, to the last event.

        A slow reader misses nothing but old `UploadProgress`: of those only the newest
        counts. Any number of readers may follow one upload.
        """
        watcher = _Watcher(is_closed=self.is_done)
        self._watchers.append(watcher)
        try:
            while (event := await watcher.next()) is not None:
                yield event
        finally:
            self._watchers.remove(watcher)

    async def cancel(self) -> None:
        """Stop, and wait until nothing is left of it; the checkpoint stays.

        The same upload submitted again goes on where this one was.
        """
        self.stop()
        await self._ended.wait()

    async def abort(self) -> None:
        """Stop and give the upload up: its parts are removed. The video stays.

        Raises:
            ConfigurationError: it is finished, or had not begun.
        """
        await self.cancel()
        if self.key is None:
            raise ConfigurationError("The upload had not begun; there is nothing to give up.")
        await self._abort(self.key)

    def stop(self) -> None:
        """Cancel it without waiting."""
        if self._task is not None:
            self._task.cancel()

    def run_in(self, group: asyncio.TaskGroup, on_end: Callable[[UploadHandle], None]) -> None:
        """Start it; called once."""
        self._task = group.create_task(self._run())
        # A callback, because one that is cancelled before its first step runs no line of it.
        self._task.add_done_callback(lambda _: self._end(on_end))

    async def _run(self) -> None:
        try:
            self._result = await self._begin(self._going, self._hear)
        except asyncio.CancelledError as stray:
            if cancel_count():
                raise
            self._failure = unexpected(stray)  # something that the upload awaited was cancelled
        except Exception as exc:  # one upload's failure is its result, and stops no other
            self._failure = exc

    def _end(self, on_end: Callable[[UploadHandle], None]) -> None:
        self._ended.set()
        for watcher in self._watchers:
            watcher.close()
        on_end(self)

    def _hear(self, event: Event) -> None:
        self.key, self.video_id = event.key, event.video_id
        for watcher in self._watchers:
            watcher.put(event)


class _Watcher:
    """What one reader has still to read. Mutable."""

    def __init__(self, *, is_closed: bool) -> None:
        self._unread: deque[Event] = deque()
        self._progress: UploadProgress | None = None  # the one among them
        self._news = asyncio.Event()
        self._is_closed = is_closed

    def put(self, event: Event) -> None:
        """Keep it; a newer progress takes the place of one that nobody has read."""
        if isinstance(event, UploadProgress):
            if self._progress is not None:
                self._unread.remove(self._progress)
            self._progress = event
        self._unread.append(event)
        self._news.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._is_closed = True
        self._news.set()

    async def next(self) -> Event | None:
        """Wait for the next event; None after the last."""
        while not self._unread:
            if self._is_closed:
                return None
            self._news.clear()
            await self._news.wait()
        event = self._unread.popleft()
        if event is self._progress:
            self._progress = None
        return event


class Submissions:
    """The uploads beside their callers. Mutable: those under way, and those that failed."""

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)
        self._group: asyncio.TaskGroup | None = None
        self._under_way: set[UploadHandle] = set()
        self._failed: list[UploadHandle] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what is submitted in the block.

        Its end waits for all of it, and raises the first failure that nobody asked for. An
        error in the block cancels what is under way.
        """
        async with one_error() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
        failure = next(filter(None, (handle.unheard for handle in self._failed)), None)
        if failure is not None:
            raise failure

    async def submit(self, begin: Begin, abort: Abort) -> UploadHandle:
        """Start an upload as soon as there is a place for it."""
        await self._places.acquire()
        if self._group is None:
            self._places.release()
            raise RuntimeError("An Uploader works inside its block: async with Uploader(…) as up:")
        handle = UploadHandle(begin, abort)
        self._under_way.add(handle)
        handle.run_in(self._group, self._note_end)
        return handle

    def _note_end(self, handle: UploadHandle) -> None:
        self._places.release()
        self._under_way.discard(handle)
        if handle.unheard is not None:
            self._failed.append(handle)
