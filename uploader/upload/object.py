"""One object at OSS: the requests that start it, make it, look at it, restart and abort it.

An object is not a video: a package has many objects and one video. Sending parts is `parts`,
what a lost answer left open is `settle`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar
from urllib.parse import urlsplit

from uploader.credentials import LiveGrant, PlainSigner
from uploader.errors import (
    OverwriteRefused,
    PermissionDenied,
    ServiceError,
    StateError,
    UploadTargetChanged,
    VodupError,
)
from uploader.events import UploadRestarted
from uploader.log import get_logger
from uploader.protocol import oss
from uploader.protocol.failures import OSS, Meaning, is_target_refused, is_vanished
from uploader.protocol.grants import UploadTarget
from uploader.protocol.integrity import same_etag
from uploader.protocol.oss import PartAnswer
from uploader.protocol.plan import Part, Plan
from uploader.protocol.wire import Operation, Signer
from uploader.session import Contact, Session
from uploader.state import Journal, PartAck, Phase
from uploader.upload.grant import new_plan, recorded_target
from uploader.upload.proof import ABSENT, AckedParts, FoundObject
from uploader.upload.request import UploadContext
from uploader.upload.resume import plan_of

T = TypeVar("T")

_PROTECTION: Final = {"x-oss-forbid-overwrite": "true"}

_HEADER_REFUSALS: Final = frozenset({"AccessDenied", "InvalidArgument"})
"""Codes that a policy or a bucket may answer to the header. What it answers is not documented."""


class Vanished(Exception):
    """The multipart upload is not there any more: all parts must be sent again.

    Attributes:
        failure: what to raise if that happens too often.
        is_damaged: it was completed, and its object is not what was sent.
    """

    def __init__(self, reason: str, failure: VodupError, *, is_damaged: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.failure, self.is_damaged = reason, failure, is_damaged


class _FencedSigner:
    """Signs only while the upload is certainly ours: each attempt, after whatever it waited for.

    OSS knows no epoch. A process that was frozen, or cut off from its state, may find that
    another one has continued the upload, and a late Abort would destroy it.
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


def another_object(ctx: UploadContext, target: UploadTarget) -> OverwriteRefused:
    """The error for an object that another upload has stored."""
    return OverwriteRefused(
        f"Another upload has stored {target.object_key}, and it is not {ctx.source.name}.",
        video_id=ctx.record.video_id,
    )


def _session(ctx: UploadContext, signer: Signer, contact: Contact | None = None) -> Session:
    network = ctx.network
    return Session(
        network.transport,
        signer,
        clock=network.clock,
        service=OSS,
        slot=partial(network.pace.slot, ctx.key, resumed=ctx.request.resumed),
        slow_down=network.pace.slow_down,
        retry=network.retry,
        on_retry=network.on_retry,
        contact=contact,
    )


async def look_by_url(ctx: UploadContext, bucket: str, url: str) -> FoundObject | None:
    """Read an object's facts through a URL signed by VOD; None if that does not work."""
    trust = ctx.network.trust
    try:
        if not trust.allow_loopback:
            url = re.sub("^http:", "https:", url)  # VOD's URLs are plain; OSS takes both
        parts = urlsplit(url)
        host = parts.netloc.removeprefix(f"{bucket}.")
        trust.check_endpoint("OSS", f"{parts.scheme}://{host}")
        session = _session(ctx, PlainSigner())
        return FoundObject(await session.call(oss.read_signed_url(url)), "-url")
    except (VodupError, ValueError) as error:  # ValueError: it is no URL at all
        get_logger(key=ctx.key).info("object.not_readable", reason=str(error))
        return None


class ObjectUpload:
    """One object on its way to OSS, under the record of its context.

    Mutable: the target, the acked parts, whether parts need an MD5, and whether OSS
    lists the parts it has (`is_listed`, None: unknown).

    Attributes:
        is_new: this run recorded the target, so nothing was sent before.
        replaces: the object that is there is an older or damaged one of this upload.
        has_started: its start was reported.
        resumed_part_count: parts that this run did not have to send.
        began_s: on `Clock.elapsed_s`.
        call: sends a request to OSS.
        call_final: sends one that cannot be taken back, so never after another process took over.
    """

    def __init__(self, ctx: UploadContext, live: LiveGrant, *, is_new: bool = False) -> None:
        self.ctx, self.live, self.is_new = ctx, live, is_new
        self.began_s = ctx.network.clock.elapsed_s()
        self.target = recorded_target(ctx)
        contact = Contact()  # parts are as patient as soon as the upload has been initiated
        self.call = _session(ctx, live, contact).call
        self.call_final = _session(ctx, _FencedSigner(live, ctx.journal), contact).call
        self._acked = self._recorded_parts()
        self.has_started = False
        self.resumed_part_count = 0
        self.needs_md5 = False
        self.is_listed: bool | None = None
        self.replaces = False

    def _recorded_parts(self) -> AckedParts | None:
        record = self.ctx.record
        if record.plan is None:
            return None
        plan = plan_of(record.plan)
        is_put = plan.is_single and record.upload_id is None
        return AckedParts(plan, self.ctx.journal.acks.values(), is_put=is_put)

    @property
    def has_plan(self) -> bool:
        """Whether the parts are decided."""
        return self._acked is not None

    @property
    def acked(self) -> AckedParts:
        """The acked parts of the plan."""
        if self._acked is None:  # pragma: no cover - set_plan() comes first
            raise RuntimeError("set_plan() comes first")
        return self._acked

    @property
    def upload_id(self) -> str:
        """OSS's UploadId."""
        if (upload_id := self.ctx.record.upload_id) is None:  # pragma: no cover - the same
            raise RuntimeError("start() comes first")
        return upload_id

    @property
    def is_completing(self) -> bool:
        """Whether a request that makes the object may have been carried out."""
        return self.ctx.record.phase is Phase.COMPLETING

    async def set_plan(self, plan: Plan) -> None:
        """Record the parts."""
        await self.ctx.journal.set_plan(plan.to_text())
        self._acked = self._recorded_parts()

    async def close_stream(self, plan: Plan, fingerprint: str) -> None:
        """Record where the source has ended: from here on it is like any other."""
        await self.ctx.journal.close_stream(plan.to_text(), size=plan.size, fingerprint=fingerprint)
        self._acked = self.acked.with_plan(plan)

    async def call_protected(self, operation: Operation[T]) -> T:
        """Send what replaces an object so that it replaces none; see `parts`.

        Where the header that says so is refused, without it: which bucket does is remembered.
        """
        request, unprotected = operation.request, self.ctx.network.unprotected_buckets
        if request.bucket in unprotected:
            return await self.call_final(operation)
        protected = replace(request, headers={**request.headers, **_PROTECTION})
        try:
            return await self.call_final(replace(operation, request=protected))
        except (PermissionDenied, ServiceError) as error:
            if error.code not in _HEADER_REFUSALS:
                raise
            refusal = error
        answer = await self.call_final(operation)
        if request.bucket not in unprotected:
            unprotected.add(request.bucket)
            get_logger(key=self.ctx.key).warning(
                "object.not_protected",
                bucket=request.bucket,
                code=refusal.code,
                request_id=refusal.request_id,
            )
        return answer

    async def start(self) -> None:
        """Initiate the multipart upload; its UploadId is durable before the first part is sent.

        The parts are decided now unless they were before: OSS has answered over a connection,
        so its round trip is known.

        Raises:
            ServiceError: also (FileAlreadyExists) where there is an object before anything was
                sent, and overwriting was not requested.
        """
        operation = oss.initiate_multipart_upload(self.target, self.headers())
        is_protected = self.is_new and not self.ctx.may_overwrite
        with self.watching_target():
            call = self.call_protected if is_protected else self.call
            upload_id = await call(operation)
        plan = self._acked.plan if self._acked is not None else new_plan(self.ctx)
        try:
            await self.ctx.journal.set_upload_id(upload_id, plan=plan.to_text())
        except StateError:
            # The UploadId is recorded nowhere, so no later run could abort it.
            with suppress(VodupError):
                await self.call(oss.abort_multipart_upload(self.target, upload_id))
            raise
        self._acked = self._recorded_parts()

    def headers(self) -> dict[str, str]:
        """The headers of a request that makes the object."""
        notification = self.ctx.options.notification
        return {"x-oss-notification": notification} if notification else {}

    async def complete(self) -> FoundObject:
        """Join the parts. After this OSS has forgotten the UploadId."""
        etags = [(ack.number, ack.etag) for ack in self.acked.in_order()]
        await self.ctx.journal.start_completing()
        return FoundObject(
            await self.call_final(
                oss.complete_multipart_upload(self.target, self.upload_id, etags, self.headers())
            )
        )

    async def accept(self, part: Part, answer: PartAnswer) -> PartAck | None:
        """Turn OSS's answer into an ack; None if it proves nothing and the part is sent again.

        A CRC-64 or MD5 that was there has been compared when the answer was parsed. Where
        OSS returns no CRC-64, the ETag must be the MD5, which is then computed: here by
        reading again, from the next part on while sending.
        """
        sent, md5 = answer.sent, answer.sent.md5
        if answer.crc64 is None and md5 is None:
            self.needs_md5 = True
            crc64, md5 = await self.ctx.source.read_crc(part.offset, part.size, with_md5=True)
            if crc64 != sent.crc64 or md5 is None or not same_etag(md5, answer.etag):
                return None
        return PartAck(part.number, part.size, answer.etag, sent.crc64, md5)

    async def read_ack(self, part: Part) -> PartAck:
        """Compute the ack of a PutObject from the source, where its answer was lost."""
        crc64, md5 = await self.ctx.source.read_crc(part.offset, part.size, with_md5=True)
        return PartAck(part.number, part.size, md5 or "", crc64, md5)

    async def read_put_ack(self) -> None:
        """As `read_ack`, for the part that makes the object, if it has no ack."""
        part = self.acked.plan.last_part
        if self.acked.is_put and part.number not in self.acked:
            self.acked.add(await self.read_ack(part))

    async def read_missing_acks(self) -> None:
        """As `read_ack`, for all parts without an ack: to compare an object with the source."""
        for part in self.acked.missing():
            self.acked.add(await self.read_ack(part))

    async def look(self, target: UploadTarget | None = None) -> FoundObject | None:
        """HEAD the object, or another one of the video; None where we may not."""
        try:
            return FoundObject(await self.call(oss.head_object(target or self.target)), "-head")
        except PermissionDenied:
            return None
        except ServiceError as error:
            if OSS.meaning(error) is Meaning.ABSENT:
                return FoundObject(ABSENT, "-head")
            raise

    async def look_by_url(self, url: str) -> FoundObject | None:
        """Read the object's facts through a URL signed by VOD; None if that does not work."""
        return await look_by_url(self.ctx, self.target.bucket, url)

    @contextmanager
    def watching_target(self) -> Iterator[None]:
        """Tell a target that VOD has moved from one that was never allowed."""
        try:
            yield
        except (PermissionDenied, ServiceError) as error:
            moved_to = self.live.moved_to
            if moved_to is None or not is_target_refused(error):
                raise
            if self.ctx.options.on_target_change == "restart":
                raise Vanished(f"VOD moved the upload to {moved_to.bucket}", error) from None
            raise UploadTargetChanged(
                f"VOD now names another bucket or key (bucket {moved_to.bucket}), and OSS refuses "
                f"the first: {error.message}",
                code=error.code,
                request_id=error.request_id,
            ) from None

    async def restart(self, vanished: Vanished) -> None:
        """Forget all parts, and the target if VOD moved it; the video stays the same."""
        ctx, moved_to = self.ctx, self.live.moved_to
        lost_bytes = self._acked.size if self._acked is not None else 0
        if moved_to is not None and is_target_refused(vanished.failure):
            self.target = ctx.network.trust.check_target(moved_to)
            await ctx.journal.change_target(self.target)
            self.live.move(self.target, await ctx.network.dialect_for(self.target))
        else:
            await ctx.journal.restart(overwrite=vanished.is_damaged)
        self._acked = None
        ctx.progress.emit(UploadRestarted, reason=vanished.reason, lost_bytes=lost_bytes)

    async def abort(self) -> None:
        """Remove the parts at OSS; none there is as good."""
        try:
            await self.call_final(oss.abort_multipart_upload(self.target, self.upload_id))
        except ServiceError as error:
            if not is_vanished(error):
                raise
