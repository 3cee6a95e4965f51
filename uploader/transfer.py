"""From a recorded upload with a target to a verified object."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from uploader.credentials import GrantSource, LiveGrant, PlainSigner
from uploader.errors import (
    ConfigurationError,
    IntegrityError,
    OverwriteRefused,
    PermissionDenied,
    ServiceError,
    SourceChanged,
    SourceNotRepeatable,
    StateError,
    UnverifiedCompletion,
    UploadTargetChanged,
    VideoGone,
    VodupError,
)
from uploader.events import (
    PartsAdopted,
    UploadFinished,
    UploadProgress,
    UploadRestarted,
    UploadResult,
    UploadStarted,
)
from uploader.evidence import ABSENT, NOTHING, Proof, Receipts, Stored
from uploader.following import Following
from uploader.log import get_logger
from uploader.opening import Job, changes_of, is_one_request, new_plan, plan_of
from uploader.protocol import oss
from uploader.protocol.failures import OSS, Meaning, is_target_refused, is_vanished
from uploader.protocol.grants import UploadGrant, UploadTarget
from uploader.protocol.integrity import same_etag
from uploader.protocol.oss import ListedPart, ObjectFacts
from uploader.protocol.plan import MAX_OBJECT_SIZE, Part, Plan
from uploader.protocol.signing import OssDialect
from uploader.protocol.vod import VideoFacts
from uploader.protocol.wire import Body, Operation, SentBody, Signer
from uploader.session import Session
from uploader.sources import Fingerprint
from uploader.state import Journal, PartAck, Phase
from uploader.tasks import beside, one_error

__all__ = ["Transfer", "Vanished", "store"]

T = TypeVar("T")

_PROGRESS_INTERVAL_S = 0.25
_MAX_RESTARTS = 2
"""A multipart upload that vanishes more often in one run is being removed by somebody."""
_MAX_LIST_PAGES = 20

_PATIENCE_S = 0.05
"""How long a receipt waits for others to share a commit with: at 125 parts a second that spares
half of what the state costs. What a kill may lose of them is found again in OSS's list."""
_MOST_UNKEPT = 64
"""Receipts on their way to the disk. Too large: a state that stalls leaves more to find again."""

_PIECE_SIZE = 512 * 1024
"""What the transport hands to the network at once."""


class Vanished(Exception):
    """The multipart upload is not there any more; all parts must be sent again."""

    def __init__(self, reason: str, failure: VodupError, *, is_damaged: bool = False) -> None:
        """`is_damaged`: it was completed, and its object is not what was sent."""
        super().__init__(reason)
        self.reason, self.failure, self.is_damaged = reason, failure, is_damaged


class _Fenced:
    """Signs only while the upload is certainly ours: each attempt, after whatever it waited for.

    OSS knows no epoch. A process that was frozen, or cut off from its state, may find that
    another one has gone on with the upload, which a late Abort would destroy.
    """

    def __init__(self, signer: Signer, journal: Journal) -> None:
        self._signer, self._journal = signer, journal
        self.sign, self.accepted = signer.sign, signer.accepted
        self.is_aged, self.renew = signer.is_aged, signer.renew

    async def prepare(self) -> None:
        """As the signer does; then make sure that the upload is ours."""
        await self._signer.prepare()
        await self._journal.confirm()

    def is_ready(self) -> bool:
        """Whether both still hold, now that there is a slot."""
        return self._journal.is_certainly_ours and self._signer.is_ready()


class Transfer:
    """Sends, completes and verifies one upload.

    Mutable state: the receipts so far, the credentials in use, whether OSS leaves us in
    need of MD5s, and whether what it has of ours can be learned from its list (None:
    unknown).
    """

    def __init__(self, job: Job, grant: UploadGrant | None, *, is_new: bool = False) -> None:
        """`grant` may have run out or be missing: it is renewed when first needed.

        `is_new`: it is this run that wrote the target down, so nothing has been sent yet.
        """
        self._job, self._clock = job, job.network.clock
        self._journal, self._progress, self._source = job.journal, job.progress, job.source
        self._began_s = self._clock.elapsed_s()
        self._is_new = is_new
        self._target = _target_of(job)
        self._live = self._live_grant(grant)
        self._oss = self._session(self._live)
        self._oss_for_good = self._session(_Fenced(self._live, self._journal))
        self._receipts = self._known_receipts()
        self._resumed_part_count = 0
        self._needs_md5 = False
        self._is_listed: bool | None = None
        self._has_started = False

    def _live_grant(self, grant: UploadGrant | None) -> LiveGrant:
        options = self._job.options
        return LiveGrant(
            self._target,
            self._renew if self._job.grants else None,
            clock=self._clock,
            dialect=OssDialect(options.oss_region, options.signature, options.is_cname),
            grant=grant,
            on_renewed=self._progress.renewed,
        )

    async def _renew(self) -> UploadGrant:
        record = self._job.record
        if record.video_id is None:
            raise ConfigurationError("Without a VideoId nothing can be renewed.")
        return await self._job.require_grants().renew(record.video_id)

    def _session(self, signer: Signer) -> Session:
        network = self._job.network
        return Session(
            network.transport,
            signer,
            clock=self._clock,
            service=OSS,
            slot=partial(network.pace.slot, self._job.key, going=self._job.asked.going),
            slow_down=network.pace.slow_down,
            retry=network.retry,
            on_retry=network.on_retry,
        )

    async def _call(self, operation: Operation[T]) -> T:
        return await self._oss.call(operation)

    async def _call_for_good(self, operation: Operation[T]) -> T:
        """Ask for what cannot be taken back: never after another process took over."""
        return await self._oss_for_good.call(operation)

    def _known_receipts(self) -> Receipts | None:
        record = self._job.record
        if record.plan is None:
            return None
        plan = plan_of(record.plan)
        is_put = is_one_request(plan) and record.upload_id is None
        return Receipts(plan, self._journal.acks.values(), is_put=is_put)

    @property
    def _sent(self) -> Receipts:
        if self._receipts is None:  # pragma: no cover - start_or_resume() comes first
            raise RuntimeError("start_or_resume() makes the plan")
        return self._receipts

    @property
    def _upload_id(self) -> str:
        if (upload_id := self._job.record.upload_id) is None:  # pragma: no cover - the same
            raise RuntimeError("start_or_resume() gets the UploadId")
        return upload_id

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Keep credentials fresh and report progress for as long as the block runs.

        Not for what leaves in one piece: there is nothing in between to report, and its one
        request renews by itself what has run out.
        """
        if self._sent_at_once():
            yield
            return
        async with beside(self._live.keep_fresh(), self._report_progress()):
            yield

    def _sent_at_once(self) -> bool:
        sent = self._receipts
        return sent is not None and sent.is_put and sent.plan.size <= _PIECE_SIZE

    # --- after a crash around Complete --------------------------------------------------

    async def settle_at_vod(self) -> Stored | None:
        """Before asking VOD for credentials, ask whether the video is finished by now.

        If it is, a refresh would open an overwrite; then only the object itself, read
        through a URL of VOD's, can prove what it holds. None: go on as usual.
        """
        job, record = self._job, self._job.record
        may_overwrite = record.is_overwrite or job.asked.overwrite
        if self._is_new or may_overwrite or job.asked.grant:
            return None
        if job.grants is None or record.video_id is None:
            return None
        self._progress.phase = "settle"
        # A run that ended within `restart` was not completing any more.
        if record.phase is not Phase.COMPLETING or self._receipts is None:
            await self._refuse_finished_elsewhere(job.grants, record.video_id)
            return None
        facts = await job.grants.facts(record.video_id)
        if facts is None or facts.is_waiting:
            return None
        stored = await self._by_url(facts)
        finished = (
            f"VOD has finished video {record.video_id} (status {facts.status}, {facts.size} bytes) "
            "after a run that ended while completing it"
        )
        if stored is None:
            raise UnverifiedCompletion(f"{finished}; its bytes could not be compared.")
        if not self._sent.describe(stored.facts):
            raise IntegrityError(
                f"{finished}, but its file is not what was sent.",
                next_step="Pass --overwrite (overwrite=True) to send it again in its place.",
            )
        self._resumed_part_count = len(self._sent)
        return stored

    async def _refuse_finished_elsewhere(self, grants: GrantSource, video_id: str) -> None:
        """Our Complete was never sent. What VOD cannot tell stands in nobody's way."""
        try:
            facts = await grants.facts(video_id)
        except VideoGone:
            raise
        except VodupError as error:
            get_logger(key=self._job.key).info("video.not_known", reason=error.message)
            return
        if facts is not None and not facts.is_waiting and facts.size != 0:
            raise OverwriteRefused(
                f"Video {video_id} is finished (status {facts.status}), and not by this upload; "
                "going on would replace its content and may start transcoding again."
            )

    async def _by_url(self, facts: VideoFacts) -> Stored | None:
        """The object behind VOD's URL, with figures to compare; None where it has none."""
        if facts.file_url is None:
            return None
        await self._read_put_receipt()
        stored = await self._look_by_url(facts.file_url)
        if stored is None or (stored.facts.crc64 is None and stored.facts.etag is None):
            return None
        return await self._with_figures(stored)

    async def _read_put_receipt(self) -> None:
        """Where the answer to PutObject was lost there is no receipt: the source tells it."""
        part = self._sent.plan.parts[-1]
        if self._sent.is_put and part.number not in self._sent:
            crc64, md5 = await self._source.read_crc(part.offset, part.size, with_md5=True)
            self._sent.keep(PartAck(part.number, part.size, md5 or "", crc64, md5))

    async def _look_by_url(self, url: str) -> Stored | None:
        """Read the object's facts through a URL signed by VOD; None if that does not work."""
        try:
            if not self._job.network.trust.allow_loopback:
                url = re.sub("^http:", "https:", url)  # VOD's URLs are plain; OSS takes both
            parts = urlsplit(url)
            host = parts.netloc.removeprefix(f"{self._target.bucket}.")
            self._job.network.trust.check_endpoint("OSS", f"{parts.scheme}://{host}")
            return Stored(await self._session(PlainSigner()).call(oss.read_signed_url(url)), "-url")
        except (VodupError, ValueError) as error:  # ValueError: it is no URL at all
            get_logger(key=self._job.key).info("object.not_readable", reason=str(error))
            return None

    # --- start or resume ----------------------------------------------------------------

    async def start_or_resume(self) -> None:
        """Make sure there is a plan and an UploadId, and know which parts OSS has."""
        self._progress.phase = "start"
        is_resumed = self._receipts is not None and not self._is_new
        if self._receipts is None:
            await self._journal.set_plan(self._new_plan().to_text())
            self._receipts = self._known_receipts()
        if self._sent.is_put:
            if is_resumed:
                await self._settle_put()
        elif self._job.record.upload_id is None:
            operation = oss.initiate_multipart_upload(self._target, self._headers())
            with self._target_watched():
                upload_id = await self._call(operation)
            await self._record_upload(upload_id)
        else:
            await self._reconcile()
        self._resumed_part_count = len(self._sent)
        self._tell_started(is_resumed=is_resumed)

    async def _record_upload(self, upload_id: str) -> None:
        """Parts cost money from here on: the UploadId is durable before the first of them."""
        try:
            await self._journal.set_upload_id(upload_id)
        except StateError:
            # Nobody else knows it, so nobody could remove it later.
            with suppress(VodupError):
                await self._call(oss.abort_multipart_upload(self._target, upload_id))
            raise

    def _new_plan(self) -> Plan:
        return new_plan(self._job)

    def _headers(self) -> dict[str, str]:
        notification = self._job.options.notification
        return {"x-oss-notification": notification} if notification else {}

    async def _reconcile(self) -> None:
        """Compare our receipts with what OSS lists. Without permission ours must do."""
        try:
            listed, is_whole = await self._list_parts()
        except PermissionDenied:
            self._is_listed = False
            return
        except ServiceError as error:
            if is_vanished(error) and self._job.record.phase is not Phase.COMPLETING:
                raise Vanished("OSS does not know the UploadId any more", error) from None
            if is_vanished(error):
                return  # perhaps completed: `complete` settles it
            raise
        self._is_listed = self._source.stream is None
        self._sent.drop_unlike(listed)
        if is_whole:
            self._sent.drop_unlisted(listed)
        await self._adopt(listed)

    async def _list_parts(self) -> tuple[dict[int, ListedPart], bool]:
        """All parts OSS lists, and whether its pages came to an end.

        After the first page the others are asked for at the same time: a page that begins
        behind part n holds at least the parts n + 1 to n + 1,000.
        """
        end = self._sent.plan.part_count
        listed, begun = await self._list_page(0)
        if begun is None or begun >= end:
            return listed, True
        async with one_error() as group:
            tasks = [
                group.create_task(self._list_range(start, min(start + oss.LIST_PAGE_SIZE, end)))
                for start in range(begun, end, oss.LIST_PAGE_SIZE)
            ]
        for task in tasks:
            listed |= task.result()[0]
        return listed, all(task.result()[1] for task in tasks)

    async def _list_range(self, start: int, end: int) -> tuple[dict[int, ListedPart], bool]:
        """The parts start + 1 to `end` at least, and whether the pages got that far."""
        listed: dict[int, ListedPart] = {}
        marker = start
        for _ in range(_MAX_LIST_PAGES):
            page, following = await self._list_page(marker)
            listed |= page
            if following is None or following >= end:
                return listed, True
            if following <= marker:
                break
            marker = following
        return listed, False

    async def _list_page(self, marker: int) -> tuple[dict[int, ListedPart], int | None]:
        page = await self._call(oss.list_parts(self._target, self._upload_id, marker=marker))
        return {part.number: part for part in page.parts}, page.next_marker

    async def _adopt(self, listed: dict[int, ListedPart]) -> None:
        """Keep parts whose answers were lost, if the source proves to hold their bytes."""
        if self._source.stream is not None:
            return  # its bytes are not there yet; what has a receipt is compared as they come
        adopted_count = 0
        for part in self._sent.missing():
            known = listed.get(part.number)
            if known is not None and (ack := await self._prove(part, known)) is not None:
                await self._keep(ack)
                adopted_count += 1
        if adopted_count:
            progress = self._progress
            progress.tell(
                PartsAdopted(key=progress.key, video_id=progress.video_id, part_count=adopted_count)
            )

    async def _prove(self, part: Part, listed: ListedPart) -> PartAck | None:
        if listed.size != part.size:
            return None
        needs_md5 = listed.crc64 is None
        crc64, md5 = await self._source.read_crc(part.offset, part.size, with_md5=needs_md5)
        is_md5_same = md5 is not None and same_etag(md5, listed.etag)
        if not (is_md5_same if needs_md5 else crc64 == listed.crc64):
            return None
        return PartAck(part.number, part.size, listed.etag, crc64, md5)

    async def _settle_put(self) -> None:
        """A PutObject whose answer was lost may have been carried out."""
        if self._job.record.phase is not Phase.COMPLETING:
            return
        await self._read_put_receipt()
        stored = await self._look()
        if stored is None or not self._sent.describe(stored.facts):
            self._sent.drop(self._sent.plan.part_count)

    def _tell_started(self, *, is_resumed: bool) -> None:
        record, sent = self._job.record, self._sent
        self._has_started = True
        self._progress.tell(
            UploadStarted(
                key=record.key,
                video_id=record.video_id,
                source=record.source,
                size=sent.plan.size,
                part_count=0 if sent.plan.is_open else sent.plan.part_count,
                done_bytes=sent.size,
                resumed_part_count=len(sent),
                upload_id=record.upload_id,
                is_resumed=is_resumed,
            )
        )

    # --- send what arrives ---------------------------------------------------------------

    async def follow_source(self) -> None:
        """Send what arrives until the source has ended; most sources are there as a whole."""
        plan, stream = self._sent.plan, self._source.stream
        is_all_there = not plan.is_open and not self._sent.missing()
        if stream is None or is_all_there or self._sent.is_put:
            return
        self._progress.phase = "send"
        following = Following(
            source=self._source,
            stream=stream,
            plan=plan,
            sent=self._sent,
            send=self._send_and_keep,
            concurrency=self._job.network.pace.max_concurrency,
        )
        with self._target_watched():
            size, sent_of = await following.to_the_end(self._job.record.reference_id or "")
        if plan.is_open:
            await self._close(plan.closed(size), sent_of)

    async def _close(self, plan: Plan, fingerprint: Fingerprint) -> None:
        """Write down where the source has ended: from here on it is like any other."""
        await self._journal.close_stream(
            plan.to_text(), size=plan.size, fingerprint=fingerprint.to_text()
        )
        self._receipts = self._sent.under(plan)

    # --- send the missing parts ---------------------------------------------------------

    async def send_missing_parts(self) -> None:
        """Send every part OSS has not confirmed, several at a time."""
        if not self._sent.is_put:
            await self._send_all(self._sent.missing())

    async def _send_all(self, missing: Sequence[Part]) -> None:
        self._progress.phase = "send"
        pending = iter(missing)
        unsent_count = len(missing)
        receipts: deque[asyncio.Task[None]] = deque()

        async def worker() -> None:
            nonlocal unsent_count
            for part in pending:  # a shared iterator: every part has exactly one worker
                ack, seconds = await self._send_part(part)
                unsent_count -= 1
                if not self._is_listed or not unsent_count:
                    await self._keep_sent(ack, seconds)
                    continue
                # A kill loses nothing that OSS lists, so the connection goes on meanwhile.
                receipts.append(workers.create_task(self._keep_sent(ack, seconds, _PATIENCE_S)))
                if len(receipts) > _MOST_UNKEPT:
                    await asyncio.wait([receipts.popleft()])

        with self._target_watched():
            async with one_error() as workers:
                if self._is_listed is None and self._is_worth_asking(len(missing)):
                    workers.create_task(self._learn_whether_listed())
                for _ in range(min(len(missing), self._job.network.pace.max_concurrency)):
                    workers.create_task(worker())

    def _is_worth_asking(self, missing_count: int) -> bool:
        """Whether many receipts are to be written of what a list could tell again."""
        has_list = self._job.record.upload_id is not None and self._source.stream is None
        return has_list and missing_count > _MOST_UNKEPT

    async def _learn_whether_listed(self) -> None:
        """Ask OSS once for the parts it has: the credentials' policy may not allow that."""
        try:
            await self._list_page(0)
        except VodupError:
            self._is_listed = False
        else:
            self._is_listed = True

    async def _send_and_keep(self, part: Part) -> None:
        await self._keep_sent(*await self._send_part(part))

    async def _send_part(self, part: Part) -> tuple[PartAck, float]:
        """Store a part; its receipt, checked, and how long it took."""
        began_s = self._clock.elapsed_s()
        ack: PartAck | None = None
        while ack is None:
            body = self._source.body(part.offset, part.size, self._progress.watch(part.number))
            try:
                receipt, sent = await self._call(self._sending(part, body))
            except ServiceError as error:
                if is_vanished(error):
                    raise Vanished("OSS does not know the UploadId any more", error) from None
                raise
            ack = await self._accept(part, receipt, sent)
        seconds = self._clock.elapsed_s() - began_s
        self._live.record_part_time(seconds)
        return ack, seconds

    async def _keep_sent(self, ack: PartAck, seconds: float, patience_s: float = 0.0) -> None:
        await self._keep(ack, patience_s)
        self._progress.stored(ack.number, ack.size, seconds)

    def _sending(self, part: Part, body: Body) -> Operation[tuple[oss.PartReceipt, SentBody]]:
        """The request that stores a part."""
        return oss.upload_part(self._target, self._upload_id, part, body, needs_md5=self._needs_md5)

    async def _accept(self, part: Part, receipt: oss.PartReceipt, sent: SentBody) -> PartAck | None:
        """Turn OSS's receipt into ours; None if it proves nothing and the part goes again.

        A CRC-64 or MD5 that was there has been compared when the answer was parsed.
        Where OSS tells no CRC-64, the ETag must be the MD5, which is then computed: here
        by reading again, from the next part on while sending.
        """
        md5 = sent.md5
        if receipt.crc64 is None and md5 is None:
            self._needs_md5 = True
            crc64, md5 = await self._source.read_crc(part.offset, part.size, with_md5=True)
            if crc64 != sent.crc64 or md5 is None or not same_etag(md5, receipt.etag):
                return None
        return PartAck(part.number, part.size, receipt.etag, sent.crc64, md5)

    async def _keep(self, ack: PartAck, patience_s: float = 0.0) -> None:
        """Count a receipt and make it durable: this bounds rework."""
        self._sent.keep(ack)
        self._progress.arrived(ack.number)
        await self._journal.add_part(ack, patience_s=patience_s)

    @contextmanager
    def _target_watched(self) -> Iterator[None]:
        """Tell a target that VOD has moved from one that was never allowed."""
        try:
            yield
        except (PermissionDenied, ServiceError) as error:
            moved_to = self._live.moved_to
            if moved_to is None or not is_target_refused(error):
                raise
            if self._job.options.on_target_change == "restart":
                raise Vanished(f"VOD moved the upload to {moved_to.bucket}", error) from None
            raise UploadTargetChanged(
                f"VOD now names another bucket or key (bucket {moved_to.bucket}), and OSS refuses "
                f"the first: {error.message}",
                code=error.code,
                request_id=error.request_id,
            ) from None

    # --- complete -----------------------------------------------------------------------

    async def complete(self) -> Stored:
        """Make the parts an object. After this OSS has forgotten the UploadId."""
        self._progress.phase = "complete"
        await self._require_unchanged()
        if self._sent.is_put:
            return await self._put()
        try:
            with self._target_watched():
                return await self._join()
        except ServiceError as error:
            if is_vanished(error):
                return await self._settle_vanished(error)
            if OSS.meaning(error) is Meaning.REPAIR:
                return await self._repair(error)
            if OSS.meaning(error) is Meaning.STORED:
                return await self._look() or Stored(NOTHING)
            raise

    async def _require_unchanged(self) -> None:
        """A file rewritten while it was sent would be stored as a mixture of the two."""
        now = await self._source.fingerprint()
        record = self._job.record
        if now.to_text() != record.fingerprint:
            raise SourceChanged(
                f"{self._source.name} changed while it was sent ({changes_of(record, now)}).",
                next_step="Nothing was completed. Put the original back and run the same command, "
                f"or give this upload up with `vodup abort {record.key}` and start anew.",
            )

    async def _join(self) -> Stored:
        etags = [(ack.number, ack.etag) for ack in self._sent.in_order()]
        await self._journal.start_completing()
        headers = self._headers()
        return Stored(
            await self._call_for_good(
                oss.complete_multipart_upload(self._target, self._upload_id, etags, headers)
            )
        )

    async def _repair(self, failure: ServiceError) -> Stored:
        """Send again what OSS lists otherwise than we do, then complete once more."""
        await self._journal.stop_completing()
        await self._reconcile()
        if not self._sent.missing():
            raise Vanished(f"OSS cannot join the parts ({failure.code})", failure)
        await self.send_missing_parts()
        return await self._join()

    async def _put(self) -> Stored:
        """Store the last part with one PutObject, unless that turned out to have happened."""
        part = self._sent.plan.parts[-1]
        if part.number in self._sent:
            known = self._sent.in_order()[-1]
            return Stored(ObjectFacts(known.etag or None, known.crc64, known.size, ""), "-head")
        if self._job.record.phase is not Phase.COMPLETING:
            await self._journal.start_completing()
        began_s = self._clock.elapsed_s()
        ack: PartAck | None = None
        while ack is None:
            body = self._source.body(part.offset, part.size, self._progress.watch(part.number))
            operation = oss.put_object(
                self._target, body, self._headers(), needs_md5=self._needs_md5
            )
            try:
                with self._target_watched():
                    receipt, sent = await self._call_for_good(operation)
            except IntegrityError:
                # What is there now is no earlier run's success: the next one sends it again.
                await self._journal.restart(overwrite=True)
                raise
            except ServiceError as error:
                if OSS.meaning(error) is not Meaning.STORED:
                    raise
                await self._read_put_receipt()
                return await self._look() or Stored(NOTHING)
            ack = await self._accept(part, receipt, sent)
        # Not written down by itself: `verify` follows at once, and its receipt says it all.
        self._sent.keep(ack)
        self._progress.arrived(part.number)
        self._progress.stored(part.number, part.size, self._clock.elapsed_s() - began_s)
        return Stored(ObjectFacts(receipt.etag, receipt.crc64, part.size, receipt.request_id))

    # --- what a lost answer left open ---------------------------------------------------

    async def _settle_vanished(self, failure: VodupError) -> Stored:
        """NoSuchUpload at Complete: done, or gone? Decide by what the object is, if any."""
        self._progress.phase = "settle"
        stored = await self._look()
        if stored is None:
            stored = await self._look_at_vod()
        if stored is not None and (stored.facts == NOTHING or self._sent.describe(stored.facts)):
            return stored
        is_damaged = stored is not None and stored.facts != ABSENT
        reason = "the upload was gone before it was completed"
        raise Vanished(reason, failure, is_damaged=is_damaged)

    async def _look(self) -> Stored | None:
        """HEAD the object; None where we may not."""
        try:
            return Stored(await self._call(oss.head_object(self._target)), "-head")
        except PermissionDenied:
            return None
        except ServiceError as error:
            if OSS.meaning(error) is Meaning.ABSENT:
                return Stored(ABSENT, "-head")
            raise

    async def _look_at_vod(self) -> Stored | None:
        """Ask VOD where OSS does not let us look. None: VOD still waits for the file."""
        job = self._job
        video_id = job.record.video_id
        facts = await job.grants.facts(video_id) if job.grants and video_id else None
        if facts is None:
            return Stored(NOTHING)
        if facts.is_waiting:
            return None
        stored = await self._by_url(facts)
        return stored if stored and self._sent.describe(stored.facts) else Stored(NOTHING)

    async def restart(self, gone: Vanished) -> None:
        """Begin a new multipart upload under the same VideoId."""
        lost_bytes = self._sent.size
        if self._live.moved_to is not None and is_target_refused(gone.failure):
            await self._move(self._live.moved_to)
        else:
            await self._journal.restart(overwrite=gone.is_damaged)
        self._receipts = None
        progress = self._progress
        progress.tell(
            UploadRestarted(
                key=progress.key,
                video_id=progress.video_id,
                reason=gone.reason,
                lost_bytes=lost_bytes,
            )
        )

    async def forget_damaged(self, gone: Vanished) -> None:
        """Let the next run replace an object of ours that is not what was sent."""
        if gone.is_damaged:
            await self._journal.restart(overwrite=True)

    async def _move(self, target: UploadTarget) -> None:
        """Follow VOD to another bucket or key; only ever with all parts sent anew."""
        self._target = self._job.network.trust.check_target(target)
        await self._journal.change_target(self._target)
        self._live.move(self._target)

    # --- verify -------------------------------------------------------------------------

    async def verify(self, stored: Stored) -> UploadResult:
        """Prove that the object is what we sent, write the receipt, and return it.

        Raises:
            IntegrityError: it is not. The next run sends everything again.
            UnverifiedCompletion: OSS tells nothing that would prove it.
        """
        self._progress.phase = "verify"
        stored, proof = await self._proved(stored)
        result = self._result(stored, proof)
        receipt = asdict(result)
        del receipt["hook_failures"]  # of a run, not of the object
        await self._journal.finish(json.dumps(receipt))
        self._progress.tell(UploadFinished(key=result.key, video_id=result.video_id, result=result))
        return result

    async def _proved(self, stored: Stored) -> tuple[Stored, Proof]:
        stored = await self._with_figures(stored)
        try:
            proof = self._sent.proof(stored.facts)
        except IntegrityError:
            await self._journal.restart(overwrite=True)
            raise
        if proof is None:
            raise UnverifiedCompletion(
                "OSS completed the object, but tells neither a CRC-64 nor an ETag that would "
                "prove what it holds."
            )
        return stored, proof

    async def _with_figures(self, stored: Stored) -> Stored:
        """Get a CRC-64 by HEAD where the answer had none; else prepare to check the ETag.

        One that contradicts us is worth a second look: the object may be all right, and
        sending everything again is dear.
        """
        has_proof = stored.facts.crc64 is not None and self._sent.describe(stored.facts)
        if not stored.how and not has_proof:
            looked = await self._look()
            if looked is not None and looked.facts.crc64 is not None:
                return looked
            if stored.facts.etag is None and looked is not None:
                stored = looked
        if stored.facts.crc64 is None and stored.facts.etag is not None:
            await self._compute_md5s()
        return stored

    async def _compute_md5s(self) -> None:
        """Read the source again for MD5s nobody needed until now; the CRC-64s tie them down."""
        for ack in self._sent.proving():
            if ack.md5 is not None:
                continue
            offset = self._sent.plan.part(ack.number).offset
            try:
                crc64, md5 = await self._source.read_crc(offset, ack.size, with_md5=True)
            except SourceNotRepeatable:
                return  # without its MD5s an ETag proves nothing, and `verify` says so
            if crc64 != ack.crc64:
                raise SourceChanged(f"{self._source.name} changed after it was sent.")
            self._sent.keep(replace(ack, md5=md5))

    def _result(self, stored: Stored, proof: Proof) -> UploadResult:
        record, progress = self._job.record, self._progress
        if record.video_id is None:  # pragma: no cover - without one nothing is sent
            raise RuntimeError("a verified upload has a VideoId")
        return UploadResult(
            key=record.key,
            video_id=record.video_id,
            upload_id=record.upload_id,
            bucket=self._target.bucket,
            object_key=self._target.object_key,
            size=record.size,
            crc64=self._sent.crc64,
            etag=stored.facts.etag,
            part_count=self._sent.plan.part_count,
            resumed_part_count=self._resumed_part_count,
            renewal_count=progress.renewal_count,
            retry_count=progress.retry_count,
            sent_bytes=progress.sent_bytes,
            verified_by=f"crc64{stored.how}" if proof == "crc64" else proof,
            seconds=round(self._clock.elapsed_s() - self._began_s, 3),
            congestion=self._job.network.congestion(),
        )

    async def compare(self) -> ObjectFacts:
        """Read the source anew and compare it with the object."""
        self._progress.phase = "verify"
        return await self._compare_object(Part(1, 0, self._source.size))

    async def _compare_object(self, part: Part) -> ObjectFacts:
        """Compare the object with what the source holds there."""
        stored = await self._look_without_refresh()
        if stored is None or stored.facts.crc64 is None:
            raise UnverifiedCompletion(
                "OSS does not let us read the object's CRC-64.",
                next_step="Allow vod:GetMezzanineInfo, or compare the file VOD's console offers.",
            )
        size = part.size
        crc64, _ = await self._source.read_crc(part.offset, size)
        if (stored.facts.crc64, stored.facts.size) != (crc64, size):
            raise IntegrityError(
                f"The object in OSS is not {self._source.name}: {stored.facts.size} bytes with "
                f"CRC-64 {stored.facts.crc64}, the source has {size} bytes with {crc64}."
            )
        return stored.facts

    async def _look_without_refresh(self) -> Stored | None:
        """Look through VOD's URL where the video is finished: a refresh would open an overwrite."""
        job, video_id = self._job, self._job.record.video_id
        facts = await job.grants.facts(video_id) if job.grants and video_id else None
        if facts is None or facts.is_waiting:
            return await self._look()
        return await self._look_by_url(facts.file_url) if facts.file_url else None

    # --- giving up ----------------------------------------------------------------------

    async def abort(self) -> None:
        """Remove the parts, then say so in the record.

        Where VOD has a file already, credentials would be for overwriting it: what may be
        left of the parts becomes an orphan. A video that is gone has no credentials any
        more to remove them with; OSS's lifecycle rules do it then.
        """
        self._progress.phase = "abort"
        try:
            if await self._is_finished():
                # An earlier Complete may have done that, and our parts still be there.
                await self._journal.abort_later()
                return
            await self._call_for_good(oss.abort_multipart_upload(self._target, self._upload_id))
        except VideoGone as error:
            get_logger(key=self._job.key).warning("parts.not_removed", reason=error.message)
        except ServiceError as error:
            if not is_vanished(error):
                raise
        await self._journal.abort()

    async def _is_finished(self) -> bool:
        """Whether VOD has the file after all: credentials would then be for overwriting it."""
        job, record = self._job, self._job.record
        if record.phase is not Phase.COMPLETING or job.grants is None or record.video_id is None:
            return False
        facts = await job.grants.facts(record.video_id)
        return facts is not None and not facts.is_waiting

    # --- telling ------------------------------------------------------------------------

    async def _report_progress(self) -> None:
        while True:
            await self._clock.sleep(_PROGRESS_INTERVAL_S)
            if self._receipts is not None and self._has_started:
                self._tell_progress(self._receipts)

    def _tell_progress(self, sent: Receipts) -> None:
        progress, plan = self._progress, sent.plan
        progress.tell(
            UploadProgress(
                key=progress.key,
                video_id=progress.video_id,
                done_bytes=min(sent.size + progress.under_way_bytes, plan.size or MAX_OBJECT_SIZE),
                size=plan.size,
                acked_part_count=len(sent),
                part_count=0 if plan.is_open else plan.part_count,
                renewal_count=progress.renewal_count,
                retry_count=progress.retry_count,
            )
        )


async def store(transfer: Transfer) -> Stored:
    """Send what is missing and complete; anew, if the multipart upload vanishes."""
    restart_count = 0
    while True:
        try:
            await transfer.start_or_resume()
            await transfer.follow_source()
            await transfer.send_missing_parts()
            return await transfer.complete()
        except Vanished as gone:
            if restart_count == _MAX_RESTARTS:
                await transfer.forget_damaged(gone)
                raise gone.failure from None
            await transfer.restart(gone)
            restart_count += 1


def _target_of(job: Job) -> UploadTarget:
    record = job.record
    if not (record.endpoint and record.bucket and record.object_key):
        raise ConfigurationError(
            f"The upload {job.key} has no target yet.", next_step="Run `vodup push` for it first."
        )
    # Checked again: the store may be shared, and what it says decides who gets credentials.
    target = UploadTarget(record.endpoint, record.bucket, record.object_key)
    return job.network.trust.check_target(target)
