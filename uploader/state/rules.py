"""What every store decides in the same way: which changes to a record are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from uploader.errors import StateError
from uploader.state.records import Orphan, Phase, UploadRecord

__all__ = [
    "is_replaceable",
    "orphan_left_by",
    "require_changeable",
    "require_known",
    "require_replaceable",
    "video_taken",
    "with_changes",
]

_STAMPED: Final = frozenset({"key", "created_at", "updated_at"})
_CHANGEABLE: Final = frozenset(field.name for field in fields(UploadRecord)) - _STAMPED
_FINISHED: Final = frozenset({Phase.DONE, Phase.ABORTED})


def with_changes(record: UploadRecord, changes: Mapping[str, Any]) -> UploadRecord:
    """The record with `changes` applied.

    Raises:
        TypeError: a name is not a field, or is one only the store sets.
    """
    require_changeable(changes)
    return replace(record, **changes)


def require_changeable(changes: Mapping[str, Any]) -> None:
    """Refuse names that are not fields a caller may set, as TypeError."""
    strange = changes.keys() - _CHANGEABLE
    if strange:
        raise TypeError(f"not a changeable field of UploadRecord: {', '.join(sorted(strange))}")


def require_known(record: UploadRecord | None) -> UploadRecord:
    """The record, which has to exist by now."""
    if record is None:
        raise RuntimeError("create() comes before advance(), ack() and restart_parts()")
    return record


def is_replaceable(existing: UploadRecord | None) -> bool:
    """Whether there is no upload yet, or one that has ended."""
    return existing is None or existing.phase in _FINISHED


def require_replaceable(existing: UploadRecord | None) -> None:
    """Refuse to overwrite an upload that is still to be finished."""
    if existing is not None and not is_replaceable(existing):
        raise StateError(
            f"upload {existing.key!r} is recorded already and not finished ({existing.phase}).",
            next_step="Run the same command to continue it, or give it up with `vodup abort`.",
            video_id=existing.video_id,
        )


def video_taken(video_id: str, owner_key: str) -> StateError:
    """The error for a second upload of one video."""
    return StateError(
        f"video {video_id} is recorded for upload {owner_key!r} already.",
        next_step="Continue it under that key, or remove that record with `vodup clean`.",
        video_id=video_id,
    )


def orphan_left_by(record: UploadRecord, next_upload_id: str | None = None) -> Orphan | None:
    """The multipart upload nobody remembers once `next_upload_id` takes its place."""
    if record.upload_id is None or record.upload_id == next_upload_id:
        return None
    return Orphan(
        upload_id=record.upload_id,
        video_id=record.video_id,
        endpoint=record.endpoint or "",
        region=record.region,
        bucket=record.bucket or "",
        object_key=record.object_key or "",
    )
