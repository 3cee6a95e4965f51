"""The contract of stores, and the error that all of them raise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, Self

from uploader.errors import StateError
from uploader.state.journal import Journal
from uploader.state.records import Orphan, UploadRecord, UploadStatus


class StateStore(Protocol):
    """Where uploads survive a crash. Use it as an async context manager.

    A back end provides this and a `UploadClaim`; what is written when is decided by `Journal`.
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


def video_taken(video_id: str, owner_key: str) -> StateError:
    """The error for a second upload of one video."""
    return StateError(
        f"video {video_id} is recorded for upload {owner_key!r} already.",
        next_step="Continue it under that key, or remove that record with `vodup clean`.",
        video_id=video_id,
    )
