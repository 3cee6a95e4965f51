"""Uploads, from a source to a verified object. `Uploader.upload` is the table of contents.

    record ► grant ► plan ► missing parts ► complete ► verify ► receipt

Where we are in the work is the call stack; what survives a crash is the checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from uploader.batch import Items, Outcome, UploadItem, descriptor_share, require_files, upload_batch
from uploader.clock import Clock, SystemClock
from uploader.credentials import CallbackProvider, GrantProvider, GrantSource, Network
from uploader.errors import (
    ConfigurationError,
    CredentialError,
    StateError,
    TransferError,
    VodupError,
)
from uploader.events import Event, Listener, UploadResult
from uploader.handles import Submissions, UploadHandle
from uploader.hooks import EndedUpload, PlannedVideo, notify_ended, run_before_create
from uploader.opening import (
    Asked,
    Job,
    default_key,
    grant_and_target,
    needs_video,
    receipt_of,
    record_of,
)
from uploader.options import UploadOptions
from uploader.pace import MAX_CONCURRENCY, Pace
from uploader.package import forget_members, plan_ahead, transfer_of
from uploader.progress import Progress
from uploader.protocol.grants import UploadGrant
from uploader.protocol.oss import ObjectFacts
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import VideoMeta
from uploader.protocol.wire import Transport
from uploader.sources import AnySource, BytesSource, Source, as_source
from uploader.state import Journal, Phase, StateStore, UploadRecord, open_state
from uploader.transfer import Transfer, store
from uploader.transport import AiohttpTransport

__all__ = ["Uploader", "upload_sync"]

AnyProvider = GrantProvider | Callable[[str], Awaitable[Any]]


class Uploader:
    """Sends sources to the objects VOD wants them in.

    One uploader has one budget of connections, bandwidth and VOD calls for all its
    uploads. It knows nothing about any single one of them: what must survive a crash is
    in the state store, everything else is local to `upload`.
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
            provider: who hands out grants; a coroutine function is taken as one that
                renews. None: only what `grant=` brings, without renewal.
            state: a store, "memory", a path, or a URL; None is SQLite in the user's
                state directory.
            trust: which hosts may be sent credentials.
            on_event: told about every upload.
            transport, clock: for tests and for other networks.
            shared_vod_budget: awaited before each call to VOD, for a quota that other
                processes use as well.
        """
        self._provider = _as_provider(provider)
        self._options = options or UploadOptions()
        self._trust = trust or TrustPolicy()
        self._clock = clock or SystemClock()
        self._on_event = on_event
        self._state = _as_store(state)
        self._given_transport = transport
        self._shared_vod_budget = shared_vod_budget
        self._stack = AsyncExitStack()
        self._network: Network | None = None
        self._submissions = Submissions(self._options.submitted)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._state)
            self._network = await self._open_network(stack)
            stack.callback(self._close_network)
            await stack.enter_async_context(self._submissions.running())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, traceback)

    def _close_network(self) -> None:
        self._network = None

    @property
    def scope(self) -> str:
        """Which service and region the videos are in; a part of an upload's default key."""
        return self._provider.scope if self._provider else ""

    @property
    def state(self) -> StateStore:
        """The checkpoint store."""
        return self._state

    @property
    def grants(self) -> GrantSource:
        """Whoever hands out grants, asked over this uploader's network: for app servers.

        Raises:
            ConfigurationError: the uploader has no provider.
        """
        if self._network is None or self._provider is None:
            raise ConfigurationError("Grants need a provider, and an uploader that is open.")
        return self._provider.connect(self._network)

    # --- the main path ------------------------------------------------------------

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
        going: asyncio.Event | None = None,
    ) -> UploadResult:
        """Store `source` as a video and return what OSS holds, verified.

        Continues from the checkpoint when there is one; a finished upload returns its
        receipt and sends nothing. VideoId, bucket and object key never change.

        Args:
            meta: what CreateUploadVideo is told, when a video is to be made.
            video_id: continue this video instead of making one.
            grant: a decoded UploadAddress/UploadAuth pair, used until it runs out.
            key: the name of this upload in the state store; the default is derived from
                the service, and the VideoId or the path or URL. A stream without a key is
                an upload of its own each time.
            overwrite: allow replacing the content of a finished video, which may start
                transcoding again.
            on_event: told about this upload, after the uploader's own listener.
            going: while it is not set, no request to OSS is begun.

        Raises:
            VodupError: one of its kinds; see `uploader.errors`. The checkpoint is kept
                wherever `is_resumable`.
        """
        asked = Asked(meta or VideoMeta(), _video_id_of(video_id, grant), grant, overwrite, going)
        opened = as_source(source)
        progress = self._progress_of(asked, key, on_event)
        try:
            result = await self._stored(opened, asked, key, progress)
        except VodupError as error:
            await self._tell_hooks(opened, progress, error=error)
            raise
        failures = await self._tell_hooks(opened, progress, result=result)
        return replace(result, hook_failures=failures) if failures else result

    async def _stored(
        self, source: Source, asked: Asked, key: str | None, progress: Progress
    ) -> UploadResult:
        async with self._job(source, asked, key, progress) as job:
            if (receipt := await receipt_of(job)) is not None:
                return receipt
            job = await self._with_a_say_for_hooks(job)
            is_repeat = await record_of(job)
            is_new = job.record.endpoint is None
            grant = await grant_and_target(job, plan_ahead(job), is_repeat=is_repeat)
            job.progress.video_id = job.record.video_id
            transfer = transfer_of(job, grant, is_new=is_new)
            if (stored := await transfer.settle_at_vod()) is not None:
                return await transfer.verify(stored)
            async with transfer.under_way():
                stored = await store(transfer)
                return await transfer.verify(stored)

    async def _with_a_say_for_hooks(self, job: Job) -> Job:
        """Let hooks change what CreateUploadVideo is told, or forbid it."""
        hooks = self._options.hooks
        if not hooks or not needs_video(job):
            return job
        job.progress.phase = "create"
        planned = PlannedVideo(
            key=job.key, source=job.source.name, size=job.source.size, meta=job.asked.meta
        )
        meta = await run_before_create(hooks, planned)
        return replace(job, asked=replace(job.asked, meta=meta))

    async def _tell_hooks(
        self,
        source: Source,
        progress: Progress,
        *,
        result: UploadResult | None = None,
        error: VodupError | None = None,
    ) -> tuple[str, ...]:
        """Tell hooks of an end; what went wrong with that."""
        if not self._options.hooks:
            return ()
        video_id = result.video_id if result else progress.video_id
        ended = EndedUpload(
            key=progress.key, source=source.name, video_id=video_id, result=result, error=error
        )
        failures = await notify_ended(self._options.hooks, ended)
        for failure in failures:
            progress.hook_failed(failure)
        return tuple(failure.message for failure in failures)

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
        """Begin an upload beside the caller, and return a handle to watch and steer it.

        Takes what `upload` takes. Waits while as many as `UploadOptions.submitted` are
        under way. Leaving the uploader's block waits for all of them, and raises the first
        failure whose result nobody asked for; an error in the block cancels them.
        """

        async def begin(going: asyncio.Event, hear: Listener) -> UploadResult:
            def tell(event: Event) -> None:
                hear(event)
                if on_event is not None:
                    on_event(event)

            return await self.upload(
                source,
                meta=meta,
                video_id=video_id,
                grant=grant,
                key=key,
                overwrite=overwrite,
                on_event=tell,
                going=going,
            )

        return await self._submissions.submit(begin, self.abort)

    async def upload_many(
        self, items: Items, *, files: int | None = None, on_event: Listener | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Upload every item and yield how each ended, in the order in which they end.

        One item's failure is its outcome and stops no other. All of them share this
        uploader's connections, bandwidth and VOD calls. Items are read a bounded number
        ahead; the largest of those is begun first.

        Args:
            files: how many at once. Too few: small files wait for each other's round
                trips. Too many: more is unfinished when the batch is interrupted.
            on_event: told about every item, after the uploader's own listener.

        Close the iterator (`contextlib.aclosing`) to stop early: what is under way is
        cancelled and can be resumed.
        """

        async def upload(item: UploadItem) -> UploadResult:
            return await self.upload(
                item.source,
                meta=item.meta,
                video_id=item.video_id,
                grant=item.grant,
                key=item.key,
                overwrite=item.overwrite,
                on_event=on_event,
            )

        async with aclosing(upload_batch(upload, items, files=require_files(files))) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def abort(self, key: str) -> None:
        """Give an upload up: its parts are removed, its record says so. The video stays.

        Raises:
            UploadLocked: somebody is working on it.
            ConfigurationError: there is no such upload, or it is finished.
        """
        record = await self._find(key)
        if record.phase is Phase.DONE:
            raise ConfigurationError(
                f"Video {record.video_id} is finished; there is nothing to abort.",
                next_step=f"`vodup clean {key}` removes its receipt.",
            )
        asked = _asked_again(record)
        progress = self._progress_of(asked, key, None)
        async with self._job(_placeholder(record), asked, key, progress) as job:
            if record.upload_id is None:
                await job.journal.abort()
            else:
                await Transfer(job, None).abort()
        await forget_members(self._state, key)

    async def verify(self, source: AnySource, *, key: str | None = None) -> ObjectFacts:
        """Read a source again and compare it with what OSS holds of its upload, by CRC-64.

        Raises:
            IntegrityError: they differ.
            UnverifiedCompletion: OSS does not let us look.
        """
        opened = as_source(source)
        record = await self._find(key or await self._default_key(opened, None))
        asked = _asked_again(record)
        progress = self._progress_of(asked, record.key, None)
        async with self._job(opened, asked, record.key, progress) as job:
            return await transfer_of(job, None).compare()

    # --- plumbing -----------------------------------------------------------------

    async def _open_network(self, stack: AsyncExitStack) -> Network:
        options, most = self._options, descriptor_share()
        wanted = options.concurrency
        pace = Pace(
            concurrency=wanted if wanted == "auto" else min(wanted, most),
            max_concurrency=min(MAX_CONCURRENCY, most),
            bandwidth=options.bandwidth,
            vod_calls_per_s=options.vod_calls_per_s,
            shared_vod_budget=self._shared_vod_budget,
            clock=self._clock,
        )
        if self._given_transport is not None:
            return Network(self._given_transport, pace, self._clock, options.retry, self._trust)
        transport = await stack.enter_async_context(
            AiohttpTransport(
                pace=pace,
                stall_timeout_s=options.stall_timeout_s,
                connection_limit=pace.max_concurrency + 8,
                ca_file=options.ca_file,
            )
        )
        await stack.enter_async_context(pace.steering(transport))
        return Network(
            transport,
            pace,
            self._clock,
            options.retry,
            self._trust,
            congestion=lambda: transport.facts().congestion,
        )

    def _progress_of(self, asked: Asked, key: str | None, on_event: Listener | None) -> Progress:
        listeners = [*filter(None, (self._on_event, on_event))]
        return Progress(key or "", asked.video_id, listeners)

    @asynccontextmanager
    async def _job(
        self, source: Source, asked: Asked, key: str | None, progress: Progress
    ) -> AsyncIterator[Job]:
        """Open the source, claim the upload, and see its errors on their way out."""
        if self._network is None:
            raise RuntimeError("An Uploader works inside its block: async with Uploader(…) as up:")
        async with _opened(source, progress):
            key = progress.key = key or await self._default_key(source, asked.video_id)
            network = replace(self._network, on_retry=progress.retried)
            with _told(progress):
                async with self._state.claim(key) as checkpoint:
                    job = Job(
                        key=key,
                        asked=asked,
                        source=source,
                        journal=Journal(checkpoint),
                        network=network,
                        scope=self.scope,
                        grants=self._provider.connect(network) if self._provider else None,
                        options=self._options,
                        progress=progress,
                        state=self._state,
                    )
                    async with _noted(job):
                        yield job

    async def _find(self, key: str) -> UploadRecord:
        record = await self._state.find(key=key)
        if record is None:
            raise ConfigurationError(
                f"There is no upload {key!r} in this state store.",
                next_step="`vodup status` lists them; --state names another store.",
            )
        return record

    async def _default_key(self, source: Source, video_id: str | None) -> str:
        if video_id is not None:
            record = await self._state.find(video_id=video_id)
            return record.key if record else f"video-{video_id}"
        return default_key(self.scope, source.identity)


@asynccontextmanager
async def _opened(source: Source, progress: Progress) -> AsyncIterator[None]:
    """The source, open; an error says that it was about opening, and is told."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(source)
        except VodupError as error:
            progress.failed(error.located(video_id=progress.video_id, phase=progress.phase))
            raise
        yield


@contextmanager
def _told(progress: Progress) -> Iterator[None]:
    """Say where an error happened, and tell whoever listens."""
    try:
        yield
    except VodupError as error:
        progress.failed(error.located(video_id=progress.video_id, phase=progress.phase))
        raise
    except asyncio.CancelledError:
        progress.cancelled()
        raise


@asynccontextmanager
async def _noted(job: Job) -> AsyncIterator[None]:
    """Leave a word for `status` in the record; the failure itself matters more."""
    try:
        yield
    except VodupError as error:
        _say_how_to_go_on(error, job)
        if job.journal.record is not None and not isinstance(error, StateError):
            said = f"{type(error).__name__}: {error.message}".encode(errors="replace").decode()
            with suppress(StateError):
                await job.journal.record_error(said)
        raise


def _say_how_to_go_on(error: VodupError, job: Job) -> None:
    """Running the same command again is not all it takes for a source that comes once."""
    stream = job.source.stream
    if stream is not None and isinstance(error, TransferError | CredentialError | StateError):
        error.next_step = f"{error.next_step} {stream.resume_hint.format(key=job.key)}".strip()


def upload_sync(
    source: AnySource,
    *,
    provider: AnyProvider | None = None,
    state: StateStore | str | Path | None = None,
    options: UploadOptions | None = None,
    trust: TrustPolicy | None = None,
    **upload: Any,
) -> UploadResult:
    """`Uploader.upload` for code without an event loop. Blocks until it is done.

    `upload` takes what `Uploader.upload` takes. Must not be called on a running loop.
    """

    async def run() -> UploadResult:
        async with Uploader(provider, state=state, options=options, trust=trust) as uploader:
            return await uploader.upload(source, **upload)

    return asyncio.run(run())


def _as_provider(provider: AnyProvider | None) -> GrantProvider | None:
    if provider is None or isinstance(provider, GrantProvider):
        return provider
    return CallbackProvider(provider)


def _as_store(state: StateStore | str | Path | None) -> StateStore:
    return open_state(state) if state is None or isinstance(state, str | Path) else state


def _video_id_of(video_id: str | None, grant: UploadGrant | None) -> str | None:
    if grant is None:
        return video_id
    if grant.video_id is not None and video_id is not None and grant.video_id != video_id:
        raise ConfigurationError(f"The grant is for video {grant.video_id}, not for {video_id}.")
    if (known := video_id or grant.video_id) is None:
        raise ConfigurationError(
            "The grant does not tell its VideoId, and renewing needs it.",
            next_step="Pass video_id= (--video-id) as well.",
        )
    return known


def _asked_again(record: UploadRecord) -> Asked:
    return Asked(VideoMeta(), record.video_id, None, record.is_overwrite)


def _placeholder(record: UploadRecord) -> Source:
    """Stands for a source that is not read: giving up must work when the file is gone."""
    return BytesSource(b"\0", record.source)
