"""What survives a crash: records of uploads, acked parts, and who works on them.

The drivers are imported when a `SqlState` is opened, not with this package.
"""

from __future__ import annotations

import os

from uploader.state.journal import Journal
from uploader.state.memory import MemoryState
from uploader.state.records import Orphan, PartAck, Phase, UploadRecord, UploadStatus
from uploader.state.sql import SqlState
from uploader.state.store import StateStore

__all__ = [
    "Journal",
    "MemoryState",
    "Orphan",
    "PartAck",
    "Phase",
    "SqlState",
    "StateStore",
    "UploadRecord",
    "UploadStatus",
    "open_state",
]


def open_state(where: str | os.PathLike[str] | None = None) -> StateStore:
    """The store at `where`: "memory", a path, a database URL, or None for this user's own."""
    if where == "memory":
        return MemoryState()
    return SqlState(where)
