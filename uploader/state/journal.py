"""What is on the disk after a crash: every durable step of an upload, one commit each.

Nothing else in the package changes a record. Each method is one commit, so a crash leaves the
record either before the step or after it, never between the two. A method returns when its
commit is durable against a loss of power; `add_part` returns when its commit is durable against
the end of the process (`UploadClaim.add_ack`).

    method              phase after  durable because               the next run after a crash here
    ------------------  -----------  ----------------------------  -------------------------------
    create_record       NEW (1)      CreateUploadVideo may follow  finds the video by ReferenceId,
                                                                   or creates it
    set_reference_id    NEW          CreateUploadVideo follows     finds the video by the new
                                     with another ReferenceId      ReferenceId, or creates it
    set_target          UPLOADING    credentials were issued for   renews them and starts
                                     this video and this object
      (one_request)     COMPLETING   and PutObject may follow      reads the object and compares
    set_plan            UPLOADING    later runs must send the      cuts the source in the same way
                                     same parts
    set_upload_id       UPLOADING    stored parts cost money from  cuts the source in the same way,
      (with the plan)                here on                       lists the parts, sends what is
                                                                   missing
    add_part            unchanged    it bounds what is sent twice  does not send the part again
    close_stream        UPLOADING    the end of the source is      compares the bytes as they
                                     known                         arrive
    start_completing    COMPLETING   CompleteMultipartUpload or    finds out what happened: HEAD,
                                     PutObject may follow          VOD's URL, VOD's record
    stop_completing     UPLOADING    OSS refused to complete: the  lists the parts, sends what is
                                     object does not exist         missing
    restart             UPLOADING    the multipart upload is gone  sends all parts, to the same
                                                                   video and object
      (overwrite)       UPLOADING    the object at OSS is ours     the same, and replaces the
                                     and is damaged                damaged object
    restart_with        UPLOADING    the source was replaced       sends all parts of the new one
    change_target       UPLOADING    VOD moved the upload, and     sends all parts to the new
                                     the caller allowed that       object, same video
    finish              DONE         the object is verified        returns the result, sends nothing
    abort               ABORTED      the parts are removed         starts a new upload
    abort_later         ABORTED      VOD has the video: what is    starts a new upload; the parts
                                     left cannot be removed now    are an orphan
    record_error        unchanged    people read it                does what the phase says
    update_fingerprint  unchanged    the source proved to be the   compares with the new fingerprint
                                     same under another one

    (1) UPLOADING for a file of a package: its target is known, and it has no video of its own.

`create_record`, `restart`, `restart_with`, `change_target` and `abort_later` also remove all acks.
An UploadId that is replaced without an abort stays in the store as an `Orphan` until then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Protocol, Self, runtime_checkable

from uploader.errors import StateError
from uploader.protocol.grants import UploadTarget
from uploader.state.records import Orphan, OutboxMessage, PartAck, Phase, UploadRecord, UploadStatus

_STARTED: Final = frozenset({Phase.UPLOADING, Phase.COMPLETING})

_PHASES_BEFORE: Final[Mapping[str, frozenset[Phase | None]]] = {
    "create_record": frozenset({None, Phase.DONE, Phase.ABORTED}),
    "set_reference_id": frozenset({Phase.NEW}),
    "set_target": frozenset({Phase.NEW}),
    "set_plan": frozenset({Phase.UPLOADING}),
    "set_upload_id": frozenset({Phase.UPLOADING}),
    # A run that finds COMPLETING may find parts missing, and must not forget that Complete
    # may have been sent.
    "add_part": _STARTED,
    "close_stream": frozenset({Phase.UPLOADING}),
    "start_completing": _STARTED,
    "stop_completing": frozenset({Phase.COMPLETING}),
    "restart": _STARTED,
    "restart_with": _STARTED,
    "change_target": _STARTED,
    "finish": frozenset({Phase.COMPLETING}),
    "abort": frozenset({Phase.NEW, *_STARTED, Phase.ABORTED}),
    "abort_later": _STARTED,
    "record_error": frozenset(Phase),
    "update_fingerprint": frozenset({Phase.NEW, *_STARTED, Phase.DONE}),
}
"""The phases in which a method may be called; None: there is no record yet."""


class UploadClaim(Protocol):
    """One upload that a back end holds for us alone, and how `Journal` writes to it.

    Each write is one transaction, fenced by the epoch of the lease: when another process took
    the upload over, it changes nothing and raises `LeaseLost`. It is carried out whole even if
    its caller is cancelled. Writes return the time of the change, on the store's clock.
    """

    @property
    def key(self) -> str:
        """The key of the upload."""

    async def add_record(self, record: UploadRecord) -> datetime:
        """Write the first record of the key, or replace the one there and its acks.

        Durable on return.

        Raises:
            StateError: the VideoId belongs to another key.
        """

    async def update(
        self, fields: Mapping[str, Any], *, drop_acks: bool = False, orphan: Orphan | None = None
    ) -> datetime:
        """Change fields of the record. Durable on return, even against power loss.

        Args:
            drop_acks: also remove all part acks.
            orphan: also keep this multipart upload until it is aborted.

        Raises:
            StateError: the VideoId belongs to another key.
        """

    async def add_ack(self, ack: PartAck, *, patience_s: float = 0.0) -> None:
        """Record an acked part; concurrent calls share one commit.

        On return it survives the end of this process at any instruction. A loss of power may
        take the acks of the last flush interval; no later `update` returns before they are
        safe from that too.

        Args:
            patience_s: how long it may wait for other acks to share the commit with. Any other
                write ends that wait, and comes after the acks.
        """

    @property
    def is_certainly_ours(self) -> bool:
        """Whether no other owner can have taken the upload over by now; reads no store."""

    async def confirm(self) -> None:
        """Make sure that the upload is ours, for a good part of a lease to come.

        For what OSS carries out once and for all: it knows no epoch to fence by.

        Raises:
            LeaseLost: another process has taken it over.
            StateUnavailable: the lease is in doubt, and the store does not answer.
        """


class Journal:
    """The record of one claimed upload, and every change of it.

    Mutable: record and acks as last written. Every method raises `LeaseLost` when another
    process took the upload over, `StateUnavailable` when the store does not answer, and
    `StateError` when the recorded phase does not allow the step.
    """

    def __init__(
        self, claim: UploadClaim, record: UploadRecord | None, acks: Mapping[int, PartAck]
    ) -> None:
        self._claim = claim
        self._record = record
        self._acks = dict(acks)

    @property
    def record(self) -> UploadRecord | None:
        """The record as last written; None before the first `create_record`."""
        return self._record

    @property
    def acks(self) -> Mapping[int, PartAck]:
        """The acked parts by part number."""
        return MappingProxyType(self._acks)

    @property
    def is_certainly_ours(self) -> bool:
        """Whether no other owner can have taken the upload over by now; reads no store."""
        return self._claim.is_certainly_ours

    async def confirm(self) -> None:
        """See `UploadClaim.confirm`."""
        await self._claim.confirm()

    # --- before the first byte ------------------------------------------------------------

    async def create_record(self, record: UploadRecord) -> UploadRecord:
        """Write the first record of the key, or replace a finished or aborted one.

        Raises:
            StateError: the VideoId belongs to another key.
            ValueError: the record is of another key than the claim.
        """
        if record.key != self._claim.key:
            raise ValueError(f"the record is of {record.key!r}, the claim of {self._claim.key!r}")
        self._require("create_record")
        now = await self._claim.add_record(record)
        self._record = replace(record, created_at=now, updated_at=now)
        self._acks.clear()
        return self._record

    async def set_reference_id(self, reference_id: str) -> None:
        """Replace a ReferenceId that belongs to an earlier video."""
        await self._update("set_reference_id", reference_id=reference_id)

    async def set_target(
        self,
        video_id: str | None,
        target: UploadTarget,
        *,
        region: str | None,
        plan: str | None,
        one_request: bool,
    ) -> None:
        """Fix the video and the object for good.

        `plan` is recorded in the same commit where it is known by now. `one_request`: the plan
        is a single PutObject, so this is the last commit before the object may exist, and a
        small file waits for the disk once.

        Raises:
            StateError: the VideoId belongs to another key.
        """
        await self._update(
            "set_target",
            phase=Phase.COMPLETING if one_request else Phase.UPLOADING,
            plan=plan,
            video_id=video_id,
            endpoint=target.endpoint,
            region=region,
            bucket=target.bucket,
            object_key=target.object_key,
        )

    async def set_plan(self, plan: str) -> None:
        """Fix how the source is cut into parts."""
        await self._update("set_plan", plan=plan)

    async def set_upload_id(self, upload_id: str, *, plan: str) -> None:
        """Record the multipart upload, and the parts that will belong to it."""
        await self._update("set_upload_id", upload_id=upload_id, plan=plan)

    # --- parts ----------------------------------------------------------------------------

    async def add_part(self, ack: PartAck, *, patience_s: float = 0.0) -> None:
        """Record OSS's answer for a part; concurrent calls share one commit.

        `patience_s` is how long it may wait for other parts to share the commit with.
        """
        self._require("add_part")
        await self._claim.add_ack(ack, patience_s=patience_s)
        self._acks[ack.number] = ack

    async def close_stream(self, plan: str, *, size: int, fingerprint: str) -> None:
        """Record where a source ended whose size was not known."""
        await self._update("close_stream", plan=plan, size=size, fingerprint=fingerprint)

    # --- the object -----------------------------------------------------------------------

    async def start_completing(self) -> None:
        """Record that the next request may make the object."""
        await self._update("start_completing", phase=Phase.COMPLETING)

    async def stop_completing(self) -> None:
        """Return to sending parts after OSS answered that the object was not made.

        Without this step a NoSuchUpload would have to be read as a possible success.
        """
        await self._update("stop_completing", phase=Phase.UPLOADING)

    async def restart(self, *, overwrite: bool = False) -> None:
        """Forget plan, UploadId and acks, and send everything again to the same object.

        `overwrite`: the object at OSS is a damaged one of ours. VOD may take it for the film,
        and the next run may replace it without a request to overwrite.
        """
        changes = {"is_overwrite": True} if overwrite else {}
        await self._forget_parts("restart", phase=Phase.UPLOADING, **changes)

    async def restart_with(self, *, size: int, fingerprint: str) -> UploadRecord:
        """As `restart`, for a source that was replaced: a file of a package."""
        return await self._forget_parts(
            "restart_with", phase=Phase.UPLOADING, size=size, fingerprint=fingerprint
        )

    async def change_target(self, target: UploadTarget) -> None:
        """As `restart`, to another object, which VOD names for the same video."""
        await self._forget_parts(
            "change_target",
            phase=Phase.UPLOADING,
            endpoint=target.endpoint,
            bucket=target.bucket,
            object_key=target.object_key,
        )

    # --- the end --------------------------------------------------------------------------

    async def finish(self, result: str) -> None:
        """Record the result of a verified upload."""
        await self._update("finish", phase=Phase.DONE, result=result, error=None)

    async def abort(self) -> None:
        """Record that the upload was aborted and its parts are removed."""
        await self._update("abort", phase=Phase.ABORTED)

    async def abort_later(self) -> None:
        """As `abort`, while the parts may still be there: the UploadId becomes an orphan."""
        await self._forget_parts("abort_later", phase=Phase.ABORTED)

    # --- beside the steps -----------------------------------------------------------------

    async def record_error(self, error: str) -> None:
        """Keep the text of the last failure, for `vodup status`."""
        await self._update("record_error", error=error)

    async def update_fingerprint(self, fingerprint: str) -> None:
        """Replace the fingerprint of a source that proved to hold the recorded bytes."""
        await self._update("update_fingerprint", fingerprint=fingerprint)

    async def _forget_parts(self, method: str, **fields: Any) -> UploadRecord:
        """Remove all acks too, and keep the multipart upload until it is aborted."""
        self._require(method)
        fields |= {"upload_id": None, "plan": None}
        orphan = self._known().orphan()
        now = await self._claim.update(fields, drop_acks=True, orphan=orphan)
        self._acks.clear()
        return self._changed(fields, now)

    async def _update(self, method: str, **fields: Any) -> None:
        self._require(method)
        self._changed(fields, await self._claim.update(fields))

    def _changed(self, fields: Mapping[str, Any], now: datetime) -> UploadRecord:
        self._record = replace(self._known(), **fields, updated_at=now)
        return self._record

    def _known(self) -> UploadRecord:
        assert self._record is not None  # noqa: S101 - _PHASES_BEFORE has no None for changes
        return self._record

    def _require(self, method: str) -> None:
        """Refuse a step that does not follow from the recorded phase.

        Only a damaged record, or a mistake of ours, comes here.
        """
        record = self._record
        phase = record.phase if record is not None else None
        if phase not in _PHASES_BEFORE[method]:
            raise StateError(
                f"The checkpoint does not allow {method} in phase {phase or 'none'}.",
                next_step="`vodup clean` removes the record, and --video-id continues the video.",
                video_id=record.video_id if record is not None else None,
            )


class StateStore(Protocol):
    """Where uploads survive a crash. Use it as an async context manager.

    A back end provides this and an `UploadClaim`; `Journal` decides what is written when.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    def claim(self, key: str) -> AbstractAsyncContextManager[Journal]:
        """Take the upload `key` for ourselves; the lease is kept alive until exit.

        A lease whose owner died on this machine is taken over at once, one of another
        machine when it has expired. Leaving returns the lease, on errors and cancellation
        too.

        Raises:
            UploadLocked: another owner holds it.
            LeaseLost: (from inside the block) it was lost while we worked; the block
                is cancelled.
            StateUnavailable, UnsupportedState: the store cannot be used.
        """

    async def find(
        self, *, key: str | None = None, video_id: str | None = None
    ) -> UploadRecord | None:
        """Look a record up by its key or its VideoId, without claiming it."""

    def uploads(self) -> AsyncIterator[UploadStatus]:
        """All records, newest first; those being created or deleted meanwhile may be missing."""

    async def forget(self, key: str) -> None:
        """Delete a record and its acks. A missing one is no error.

        The UploadId of a record in UPLOADING or COMPLETING is kept as an `Orphan`.

        Raises:
            UploadLocked: it is claimed.
        """

    async def orphans(self) -> list[Orphan]:
        """Multipart uploads that still have to be aborted, oldest first."""

    async def forget_orphan(self, upload_id: str) -> None:
        """Delete an orphan that was aborted. A missing one is no error."""


@runtime_checkable
class Outbox(Protocol):
    """A store that also keeps notifications until they are delivered."""

    async def add_message(self, message: OutboxMessage) -> None:
        """Keep a message until it is delivered. Durable on return.

        One with the same MessageId and receiver stays as it is, also when it was delivered, for
        90 days.
        """

    async def take_messages(
        self, receiver: str, *, count: int, for_s: float
    ) -> list[OutboxMessage]:
        """Messages that nobody else delivers for so many seconds, oldest first."""

    async def end_messages(self, messages: Sequence[OutboxMessage], *, is_delivered: bool) -> None:
        """Record that messages were delivered, or return them to be delivered later."""

    async def count_waiting(self, receiver: str) -> int:
        """How many messages for a receiver are not delivered."""


def video_taken(video_id: str, owner_key: str) -> StateError:
    """The error for a second upload of one video."""
    return StateError(
        f"video {video_id} is recorded for upload {owner_key!r} already.",
        next_step="Continue it under that key, or remove that record with `vodup clean`.",
        video_id=video_id,
    )
