"""Rows of manifests into the queue, each once, however often they are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

from procrastinate import PsycopgConnector
from procrastinate.jobs import Job
from procrastinate.manager import JobManager

from uploader.bulk.ledger import Ledger, failure_record, id_of, mark_in, mark_of
from uploader.bulk.runner import CheckedRow, Reading, as_changed, is_gone, read_rows
from uploader.cluster.database import borrowed
from uploader.cluster.jobs import TASK, Places, spec_of, storable
from uploader.cluster.results import AwaitedRows, record_of
from uploader.errors import SourceUnreadable, VodupError
from uploader.threads import in_thread

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from uploader.cluster.database import Pool

_BATCH: Final = 1000

# All enqueues write rows in the order of their ids: two at once never wait in a circle.
_UPSERT: Final = """
INSERT INTO vodup_job AS job
    (id, manifest, number, run, queue, spec, status, record, ended_xid, ended_at)
SELECT id, manifest, number, %(run)s, queue, spec,
       CASE WHEN record IS NULL THEN 'queued' ELSE 'failed' END, record,
       CASE WHEN record IS NOT NULL THEN pg_current_xact_id() END,
       CASE WHEN record IS NOT NULL THEN clock_timestamp() END
FROM unnest(
    %(id)s::text[], %(manifest)s::text[], %(number)s::bigint[], %(queue)s::text[],
    %(spec)s::json[], %(record)s::json[]
) AS row (id, manifest, number, queue, spec, record)
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
    manifest = excluded.manifest, number = excluded.number, run = excluded.run,
    queue = CASE WHEN job.status = 'done' THEN job.queue ELSE excluded.queue END,
    spec = CASE WHEN job.status = 'done' THEN job.spec ELSE excluded.spec END,
    status = CASE WHEN job.status = 'done' THEN 'done' ELSE excluded.status END,
    failure_count = CASE WHEN job.status = 'failed' THEN 0 ELSE job.failure_count END,
    problem = CASE WHEN job.status = 'queued' THEN job.problem END,
    record = CASE WHEN job.status = 'done' THEN job.record ELSE excluded.record END,
    ended_xid = CASE WHEN job.status = 'done' THEN job.ended_xid ELSE excluded.ended_xid END,
    ended_at = CASE WHEN job.status = 'done' THEN job.ended_at ELSE excluded.ended_at END
"""

# What has ended before has no say in what becomes of a file that has changed since.
_SET_CHANGED: Final = "UPDATE vodup_job SET status = 'failed' WHERE id = ANY(%(ids)s)"

# A queued row without a job: it is new, or failed before, or its job was deleted.
_JOBLESS: Final = """
SELECT job.id, job.queue FROM vodup_job AS job
WHERE job.id = ANY(%(ids)s) AND job.status = 'queued'
  AND NOT EXISTS (SELECT 1 FROM procrastinate_jobs AS queued WHERE queued.id = job.job_id)
ORDER BY job.id
"""

_LINK: Final = """
UPDATE vodup_job SET job_id = queued.id
FROM procrastinate_jobs AS queued
WHERE queued.id = ANY(%(jobs)s) AND vodup_job.id = queued.args->>'id'
"""

_ENDED: Final = """
SELECT id, manifest, number, record::text FROM vodup_job
WHERE id = ANY(%(ids)s) AND status <> 'queued'
"""

_FORGET_ABSENT: Final = """
DELETE FROM vodup_job
WHERE manifest = ANY(%(manifests)s) AND status = 'failed' AND run <> %(run)s
"""


@dataclass(slots=True)
class EnqueueCounts:
    """What became of the rows. Mutable while they are read."""

    read_count: int = 0
    queued_count: int = 0
    waiting_count: int = 0
    done_count: int = 0
    refused_count: int = 0


class _Line(NamedTuple):
    """A row as it goes to the database; `queue` is None for a refused row."""

    id: str
    manifest: str
    number: int
    queue: str | None
    spec: str
    record: str | None
    checked: CheckedRow


_COLUMNS: Final = _Line._fields[:-1]


class Enqueuer:
    """One enqueueing of some streams. Mutable: its counts.

    Args:
        ledger: knows which rows ended already, and which come twice.
        priority: of rows that give none.
        exit_code: goes into the records of refused rows.
        on_ended: called with the records of rows that have one already.
        awaited: gets the rows that have none yet.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        places: Places,
        *,
        priority: int = 0,
        overwrite: bool = False,
        exit_code: Callable[[VodupError], int] = lambda _: 1,
        on_ended: Callable[[Mapping[str, Any]], None] = lambda _: None,
        awaited: AwaitedRows | None = None,
    ) -> None:
        self._pool, self._ledger, self._places = pool, ledger, places
        self._priority, self._overwrite = priority, overwrite
        self._exit_code, self._on_ended = exit_code, on_ended
        self._awaited = awaited or AwaitedRows()
        self._jobs = JobManager(PsycopgConnector())
        self._run = uuid4().hex
        self.counts = EnqueueCounts()

    async def run(self, readings: Sequence[Reading]) -> EnqueueCounts:
        """Queue every row that has not ended. May be repeated after anything.

        Raises:
            StateUnavailable: the database cannot be used; what is queued stays queued.
        """
        rows = self._lines(readings)
        while batch := await in_thread(list, islice(rows, _BATCH)):
            if lines := {line.id: line for line in batch if line is not None}:
                await self._queue(lines)
        manifests = [storable(stream.name) for stream, _ in readings]
        async with borrowed(self._pool) as connection:
            await connection.execute(_FORGET_ABSENT, {"manifests": manifests, "run": self._run})
        return self.counts

    async def add(self, rows: Iterable[CheckedRow]) -> None:
        """Queue some rows that are valid, or report how they have ended.

        Raises:
            StateUnavailable: the database cannot be used.
        """
        await self._queue({line.id: line for line in map(self._line, rows)})

    def _lines(self, readings: Sequence[Reading]) -> Iterator[_Line | None]:
        """In a thread: read and check rows. None for a row that is done."""
        for checked in read_rows(readings, self._ledger):
            self.counts.read_count += 1
            self.counts.done_count += checked.known.is_done
            yield None if checked.known.is_done else self._line(checked)

    def _line(self, checked: CheckedRow) -> _Line:
        row, record, queue = checked.row, None, None
        if row.error is None:
            queue = self._places.queue_of(checked.real_path or row.path)
        else:
            self.counts.refused_count += 1
            code = self._exit_code(row.error)
            former = checked.known.former
            failure = failure_record(row, row.error, exit_code=code, attempts=0, former=former)
            record = json.dumps(failure)
        return _Line(
            id=f"{id_of(row):016x}",
            manifest=storable(row.manifest),
            number=row.number,
            queue=queue,
            spec=spec_of(checked, overwrite=self._overwrite),
            record=record,
            checked=checked,
        )

    async def _queue(self, lines: Mapping[str, _Line]) -> None:
        """Write a batch in one transaction: no row is known without being queued."""
        ids = list(lines)
        async with borrowed(self._pool) as connection, connection.transaction():
            ended = await (await connection.execute(_ENDED, {"ids": ids})).fetchall()
            changed = self._changed(lines, [record_of(*row) for row in ended])
            if changed:
                await connection.execute(_SET_CHANGED, {"ids": list(changed)})
            columns = zip(*{**lines, **changed}.values(), strict=True)
            values = dict(zip(_COLUMNS, map(list, columns), strict=False))
            await connection.execute(_UPSERT, {"run": self._run, **values})
            jobless = await (await connection.execute(_JOBLESS, {"ids": ids})).fetchall()
            if jobless:
                await self._defer(connection, jobless, lines)
            ended = await (await connection.execute(_ENDED, {"ids": ids})).fetchall()
        self._count(ids, len(jobless), [record_of(*row) for row in ended])

    def _changed(
        self, lines: Mapping[str, _Line], records: Sequence[Mapping[str, Any]]
    ) -> dict[str, _Line]:
        """Lines for the rows whose files are not those that were verified."""
        found: dict[str, _Line] = {}
        for record in records:
            line, mark = lines[record["id"]], mark_in(record)
            row = line.checked.row
            if row.stamp is None:
                is_other = isinstance(row.error, SourceUnreadable) and not is_gone(row.error)
            else:
                is_other = mark != mark_of(row.stamp)
            if mark and is_other:
                is_refused = line.record is not None
                changed = line if is_refused else self._line(as_changed(line.checked, record))
                found[line.id] = changed
        return found

    async def _defer(
        self,
        connection: AsyncConnection[tuple[Any, ...]],
        jobless: Sequence[tuple[Any, ...]],
        lines: Mapping[str, _Line],
    ) -> None:
        def priority_of(row_id: str) -> int:
            priority = lines[row_id].checked.row.priority
            return self._priority if priority is None else priority

        jobs = [
            Job(
                queue=queue,
                priority=priority_of(row_id),
                lock=None,
                queueing_lock=None,
                task_name=TASK,
                task_kwargs={"id": row_id},
            )
            for row_id, queue in jobless
        ]
        deferred = await self._jobs.batch_defer_jobs_async(jobs, connection=connection)
        await connection.execute(_LINK, {"jobs": [job.id for job in deferred]})

    def _count(self, ids: Sequence[str], queued: int, ended: Sequence[Mapping[str, Any]]) -> None:
        self.counts.queued_count += queued
        self.counts.waiting_count += len(ids) - queued - len(ended)
        for record in ended:
            self.counts.done_count += record["status"] == "done"
            self._on_ended(record)
        self._awaited.add(set(ids) - {str(record["id"]) for record in ended})
