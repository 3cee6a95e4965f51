"""`Uploader`: the public class, and `upload_sync` for code without an event loop.

It opens what all uploads share (network, state store, budgets) and gives each upload its context;
the steps of an upload are in `upload.main`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    suppress,
)
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from uploader.batch import Items, Outcome, UploadItem, require_files, upload_batch
from uploader.clock import Clock, SystemClock
from uploader.credentials import GrantProvider, GrantSource, Network
from uploader.errors import ConfigurationError, HookError, StateError, VodupError, require_type
from uploader.events import HookFailed, Listener, UploadResult
from uploader.handles import Submissions, UploadHandle
from uploader.hooks import EndedUpload, Hooks, notify_ended
from uploader.network import open_network
from uploader.options import UploadOptions
from uploader.protocol.grants import UploadGrant
from uploader.protocol.oss import ObjectFacts
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import VideoMeta
from uploader.protocol.wire import Transport
from uploader.sources import AnySource, BytesSource, HlsPackage, Source, UrlPolicy, as_source
from uploader.state import Outbox, Phase, StateStore, UploadRecord, open_state
from uploader.upload import verify
from uploader.upload.grant import live_grant
from uploader.upload.main import abort_upload, upload_video
from uploader.upload.object import ObjectUpload
from uploader.upload.package import compare_package, forget_members, upload_package
from uploader.upload.progress import Progress, isolated
from uploader.upload.request import (
    UploadContext,
    UploadRequest,
    default_key,
    known_video_id,
    media_scope,
    recording_error,
)

if TYPE_CHECKING:
    from uploader.library import OnStatus, PlayableVideo, VodLibrary
    from uploader.notifications import Notifications
    from uploader.pace import Pace

AnyProvider = GrantProvider | Callable[[str], Awaitable[Any]]


class Uploader:
    """Sends sources to the objects VOD wants them in.

    One uploader has one budget of connections, bandwidth and VOD calls for all its
    uploads. It knows nothing about any single one of them: what must survive a crash is
    in the state store, everything else is local to `upload`.

    Attributes:
        state: the checkpoint store.
        notifications: for the webhooks of the options; None without any.
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
        """Nothing is opened before `async with`.

        Args:
            provider: issues grants; a coroutine function is taken as one that renews.
                None: only what `grant=` brings, without renewal.
            state: a store, "memory", a path, or a URL; None is SQLite in the user's
                state directory.
            trust: which hosts may be sent credentials.
            on_event: called with every event of every upload. Errors that it raises are
                logged, the first time, and go no further.
            transport, clock: for tests and for other networks.
            shared_vod_budget: awaited before each call to VOD, for a quota that other
                processes use as well.
        """
        require_type("options", options, UploadOptions, instead="Pass UploadOptions(…).")
        require_type("trust", trust, TrustPolicy, instead="Pass TrustPolicy(…).")
        self._provider, self.state = _provider_of(provider), _store_of(state)
        self._options = options or UploadOptions()
        self._on_event = isolated(on_event)
        self._open_network = partial(
            open_network,
            options=self._options,
            trust=trust or TrustPolicy(),
            transport=transport,
            clock=clock or SystemClock(),
            shared_vod_budget=shared_vod_budget,
        )
        self._stack = AsyncExitStack()
        self._network: Network | None = None
        self._submissions = Submissions(self._options.submitted)
        self.notifications: Notifications | None = None
        self._library: VodLibrary | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.state)
            self._network, self._library = await self._open_network(stack), None
            stack.callback(setattr, self, "_network", None)
            self.notifications = await _notifying(stack, self, self._options, self._network)
            await stack.enter_async_context(self._submissions.running())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    @property
    def scope(self) -> str:
        """Which service and region the videos are in; a part of an upload's default key."""
        return self._provider.scope if self._provider else ""

    @property
    def grants(self) -> GrantSource:
        """Issues grants over this uploader's network: for app servers.

        Raises:
            ConfigurationError: the uploader has no provider.
        """
        if self._network is None or self._provider is None:
            raise ConfigurationError("Grants need a provider, and an uploader that is open.")
        return self._provider.connect(self._network)

    @property
    def library(self) -> VodLibrary:
        """What VOD holds, read over this uploader's network; see `library.open_library`."""
        if self._library is None:
            from uploader.library import open_library  # few uploads need it

            self._library = open_library(self._provider, self._network)
        return self._library

    async def wait_until_playable(
        self, video_id: str, *, timeout_s: float | None = None, on_status: OnStatus | None = None
    ) -> PlayableVideo:
        """As `VodLibrary.wait_until_playable`."""
        waiting = self.library.wait_until_playable(
            video_id, timeout_s=timeout_s, on_status=on_status
        )
        return await (self.notifications.follow(waiting) if self.notifications else waiting)

    async def upload(
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
        """Store `source` as a video and return what OSS holds, verified.

        Resumes from the checkpoint when there is one; a finished upload returns its result
        and sends nothing. VideoId, bucket and object key never change.

        Args:
            meta: what CreateUploadVideo is given, when a video is to be made.
            video_id: continue this video instead of making one.
            grant: a decoded UploadAddress/UploadAuth pair, used until it runs out.
            key: the name of this upload in the state store; the default is derived from
                the service, and the VideoId or the path or URL. A stream without a key is
                an upload of its own each time.
            overwrite: allow replacing the content of a finished video, which may start
                transcoding again.
            on_event: called with the events of this upload, after the uploader's listener.

        Raises:
            VodupError: one of its kinds; see `uploader.errors`. The checkpoint is kept
                wherever `is_resumable`.
        """
        item = UploadItem(
            source=source, meta=meta, video_id=video_id, grant=grant, key=key, overwrite=overwrite
        )
        return await self.upload_item(item, on_event=on_event)

    async def upload_item(
        self, item: UploadItem, *, on_event: Listener | None = None
    ) -> UploadResult:
        """As `upload`, with what an `UploadItem` holds."""
        return await self._upload(item, isolated(on_event))

    async def submit(
        self,
        source: AnySource,
        *,
        meta: VideoMeta | None = None,
        video_id: str | None = None,
        grant: UploadGrant | None = None,
        key: str | None = None,
        overwrite: bool = False,
        on_event: Listener | None = None,
    ) -> UploadHandle:
        """Start an upload beside the caller, and return a handle to watch and steer it.

        Takes what `upload` takes. Waits while as many as `UploadOptions.submitted` are
        running. Leaving the uploader's block waits for all of them, and raises the first
        failure whose result was never awaited; an error in the block cancels them.
        """
        item = UploadItem(
            source=source, meta=meta, video_id=video_id, grant=grant, key=key, overwrite=overwrite
        )
        on_event = isolated(on_event)

        async def run(resumed: asyncio.Event, listener: Listener) -> UploadResult:
            return await self._upload(item, listener, on_event, resumed=resumed)

        return await self._submissions.submit(run, self.abort)

    async def upload_many(
        self, items: Items, *, files: int | None = None, on_event: Listener | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Upload every item and yield how each ended, in the order in which they end.

        One item's failure is its outcome and stops no other. All of them share this
        uploader's connections, bandwidth and VOD calls. Items are read a bounded number
        ahead; the largest of those is started first.

        Args:
            files: how many at once. Too few: small files wait for each other's round
                trips. Too many: more is unfinished when the batch is interrupted.
            on_event: called with the events of every item, after the uploader's listener.

        Close the iterator (`contextlib.aclosing`) to stop early: running uploads are
        cancelled and can be resumed.
        """
        listener, at_once = isolated(on_event), require_files(files)
        ended = upload_batch(lambda item: self._upload(item, listener), items, files=at_once)
        async with aclosing(ended) as outcomes:
            async for outcome in outcomes:
                yield outcome

    @property
    def pace(self) -> Pace | None:
        """What decides how many requests to OSS run at once; None while it is closed."""
        return self._network.pace if self._network else None

    async def abort(self, key: str) -> None:
        """Abort an upload: its parts are removed, its record says so. The video stays.

        Raises:
            UploadLocked: another process works on it.
            ConfigurationError: there is no such upload, or it is finished.
        """
        record = await _find(self.state, key)
        if record.phase is Phase.DONE:
            raise ConfigurationError(
                f"Video {record.video_id} is finished; there is nothing to abort.",
                next_step=f"`vodup clean {key}` removes its record.",
            )
        # The source is not read: aborting must work when the file is gone.
        source = BytesSource(b"\0", record.source)
        async with self._recorded_context(source, record) as ctx:
            await abort_upload(ctx)
        await forget_members(self.state, key)

    async def verify(self, source: AnySource, *, key: str | None = None) -> ObjectFacts:
        """Read a source again and compare it with what OSS holds of its upload, by CRC-64.

        Raises:
            IntegrityError: they differ.
            UnverifiedCompletion: OSS does not let us look.
        """
        opened = _source_of(source, self._options)
        record = await _find(self.state, key or await self._default_key(opened, UploadRequest()))
        async with self._recorded_context(opened, record) as ctx:
            if isinstance(opened, HlsPackage):
                return await compare_package(ctx, opened)
            return await verify.compare(ObjectUpload(ctx, await live_grant(ctx, None)))

    async def _upload(
        self, item: UploadItem, *listeners: Listener | None, resumed: asyncio.Event | None = None
    ) -> UploadResult:
        request = _request_of(item, resumed)
        opened = _source_of(item.source, self._options)
        progress = self._progress(opened, item.key, request, *listeners)
        try:
            async with self._context(opened, request, progress) as ctx:
                result = await _stored(ctx)
        except VodupError as error:
            await _notify(self._options.hooks, self.notifications, opened, progress, error)
            raise
        failures = await _notify(self._options.hooks, self.notifications, opened, progress, result)
        return replace(result, hook_failures=failures) if failures else result

    def _progress(
        self, source: Source, key: str | None, request: UploadRequest, *listeners: Listener | None
    ) -> Progress:
        called = [*filter(None, (self._on_event, *listeners))]
        return Progress(key or "", request.video_id, called, source=source.name)

    def _recorded_context(
        self, source: Source, record: UploadRecord
    ) -> AbstractAsyncContextManager[UploadContext]:
        request = UploadRequest(video_id=record.video_id, overwrite=record.is_overwrite)
        return self._context(source, request, self._progress(source, record.key, request))

    @asynccontextmanager
    async def _context(
        self, source: Source, request: UploadRequest, progress: Progress
    ) -> AsyncIterator[UploadContext]:
        """Open the source and claim the upload; errors are reported, and recorded for `status`."""
        if self._network is None:
            raise RuntimeError("An Uploader works inside its block: async with Uploader(…) as up:")
        network = replace(self._network, on_retry=progress.count_retry)
        with progress.reporting_failure():
            async with source:
                if not progress.key:
                    progress.key = await self._default_key(source, request)
                async with self.state.claim(progress.key) as journal:
                    ctx = UploadContext(
                        key=progress.key,
                        request=request,
                        source=source,
                        journal=journal,
                        store=self.state,
                        network=network,
                        scope=self.scope,
                        grants=self._provider.connect(network) if self._provider else None,
                        options=self._options,
                        progress=progress,
                    )
                    async with recording_error(ctx):
                        yield ctx

    async def _default_key(self, source: Source, request: UploadRequest) -> str:
        if (video_id := request.video_id) is not None:
            record = await self.state.find(video_id=video_id)
            return record.key if record else f"video-{video_id}"
        scope = self.scope if request.media is None else media_scope(self.scope, request.media)
        return default_key(scope, source.identity)


def _request_of(item: UploadItem, resumed: asyncio.Event | None) -> UploadRequest:
    return UploadRequest(
        item.meta or VideoMeta(),
        known_video_id(item.video_id, item.grant),
        item.grant,
        item.overwrite,
        item.on_source_change,
        resumed,
        item.media,
    )


async def _stored(ctx: UploadContext) -> UploadResult:
    if (kind := ctx.request.media) is not None:
        from uploader.upload.media import upload_media  # few uploads need it

        return await upload_media(ctx, kind)
    if isinstance(ctx.source, HlsPackage):
        return await upload_package(ctx, ctx.source)
    return await upload_video(ctx)


async def _find(state: StateStore, key: str) -> UploadRecord:
    record = await state.find(key=key)
    if record is None:
        raise ConfigurationError(
            f"There is no upload {key!r} in this state store.",
            next_step="`vodup status` lists them; --state names another store.",
        )
    return record


def _store_of(state: StateStore | str | Path | None) -> StateStore:
    if state is None or isinstance(state, str | Path):
        return open_state(state)
    if not hasattr(state, "claim"):
        require_type("state", state, str, Path, instead="Pass a path, a URL or a store.")
    return state


def _provider_of(given: AnyProvider | None) -> GrantProvider | None:
    return given if given is None or isinstance(given, GrantProvider) else _of_callback(given)


def _of_callback(callback: object) -> GrantProvider:
    if not callable(callback):
        instead = "Pass VodProvider.from_env(), another provider, or a coroutine function."
        require_type("provider", callback, GrantProvider, instead=instead)
    from uploader.credentials.app_server import CallbackProvider

    return CallbackProvider(cast("Callable[[str], Awaitable[Any]]", callback))


async def _notifying(
    stack: AsyncExitStack, uploader: Uploader, options: UploadOptions, network: Network
) -> Notifications | None:
    """Begin to deliver notifications, until `stack` is closed; None without webhooks."""
    if not options.webhooks:
        return None
    from uploader.notifications import Notifications  # few uploads need it

    outbox, source, clock = uploader.state, f"/vodup/{uploader.scope}", network.clock
    if not isinstance(outbox, Outbox):
        raise ConfigurationError("This state store cannot keep notifications.")
    notifications = Notifications(
        options.webhooks, outbox, network.transport, source=source, clock=clock
    )
    await stack.enter_async_context(notifications.running())
    return notifications


async def _notify(
    hooks: Sequence[Hooks],
    notifications: Notifications | None,
    source: Source,
    progress: Progress,
    end: UploadResult | VodupError,
) -> tuple[str, ...]:
    """Report the end of an upload to hooks and webhooks; returns a sentence for each failure."""
    if not hooks and notifications is None:
        return ()
    result, error = (None, end) if isinstance(end, VodupError) else (end, None)
    video_id = result.video_id if result else progress.video_id
    ended = EndedUpload(
        key=progress.key, source=source.name, video_id=video_id, result=result, error=error
    )
    failures = await notify_ended(hooks, ended)
    if notifications is not None:
        try:
            await notifications.post_end(ended)
        except StateError as problem:
            message = f"No notification was kept: {problem.message}"
            failures.append(HookError(message, video_id=video_id))
    for failure in failures:
        progress.emit(HookFailed, message=failure.message)
    return tuple(failure.message for failure in failures)


def _source_of(given: AnySource, options: UploadOptions) -> Source:
    return as_source(given, policy=UrlPolicy(proxy=options.proxy, ca_file=options.ca_file))


def upload_sync(
    source: AnySource,
    *,
    provider: AnyProvider | None = None,
    state: StateStore | str | Path | None = None,
    options: UploadOptions | None = None,
    trust: TrustPolicy | None = None,
    meta: VideoMeta | None = None,
    video_id: str | None = None,
    grant: UploadGrant | None = None,
    key: str | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> UploadResult:
    """`Uploader.upload` for code without an event loop. Blocks until it is done.

    Takes what `Uploader` and `Uploader.upload` take.

    Raises:
        ConfigurationError: an event loop runs in this thread.
        VodupError: as `Uploader.upload`.
    """
    item = UploadItem(
        source=source, meta=meta, video_id=video_id, grant=grant, key=key, overwrite=overwrite
    )
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise ConfigurationError(
            "upload_sync cannot run in a thread with a running event loop.",
            next_step="Use `async with Uploader(…) as up: await up.upload(…)` there; or run it in "
            "another thread: `await asyncio.to_thread(upload_sync, …)`.",
        )

    async def run() -> UploadResult:
        async with Uploader(provider, state=state, options=options, trust=trust) as uploader:
            return await uploader.upload_item(item, on_event=on_event)

    return asyncio.run(run())
