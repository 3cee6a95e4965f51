"""Plays runs of the matrix: one upload each, with its failure, then judged.

Uploader, transport and devserver are real; where the network fails, a proxy stands between
the last two. Every run has a video, a state, a clock and a proxy of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import trustme

from uploader import Event, IntegrityError, UploadResult, VodupError
from uploader.clock import SystemClock
from uploader.devserver import DevServer, Fault
from uploader.devserver.stats import RequestRecord
from uploader.devserver.storage import Video
from uploader.events import RequestRetried
from uploader.protocol.wire import SignedRequest
from uploader.sources import FileSource, Source
from uploader.state import MemoryState, Phase, SqlState, StateStore, UploadRecord

from . import child, sinks
from .caller import CONCURRENCY, LONG, PART, SHORT, Account, Timeouts, UploadCall, run_once
from .local import DamagedFile, FailingState, UnreadableSource
from .proxy import FaultProxy, Toxic, closed_port, unreachable
from .table import Run

BUSY_S = 15.0
"""What a run without faults may take, on a busy machine."""

ROUNDS = {"once": 1, "twice": 2, "for ever": 4}
"""How many runs in a row get a failure that ends a run."""

_MAX_VOID = 3

_NUMBERS = count(1)

_NO_SUCH_NAME = ".".join(["x" * 60] * 5)
"""Longer than a name in the DNS may be: refused without caller anybody."""


class JumpingClock(SystemClock):
    """The system's clock, but for the wall, on which it may be moved. Mutable."""

    ahead_s = 0.0

    def utc_now(self) -> datetime:
        return super().utc_now() + timedelta(seconds=self.ahead_s)


@dataclass
class Outcome:
    """How one run ended, and what was wrong with that. Mutable until it is judged."""

    run: Run
    ended: str
    seconds: float = 0.0
    was_hit: bool = True
    faults: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults


class Matrix:
    """A server, a folder and a source that many runs share. Mutable: what was scanned."""

    def __init__(self, server: DevServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.data = os.urandom(8 * PART - 17)
        self.source = folder / "movie.mp4"
        self.source.write_bytes(self.data)
        self.read: list[sinks.Sink] = []
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(self.tls)
        self.visited_elsewhere = 0
        self.elsewhere = ""
        self.account = Account(
            server.vod_endpoint,
            server.oss_endpoint,
            server.access_key_id,
            server.access_key_secret,
        )
        self._old_secrets = frozenset(server.secrets()[2:])

    def reference_id(self) -> str:
        """A name for one run."""
        return f"run-{os.getpid()}-{next(_NUMBERS):05}"

    def new_secrets(self) -> tuple[str, ...]:
        """Secrets issued since this matrix was opened, and those of the caller."""
        return tuple(s for s in self.server.secrets() if s not in self._old_secrets)

    @property
    def sinks(self) -> set[str]:
        """The kinds of places that were scanned."""
        return {name for name, _ in self.read}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Listen where no credential must ever go."""

        def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.visited_elsewhere += 1
            writer.transport.abort()

        listener = await asyncio.start_server(visited, "127.0.0.1", 0)
        self.elsewhere = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        try:
            yield
        finally:
            listener.close()
            await asyncio.sleep(0)

    async def play(self, run: Run) -> Outcome:
        """Play one run and judge it.

        A run that was not hit proves nothing and is played again: on a busy machine the fault
        that leads to a site may itself be lost to a timeout.
        """
        for _ in range(_MAX_VOID):
            outcome = await self._play(run)
            if outcome.was_hit:
                return outcome
        outcome.faults.append("the fault was never injected")
        return outcome

    async def _play(self, run: Run) -> Outcome:
        outcome = Outcome(run, "nothing")
        began_s = time.monotonic()
        player = Player(self, run, outcome)
        try:
            async with asyncio.timeout(player.bound_s + 2 * BUSY_S):
                await player.play()
        except TimeoutError:
            outcome.faults.append("it did not end at all")
        except Exception as error:
            outcome.faults.append("".join(traceback.format_exception(error)))
        finally:
            self.server.faults.forget(player.reference_id)
            self.read.extend(player.read)
        outcome.seconds = time.monotonic() - began_s
        return outcome


class Player:
    """One run with its own video, state, clock and proxy. Mutable."""

    def __init__(self, matrix: Matrix, run: Run, outcome: Outcome) -> None:
        self.matrix, self.run, self.outcome = matrix, run, outcome
        self.site, self.failure = run.cell.site, run.cell.failure
        self.server, self.account = matrix.server, matrix.account
        self.reference_id = matrix.reference_id()
        self.is_in_child = self.failure.hook in child.SIGNALS
        self.store = self._new_store()
        self.state = FailingState(self.store)
        self.clock = JumpingClock()
        self.read: list[sinks.Sink] = []
        self.retried: Counter[str] = Counter()
        self.hit_count = 0
        self.integrity_error_count = 0
        self.is_armed = False
        self.is_hit = False
        self.proxy: FaultProxy | None = None
        self.detour_url = ""
        self.task: asyncio.Task[UploadResult | None] | None = None
        self.damaged: DamagedFile | None = None
        self.video_id: str | None = None
        self.data = matrix.data[: PART - 9] if self.site.part_count == 1 else matrix.data
        self.path = matrix.source

    def _new_store(self) -> StateStore:
        return SqlState(self._state_path) if self.is_in_child else MemoryState()

    @property
    def _state_path(self) -> Path:
        return self.matrix.folder / self.reference_id / "state.db"

    # --- the run ------------------------------------------------------------------------

    @property
    def bound_s(self) -> float:
        """How long a run that is hit may take: every call in doubt uses its timeouts up.

        Creating makes three attempts, each followed by a search; completing may be
        followed by settling, restarting twice and completing again.
        """
        calls = 7 if self.site.service == "vod" else 4
        return BUSY_S + calls * SHORT.call_s

    async def play(self) -> None:
        """Lead an upload to the site, hit it, let it recover, and judge all that."""
        self._prepare_source()
        try:
            await self._play()
        finally:
            if self.damaged is not None:
                self.damaged.clean_up()

    async def _play(self) -> None:
        for fault in self.site.leads:
            self.server.faults.add(replace(fault, subject=self.reference_id))
        if self.site.is_later:
            await self._interrupted_run()
        if self.site.knows_video:
            self._make_video()
        async with AsyncExitStack() as stack:
            await self._arm(stack)
            ended = await self._faulty_rounds()
            self._disarm()
            if self.proxy is not None:
                await self.proxy.settled()
        if not await self._is_done(ended):
            ended = await self._clean_run(ended)
        await self._judge(ended)

    async def _faulty_rounds(self) -> object:
        ended: object = None
        for _ in range(ROUNDS[self.run.persistence] if self.failure.ends_a_run else 1):
            began_s, self.is_armed = time.monotonic(), True
            if self.site.name == "source-open":
                self._inject()
            ended = await self._faulty_attempt()
            took_s = time.monotonic() - began_s
            if took_s > self.bound_s:
                self.outcome.faults.append(f"took {took_s:.1f} s, more than {self.bound_s:.1f}")
            self._restore()
            if ended == "finished" or await self._is_done(ended):
                break
        self.outcome.ended = self._named(ended)
        return ended

    async def _faulty_attempt(self) -> object:
        if not self.is_in_child:
            return await self._attempt(SHORT)
        code = await child.exit_code_of(
            self._call(), self.path, self._state_path, self.site.name, self.failure.hook
        )
        if code in (-child.SIGNALS[self.failure.hook], child.INTERRUPTED):
            self.hit_count += 1
            return f"ended by {child.SIGNALS[self.failure.hook].name}"
        return "finished" if code == 0 else "failed"

    async def _attempt(self, timeouts: Timeouts, *, is_abort: bool | None = None) -> object:
        """Perform the caller's request once; return the result, the error, or the cancellation."""
        self.task = asyncio.ensure_future(
            run_once(
                self._call(is_abort=is_abort),
                self._source(),
                self.state,
                timeouts,
                before=self._before,
                on_event=self._on_event,
                clock=self.clock,
            )
        )
        try:
            return await self.task
        except VodupError as error:
            self._check_error(error)
            return error
        except asyncio.CancelledError as cancelled:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                self.task.cancel()
                raise
            return cancelled

    def _call(self, *, is_abort: bool | None = None) -> UploadCall:
        is_abort = self.site.verb == "abort" if is_abort is None else is_abort
        name = self.reference_id
        return UploadCall(self.account, name, name, self.video_id, is_abort)

    def _source(self) -> Source:
        source = FileSource(self.path)
        if self.failure.hook != "unreadable":
            return source
        return UnreadableSource(source, lambda: self.is_armed and self.is_hit)

    # --- before -------------------------------------------------------------------------

    def _prepare_source(self) -> None:
        is_damaged = self.failure.hook in DamagedFile.KINDS
        if is_damaged or self.site.part_count == 1:
            self.path = self.matrix.folder / f"{self.reference_id}.mp4"
            self.path.write_bytes(self.data)
            self.damaged = DamagedFile(self.path, self.data)

    async def _interrupted_run(self) -> None:
        """Six parts arrive, the seventh is refused for good."""
        refused = Fault(
            action="error", operation="UploadPart", part=7, status=400, code="EntityTooLarge",
            count=None, subject=self.reference_id,
        )  # fmt: skip
        self.server.faults.add(refused)
        ended = await self._attempt(LONG, is_abort=False)
        self.server.faults.forget(self.reference_id)
        assert isinstance(ended, VodupError), f"the first run was to fail: {ended}"
        record = await self._record()
        assert record is not None
        assert record.phase is Phase.UPLOADING

    def _make_video(self) -> None:
        """Another service has called CreateUploadVideo."""
        name = f"sv/{self.reference_id}/a"
        video = Video(
            video_id=hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(),
            title=self.reference_id,
            file_name="movie.mp4",
            bucket=self.server.backend.bucket,
            object_key=f"{name}.mp4",
            object_prefix="",
            reference_id=self.reference_id,
            status="Uploading",
            created_at=time.time(),
            finished_at=0.0,
            generation=0,
            refresh_count=0,
        )
        self.server.backend.storage.save_video(video)
        self.video_id = video.video_id

    async def _arm(self, stack: AsyncExitStack) -> None:
        if (fault := self.failure.fault(self.site)) is not None:
            self.server.faults.add(self._placed(fault))
        if self.failure.toxic is not None:
            self.proxy = await stack.enter_async_context(self._proxy(self._placed_toxic()))
        if self.failure.detour:
            self.detour_url = await self._open_detour(stack)
        if self.site.name.startswith("state-"):
            self.state.arm(self.site.name.removeprefix("state-"), self.failure.hook)

    def _placed(self, fault: Fault) -> Fault:
        attempt = self.site.attempt
        location = self.matrix.elsewhere if fault.location == "elsewhere" else fault.location
        return replace(
            fault,
            operation=self.site.operation,
            part=self.site.part,
            attempt=attempt,
            subject=self.reference_id,
            count=self.run.hit_count,
            location=location,
            name=self.reference_id,
        )

    def _placed_toxic(self) -> Toxic:
        """The failure's toxic at this site. Requests without a part are hit in their heads."""
        assert self.failure.toxic is not None
        toxic = replace(self.failure.toxic, pattern=self.site.pattern, count=self.run.hit_count)
        if toxic.direction == "down":
            return toxic
        if self.site.body == "part":
            after = 50_000 if toxic.action == "corrupt" else toxic.after
            return replace(toxic, in_body=after > 0, after=after)
        if toxic.action == "corrupt":
            return replace(toxic, find=rb"Signature=\w")
        return replace(toxic, after=min(toxic.after, 40))

    def _proxy(self, *toxics: Toxic, tls: ssl.SSLContext | None = None) -> FaultProxy:
        upstream = urlsplit(self.account.endpoint(self.site))
        return FaultProxy(
            upstream.hostname or "", upstream.port or 0, *toxics,
            receive_buffer=self.failure.receive_buffer, tls=tls,
        )  # fmt: skip

    async def _open_detour(self, stack: AsyncExitStack) -> str:
        match self.failure.detour:
            case "closed":
                return await stack.enter_async_context(closed_port())
            case "silent":
                return await stack.enter_async_context(unreachable())
            case "no-name":
                return f"http://{_NO_SUCH_NAME}"
            case "wrong-certificate":
                proxy = self._proxy(tls=self.matrix.tls)
            case "tls-abort":
                proxy = self._proxy(Toxic(action="tls_abort", count=None))
            case _:
                proxy = self._proxy(Toxic(action="slow_accept", delay_s=0.2, count=None))
        url = (await stack.enter_async_context(proxy)).url
        return url.replace("http:", "https:") if self.failure.detour == "tls-abort" else url

    # --- during -------------------------------------------------------------------------

    def _before(self, request: SignedRequest) -> SignedRequest:
        """What happens as a request goes out."""
        if not self.is_armed:
            return request
        if self.account.is_at(self.site, request) and self._may_hit():
            if self.failure.hook:
                self._inject()
            if self.detour_url:
                self.hit_count += 1
                return self._sent_to(self.detour_url, request)
        if self.proxy is not None and request.url.startswith(self.account.endpoint(self.site)):
            return self._sent_to(self.proxy.url, request)
        return request

    def _sent_to(self, url: str, request: SignedRequest) -> SignedRequest:
        """Send it there under the name that it was signed for."""
        endpoint = self.account.endpoint(self.site)
        headers = {**request.headers, "host": urlsplit(endpoint).netloc}
        return replace(request, url=url + request.url.removeprefix(endpoint), headers=headers)

    def _may_hit(self) -> bool:
        if self.failure.ends_a_run:
            return not self.is_hit
        return self.run.hit_count is None or self.hit_count < self.run.hit_count

    def _inject(self) -> None:
        self.hit_count += 1
        self.is_hit = True
        hook = self.failure.hook
        if hook == "cancel" and self.task is not None:
            asyncio.get_running_loop().call_later(0.002, self.task.cancel)
        elif hook.startswith("clock"):
            step_s = 3600.0 if hook == "clock ahead" else -3600.0
            self.clock.ahead_s = 0.0 if self.clock.ahead_s else step_s
        elif hook == "block":
            time.sleep(2 * SHORT.stall_s)
        elif self.damaged is not None:
            self.damaged.damage(hook)

    def _restore(self) -> None:
        """End the failure, until the next round."""
        self.is_armed = self.is_hit = False
        if self.damaged is not None:
            self.damaged.restore()

    def _disarm(self) -> None:
        self._restore()
        self.clock.ahead_s = 0.0
        self._count_hits()
        self.state.disarm()
        self.server.faults.forget(self.reference_id)

    def _count_hits(self) -> None:
        consumed = self.server.faults.consumed
        self.hit_count += self.state.hit_count + consumed.get(self.reference_id, 0)
        self.hit_count += self.proxy.consumed if self.proxy is not None else 0
        self.outcome.was_hit = self.hit_count > 0

    def _on_event(self, event: Event) -> None:
        if isinstance(event, RequestRetried):
            self.retried[event.operation] += 1
        self._scan(sinks.of_event(event))

    def _scan(self, found: Iterable[sinks.Sink]) -> None:
        """Have something looked through for secrets, once the run is over."""
        self.read.extend(found)

    # --- after --------------------------------------------------------------------------

    async def _record(self) -> UploadRecord | None:
        async with self.store as store:
            return await store.find(key=self.reference_id)

    async def _is_done(self, ended: object) -> bool:
        if self.site.verb == "abort":
            record = await self._record()
            return record is not None and record.phase is Phase.ABORTED
        return isinstance(ended, UploadResult)

    async def _clean_run(self, ended: object) -> object:
        """Run again without faults: what is resumable must complete."""
        if isinstance(ended, VodupError) and not ended.is_resumable:
            self.outcome.faults.append(f"not resumable: {ended!r}")
        again = await self._attempt(LONG)
        if not await self._is_done(again):
            self.outcome.faults.append(
                f"ended with {self._named(ended)}, and again with {self._named(again)}: {again}"
            )
        return again

    def _named(self, ended: object) -> str:
        if isinstance(ended, VodupError):
            return type(ended).__name__
        if isinstance(ended, asyncio.CancelledError):
            return "cancelled"
        if ended is None:
            return "aborted" if self.site.verb == "abort" else "nothing"
        return ended if isinstance(ended, str) else "verified"

    def _check_error(self, error: VodupError) -> None:
        """Everything that can be read off an error."""
        self._scan(sinks.of_error(error))
        self.integrity_error_count += isinstance(error, IntegrityError)
        if error.phase is None or not error.next_step:
            self.outcome.faults.append(f"{error!r} does not say where it happened")

    async def _judge(self, ended: object) -> None:
        self._read_checkpoint()
        self._scan(sinks.of_process())
        if (record := await self._record()) is not None:
            self._scan(sinks.of_value("record", record))
        if isinstance(ended, UploadResult):
            self._judge_result(ended)
            self._scan(sinks.of_value("result", ended))
            self._scan([("result: json", json.dumps(asdict(ended)))])
        self._judge_recovery()
        self._judge_corruption()
        await self._judge_server()

    def _read_checkpoint(self) -> None:
        """Scan what is on the disk, too."""
        for path in self._state_path.parent.rglob("*"):
            if path.is_file():
                self._scan([(f"disk: {path.suffix}", path.read_bytes().decode("latin-1"))])

    def _judge_result(self, result: UploadResult) -> None:
        versions = self.damaged.versions if self.damaged else [self.data]
        if self.stored_bytes(result.video_id) not in versions:
            self.outcome.faults.append("success, but the object is not the source")
        if result.size != len(self.data):
            self.outcome.faults.append(f"success, but of {result.size} bytes")

    def _judge_recovery(self) -> None:
        """Where the table says that the first run recovers from one hit, it does."""
        is_due = self.run.persistence == "once" and self.failure.recovers
        is_recovered = self.outcome.ended in ("verified", "aborted")
        if is_due and self.site.name not in self.failure.except_at and not is_recovered:
            self.outcome.faults.append(f"did not recover from one hit: {self.outcome.ended}")

    def _judge_corruption(self) -> None:
        """Bytes that never arrive intact, or are not kept so, are never a success."""
        # Where only the answer to PutObject is wrong, a look shows that the object is intact.
        damaging = ("T20",) if self.site.name == "put" else ("T20", "T21", "A14-crc")
        is_damaged = self.site.body == "part" and self.failure.name in damaging
        is_rotten = self.failure.name == "A14-rot"
        is_due = is_rotten or (is_damaged and self.run.persistence == "for ever")
        if is_due and self.outcome.ended != "IntegrityError":
            self.outcome.faults.append(f"damaged, yet {self.outcome.ended}")

    async def _judge_server(self) -> None:
        storage = self.server.backend.storage
        video = storage.video_by_reference(self.reference_id)
        if video is None:
            return
        names = {video.video_id, self.reference_id}
        records = [r for r in list(self.server.stats.log) if {r.video_id, r.subject} & names]
        self._judge_requests(records)
        self._judge_rework(records)
        completed_count = self.server.stats.completes_by_video[video.video_id]
        if completed_count > 1 + self.integrity_error_count + self.run.cell.is_doubt_allowed:
            self.outcome.faults.append(f"completed {completed_count} times")
        left = [u for u in storage.uploads(video.bucket) if u.object_key == video.object_key]
        initiated_count = sum(r.operation == "InitiateMultipartUpload" for r in records)
        if len(left) > await self._may_leave(initiated_count):
            self.outcome.faults.append(f"{len(left)} multipart uploads are left open")

    def _judge_requests(self, records: list[RequestRecord]) -> None:
        bad = [r.operation for r in records if r.code == "SignatureDoesNotMatch" and not r.faults]
        if bad and self.failure.name != "T20":
            self.outcome.faults.append(f"badly signed: {bad}")

    def _judge_rework(self, records: list[RequestRecord]) -> None:
        """A run that is ended sends at most what was under way again, in the next one."""
        if self.failure.hook != "cancel" and not self.is_in_child:
            return
        stored = Counter(
            (r.upload_id, r.part_number)
            for r in records
            if r.operation == "UploadPart" and r.status == 200
        )
        again_count = sum(times - 1 for times in stored.values())
        if again_count > CONCURRENCY * ROUNDS[self.run.persistence] + self.retried.total():
            self.outcome.faults.append(f"{again_count} parts were sent again")

    async def _may_leave(self, initiated_count: int) -> int:
        """How many uploads may stay: those recorded as orphans, and those recorded nowhere.

        The answer of Initiate may be lost, or the process that waited for it.
        """
        async with self.store as store:
            orphan_count = len(await store.orphans())
        unknown_count = self.retried["InitiateMultipartUpload"]
        if self.site.name == "init":
            unknown_count += self.hit_count
        if self.is_in_child:
            unknown_count += max(0, initiated_count - 1)
        return orphan_count + unknown_count

    def stored_bytes(self, video_id: str) -> bytes | None:
        """The object behind a video; its files are deleted once they were read."""
        storage = self.server.backend.storage
        video = storage.video(video_id)
        stored = storage.object(video.bucket, video.object_key) if video else None
        if stored is None:
            return None
        paths = [storage.body_path(name) for name, _ in stored.files]
        found = b"".join(path.read_bytes() for path in paths if path is not None)
        for path in paths:
            if path is not None:
                path.unlink(missing_ok=True)
        return found
