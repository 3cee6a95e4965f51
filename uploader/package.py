"""HLS packages: every member an object of its own, the playlist last, one VideoId for all.

A member is a part of the plan and its receipt one of the upload's, so a package resumes,
renews and is verified like a file. Members too large for one request are uploads in
themselves for as long as they are under way.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import replace
from typing import Final

from uploader.credentials import LiveGrant
from uploader.errors import ConfigurationError, IntegrityError, SourceChanged
from uploader.events import Event, PartsAdopted, PartStored, UploadProgress, UploadResult
from uploader.evidence import PackageReceipts, Receipts, Stored
from uploader.opening import Job, is_one_request, new_plan, plan_of
from uploader.progress import Progress
from uploader.protocol import oss
from uploader.protocol.grants import UploadGrant, UploadTarget
from uploader.protocol.integrity import crc64
from uploader.protocol.oss import ObjectFacts, PartReceipt
from uploader.protocol.part_sizes import plan_package
from uploader.protocol.plan import Part, Plan
from uploader.protocol.wire import Body, Operation, SentBody
from uploader.sources import HlsPackage, Source
from uploader.sources.hls import Member
from uploader.state import Journal, PartAck, Phase, StateStore, UploadRecord
from uploader.transfer import Transfer, store

__all__ = ["PackageTransfer", "forget_members", "plan_ahead", "transfer_of"]

LARGEST_PUT: Final = 64 * 1024 * 1024
"""Bytes of the largest member sent with one request, where no part size was asked for.
Larger: more is sent again after a crash. Smaller: ordinary segments pay for two requests
more and a record of their own."""


def plan_ahead(job: Job) -> Plan | None:
    """The plan, where nothing is missing that asking for the grant tells.

    A package waits for its prefix. Many parts wait for the round trip to the service, which
    says how many of them will be under way.
    """
    if isinstance(job.source, HlsPackage):
        return None
    plan = new_plan(job)
    return plan if plan.is_open or is_one_request(plan) else None


def transfer_of(job: Job, grant: UploadGrant | None, *, is_new: bool = False) -> Transfer:
    """What carries out a job, by the kind of its source.

    `is_new`: it is this run that wrote the target down, so nothing has been sent yet.
    """
    if isinstance(job.source, HlsPackage):
        return PackageTransfer(job, grant, job.source)
    return Transfer(job, grant, is_new=is_new)


async def forget_members(state: StateStore, key: str) -> None:
    """Remove what large members left behind; their UploadIds are kept to be aborted."""
    begins = f"{key}/"
    found = [s.record.key async for s in state.uploads() if s.record.key.startswith(begins)]
    for member_key in found:
        await state.forget(member_key)


class PackageTransfer(Transfer):
    """Sends the members of a package, and its playlist once all of them are there."""

    def __init__(self, job: Job, grant: UploadGrant | None, package: HlsPackage) -> None:
        self._package = package
        self._granted = grant
        super().__init__(job, grant)

    def _known_receipts(self) -> Receipts | None:
        record = self._job.record
        if record.plan is None:
            return None
        if (plan := plan_of(record.plan)) != _plan_of_members(self._package):
            raise SourceChanged(
                f"{self._package.name} does not refer to the files this upload was begun with."
            )
        return PackageReceipts(plan, self._journal.acks.values())

    def _new_plan(self) -> Plan:
        self._require_prefix()
        return _plan_of_members(self._package)

    def _require_prefix(self) -> None:
        """The playlist refers to its members by name alone: all must go into one folder.

        Alibaba Cloud's SDKs rely on the same (VOD server upload SDK, uploadLocalM3u8).
        """
        if self._granted is None:
            return
        prefix = self._granted.target.object_prefix
        if prefix != self._folder:
            told = "has no ObjectPrefix" if prefix is None else "has an ObjectPrefix elsewhere"
            raise ConfigurationError(
                f"The UploadAddress {told}, so the files of an HLS package have no place.",
                next_step="Create the video with a FileName that ends in .m3u8.",
            )

    @property
    def _folder(self) -> str:
        return posixpath.dirname(self._target.object_key) + "/"

    # --- members ------------------------------------------------------------------------

    async def send_missing_parts(self) -> None:
        """Send every member that OSS has not confirmed; the playlist waits for `complete`."""
        await self._send_all([p for p in self._sent.missing() if p.number < self._playlist.number])

    @property
    def _playlist(self) -> Part:
        return self._sent.plan.part(self._sent.plan.part_count)

    async def _send_part(self, part: Part) -> tuple[PartAck, float]:
        member = self._package.members[part.number - 1]
        async with self._package.opened(part.number) as source:
            if not self._is_large(member):
                return await super()._send_part(part)
            began_s = self._clock.elapsed_s()
            ack = await self._send_large(member, source)
            return ack, self._clock.elapsed_s() - began_s

    async def _keep_sent(self, ack: PartAck, seconds: float, patience_s: float = 0.0) -> None:
        member = self._package.members[ack.number - 1]
        if not self._is_large(member):
            return await super()._keep_sent(ack, seconds, patience_s)
        await self._keep(ack, patience_s)  # told of by its parts already
        await self._job.state.forget(self._key_of(member))

    def _is_large(self, member: Member) -> bool:
        return member.size > (self._job.options.part_size or LARGEST_PUT)

    def _sending(self, part: Part, body: Body) -> Operation[tuple[PartReceipt, SentBody]]:
        target = self._target_of(self._package.members[part.number - 1])
        operation = oss.put_object(target, body, needs_md5=self._needs_md5)
        return replace(operation, part_number=part.number)

    def _target_of(self, member: Member) -> UploadTarget:
        target = replace(self._target, object_key=self._folder + member.name)
        if target.object_key == self._target.object_key:
            raise ConfigurationError(
                f"{member.name} of {self._package.name} has the name VOD gives to the playlist.",
                next_step="Rename that file, and the references to it.",
            )
        return self._job.network.trust.check_target(target)

    # --- members that are uploads in themselves -----------------------------------------

    async def _send_large(self, member: Member, source: Source) -> PartAck:
        """Send it in parts, under a record of its own, and return a receipt for the whole."""
        async with self._job.state.claim(self._key_of(member)) as checkpoint:
            journal = Journal(checkpoint)
            known = await self._member_record(member, journal)
            if known.phase is Phase.DONE:
                return _ack_of(known)
            transfer = _MemberTransfer(self._member_job(member, source, journal), self._live)
            async with transfer.under_way():
                ack = await transfer.stored(member.number)
            await journal.finish(_text_of(ack))
            return ack

    def _key_of(self, member: Member) -> str:
        return f"{self._job.key}/{member.number}"

    async def _member_record(self, member: Member, journal: Journal) -> UploadRecord:
        """Its record, made now or by an earlier run; a file that changed is begun anew."""
        known, fingerprint = journal.record, member.fingerprint.to_text()
        if known is not None and known.fingerprint == fingerprint and known.phase != Phase.ABORTED:
            return known
        target, record = self._target_of(member), self._job.record
        if known is None or known.phase in {Phase.DONE, Phase.ABORTED}:
            return await journal.create_record(
                UploadRecord(
                    key=self._key_of(member),
                    phase=Phase.UPLOADING,
                    source=f"{member.name} of {self._package.name}",
                    fingerprint=fingerprint,
                    size=member.size,
                    scope=record.scope,
                    endpoint=target.endpoint,
                    region=record.region,
                    bucket=target.bucket,
                    object_key=target.object_key,
                )
            )
        return await journal.restart_with(size=member.size, fingerprint=fingerprint)

    def _member_job(self, member: Member, source: Source, journal: Journal) -> Job:
        key = self._key_of(member)
        # Where VOD moves a package to is for the package to decide.
        options = replace(self._job.options, on_target_change="fail", notification=None)
        return replace(
            self._job,
            key=key,
            source=source,
            journal=journal,
            progress=_MemberProgress(key, member.number, self._progress),
            options=options,
        )

    async def verify(self, stored: Stored) -> UploadResult:
        """As for a file; every other member was proved when its receipt was taken."""
        if any(map(self._is_large, self._package.members)):
            await forget_members(self._job.state, self._job.key)  # their receipts are ours by now
        return await super().verify(stored)

    # --- looking again ------------------------------------------------------------------

    async def compare(self) -> ObjectFacts:
        """Read all files again; compare them with their receipts, the playlist with its object."""
        self._progress.phase = "verify"
        for part in self._sent.plan.parts[:-1]:  # the playlist has no receipt beside the whole
            ack = self._sent.of(part.number)
            crc, _ = await self._package.read_crc(part.offset, part.size)
            if ack is None or crc != ack.crc64:
                name = self._package.members[part.number - 1].name
                raise IntegrityError(f"{name} is not what was sent: its CRC-64 is {crc}.")
        return await self._compare_object(self._playlist)


class _MemberProgress(Progress):
    """What a large member has done, told as what its package has done. The rest is for the log."""

    def __init__(self, key: str, number: int, package: Progress) -> None:
        super().__init__(key, package.video_id, [])
        self._number, self._package = number, package
        self._sent = package.watch(number)

    def tell(self, event: Event) -> None:
        match event:
            case UploadProgress():
                self._sent(self.sent_bytes)
            case PartStored():
                self._sent(self.sent_bytes)
                self._package.tell(
                    replace(event, key=self._package.key, member_number=self._number)
                )
            case PartsAdopted():
                self._package.tell(replace(event, key=self._package.key))
            case _:
                super().tell(event)


class _MemberTransfer(Transfer):
    """One large member, sent with the credentials of its package."""

    def __init__(self, job: Job, live: LiveGrant) -> None:
        self._shared = live
        super().__init__(job, None)

    def _live_grant(self, grant: UploadGrant | None) -> LiveGrant:
        return self._shared

    async def stored(self, number: int) -> PartAck:
        """Send and prove it; the receipt has the number of the member."""
        stored, _ = await self._proved(await store(self))
        return PartAck(number, self._sent.plan.size, stored.facts.etag or "", self._sent.crc64)

    async def _look_at_vod(self) -> Stored | None:
        """VOD knows only the playlist. Sending the member again is harmless."""
        return None


def _plan_of_members(package: HlsPackage) -> Plan:
    names = "\n".join(member.name for member in package.members)
    sizes = (member.size for member in package.members)
    return plan_package(sizes, names_crc64=crc64(names.encode()))


def _text_of(ack: PartAck) -> str:
    return json.dumps([ack.number, ack.size, ack.etag, ack.crc64])


def _ack_of(record: UploadRecord) -> PartAck:
    return PartAck(*json.loads(record.receipt or "[]"))
