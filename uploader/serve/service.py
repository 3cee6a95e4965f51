"""Sends the uploads that a service was given: the most urgent first, so many at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from uploader.bulk.ledger import KnownRow
from uploader.bulk.rows import RawRow, Row, RowRules, is_url, shown_path
from uploader.bulk.runner import CheckedRow
from uploader.errors import ConfigurationError, VodupError
from uploader.events import Event, PartStored, UploadProgress, UploadResult
from uploader.handles import UploadHandle
from uploader.serve.jobs import Job, Jobs, Status
from uploader.sources import AnySource, UrlPolicy
from uploader.tasks import one_error
from uploader.threads import in_thread
from uploader.unexpected import unexpected
from uploader.uploader import Uploader

_MOST_UNREAD: Final = 1000
"""Events that a reader may be behind. A slower one is cut off, and can read the state again."""

_REQUEST: Final = "request"


class UploadService:
    """Uploads that were requested, and those that run. Mutable; one event loop.

    Args:
        rules: what the fields of a request are checked against.
        urls: where URLs of requests may lead.
        files: uploads at once; one that is paused does not count.
    """

    def __init__(
        self, uploader: Uploader, jobs: Jobs, rules: RowRules, *, urls: UrlPolicy, files: int
    ) -> None:
        self._uploader, self._jobs, self._rules = uploader, jobs, rules
        self._urls, self._files = urls, files
        self._open: dict[int, Job] = {}
        self._handles: dict[int, UploadHandle] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._progress: dict[int, dict[str, Any]] = {}
        self._readers: WeakSet[EventReader] = WeakSet()
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send while the block runs. At its end uploads stop; the next service resumes them."""
        for job in await in_thread(self._jobs.open_jobs):
            is_paused = job.status is Status.PAUSED
            self._open[job.id] = job if is_paused else replace(job, status=Status.QUEUED)
        async with one_error() as group:
            self._group = group
            self._start_due()
            try:
                yield
            finally:
                self._group = None
                for task in self._tasks.values():
                    task.cancel()
        for reader in self._readers:
            reader.close()

    # --- requests -------------------------------------------------------------------------

    async def submit(self, fields: Mapping[str, Any], *, priority: int, overwrite: bool) -> Job:
        """Accept an upload; durable on return. One of the same key that is open is returned.

        Raises:
            ConfigurationError, UnsafePath, SourceUnreadable: the request is refused.
        """
        row = self._row_of(fields)
        if not is_url(row.path):
            await in_thread(self._rules.root.resolved, row.path)
        for job in self._open.values():
            if job.key == row.key:
                return job
        job = Job(id=0, key=row.key, columns=row.columns, priority=priority, overwrite=overwrite)
        job = await in_thread(self._jobs.add, job)
        self._changed(job)
        self._start_due()
        return job

    async def find(self, job_id: int) -> Job | None:
        """One job."""
        return self._open.get(job_id) or await in_thread(self._jobs.find, job_id)

    async def page(self, *, before: int | None, count: int, status: str | None) -> list[Job]:
        """Jobs, newest first."""
        found = await in_thread(partial(self._jobs.page, before=before, count=count, status=status))
        return [self._open.get(job.id, job) for job in found]

    async def pause(self, job: Job) -> Job:
        """Begin no further request; what is being sent is finished."""
        if job.has_ended or job.status is Status.PAUSED:
            return job
        if (handle := self._handles.get(job.id)) is not None:
            handle.pause()
        return await self._save(replace(job, status=Status.PAUSED))

    async def resume(self, job: Job) -> Job:
        """Go on with one that is paused, or try one again that has failed or was cancelled."""
        if job.status not in {Status.PAUSED, Status.FAILED, Status.CANCELLED}:
            return job
        return await self._save(replace(job, status=Status.QUEUED, error=None, ended_at=None))

    async def cancel(self, job: Job, *, abort: bool) -> Job:
        """Stop it. With `abort` its parts are removed, else it can be resumed.

        Raises:
            VodupError: the parts cannot be removed.
        """
        if (known := self._open.get(job.id)) is not None:  # else it has ended meanwhile
            job = replace(known, status=Status.CANCELLED, ended_at=_now())
            self._changed(job)
            if (task := self._tasks.get(job.id)) is not None:
                task.cancel()
                await asyncio.wait([task])
            await self._save(job)
        if abort and await self._uploader.state.find(key=job.key) is not None:
            await self._uploader.abort(job.key)
        return job

    async def forget(self, job: Job) -> None:
        """Remove one that has ended from the list.

        Raises:
            ConfigurationError: it has not ended.
        """
        if not job.has_ended:
            raise ConfigurationError(
                f"Upload {job.id} has not ended.", next_step="Cancel it first."
            )
        await in_thread(self._jobs.forget, job.id)

    async def upload_body(
        self, body: AnySource, fields: Mapping[str, Any], *, overwrite: bool
    ) -> UploadResult:
        """Store what a request's body holds, while it arrives.

        Raises:
            VodupError: it cannot be stored. Without a key nothing can resume it.
        """
        named = {"path": fields.get("file_name") or "body.mp4", **fields}
        row = self._row_of(named)
        key = row.upload_key if "key" in fields else None
        return await self._uploader.upload(
            body, meta=row.meta, video_id=row.video_id, key=key, overwrite=overwrite
        )

    def reader(self, job_id: int | None = None) -> EventReader:
        """Follow the events of one upload, or of all."""
        reader = EventReader(job_id)
        self._readers.add(reader)
        for job in self._open.values():
            reader.put(job.id, self.shown(job))
        return reader

    def shown(self, job: Job) -> dict[str, Any]:
        """A job as answers and events have it."""
        fields = asdict(job)
        fields["type"] = "upload"
        fields["source"] = shown_path(str(fields.pop("columns").get("path", "")))
        for name in ("created_at", "ended_at"):
            if fields[name] is not None:
                fields[name] = datetime.fromtimestamp(fields[name], UTC).isoformat()
        return fields | {"progress": self._progress.get(job.id)}

    # --- sending --------------------------------------------------------------------------

    def _row_of(self, fields: Mapping[str, Any]) -> Row:
        row = self._rules.identify(RawRow(1, fields), _REQUEST)
        if row.error is None:
            row = self._rules.describe(row)
        if row.error is not None:
            raise row.error
        return row

    def _start_due(self) -> None:
        """Start or continue the most urgent uploads while fewer run than may."""
        while self._group is not None:
            running = sum(job.status is Status.RUNNING for job in self._open.values())
            queued = (job for job in self._open.values() if job.status is Status.QUEUED)
            due = min(queued, key=lambda job: (-job.priority, job.id), default=None)
            if due is None or running >= self._files:
                return
            if due.id in self._tasks and due.id not in self._handles:
                return  # it is ending; its end calls this again
            self._changed(replace(due, status=Status.RUNNING))
            if (handle := self._handles.get(due.id)) is not None:
                handle.resume()
            else:
                self._tasks[due.id] = self._group.create_task(self._run(due.id))

    async def _run(self, job_id: int) -> None:
        job = self._open[job_id]
        try:
            result = await self._uploaded(job)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = error if isinstance(error, VodupError) else unexpected(error)
            await self._end(job_id, Status.FAILED, error=problem_of(failure))
        else:
            await self._end(job_id, Status.DONE, result=result_of(result))
        finally:
            self._handles.pop(job_id, None)
            self._tasks.pop(job_id, None)
            self._progress.pop(job_id, None)
            self._start_due()

    async def _uploaded(self, job: Job) -> UploadResult:
        row = self._row_of(job.columns)
        checked = CheckedRow(row, KnownRow(), root=self._rules.root.real_folder)
        if not is_url(row.path):
            real_path, status = await in_thread(self._rules.root.resolved, row.path)
            checked = replace(checked, real_path=real_path, size=status.st_size)
        item = checked.item(self._urls, overwrite=job.overwrite)
        handle = await self._uploader.submit(
            item.source,
            meta=item.meta,
            video_id=item.video_id,
            key=item.key,
            overwrite=item.overwrite,
            on_event=partial(self._receive, job.id),
        )
        self._handles[job.id] = handle
        if self._open[job.id].status is Status.PAUSED:
            handle.pause()
        try:
            return await handle
        except asyncio.CancelledError:
            await handle.cancel()
            raise

    async def _end(self, job_id: int, status: Status, **fields: Any) -> None:
        if (job := self._open.get(job_id)) is None:
            return  # it was cancelled at the same moment
        video_id = (fields.get("result") or fields["error"]).get("video_id") or job.video_id
        ended = replace(job, status=status, video_id=video_id, ended_at=_now(), **fields)
        await self._save(ended)

    async def _save(self, job: Job) -> Job:
        self._changed(job)
        await in_thread(self._jobs.save, job)
        self._start_due()
        return self._open.get(job.id, job)

    def _changed(self, job: Job) -> None:
        if job.has_ended:
            self._open.pop(job.id, None)
        else:
            self._open[job.id] = job
        self._publish(job.id, self.shown(job))

    def _receive(self, job_id: int, event: Event) -> None:
        if isinstance(event, PartStored):
            return  # the progress counts them
        fields = {"type": event.type, "id": job_id, **_plain(asdict(event))}
        if isinstance(event, UploadProgress):
            self._progress[job_id] = fields
        if (job := self._open.get(job_id)) is not None and event.video_id != job.video_id:
            self._open[job_id] = replace(job, video_id=event.video_id)
        self._publish(job_id, fields)

    def _publish(self, job_id: int, fields: Mapping[str, Any]) -> None:
        for reader in self._readers:
            reader.put(job_id, fields)


class EventReader:
    """What one reader of events has still to read. Mutable."""

    def __init__(self, job_id: int | None) -> None:
        self._job_id = job_id
        self._unread: deque[Mapping[str, Any] | None] = deque()
        self._arrived = asyncio.Event()
        self._is_closed = False

    def put(self, job_id: int, fields: Mapping[str, Any]) -> None:
        """Keep an event, if the reader follows that upload."""
        if self._job_id not in (None, job_id):
            return
        if len(self._unread) >= _MOST_UNREAD:
            self.close()
        else:
            self._unread.append(fields)
            self._arrived.set()

    def close(self) -> None:
        """Nothing more comes after what is there."""
        self._is_closed = True
        self._arrived.set()

    async def next(self, *, timeout_s: float) -> Mapping[str, Any] | None:
        """The next event; None after the last.

        Raises:
            TimeoutError: none came.
        """
        if not self._unread and not self._is_closed:
            self._arrived.clear()
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        return self._unread.popleft() if self._unread else None


def _now() -> float:
    return datetime.now(UTC).timestamp()


def result_of(result: UploadResult) -> dict[str, Any]:
    """A result as JSON has it."""
    return _plain(asdict(result))


def problem_of(error: VodupError) -> dict[str, Any]:
    """An error as RFC 9457 has it, with our own fields."""
    return {
        "title": type(error).__name__,
        "detail": error.message,
        "next_step": error.next_step,
        "code": error.code,
        "request_id": error.request_id,
        "video_id": error.video_id,
        "resumable": error.is_resumable,
        "temporary": error.is_temporary,
    }


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """CRC-64s as decimal strings: many readers of JSON keep only 53 bits of a number."""
    for name, value in fields.items():
        if name == "crc64":
            fields[name] = str(value)
        elif isinstance(value, dict):
            _plain(value)
    return fields
