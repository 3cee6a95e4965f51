"""One upload, from a source to a verified object. `Uploader.upload` is its table of contents.

    record ► grant ► plan ► missing parts ► complete ► verify ► receipt

Where we are in the work is the call stack; what survives a crash is the checkpoint.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

from uploader.clock import Clock, SystemClock
from uploader.credentials import (
    CallbackProvider,
    GrantProvider,
    GrantSource,
    LiveGrant,
    Network,
    NewVideo,
    PlainSigner,
)
from uploader.errors import (
    ConfigurationError,
    IntegrityError,
    OverwriteRefused,
    PermissionDenied,
    ServiceError,
    SourceChanged,
    StateError,
    UnsupportedState,
    UnverifiedCompletion,
    UploadTargetChanged,
    VodupError,
)
from uploader.events import (
    CredentialsRenewed,
    Event,
    Listener,
    PartsAdopted,
    RequestRetried,
    UploadFailed,
    UploadFinished,
    UploadProgress,
    UploadRestarted,
    UploadResult,
    UploadStarted,
)
from uploader.log import get_logger
from uploader.pace import Bandwidth, Pace
from uploader.protocol import oss
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.grants import UploadGrant, UploadTarget
from uploader.protocol.integrity import join_crc64, multipart_etag, same_etag
from uploader.protocol.oss import ListedPart, ObjectFacts, OssDialect
from uploader.protocol.plan import MAX_PUT_SIZE, Part, PartPlan, plan_parts
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.verdicts import is_vanished
from uploader.protocol.vod import VideoMeta
from uploader.protocol.wire import Operation, SentBody, Transport
from uploader.session import Retried, RetryPolicy, Session
from uploader.sources import BytesSource, FileSource, Fingerprint, Source
from uploader.state import Checkpoint, PartAck, Phase, StateStore, UploadRecord, open_state
from uploader.transport import AiohttpTransport

__all__ = ["UploadOptions", "Uploader", "upload_sync"]

T = TypeVar("T")

_PROGRESS_INTERVAL_S = 0.25
_MAX_RESTARTS = 2
"""A multipart upload that vanishes more often in one run is being removed by somebody."""

_MAX_LIST_PAGES = 20
_REPAIRABLE = frozenset(
    # At Complete: what OSS holds is not what we list. OSS API: CompleteMultipartUpload.
    {"InvalidPart", "InvalidPartOrder", "EntityTooSmall", "FilePartNotExist", "FilePartStale"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How uploads are carried out. The defaults suit a fast line and large files.

    Attributes:
        part_size: bytes; None chooses by file size. Too small: requests cost more than
            bytes, and 10,000 parts do not hold the file. Too large: more is sent again
            after a crash, and a part may take longer than credentials live.
        concurrency: connections that carry bodies at once, over all uploads; "auto"
            follows the link.
        bandwidth: limit over all connections; None for none.
        signature, oss_region, is_cname: how OSS wants requests signed and addressed
            (see `OssDialect`).
        retry: patience with failures.
        stall_timeout_s: how long a peer may take or give no byte.
        on_target_change: when VOD moves an upload to another bucket or key and the first
            is refused: "fail", or "restart" there under the same VideoId.
        notification: value of `x-oss-notification` (base64 JSON for VOD), sent with
            Initiate and Complete.
        ca_file: one more certificate authority to trust.
        vod_calls_per_s: calls to the VOD API a second (quotas are 40 to 80 an account).
    """

    part_size: int | None = None
    concurrency: int | Literal["auto"] = "auto"
    bandwidth: Bandwidth | None = None
    signature: Literal["v4", "v1"] = "v4"
    oss_region: str | None = None
    is_cname: bool = False
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    stall_timeout_s: float = 30.0
    on_target_change: Literal["fail", "restart"] = "fail"
    notification: str | None = None
    ca_file: Path | None = None
    vod_calls_per_s: float = 20.0


class Uploader:
    """Sends sources to the objects VOD wants them in.

    One uploader has one budget of connections, bandwidth and VOD calls for all its
    uploads. It knows nothing about any single one of them: what must survive a crash is
    in the state store, everything else is local to `upload`.
    """

    def __init__(
        self,
        provider: GrantProvider | Callable[[str], Awaitable[Any]] | None = None,
        *,
        state: StateStore | str | Path | None = None,
        options: UploadOptions | None = None,
        trust: TrustPolicy | None = None,
        on_event: Listener | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
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
        """
        self._provider = _as_provider(provider)
        self._options = options or UploadOptions()
        self._trust = trust or TrustPolicy()
        self._clock = clock or SystemClock()
        self._on_event = on_event
        self._state = _as_store(state)
        self._given_transport = transport
        self._stack = AsyncExitStack()
        self._network: Network | None = None

    async def __aenter__(self) -> Self:
        options = self._options
        pace = Pace(
            concurrency=options.concurrency,
            bandwidth=options.bandwidth,
            vod_calls_per_s=options.vod_calls_per_s,
            clock=self._clock,
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._state)
            transport = self._given_transport
            if transport is None:
                transport = await stack.enter_async_context(
                    AiohttpTransport(
                        pace=pace,
                        stall_timeout_s=options.stall_timeout_s,
                        connection_limit=pace.max_concurrency + 8,
                        ca_file=options.ca_file,
                    )
                )
                await stack.enter_async_context(pace.steering(transport))
            self._network = Network(transport, pace, self._clock, options.retry, self._trust)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._network = None
        await self._stack.__aexit__(exc_type, exc, traceback)

    @property
    def state(self) -> StateStore:
        """The checkpoint store."""
        return self._state

    # --- the main path ------------------------------------------------------------

    async def upload(
        self,
        source: Source | str | os.PathLike[str] | bytes,
        *,
        meta: VideoMeta | None = None,
        video_id: str | None = None,
        grant: UploadGrant | None = None,
        key: str | None = None,
        overwrite: bool = False,
        on_event: Listener | None = None,
    ) -> UploadResult:
        """Store `source` as a video and return what OSS holds, verified.

        Continues from the checkpoint when there is one; a finished upload returns its
        receipt and sends nothing. VideoId, bucket and object key never change.

        Args:
            meta: what CreateUploadVideo is told, when a video is to be made.
            video_id: continue this video instead of making one.
            grant: a decoded UploadAddress/UploadAuth pair, used until it runs out.
            key: the name of this upload in the state store; the default is derived from
                the service, and the VideoId or the path.
            overwrite: allow replacing the content of a finished video, which may start
                transcoding again.
            on_event: told about this upload, after the uploader's own listener.

        Raises:
            VodupError: one of its kinds; see `uploader.errors`. The checkpoint is kept
                wherever `is_resumable`.
        """
        asked = _Asked(meta or VideoMeta(), _video_id_of(video_id, grant), grant, overwrite)
        async with self._run(as_source(source), asked, key, on_event) as run:
            if (receipt := await run.receipt()) is not None:
                return receipt
            await run.record_and_grant()
            if (stored := await run.settle_at_vod()) is None:
                async with run.fresh_credentials():
                    stored = await self._store(run)
                    return await run.verify(stored)
            return await run.verify(stored)

    async def _store(self, run: _Run) -> _Stored:
        """Send what is missing and complete; anew, if the multipart upload vanishes."""
        for is_last in (*[False] * _MAX_RESTARTS, True):
            try:
                await run.start_or_resume()
                await run.send_missing_parts()
                return await run.complete()
            except _Vanished as gone:
                await run.restart(gone, is_last=is_last)
        raise AssertionError("restart() raises at last")

    async def abort(self, key: str) -> None:
        """Give an upload up: its parts are removed, its record says so. The video stays.

        Raises:
            UploadLocked: somebody is working on it.
            ConfigurationError: there is no such upload, or it is finished.
        """
        run = await self._look_up(key)
        async with self._claimed(run):
            async with run.fresh_credentials():
                await run.abort()

    async def verify(
        self, source: Source | str | os.PathLike[str], *, key: str | None = None
    ) -> ObjectFacts:
        """Read a source again and compare it with what OSS holds of its upload, by CRC-64.

        Raises:
            IntegrityError: they differ.
            UnverifiedCompletion: OSS does not let us look.
        """
        async with as_source(source) as opened:
            run = await self._look_up(key or await self._default_key(opened, None), opened)
            async with run.fresh_credentials():
                return await run.compare()

    # --- plumbing -----------------------------------------------------------------

    @asynccontextmanager
    async def _run(
        self, source: Source, asked: _Asked, key: str | None, on_event: Listener | None
    ) -> AsyncIterator[_Run]:
        """Open the source, claim the upload, and see its errors on their way out."""
        async with source:
            key = key or await self._default_key(source, asked.video_id)
            listeners = [_log_event, *filter(None, (self._on_event, on_event))]
            run = self._new_run(source, asked, key, listeners)
            async with self._claimed(run):
                yield run

    def _new_run(self, source: Source, asked: _Asked, key: str, listeners: list[Listener]) -> _Run:
        network = self._network
        if network is None:
            raise RuntimeError("An Uploader works inside its block: async with Uploader(…) as up:")
        return _Run(network, self._provider, self._options, source, asked, key, listeners)

    @asynccontextmanager
    async def _claimed(self, run: _Run) -> AsyncIterator[None]:
        try:
            async with self._state.claim(run.key) as checkpoint:
                run.checkpoint = checkpoint
                with _one_error():
                    try:
                        yield
                    except VodupError as error:
                        await run.note_failure(error)
                        raise
        except VodupError as error:
            run.tell_failure(error)
            raise

    async def _look_up(self, key: str, source: Source | None = None) -> _Run:
        """A run over a recorded upload that sends nothing."""
        record = await self._state.find(key=key)
        if record is None:
            raise ConfigurationError(
                f"There is no upload {key!r} in this state store.",
                next_step="`vodup status` lists them; --state names another store.",
            )
        source = source or BytesSource(b"-", record.source)
        asked = _Asked(VideoMeta(), record.video_id, None, record.is_overwrite)
        run = self._new_run(source, asked, key, [_log_event])
        run.recorded = record
        return run

    async def _default_key(self, source: Source, video_id: str | None) -> str:
        if video_id is not None:
            record = await self._state.find(video_id=video_id)
            return record.key if record else f"video-{video_id}"
        scope = self._provider.scope if self._provider else ""
        digest = hashlib.sha256(f"{scope}\0{source.identity}".encode()).hexdigest()
        return f"file-{digest[:20]}"

    def _open_network(self) -> Network:
        if self._network is None:
            raise RuntimeError(
                "Use the Uploader as an async context manager: async with Uploader(…)"
            )
        return self._network


def upload_sync(
    source: Source | str | os.PathLike[str] | bytes,
    *,
    provider: GrantProvider | Callable[[str], Awaitable[Any]] | None = None,
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


def as_source(source: Source | str | os.PathLike[str] | bytes) -> Source:
    """Return a path as a `FileSource`, bytes as a `BytesSource`, and a source as it is."""
    if isinstance(source, bytes):
        return BytesSource(source, "bytes")
    if isinstance(source, str | os.PathLike):
        return FileSource(Path(source))
    return source


def _as_provider(
    provider: GrantProvider | Callable[[str], Awaitable[Any]] | None,
) -> GrantProvider | None:
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the caller wants of one upload."""

    meta: VideoMeta
    video_id: str | None
    grant: UploadGrant | None
    overwrite: bool


class _Vanished(Exception):
    """The multipart upload is not there any more; all parts must be sent again."""

    def __init__(self, reason: str, failure: VodupError | None = None) -> None:
        super().__init__(reason)
        self.reason, self.failure = reason, failure


class _Meter:
    """How many bytes have left. Mutable; written by bodies, read by progress."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self._positions: dict[int, int] = {}

    def watch(self, part_number: int) -> Callable[[int], None]:
        """Return what a body calls with its position."""

        def sent(position: int) -> None:
            before = self._positions.get(part_number, 0)
            self.sent_bytes += position - before if position > before else 0
            self._positions[part_number] = position

        return sent

    def forget(self, part_number: int) -> None:
        """The part is acked, or no longer under way."""
        self._positions.pop(part_number, None)

    @property
    def under_way_bytes(self) -> int:
        """Bytes of unacked parts that have left."""
        return sum(self._positions.values())


class _Run:
    """One run of one upload: what the steps share while they work.

    Mutable state: the proven receipts, counters, and which step is being done.
    """

    def __init__(
        self,
        network: Network,
        provider: GrantProvider | None,
        options: UploadOptions,
        source: Source,
        asked: _Asked,
        key: str,
        listeners: list[Listener],
    ) -> None:
        self.key, self.phase = key, "claim"
        self.checkpoint: Checkpoint | None = None
        self.recorded: UploadRecord | None = None
        self._listeners = listeners
        self._network = replace(network, on_retry=self._note_retry)
        self._options, self._source, self._asked = options, source, asked
        self._clock = network.clock
        self._grants: GrantSource | None = provider.connect(self._network) if provider else None
        self._started_s = self._clock.elapsed_s()
        self._acked: dict[int, PartAck] = {}
        self._meter = _Meter()
        self._resumed_part_count = 0
        self._retry_count = 0
        self._needs_md5 = False
        self._first_grant = asked.grant
        self._live: LiveGrant | None = None
        self._oss: Session | None = None

    # --- what is known ---------------------------------------------------------------

    @property
    def _claim(self) -> Checkpoint:
        assert self.checkpoint is not None, "the upload is claimed first"
        return self.checkpoint

    @property
    def _known(self) -> UploadRecord | None:
        return self.checkpoint.record if self.checkpoint else self.recorded

    @property
    def video_id(self) -> str | None:
        """The VideoId, once there is one."""
        return (self._known and self._known.video_id) or self._asked.video_id

    @property
    def _record(self) -> UploadRecord:
        record = self._known
        assert record is not None, "record_and_grant() comes first"
        return record

    @property
    def _target(self) -> UploadTarget:
        record = self._record
        if not (record.endpoint and record.bucket and record.object_key):
            raise ConfigurationError(
                f"The upload {self.key} has not got a target yet.",
                next_step="Run `vodup push` with it first.",
            )
        return UploadTarget(record.endpoint, record.bucket, record.object_key)

    @property
    def _plan(self) -> PartPlan:
        assert self._record.plan is not None, "start_or_resume() comes first"
        return _plan_of(self._record.plan)

    async def _call(self, operation: Operation[T]) -> T:
        assert self._oss is not None, "fresh_credentials() comes first"
        return await self._oss.call(operation)

    # --- step: receipt -----------------------------------------------------------------

    async def receipt(self) -> UploadResult | None:
        """Return the result of an earlier run if the source is still the one it sent."""
        record = self._known
        if record is None or record.phase is not Phase.DONE or record.receipt is None:
            return None
        self.phase = "receipt"
        if record.fingerprint != (await self._source.fingerprint()).to_text():
            if self._asked.overwrite:
                return None
            raise SourceChanged(
                f"{self._source.name} was uploaded as video {record.video_id}, and has changed "
                "since.",
                next_step=f"To make a new video of it, pass --key NAME or run `vodup clean "
                f"{self.key}` first; to replace the video's content, pass --overwrite.",
            )
        result = replace(_result_of(record.receipt), is_receipt=True, sent_bytes=0)
        self.tell(UploadFinished(key=self.key, video_id=record.video_id, result=result))
        return result

    # --- step: record and grant ------------------------------------------------------

    async def record_and_grant(self) -> None:
        """Write the upload down, then make sure that it has a VideoId and a target."""
        self.phase = "record"
        record = self._claim.record
        if record is None or record.phase in {Phase.DONE, Phase.ABORTED}:
            record = await self._claim.create(await self._new_record())
            is_repeat = False
        else:
            self._require_same_video(record)
            await self._require_same_source(record)
            is_repeat = True
        if record.endpoint is None:
            await self._find_target(is_repeat=is_repeat)
        self._acked = dict(self._claim.acks)

    async def _new_record(self) -> UploadRecord:
        former = self._claim.record
        video_id = self._asked.video_id
        if former is not None and former.phase is Phase.DONE:
            video_id = video_id or former.video_id  # an overwrite stays with its video
        return UploadRecord(
            key=self.key,
            phase=Phase.NEW,
            source=self._source.name,
            fingerprint=(await self._source.fingerprint()).to_text(),
            size=self._source.size,
            reference_id=f"vodup-{secrets.token_hex(16)}",
            meta=self._asked.meta.to_text(),
            video_id=video_id,
            is_overwrite=self._asked.overwrite,
        )

    def _require_same_video(self, record: UploadRecord) -> None:
        asked = self._asked.video_id
        if asked is not None and record.video_id is not None and asked != record.video_id:
            raise ConfigurationError(
                f"The upload {self.key} belongs to video {record.video_id}, not to {asked}.",
                next_step="Pass another --key, or leave --video-id away to continue it.",
            )

    async def _require_same_source(self, record: UploadRecord) -> None:
        """Accept the source if it is the recorded one, or proves to hold the same bytes."""
        now = await self._source.fingerprint()
        if now.to_text() == record.fingerprint:
            return
        try:
            changes = Fingerprint.from_text(record.fingerprint).changes(now)
        except MalformedDocument as error:
            raise UnsupportedState(
                f"The checkpoint's fingerprint is not readable: {error}."
            ) from None
        if now.size != record.size or not await self._holds_acked_bytes():
            raise SourceChanged(
                f"{self._source.name} is not the file this upload was begun with "
                f"({', '.join(changes)} changed)."
            )
        await self._claim.advance(fingerprint=now.to_text())

    async def _holds_acked_bytes(self) -> bool:
        """Re-read what OSS has confirmed: copied or touched files are the same file."""
        record = self._record
        if record.plan is None:
            return True
        plan = self._plan
        for ack in self._claim.acks.values():
            crc64, _ = await self._source.read_crc(plan.part(ack.number).offset, ack.size)
            if crc64 != ack.crc64:
                return False
        return True

    async def _find_target(self, *, is_repeat: bool) -> None:
        """Get the first grant and pin its target: this upload never goes anywhere else."""
        video_id = self._record.video_id or self._asked.video_id
        if self._first_grant is None:
            self.phase = "create" if video_id is None else "renew"
            self._first_grant = await self._ask_for_grant(video_id, is_repeat=is_repeat)
        grant = self._first_grant
        target = self._network.trust.check_target(grant.target)
        await self._claim.advance(
            phase=Phase.UPLOADING,
            video_id=video_id or grant.video_id,
            endpoint=target.endpoint,
            region=grant.credentials.region,
            bucket=target.bucket,
            object_key=target.object_key,
        )

    async def _ask_for_grant(self, video_id: str | None, *, is_repeat: bool) -> UploadGrant:
        grants = self._require_grants()
        if video_id is not None:
            await self._refuse_silent_overwrite(video_id)
            return await grants.renew(video_id)
        reference_id = self._record.reference_id
        assert reference_id is not None
        grant = await grants.create(
            NewVideo(
                meta=self._asked.meta,
                file_name=Path(self._source.name).name,
                file_size=self._source.size,
                reference_id=reference_id,
                is_repeat=is_repeat,
            )
        )
        if grant.video_id is None:
            raise ConfigurationError("The grant for the new video does not tell its VideoId.")
        return grant

    async def _refuse_silent_overwrite(self, video_id: str) -> None:
        if self._record.is_overwrite or self._asked.overwrite:
            return
        facts = await self._require_grants().facts(video_id)
        if facts is not None and not facts.is_waiting:
            raise OverwriteRefused(
                f"Video {video_id} is finished already (status {facts.status}); sending to it "
                "would replace its content and may start transcoding again."
            )

    def _require_grants(self) -> GrantSource:
        if self._grants is None:
            raise ConfigurationError(
                "Nobody was named who hands out grants for this upload.",
                next_step="Pass a provider, or a fresh grant (--grant).",
            )
        return self._grants

    def _connect(self) -> None:
        """Make the session that talks to OSS for this upload."""
        options, network = self._options, self._network
        dialect = OssDialect(options.oss_region, options.signature, options.is_cname)
        self._live = LiveGrant(
            self._target,
            self._renewal(),
            clock=self._clock,
            dialect=dialect,
            grant=self._first_grant,
            on_renewed=self._note_renewal,
        )
        self._oss = Session(
            network.transport,
            self._live,
            clock=self._clock,
            is_vod=False,
            slot=network.pace.slot,
            slow_down=network.pace.slow_down,
            retry=network.retry,
            on_retry=self._note_retry,
        )

    def _renewal(self) -> Callable[[], Awaitable[UploadGrant]] | None:
        grants, video_id = self._grants, self._record.video_id
        if grants is None or video_id is None:
            return None
        return lambda: grants.renew(video_id)

    @asynccontextmanager
    async def fresh_credentials(self) -> AsyncIterator[None]:
        """Keep credentials fresh and report progress for as long as the block runs."""
        if self._oss is None:
            self._connect()
        assert self._live is not None
        with _one_error():
            async with asyncio.TaskGroup() as helpers:
                tasks = [
                    helpers.create_task(self._live.keep_fresh()),
                    helpers.create_task(self._report_progress()),
                ]
                yield
                for task in tasks:
                    task.cancel()

    # --- step: start or resume ---------------------------------------------------------

    async def start_or_resume(self) -> None:
        """Make sure there is a plan and an UploadId, and know which parts OSS has."""
        self.phase = "start"
        record = self._record
        is_resumed = record.plan is not None
        if not is_resumed:
            plan = plan_parts(
                record.size,
                part_size=self._options.part_size,
                concurrency=self._network.pace.max_concurrency
                if self._options.concurrency == "auto"
                else self._options.concurrency,
            )
            record = await self._claim.advance(plan=plan.to_text())
        if self._is_put:
            await self._settle_put()
        elif record.upload_id is None:
            operation = oss.initiate_multipart_upload(self._target, self._headers())
            # Parts cost money from here on: the UploadId is durable before the first of them.
            await self._claim.advance(upload_id=await self._call(operation))
        else:
            await self._reconcile(record.upload_id)
        self._resumed_part_count = len(self._acked)
        self._tell_started(is_resumed=is_resumed)

    @property
    def _is_put(self) -> bool:
        """Whether one PutObject does it: then there is no UploadId."""
        plan = self._plan
        return plan.is_single and plan.size <= MAX_PUT_SIZE and self._record.upload_id is None

    def _headers(self) -> dict[str, str]:
        notification = self._options.notification
        return {"x-oss-notification": notification} if notification else {}

    async def _reconcile(self, upload_id: str) -> None:
        """Compare our receipts with what OSS lists. Without permission ours must do."""
        try:
            listed = await self._list_parts(upload_id)
        except PermissionDenied:
            return
        except ServiceError as error:
            if is_vanished(error):
                await self._settle_vanished(error)
            raise
        self._acked = {
            number: ack
            for number, ack in self._acked.items()
            if number in listed and _is_same_part(ack, listed[number])
        }
        await self._adopt(listed)

    async def _list_parts(self, upload_id: str) -> dict[int, ListedPart]:
        listed: dict[int, ListedPart] = {}
        marker = 0
        for _ in range(_MAX_LIST_PAGES):
            page = await self._call(oss.list_parts(self._target, upload_id, marker=marker))
            listed |= {part.number: part for part in page.parts}
            if page.next_marker is None or page.next_marker <= marker:
                break
            marker = page.next_marker
        return listed

    async def _adopt(self, listed: dict[int, ListedPart]) -> None:
        """Keep parts whose answer was lost, if the source proves to hold their bytes."""
        plan = self._plan
        adopted = 0
        for number in sorted(listed.keys() - self._acked.keys()):
            if not 1 <= number <= plan.part_count:
                continue
            if (ack := await self._prove(plan.part(number), listed[number])) is not None:
                await self._keep(ack)
                adopted += 1
        if adopted:
            self.tell(PartsAdopted(key=self.key, video_id=self.video_id, part_count=adopted))

    async def _prove(self, part: Part, listed: ListedPart) -> PartAck | None:
        if listed.size != part.size:
            return None
        needs_md5 = listed.crc64 is None
        crc64, md5 = await self._source.read_crc(part.offset, part.size, with_md5=needs_md5)
        is_same = md5 is not None and same_etag(md5, listed.etag)
        if not (is_same if needs_md5 else crc64 == listed.crc64):
            return None
        return PartAck(part.number, part.size, listed.etag, crc64, md5)

    def _tell_started(self, *, is_resumed: bool) -> None:
        record = self._record
        self.tell(
            UploadStarted(
                key=self.key,
                video_id=record.video_id,
                source=record.source,
                size=record.size,
                part_count=self._plan.part_count,
                done_bytes=self._acked_bytes,
                resumed_part_count=len(self._acked),
                upload_id=record.upload_id,
                is_resumed=is_resumed,
            )
        )

    # --- step: send the missing parts --------------------------------------------------

    async def send_missing_parts(self) -> None:
        """Send every part OSS has not confirmed, several at a time."""
        if self._is_put:
            return
        self.phase = "send"
        missing = [part for part in self._plan.parts if part.number not in self._acked]
        pending = iter(missing)

        async def worker() -> None:
            for part in pending:  # a shared iterator: every part has exactly one worker
                await self._send_part(part)

        with _one_error(), self._target_watched():
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(len(missing), self._network.pace.max_concurrency)):
                    workers.create_task(worker())

    async def _send_part(self, part: Part) -> None:
        upload_id = self._record.upload_id
        assert upload_id is not None
        began_s = self._clock.elapsed_s()
        ack: PartAck | None = None
        while ack is None:
            body = self._source.body(part.offset, part.size, self._meter.watch(part.number))
            operation = oss.upload_part(
                self._target, upload_id, part, body, needs_md5=self._needs_md5
            )
            try:
                receipt, sent = await self._call(operation)
            except ServiceError as error:
                if is_vanished(error):
                    raise _Vanished("OSS does not know the UploadId any more", error) from None
                raise
            ack = await self._accept(part, receipt, sent)
        self._note_pace(began_s)
        await self._keep(ack)

    async def _accept(self, part: Part, receipt: oss.PartReceipt, sent: SentBody) -> PartAck | None:
        """Turn OSS's receipt into ours. Where it told no CRC-64, the MD5 must be the ETag.

        A CRC-64 or MD5 that was there has been compared when the answer was parsed.
        """
        md5 = sent.md5
        if receipt.crc64 is None and md5 is None:
            self._needs_md5 = True  # from now on computed while sending
            crc64, md5 = await self._source.read_crc(part.offset, part.size, with_md5=True)
            if crc64 != sent.crc64 or md5 is None or not same_etag(md5, receipt.etag):
                return None
        return PartAck(part.number, part.size, receipt.etag, sent.crc64, md5)

    async def _keep(self, ack: PartAck) -> None:
        """Make the receipt durable before the next part begins: that bounds rework."""
        await self._claim.ack(ack)
        self._acked[ack.number] = ack
        self._meter.forget(ack.number)

    def _note_pace(self, began_s: float) -> None:
        live = self._live
        assert live is not None
        took_s = self._clock.elapsed_s() - began_s
        live.slow_part_s = max(took_s, live.slow_part_s * 0.9)

    @contextmanager
    def _target_watched(self) -> Iterator[None]:
        """Tell a denied target that VOD has moved from any other denial."""
        try:
            yield
        except PermissionDenied as error:
            moved_to = self._live.moved_to if self._live else None
            if moved_to is None:
                raise
            if self._options.on_target_change == "restart":
                raise _Vanished(f"VOD moved the upload to {moved_to.bucket}", error) from None
            raise UploadTargetChanged(
                f"VOD now names another bucket or key ({moved_to.bucket}), and OSS refuses the "
                f"first one: {error.message}",
                code=error.code,
                request_id=error.request_id,
            ) from None

    # --- step: complete ------------------------------------------------------------------

    async def complete(self) -> _Stored:
        """Make the parts an object. After this OSS has forgotten the UploadId."""
        self.phase = "complete"
        await self._require_unchanged()
        if self._is_put:
            return await self._put()
        acks = self._acks_in_order()
        await self._claim.advance(phase=Phase.COMPLETING)
        upload_id = self._record.upload_id
        assert upload_id is not None
        etags = [(ack.number, ack.etag) for ack in acks]
        operation = oss.complete_multipart_upload(self._target, upload_id, etags, self._headers())
        try:
            with self._target_watched():
                return _Stored(await self._call(operation), "")
        except ServiceError as error:
            if is_vanished(error):
                return await self._settle_vanished(error)
            if error.code in _REPAIRABLE:
                return await self._repair(upload_id, error)
            if error.code == "CallbackFailed":  # 203: the object is there all the same
                return await self._look() or _Stored(ObjectFacts(None, None, None, ""), "")
            raise

    async def _require_unchanged(self) -> None:
        """A file rewritten while it was sent would be stored as a mixture of the two."""
        now = await self._source.fingerprint()
        record = self._record
        if now.to_text() != record.fingerprint:
            changes = Fingerprint.from_text(record.fingerprint).changes(now)
            raise SourceChanged(
                f"{self._source.name} changed while it was sent ({', '.join(changes)}).",
                next_step="Nothing was completed. Put the original back and run the same command, "
                f"or give this upload up with `vodup abort {self.key}` and start anew.",
            )

    def _acks_in_order(self) -> list[PartAck]:
        """Exactly the plan, or nothing: OSS would join what it is given."""
        acks = [self._acked.get(part.number) for part in self._plan.parts]
        known = [ack for ack in acks if ack is not None]
        if len(known) != len(acks) or sum(ack.size for ack in known) != self._record.size:
            raise IntegrityError("The receipts do not add up to the plan; nothing was completed.")
        return known

    async def _repair(self, upload_id: str, failure: ServiceError) -> _Stored:
        """Send again what OSS lists otherwise than we do, then complete once more."""
        before = len(self._acked)
        await self._claim.advance(phase=Phase.UPLOADING)
        await self._reconcile(upload_id)
        if len(self._acked) == before:
            raise _Vanished(f"OSS cannot join the parts ({failure.code})", failure)
        await self.send_missing_parts()
        await self._claim.advance(phase=Phase.COMPLETING)
        etags = [(ack.number, ack.etag) for ack in self._acks_in_order()]
        operation = oss.complete_multipart_upload(self._target, upload_id, etags, self._headers())
        return _Stored(await self._call(operation), "")

    async def _put(self) -> _Stored:
        part = self._plan.part(1)
        if (ack := self._acked.get(1)) is not None:  # settled: it is there already
            return _Stored(ObjectFacts(ack.etag, ack.crc64, ack.size, ""), "-head")
        await self._claim.advance(phase=Phase.COMPLETING)
        kept: PartAck | None = None
        facts = ObjectFacts(None, None, None, "")
        while kept is None:
            body = self._source.body(0, part.size, self._meter.watch(1))
            operation = oss.put_object(
                self._target, body, self._headers(), needs_md5=self._needs_md5
            )
            with self._target_watched():
                receipt, sent = await self._call(operation)
            kept = await self._accept(part, receipt, sent)
            facts = ObjectFacts(receipt.etag, receipt.crc64, part.size, receipt.request_id)
        await self._keep(kept)
        return _Stored(facts, "")

    # --- settling what a lost answer left open -------------------------------------------

    async def settle_at_vod(self) -> _Stored | None:
        """After a crash around Complete, ask VOD before asking it for credentials.

        If the video is finished, a refresh would open an overwrite; then only the object
        itself, read through a URL of VOD's, can prove what it holds. None: go on.
        """
        record = self._record
        if record.phase is not Phase.COMPLETING or self._grants is None or record.is_overwrite:
            return None
        if self._first_grant is not None or record.video_id is None:
            return None
        self.phase = "settle"
        facts = await self._grants.facts(record.video_id)
        if facts is None or facts.is_waiting:
            return None
        await self._read_put_receipt()
        stored = await self._look_by_url(facts.file_url) if facts.file_url else None
        if stored is not None and self._is_ours(stored.facts):
            self._resumed_part_count = len(self._acked)
            return stored
        raise UnverifiedCompletion(
            f"VOD has finished video {record.video_id} ({facts.size} bytes, status {facts.status}) "
            "after a run that ended while completing it; its bytes could not be compared."
        )

    async def _read_put_receipt(self) -> None:
        """Where an answer to PutObject was lost there is no receipt: take it from the source."""
        if self._is_put and not self._acked:
            size = self._source.size
            crc64, md5 = await self._source.read_crc(0, size, with_md5=True)
            self._acked[1] = PartAck(1, size, md5 or "", crc64, md5)

    async def _settle_vanished(self, failure: VodupError) -> _Stored:
        """NoSuchUpload: completed, or gone? Decide by what the object is, never by its existence."""
        if self._record.phase is not Phase.COMPLETING:
            raise _Vanished("OSS does not know the UploadId any more", failure)
        stored = await self._look()
        if stored is not None and self._is_ours(stored.facts):
            return stored
        if stored is None and (unproved := await self._look_at_vod()) is not None:
            return unproved
        raise _Vanished("the upload was gone before it was completed", failure)

    async def _settle_put(self) -> None:
        """A PutObject whose answer was lost may have been carried out."""
        if self._record.phase is not Phase.COMPLETING:
            return
        await self._read_put_receipt()
        stored = await self._look()
        if stored is None or not self._is_ours(stored.facts):
            self._acked.clear()

    async def _look(self) -> _Stored | None:
        """HEAD the object; None where we may not, `ObjectFacts` of nothing where none is."""
        try:
            return _Stored(await self._call(oss.head_object(self._target)), "-head")
        except PermissionDenied:
            return None
        except ServiceError as error:
            if error.status == 404:
                return _Stored(ObjectFacts(None, None, None, error.request_id), "-head")
            raise

    async def _look_at_vod(self) -> _Stored | None:
        """Ask VOD, where OSS does not let us look. None: VOD still waits for the file."""
        video_id = self._record.video_id
        facts = await self._grants.facts(video_id) if self._grants and video_id else None
        if facts is not None and facts.is_waiting:
            return None
        if facts is not None and facts.file_url:
            stored = await self._look_by_url(facts.file_url)
            if stored is not None and self._is_ours(stored.facts):
                return stored
        return _Stored(ObjectFacts(None, None, facts.size if facts else None, ""), "")

    async def _look_by_url(self, url: str) -> _Stored | None:
        """Read the object's facts through a URL signed by VOD; None if that does not work."""
        network = self._network
        parts = urlsplit(url)
        try:
            network.trust.check_oss_endpoint(f"{parts.scheme}://{_host_of(parts, self._target)}")
            session = Session(
                network.transport,
                PlainSigner(),
                clock=self._clock,
                is_vod=False,
                slot=network.pace.slot,
                retry=network.retry,
                on_retry=self._note_retry,
            )
            return _Stored(await session.call(oss.read_signed_url(url)), "-url")
        except VodupError as error:
            get_logger(key=self.key).info("object.not_readable", error=error.message)
            return None

    def _is_ours(self, facts: ObjectFacts) -> bool:
        """Whether the object is, by CRC-64 or ETag, the one our receipts describe."""
        try:
            return self._proof(facts) is not None
        except IntegrityError:
            return False

    async def restart(self, gone: _Vanished, *, is_last: bool) -> None:
        """Begin a new multipart upload under the same VideoId."""
        if is_last:
            if gone.failure is not None:
                raise gone.failure
            raise IntegrityError(f"The upload was restarted {_MAX_RESTARTS} times: {gone.reason}.")
        lost_bytes = self._acked_bytes
        moved_to = self._live.moved_to if self._live else None
        if moved_to is not None and isinstance(gone.failure, PermissionDenied):
            await self._move(self._network.trust.check_target(moved_to))
        await self._claim.restart_parts(upload_id=None, plan=None)
        await self._claim.advance(phase=Phase.UPLOADING)
        self._acked.clear()
        self.tell(
            UploadRestarted(
                key=self.key, video_id=self.video_id, reason=gone.reason, lost_bytes=lost_bytes
            )
        )

    async def _move(self, target: UploadTarget) -> None:
        await self._claim.restart_parts(upload_id=None, plan=None)
        await self._claim.advance(
            endpoint=target.endpoint, bucket=target.bucket, object_key=target.object_key
        )
        self._first_grant = None
        self._connect()

    # --- step: verify ------------------------------------------------------------------

    async def verify(self, stored: _Stored) -> UploadResult:
        """Prove that the object is what we sent, write the receipt, and return it."""
        self.phase = "verify"
        if stored.facts.crc64 is None:
            looked = await self._look()
            if looked is not None and looked.facts.crc64 is not None:
                stored = looked
            else:
                await self._compute_md5s(stored.facts.etag)
        try:
            proof = self._proof(stored.facts)
        except IntegrityError:
            # What is there cannot be mended; the next run sends everything again.
            await self._claim.restart_parts(upload_id=None, plan=None)
            await self._claim.advance(phase=Phase.UPLOADING)
            raise
        if proof is None:
            raise UnverifiedCompletion(
                "OSS completed the object, but tells neither a CRC-64 nor an ETag that would "
                "prove what it holds."
            )
        result = self._result(stored.facts, f"{proof}{stored.how if proof == 'crc64' else ''}")
        await self._claim.advance(phase=Phase.DONE, receipt=json.dumps(asdict(result)), error=None)
        self.tell(UploadFinished(key=self.key, video_id=result.video_id, result=result))
        return result

    def _proof(self, facts: ObjectFacts) -> Literal["crc64", "etag"] | None:
        """Compare server's figures with ours over bytes we sent; None if it gave none.

        Raises:
            IntegrityError: they differ.
        """
        if facts.size is not None and facts.size != self._record.size:
            raise self._differs("size", facts.size, self._record.size, facts)
        if facts.crc64 is not None:
            if facts.crc64 != self._crc64:
                raise self._differs("CRC-64", facts.crc64, self._crc64, facts)
            return "crc64"
        ours = self._etag
        if facts.etag is None or ours is None:
            return None
        if not same_etag(facts.etag, ours):
            raise self._differs("ETag", facts.etag, ours, facts)
        return "etag"

    def _differs(self, what: str, theirs: object, ours: object, facts: ObjectFacts) -> VodupError:
        return IntegrityError(
            f"The object in OSS is not what was sent: its {what} is {theirs}, ours is {ours}.",
            request_id=facts.request_id,
        )

    @property
    def _crc64(self) -> int:
        """CRC-64 of the whole, joined from those of the parts we sent."""
        return join_crc64((ack.crc64, ack.size) for ack in self._acks_in_order())

    @property
    def _etag(self) -> str | None:
        """The ETag OSS must give, by its formula over our MD5s; None without all of them."""
        md5s = [ack.md5 for ack in self._acks_in_order()]
        known = [md5 for md5 in md5s if md5 is not None]
        if len(known) != len(md5s):
            return None
        return known[0] if self._is_put else multipart_etag(known)

    async def _compute_md5s(self, etag: str | None) -> None:
        """Read the source again for MD5s nobody needed until now; the CRC-64s tie them down."""
        if etag is None:
            return
        for ack in self._acks_in_order():
            if ack.md5 is not None:
                continue
            offset = self._plan.part(ack.number).offset
            crc64, md5 = await self._source.read_crc(offset, ack.size, with_md5=True)
            if crc64 != ack.crc64:
                raise SourceChanged(f"{self._source.name} changed after it was sent.")
            self._acked[ack.number] = replace(ack, md5=md5)

    def _result(self, facts: ObjectFacts, verified_by: str) -> UploadResult:
        record, plan, live = self._record, self._plan, self._live
        assert record.video_id and record.bucket and record.object_key
        return UploadResult(
            key=self.key,
            video_id=record.video_id,
            upload_id=record.upload_id,
            bucket=record.bucket,
            object_key=record.object_key,
            size=record.size,
            crc64=self._crc64,
            etag=facts.etag,
            part_count=plan.part_count,
            resumed_part_count=self._resumed_part_count,
            renewal_count=live.renewal_count if live else 0,
            retry_count=self._retry_count,
            sent_bytes=self._meter.sent_bytes,
            verified_by=verified_by,
            seconds=round(self._clock.elapsed_s() - self._started_s, 3),
        )

    async def compare(self) -> ObjectFacts:
        """Compare the source, read anew, with the object."""
        self.phase = "verify"
        stored = await self._look()
        if stored is None or stored.facts.crc64 is None:
            raise UnverifiedCompletion("OSS does not let us read the object's CRC-64.")
        crc64, _ = await self._source.read_crc(0, self._source.size)
        if (stored.facts.crc64, stored.facts.size) != (crc64, self._source.size):
            raise self._differs("CRC-64", stored.facts.crc64, crc64, stored.facts)
        return stored.facts

    # --- giving up -----------------------------------------------------------------------

    async def abort(self) -> None:
        """Remove the parts, then say so in the record."""
        self.phase = "abort"
        record = self._record
        if record.phase is Phase.DONE:
            raise ConfigurationError(
                f"Video {record.video_id} is finished; there is nothing to abort.",
                next_step=f"`vodup clean {self.key}` removes its receipt.",
            )
        if record.upload_id is not None:
            self._connect()
            try:
                await self._call(oss.abort_multipart_upload(self._target, record.upload_id))
            except ServiceError as error:
                if not is_vanished(error):
                    raise
        await self._claim.advance(phase=Phase.ABORTED)

    # --- telling -------------------------------------------------------------------------

    @property
    def _acked_bytes(self) -> int:
        return sum(ack.size for ack in self._acked.values())

    def tell(self, event: Event) -> None:
        """Tell every listener."""
        for listener in self._listeners:
            listener(event)

    async def note_failure(self, error: VodupError) -> None:
        """Leave a word for `status`; the failure itself matters more."""
        error.located(video_id=self.video_id, phase=self.phase)
        if isinstance(error, StateError) or self._claim.record is None:
            return
        with suppress(StateError):
            await self._claim.advance(error=f"{type(error).__name__}: {error.message}")

    def tell_failure(self, error: VodupError) -> None:
        """Tell every listener how it ended."""
        error.located(video_id=self.video_id, phase=self.phase)
        self.tell(
            UploadFailed(
                key=self.key,
                video_id=error.video_id,
                error=f"{type(error).__name__}: {error.message}",
                code=error.code,
                request_id=error.request_id,
                is_resumable=error.is_resumable,
                next_step=error.next_step,
            )
        )

    async def _report_progress(self) -> None:
        while True:
            await self._clock.sleep(_PROGRESS_INTERVAL_S)
            record = self._record
            if record.plan is None:
                continue
            self.tell(
                UploadProgress(
                    key=self.key,
                    video_id=record.video_id,
                    done_bytes=min(self._acked_bytes + self._meter.under_way_bytes, record.size),
                    size=record.size,
                    acked_part_count=len(self._acked),
                    part_count=self._plan.part_count,
                    renewal_count=self._live.renewal_count if self._live else 0,
                    retry_count=self._retry_count,
                )
            )

    def _note_renewal(self, generation: int) -> None:
        assert self._live is not None
        self.tell(
            CredentialsRenewed(
                key=self.key, video_id=self.video_id, renewal_count=self._live.renewal_count
            )
        )

    def _note_retry(self, retried: Retried) -> None:
        self._retry_count += 1
        failure = retried.failure
        self.tell(
            RequestRetried(
                key=self.key,
                video_id=self.video_id,
                operation=retried.operation,
                part_number=retried.part_number,
                reason=failure.message,
                code=failure.code,
                request_id=failure.request_id,
                verdict=retried.verdict.name,
                pause_s=round(retried.pause_s, 3),
            )
        )


@dataclass(frozen=True, slots=True)
class _Stored:
    """What OSS says it holds, and how we came to know (a suffix of `verified_by`)."""

    facts: ObjectFacts
    how: str


def _is_same_part(ack: PartAck, listed: ListedPart) -> bool:
    is_same_crc = listed.crc64 is None or listed.crc64 == ack.crc64
    return ack.size == listed.size and same_etag(ack.etag, listed.etag) and is_same_crc


def _host_of(parts: SplitResult, target: UploadTarget) -> str:
    """The endpoint's host in a URL of an object: without the bucket before it."""
    return parts.netloc.removeprefix(f"{target.bucket}.")


@functools.lru_cache(maxsize=256)
def _plan_of(text: str) -> PartPlan:
    return PartPlan.from_text(text)


def _result_of(receipt: str) -> UploadResult:
    try:
        return UploadResult(**json.loads(receipt))
    except (TypeError, ValueError) as error:
        raise UnsupportedState(f"The receipt in the checkpoint is not readable: {error}.") from None


def _log_event(event: Event) -> None:
    """Log every event under its type; failures as warnings, progress not at all."""
    if isinstance(event, UploadProgress):
        return
    fields = asdict(event)
    log = get_logger(**fields)
    if isinstance(event, UploadFailed | RequestRetried | UploadRestarted):
        log.warning(event.type)
    else:
        log.info(event.type)


@contextmanager
def _one_error() -> Iterator[None]:
    """Raise the one error that matters instead of a task group's bundle.

    A task group cancels its other tasks at the first failure, so that is the cause; the
    rest, if any, failed while going down.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from leaf.__cause__
