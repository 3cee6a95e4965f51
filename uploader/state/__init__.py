"""What survives a crash: records of uploads, acked parts, and who works on them.

`SqlState` is loaded when it is first used, and a driver when a store of its kind is opened.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from uploader.state.journal import Journal, Outbox, StateStore
from uploader.state.memory import MemoryState
from uploader.state.records import Orphan, OutboxMessage, PartAck, Phase, UploadRecord, UploadStatus

if TYPE_CHECKING:
    from uploader.state.sql import SqlState

__all__ = [
    "Journal",
    "MemoryState",
    "Orphan",
    "Outbox",
    "OutboxMessage",
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
    from uploader.state.sql import SqlState

    return SqlState(where)


def __getattr__(name: str) -> object:
    if name != "SqlState":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from uploader.state.sql import SqlState

    return SqlState
