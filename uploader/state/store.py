"""The contracts of the checkpoint store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, Self

from uploader.state.records import Orphan, PartAck, UploadRecord, UploadStatus

__all__ = ["Checkpoint", "StateStore"]


class Checkpoint(Protocol):
    """One upload, held by us alone for as long as the claim lasts.

    Every write is fenced by the lease's epoch: when another process has taken the
    upload over, it changes nothing and raises `LeaseLost`.
    """

    @property
    def record(self) -> UploadRecord | None:
        """The record as last written; None before the first `create`."""

    @property
    def acks(self) -> Mapping[int, PartAck]:
        """Receipts by part number."""

    async def create(self, record: UploadRecord) -> UploadRecord:
        """Write the first record of this key, or replace a finished or aborted one.

        Durable on return.

        Raises:
            StateError: the key has an unfinished record, or the VideoId belongs to
                another key.
        """

    async def advance(self, **changes: Any) -> UploadRecord:
        """Change fields of the record. Durable on return, even against power loss.

        Raises:
            StateError: the VideoId belongs to another key already.
            TypeError: a name is not a field that callers may set.
        """

    async def ack(self, part: PartAck, *, patience_s: float = 0.0) -> None:
        """Record a receipt; concurrent calls share one commit.

        `patience_s` is how long it may wait for other receipts to share a commit with;
        any other write ends that wait, and comes after the receipts.

        On return it survives the end of this process at any instruction. A loss of power
        may take the receipts of the last flush interval; no later `advance` returns
        before they are safe from that too.
        """

    async def restart_parts(
        self, *, upload_id: str | None, plan: str | None, **changes: Any
    ) -> UploadRecord:
        """Forget all receipts, set UploadId and plan, and change other fields, in one commit.

        Durable on return, as `advance`. The former UploadId, if any, is kept as an `Orphan`
        until it is aborted.
        """

    @property
    def is_certainly_ours(self) -> bool:
        """Whether nobody can have taken the upload over by now. Costs nothing to ask."""

    async def confirm(self) -> None:
        """Make sure that the upload is ours, for a good part of a lease to come.

        For what OSS carries out once and for all: it knows no epoch to fence by.

        Raises:
            LeaseLost: another process has taken it over.
            StateUnavailable: the lease is in doubt, and the store does not answer.
        """


class StateStore(Protocol):
    """Where uploads survive a crash. Use it as an async context manager."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    def claim(self, key: str) -> AbstractAsyncContextManager[Checkpoint]:
        """Take the upload `key` for ourselves; the lease is kept alive until exit.

        A lease whose owner died on this machine is taken over at once, one of another
        machine when it has run out. Leaving gives the lease back, on errors and
        cancellation too.

        Raises:
            UploadLocked: somebody else holds it.
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
        """Delete a record and its receipts. A missing one is no error.

        The UploadId of a record in UPLOADING or COMPLETING is kept as an `Orphan`.

        Raises:
            UploadLocked: it is claimed.
        """

    async def orphans(self) -> list[Orphan]:
        """Multipart uploads that still have to be aborted."""

    async def forget_orphan(self, upload_id: str) -> None:
        """Note that an orphan is gone."""
