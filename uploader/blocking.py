"""Uploads from threads: `BlockingUploader` runs an `Uploader` on an event loop of its own.

The loop runs in a thread for as long as the block lasts; any number of threads may use one
`BlockingUploader` at once, and share its connections, bandwidth and VOD calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from anyio import EndOfStream, create_memory_object_stream
from anyio.from_thread import BlockingPortal, start_blocking_portal

from uploader.batch import Outcome, UploadItem
from uploader.clock import Clock
from uploader.events import Listener, UploadResult
from uploader.handles import UploadHandle
from uploader.options import UploadOptions
from uploader.protocol.grants import UploadGrant
from uploader.protocol.oss import ObjectFacts
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import VideoMeta
from uploader.protocol.wire import Transport
from uploader.sources import AnySource
from uploader.state import StateStore
from uploader.uploader import AnyProvider, Uploader

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

_OUTCOMES_AHEAD: Final = 64


class BlockingUploader:
    """An `Uploader` that any thread may call. Mutable: open or not.

    Takes what `Uploader` takes. `on_event` is called in the thread of the loop. A coroutine
    uses `Uploader` itself: these methods would block its loop.
    """

    def __init__(
        self,
        provider: AnyProvider | None = None,
        *,
        state: StateStore | str | Path | None = None,
        options: UploadOptions | None = None,
        trust: TrustPolicy | None = None,
        on_event: Listener | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        shared_vod_budget: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._make = partial(
            Uploader,
            provider,
            state=state,
            options=options,
            trust=trust,
            on_event=on_event,
            transport=transport,
            clock=clock,
            shared_vod_budget=shared_vod_budget,
        )
        self._stack = ExitStack()
        self._open: tuple[BlockingPortal, Uploader] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal(name="vodup"))
            uploader = portal.call(self._make)
            stack.enter_context(portal.wrap_async_context_manager(uploader))
            self._open = portal, uploader
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stack.__exit__(*exc_info)
        self._open = None

    def upload(
        self,
        source: AnySource,
        *,
        meta: VideoMeta | None = None,
        video_id: str | None = None,
        grant: UploadGrant | None = None,
        key: str | None = None,
        overwrite: bool = False,
        on_event: Listener | None = None,
    ) -> UploadResult:
        """As `Uploader.upload`; blocks until it is done."""
        item = UploadItem(
            source=source, meta=meta, video_id=video_id, grant=grant, key=key, overwrite=overwrite
        )
        portal, uploader = self._opened()
        return portal.call(partial(uploader.upload_item, item, on_event=on_event))

    def submit(
        self,
        source: AnySource,
        *,
        meta: VideoMeta | None = None,
        video_id: str | None = None,
        grant: UploadGrant | None = None,
        key: str | None = None,
        overwrite: bool = False,
        on_event: Listener | None = None,
    ) -> BlockingHandle:
        """As `Uploader.submit`; blocks only while too many are running."""
        portal, uploader = self._opened()
        submit = partial(
            uploader.submit,
            source,
            meta=meta,
            video_id=video_id,
            grant=grant,
            key=key,
            overwrite=overwrite,
            on_event=on_event,
        )
        return BlockingHandle(portal, portal.call(submit))

    def upload_many(
        self,
        items: Iterable[UploadItem],
        *,
        files: int | None = None,
        on_event: Listener | None = None,
    ) -> Iterator[Outcome]:
        """As `Uploader.upload_many`. `items` is read in the thread of the loop.

        Ending the iteration early cancels running uploads; they can be resumed.
        """
        portal, uploader = self._opened()
        send, receive = create_memory_object_stream[Outcome](_OUTCOMES_AHEAD)

        async def pump(send: MemoryObjectSendStream[Outcome]) -> None:
            ended = uploader.upload_many(items, files=files, on_event=on_event)
            async with send, aclosing(ended) as outcomes:
                async for outcome in outcomes:
                    await send.send(outcome)

        pumping = portal.start_task_soon(pump, send)
        try:
            while (outcome := portal.call(_next_of, receive)) is not None:
                yield outcome
        except BaseException:  # the iteration ended early, or a signal handler raised
            pumping.cancel()
            raise
        finally:
            portal.call(receive.aclose)
            with suppress(CancelledError):
                pumping.result()  # raises an error in reading the items

    def abort(self, key: str) -> None:
        """As `Uploader.abort`."""
        portal, uploader = self._opened()
        portal.call(uploader.abort, key)

    def verify(self, source: AnySource, *, key: str | None = None) -> ObjectFacts:
        """As `Uploader.verify`."""
        portal, uploader = self._opened()
        return portal.call(partial(uploader.verify, source, key=key))

    def _opened(self) -> tuple[BlockingPortal, Uploader]:
        if self._open is None:
            raise RuntimeError("A BlockingUploader works inside its block: with … as up:")
        return self._open


async def _next_of(receive: MemoryObjectReceiveStream[Outcome]) -> Outcome | None:
    try:
        return await receive.receive()
    except EndOfStream:
        return None


class BlockingHandle:
    """An `UploadHandle` that any thread may use."""

    def __init__(self, portal: BlockingPortal, handle: UploadHandle) -> None:
        self._portal, self._handle = portal, handle

    @property
    def key(self) -> str | None:
        """The name of the upload, as soon as it is known."""
        return self._handle.key

    @property
    def video_id(self) -> str | None:
        """The VideoId, as soon as it is known."""
        return self._handle.video_id

    @property
    def is_done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._handle.is_done

    def result(self, timeout_s: float | None = None) -> UploadResult:
        """Wait for its end.

        Raises:
            VodupError: how it failed.
            concurrent.futures.CancelledError: it was cancelled.
            TimeoutError: it has not ended within `timeout_s`; it keeps running.
        """
        waiting = self._portal.start_task_soon(self._handle.result)
        try:
            return waiting.result(timeout_s)
        finally:
            waiting.cancel()

    def pause(self) -> None:
        """As `UploadHandle.pause`."""
        self._portal.call(self._handle.pause)

    def resume(self) -> None:
        """As `UploadHandle.resume`."""
        self._portal.call(self._handle.resume)

    def cancel(self) -> None:
        """As `UploadHandle.cancel`."""
        self._portal.call(self._handle.cancel)

    def abort(self) -> None:
        """As `UploadHandle.abort`."""
        self._portal.call(self._handle.abort)
