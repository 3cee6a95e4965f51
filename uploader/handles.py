"""Uploads that run beside their caller, each with a handle to watch and steer it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager

from uploader.errors import ConfigurationError
from uploader.events import Event, Listener, UploadProgress, UploadResult
from uploader.tasks import cancel_count, one_error
from uploader.unexpected import unexpected

Abort = Callable[[str], Awaitable[None]]
Run = Callable[[asyncio.Event, Listener], Awaitable[UploadResult]]
"""Runs an upload: requests begin only while the event is set; events go to the listener."""


class UploadHandle:
    """One upload that runs beside its caller.

    Mutable: whether it is paused, what its followers have not read yet, how it ended. Used
    on the event loop of its uploader.

    Attributes:
        key, video_id: as soon as they are known.
    """

    def __init__(self, run: Run, abort: Abort) -> None:
        self._run_upload, self._abort = run, abort
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._ended = asyncio.Event()
        self._followers: list[_Follower] = []
        self._task: asyncio.Task[None] | None = None
        self._result: UploadResult | None = None
        self._failure: Exception | None = None
        self._is_awaited = False
        self.key: str | None = None
        self.video_id: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._ended.is_set()

    @property
    def is_paused(self) -> bool:
        """Whether it begins no request until `resume`."""
        return not self._resumed.is_set()

    @property
    def unawaited_failure(self) -> Exception | None:
        """How it failed, if its result was never awaited."""
        return None if self._is_awaited else self._failure

    def pause(self) -> None:
        """Begin no more requests. Those under way finish; the upload stays claimed."""
        self._resumed.clear()

    def resume(self) -> None:
        """Begin requests again."""
        self._resumed.set()

    async def result(self) -> UploadResult:
        """Wait for its end; any number of callers may, and again.

        Raises:
            VodupError: how it failed.
            CancelledError: it was cancelled.
        """
        self._is_awaited = True
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            raise asyncio.CancelledError("the upload was cancelled")
        return self._result

    def __await__(self) -> Generator[object, None, UploadResult]:
        return self.result().__await__()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Every event from now on, to the last one.

        A slow reader misses nothing but old `UploadProgress`: of those only the newest
        counts. Any number of readers may follow one upload.
        """
        follower = _Follower(is_closed=self.is_done)
        self._followers.append(follower)
        try:
            while (event := await follower.next()) is not None:
                yield event
        finally:
            self._followers.remove(follower)

    async def cancel(self) -> None:
        """Stop, and wait until nothing of it runs any more; the checkpoint stays.

        The same upload submitted again resumes where this one was.
        """
        if self._task is not None:
            self._task.cancel()
        await self._ended.wait()

    async def abort(self) -> None:
        """Stop and abort the upload: its parts are removed. The video stays.

        Raises:
            ConfigurationError: it is finished, or had not started.
        """
        await self.cancel()
        if self.key is None:
            raise ConfigurationError("The upload had not started; there is nothing to abort.")
        await self._abort(self.key)

    def run_in(self, group: asyncio.TaskGroup, on_end: Callable[[UploadHandle], None]) -> None:
        """Start it; called once."""
        self._task = group.create_task(self._run())
        # A callback, because one that is cancelled before its first step runs no line of it.
        self._task.add_done_callback(lambda _: self._end(on_end))

    async def _run(self) -> None:
        try:
            self._result = await self._run_upload(self._resumed, self._receive)
        except asyncio.CancelledError as stray:
            if cancel_count():
                raise
            self._failure = unexpected(stray)  # something that the upload awaited was cancelled
        except Exception as exc:  # one upload's failure is its result, and stops no other
            self._failure = exc

    def _end(self, on_end: Callable[[UploadHandle], None]) -> None:
        self._ended.set()
        for follower in self._followers:
            follower.close()
        on_end(self)

    def _receive(self, event: Event) -> None:
        self.key, self.video_id = event.key, event.video_id
        for follower in self._followers:
            follower.put(event)


class _Follower:
    """What one reader has still to read. Mutable."""

    def __init__(self, *, is_closed: bool) -> None:
        self._unread: deque[Event] = deque()
        self._progress: UploadProgress | None = None  # the one among them
        self._arrived = asyncio.Event()
        self._is_closed = is_closed

    def put(self, event: Event) -> None:
        """Keep it; a newer progress replaces one that was not read."""
        if isinstance(event, UploadProgress):
            if self._progress is not None:
                self._unread.remove(self._progress)
            self._progress = event
        self._unread.append(event)
        self._arrived.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._is_closed = True
        self._arrived.set()

    async def next(self) -> Event | None:
        """Wait for the next event; None after the last."""
        while not self._unread:
            if self._is_closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        event = self._unread.popleft()
        if event is self._progress:
            self._progress = None
        return event


class Submissions:
    """The uploads beside their callers. Mutable: those that run, and those that failed."""

    def __init__(self, max_count: int) -> None:
        self._slots = asyncio.Semaphore(max_count)
        self._group: asyncio.TaskGroup | None = None
        self._running: set[UploadHandle] = set()
        self._failed: list[UploadHandle] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what is submitted in the block.

        Its end waits for all of it, and raises the first failure whose result was never
        awaited. An error in the block cancels what is running.
        """
        async with one_error() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
        for handle in self._failed:
            if handle.unawaited_failure is not None:
                raise handle.unawaited_failure

    async def submit(self, run: Run, abort: Abort) -> UploadHandle:
        """Start an upload as soon as fewer than `max_count` run."""
        await self._slots.acquire()
        if self._group is None:
            self._slots.release()
            raise RuntimeError("An Uploader works inside its block: async with Uploader(…) as up:")
        handle = UploadHandle(run, abort)
        self._running.add(handle)
        handle.run_in(self._group, self._remove)
        return handle

    def _remove(self, handle: UploadHandle) -> None:
        self._slots.release()
        self._running.discard(handle)
        if handle.unawaited_failure is not None:
            self._failed.append(handle)
