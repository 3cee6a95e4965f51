"""The uploads that a service was given, in a file: none is forgotten when it is restarted."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from uploader.errors import StateUnavailable, UploadLocked
from uploader.private_files import make_private_folder, open_private_file
from uploader.state.leases import FileLock


class Status(StrEnum):
    """Where an upload is.

    QUEUED     it is sent as soon as its turn comes
    RUNNING    it is being sent
    PAUSED     it waits until it is resumed
    DONE       OSS holds it, verified
    FAILED     it has failed; `resume` tries it again
    CANCELLED  it was cancelled; its checkpoint is kept, and `resume` continues it
    """

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({Status.DONE, Status.FAILED, Status.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One upload that the service was given.

    Attributes:
        id: from 1, in the order of the requests.
        key: of the upload in the state.
        columns: what the request said, by the names of a manifest's columns.
        priority: larger ones are sent first.
        overwrite: whether a finished video may be replaced.
        video_id: once it is known.
        result, error: how it ended, as JSON objects.
        created_at, ended_at: seconds since 1970.
    """

    id: int
    key: str
    columns: Mapping[str, Any]
    priority: int
    overwrite: bool
    status: Status = Status.QUEUED
    video_id: str | None = None
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    created_at: float = 0.0
    ended_at: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self.status in ENDED


_NAMES: Final = tuple(field.name for field in fields(Job))
_COLUMNS: Final = ", ".join(_NAMES)
_JSON: Final = frozenset({"columns", "result", "error"})
_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS job (
        id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, columns TEXT NOT NULL,
        priority INTEGER NOT NULL, overwrite INTEGER NOT NULL, status TEXT NOT NULL,
        video_id TEXT, result TEXT, error TEXT, created_at REAL NOT NULL, ended_at REAL
    )
"""


class Jobs:
    """A SQLite file of jobs, for one service at a time. Every method blocks.

    Mutable: what is in the file.

    Raises (all methods):
        StateUnavailable: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            UploadLocked: another service has it open.
            UnsafePath: it is not a file of ours.
        """
        self._path = path
        self._mutex = threading.Lock()
        try:
            make_private_folder(path.parent)
            self._lock = FileLock(path.with_name(f"{path.name}.lock"))
            if not self._lock.take():
                self._lock.close()
                raise UploadLocked(
                    f"Another service uses {path}.",
                    next_step="Stop it, or give this one a file of its own with --jobs.",
                )
            os.close(open_private_file(path, os.O_RDWR | os.O_CREAT))
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        self._run("PRAGMA journal_mode=WAL")
        self._run("PRAGMA synchronous=FULL")
        self._run(_TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._database.close()
        self._lock.close()

    def add(self, job: Job) -> Job:
        """Keep a new job; returns it with its id. Durable on return."""
        row = _row_of(replace(job, created_at=time.time()))
        del row["id"]
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        with self._mutex:
            cursor = self._run(f"INSERT INTO job ({names}) VALUES ({marks})", row)  # noqa: S608
            job_id = cursor.lastrowid or 0
        return replace(job, id=job_id, created_at=row["created_at"])

    def save(self, job: Job) -> None:
        """Write a job that has changed. Durable on return."""
        changes = ", ".join(f"{name} = :{name}" for name in _NAMES if name != "id")
        with self._mutex:
            self._run(f"UPDATE job SET {changes} WHERE id = :id", _row_of(job))  # noqa: S608

    def open_jobs(self) -> list[Job]:
        """Those that have not ended, in the order of their ids."""
        ended = ", ".join(f"'{status}'" for status in sorted(ENDED))
        return self._select(f"status NOT IN ({ended}) ORDER BY id", {})

    def find(self, job_id: int) -> Job | None:
        """One job; None if there is none."""
        found = self._select("id = :id", {"id": job_id})
        return found[0] if found else None

    def page(self, *, before: int | None, count: int, status: str | None) -> list[Job]:
        """Jobs, newest first."""
        values = {"before": before or (1 << 62), "count": count, "status": status}
        where = "id < :before AND (:status IS NULL OR status = :status)"
        return self._select(f"{where} ORDER BY id DESC LIMIT :count", values)

    def forget(self, job_id: int) -> None:
        """Remove a job; its upload stays in the state."""
        with self._mutex:
            self._run("DELETE FROM job WHERE id = :id", {"id": job_id})

    def _select(self, where: str, values: Mapping[str, Any]) -> list[Job]:
        with self._mutex:
            rows = self._run(f"SELECT {_COLUMNS} FROM job WHERE {where}", values).fetchall()  # noqa: S608
        return [_job_of(row) for row in rows]

    def _run(self, statement: str, values: Mapping[str, Any] | None = None) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values or {})
        except sqlite3.Error as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, reason: str) -> StateUnavailable:
        return StateUnavailable(
            f"The file of jobs {self._path} cannot be used: {reason}.",
            next_step="Free space or check its permissions, or name another file with --jobs.",
        )


def _row_of(job: Job) -> dict[str, Any]:
    row = {name: getattr(job, name) for name in _NAMES}
    return {
        name: json.dumps(value) if name in _JSON and value is not None else value
        for name, value in row.items()
    }


def _job_of(row: tuple[Any, ...]) -> Job:
    values = dict(zip(_NAMES, row, strict=True))
    for name in _JSON:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    values["status"], values["overwrite"] = Status(values["status"]), bool(values["overwrite"])
    return Job(**values)
