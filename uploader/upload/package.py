"""HLS packages: every file an object of its own, the playlist last, one VideoId for all.

A file is a part of the plan, and its ack one of the upload's, so a package resumes, renews and is
verified like a single file. A file too large for one request is an `ObjectUpload` with a record
of its own for as long as it is under way. All objects share the credentials of the video.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import replace
from typing import Final

from uploader.errors import ConfigurationError, IntegrityError, SourceChanged
from uploader.events import Event, PartsAdopted, PartStored, UploadProgress, UploadResult
from uploader.protocol.grants import UploadGrant, UploadTarget
from uploader.protocol.integrity import crc64
from uploader.protocol.oss import ObjectFacts
from uploader.protocol.part_sizes import plan_package
from uploader.protocol.plan import Part, Plan
from uploader.sources import HlsPackage, Source
from uploader.sources.hls import Member
from uploader.state import Journal, PartAck, Phase, StateStore, UploadRecord
from uploader.tasks import beside
from uploader.upload import settle, verify
from uploader.upload.grant import live_grant, meta_from_hooks
from uploader.upload.main import (
    complete,
    report_progress,
    send_and_complete,
    start_or_resume,
    under_way,
    until_stored,
    video_or_result,
)
from uploader.upload.object import ObjectUpload
from uploader.upload.parts import SentPart, add_ack, add_sent, put_part, send_all
from uploader.upload.progress import Progress
from uploader.upload.proof import FoundObject
from uploader.upload.request import UploadContext
from uploader.upload.resume import earlier_result, plan_of, record_upload

MAX_PUT_MEMBER_SIZE: Final = 64 * 1024 * 1024
"""Bytes of the largest file sent with one request, where no part size is given. Larger: more is
sent again after a crash. Smaller: ordinary segments cost two more requests and a record each."""


async def upload_package(ctx: UploadContext, package: HlsPackage) -> UploadResult:
    """As `main.upload_video`; `ctx.source` is the package."""
    if (result := await earlier_result(ctx)) is not None:
        return result
    ctx = await meta_from_hooks(ctx)
    is_repeat = await record_upload(ctx)
    is_new = ctx.record.endpoint is None
    grant = await video_or_result(ctx, None, is_repeat=is_repeat)  # the plan needs its prefix
    assert not isinstance(grant, UploadResult)  # noqa: S101 - no package is compared as a whole
    playlist = ObjectUpload(ctx, await live_grant(ctx, grant), is_new=is_new)
    upload = _PackageUpload(ctx, package, grant, playlist)
    if (found := await settle.at_vod(upload.playlist)) is not None:
        return await upload.finish(found)
    async with under_way(upload.playlist):
        found = await until_stored(upload.playlist, upload.send_and_complete)
        return await upload.finish(found)


async def compare_package(ctx: UploadContext, package: HlsPackage) -> ObjectFacts:
    """Read all files again; compare them with their acks, and the playlist with its object.

    Raises:
        IntegrityError: they differ.
        UnverifiedCompletion: OSS does not let us look.
    """
    playlist = ObjectUpload(ctx, await live_grant(ctx, None))
    _require_same_files(ctx, package)
    ctx.progress.phase = "verify"
    *files, last = playlist.acked.plan.parts
    for part in files:  # the playlist has no ack beside the result
        ack = playlist.acked.get(part.number)
        crc, _ = await package.read_crc(part.offset, part.size)
        if ack is None or crc != ack.crc64:
            name = package.members[part.number - 1].name
            raise IntegrityError(f"{name} is not what was sent: its CRC-64 is {crc}.")
    return await verify.compare(playlist, last)


def _require_same_files(ctx: UploadContext, package: HlsPackage) -> None:
    if ctx.record.plan is not None and plan_of(ctx.record.plan) != _plan_of_members(package):
        raise SourceChanged(
            f"{package.name} does not refer to the files that this upload was started with."
        )


async def forget_members(store: StateStore, key: str) -> None:
    """Remove the records of large files; UploadIds in them are kept to be aborted."""
    prefix = f"{key}/"
    found = [s.record.key async for s in store.uploads() if s.record.key.startswith(prefix)]
    for member_key in found:
        await store.forget(member_key)


class _PackageUpload:
    """The objects of one package.

    Attributes:
        playlist: the object that VOD waits for; its parts are the files of the package.
    """

    def __init__(
        self,
        ctx: UploadContext,
        package: HlsPackage,
        grant: UploadGrant | None,
        playlist: ObjectUpload,
    ) -> None:
        self._ctx, self._package, self._grant, self.playlist = ctx, package, grant, playlist
        _require_same_files(ctx, package)

    async def send_and_complete(self, playlist: ObjectUpload) -> FoundObject:
        """Send every file that is not acked, and then the playlist."""
        await start_or_resume(playlist, self._plan)
        last_number = playlist.acked.plan.part_count
        files = [part for part in playlist.acked.missing() if part.number < last_number]
        await send_all(playlist, files, self._send_file, self._add_file)
        return await complete(playlist)

    async def finish(self, found: FoundObject) -> UploadResult:
        """As `verify.finish`; every other file was proved when it was acked."""
        if any(map(self._is_large, self._package.members)):
            await forget_members(self._ctx.store, self._ctx.key)
        return await verify.finish(self.playlist, found)

    def _plan(self, ctx: UploadContext) -> Plan:
        """The plan, once it is certain that all files go into the folder of the playlist.

        The playlist refers to them by name alone. Alibaba Cloud's SDKs rely on the same (VOD
        server upload SDK, uploadLocalM3u8).
        """
        if self._grant is not None and self._grant.target.object_prefix != self._folder:
            is_missing = self._grant.target.object_prefix is None
            reason = "has no ObjectPrefix" if is_missing else "has an ObjectPrefix elsewhere"
            raise ConfigurationError(
                f"The UploadAddress {reason}, so the files of an HLS package have no place.",
                next_step="Create the video with a FileName that ends in .m3u8.",
            )
        return _plan_of_members(self._package)

    @property
    def _folder(self) -> str:
        return posixpath.dirname(self.playlist.target.object_key) + "/"

    def _is_large(self, member: Member) -> bool:
        return member.size > (self._ctx.options.part_bytes or MAX_PUT_MEMBER_SIZE)

    def _target_of(self, member: Member) -> UploadTarget:
        target = replace(self.playlist.target, object_key=self._folder + member.name)
        if target.object_key == self.playlist.target.object_key:
            raise ConfigurationError(
                f"{member.name} of {self._package.name} has the name VOD gives to the playlist.",
                next_step="Rename that file, and the references to it.",
            )
        return self._ctx.network.trust.check_target(target)

    async def _send_file(self, part: Part) -> SentPart:
        member = self._package.members[part.number - 1]
        clock = self._ctx.network.clock
        began_s = clock.elapsed_s()
        async with self._package.opened(part.number) as source:
            if self._is_large(member):
                ack = await self._send_large(member, source)
                return ack, clock.elapsed_s() - began_s
            ack, _ = await put_part(self.playlist, part, self._target_of(member))
        seconds = clock.elapsed_s() - began_s
        self.playlist.live.record_part_time(seconds)
        return ack, seconds

    async def _add_file(self, sent: SentPart, *, patience_s: float = 0.0) -> None:
        ack, _ = sent
        member = self._package.members[ack.number - 1]
        if not self._is_large(member):
            return await add_sent(self.playlist, sent, patience_s=patience_s)
        await add_ack(self.playlist, ack, patience_s=patience_s)  # its parts were reported
        await self._ctx.store.forget(self._key_of(member))

    async def _send_large(self, member: Member, source: Source) -> PartAck:
        """Send a file in parts, under a record of its own; returns an ack for the whole."""
        async with self._ctx.store.claim(self._key_of(member)) as journal:
            record = await self._record_of(member, journal)
            if record.phase is Phase.DONE:
                return _ack_of(record)
            ctx = self._context_of(member, source, journal)
            upload = ObjectUpload(ctx, self.playlist.live)
            async with beside(report_progress(upload)):
                found = await until_stored(upload, send_and_complete)
                found, _ = await verify.prove(upload, found)
            acked = upload.acked
            ack = PartAck(member.number, acked.plan.size, found.facts.etag or "", acked.crc64)
            await journal.finish(_text_of(ack))
            return ack

    def _key_of(self, member: Member) -> str:
        return f"{self._ctx.key}/{member.number}"

    async def _record_of(self, member: Member, journal: Journal) -> UploadRecord:
        """The record of an earlier run or a new one; a file that changed is sent again."""
        known, fingerprint = journal.record, member.fingerprint.to_text()
        if known is not None and known.fingerprint == fingerprint and known.phase != Phase.ABORTED:
            return known
        if known is not None and known.phase not in {Phase.DONE, Phase.ABORTED}:
            return await journal.restart_with(size=member.size, fingerprint=fingerprint)
        target, record = self._target_of(member), self._ctx.record
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

    def _context_of(self, member: Member, source: Source, journal: Journal) -> UploadContext:
        key = self._key_of(member)
        return replace(
            self._ctx,
            key=key,
            source=source,
            journal=journal,
            progress=_MemberProgress(key, member.number, self._ctx.progress, source.name),
            # Where VOD moves a package to is decided for the package.
            options=replace(self._ctx.options, on_target_change="fail", notification=None),
        )


class _MemberProgress(Progress):
    """Reports what is done for a large file as done for its package; the rest is only logged."""

    def __init__(self, key: str, number: int, package: Progress, source: str) -> None:
        super().__init__(key, package.video_id, [], source=source)
        self._number, self._package = number, package
        self._sent = package.watch_part(number)

    def send(self, event: Event) -> None:
        package = self._package
        match event:
            case UploadProgress():
                self._sent(self.sent_bytes)
            case PartStored():
                self._sent(self.sent_bytes)
                package.send(replace(event, key=package.key, member_number=self._number))
            case PartsAdopted():
                package.send(replace(event, key=package.key))
            case _:
                super().send(event)


def _plan_of_members(package: HlsPackage) -> Plan:
    names = "\n".join(member.name for member in package.members)
    sizes = (member.size for member in package.members)
    return plan_package(sizes, names_crc64=crc64(names.encode()))


def _text_of(ack: PartAck) -> str:
    return json.dumps([ack.number, ack.size, ack.etag, ack.crc64])


def _ack_of(record: UploadRecord) -> PartAck:
    return PartAck(*json.loads(record.result or "[]"))
