"""Rows of manifests into the queue, each once, however often they are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from uploader.bulk.ledger import Ledger, failure_record, id_of
from uploader.bulk.rows import Row
from uploader.bulk.runner import CheckedRow, Reading, read_rows
from uploader.cluster.database import in_our_words
from uploader.cluster.jobs import Places, spec_of, storable
from uploader.cluster.results import Awaited, record_of
from uploader.errors import VodupError
from uploader.threads import in_thread

if TYPE_CHECKING:
    from uploader.cluster.database import Pool

__all__ = ["Enqueued", "Enqueuer"]

_BATCH: Final = 1000
_TASK: Final = "vodup.upload"

# The rows of a batch, in one order everywhere: two enqueues at once never wait in a circle.
_ROWS: Final = """
SELECT * FROM unnest(
    %(ids)s::text[], %(manifests)s::text[], %(numbers)s::bigint[], %(queues)s::text[],
    %(specs)s::json[], %(records)s::json[]
) AS row (id, manifest, number, queue, spec, record) ORDER BY id
"""

_UPSERT: Final = f"""
INSERT INTO vodup_job AS job
    (id, manifest, number, run, queue, spec, status, record, ended_xid, ended_at)
SELECT id, manifest, number, %(run)s, queue, spec,
       CASE WHEN record IS NULL THEN 'queued' ELSE 'failed' END, record,
       CASE WHEN record IS NOT NULL THEN pg_current_xact_id() END,
       CASE WHEN record IS NOT NULL THEN clock_timestamp() END
FROM ({_ROWS}) AS row
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
"""  # noqa: S608  # nosec B608 - of constants

# A row that waits for a job and has none: new, failed before, or its job was deleted.
_JOBLESS: Final = """
SELECT job.id, job.queue FROM vodup_job AS job
WHERE job.id = ANY(%(ids)s) AND job.status = 'queued'
  AND NOT EXISTS (SELECT 1 FROM procrastinate_jobs AS queued WHERE queued.id = job.job_id)
ORDER BY job.id
"""

_DEFER: Final = """
SELECT procrastinate_defer_jobs_v1(ARRAY(
    SELECT ROW(queue, %(task)s, %(priority)s, NULL, NULL, jsonb_build_object('id', id), NULL)
           ::procrastinate_job_to_defer_v1
    FROM unnest(%(ids)s::text[], %(queues)s::text[]) WITH ORDINALITY AS row (id, queue, place)
    ORDER BY place
))
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
class Enqueued:
    """What became of the rows. Mutable while they are read."""

    read_count: int = 0
    queued_count: int = 0
    waiting_count: int = 0
    done_count: int = 0
    refused_count: int = 0

    def figures(self) -> dict[str, int]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Line:
    """A row as it goes to the database."""

    row: Row
    id: str
    queue: str | None
    spec: str
    record: str | None


class Enqueuer:
    """One enqueueing of some streams. Mutable: its counts.

    Args:
        ledger: tells which rows ended already, and which come twice.
        exit_code: goes into the records of refused rows.
        on_ended: told the records of rows that have one already.
        awaited: told the rows that have none yet.
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
        awaited: Awaited | None = None,
    ) -> None:
        self._pool, self._ledger, self._places = pool, ledger, places
        self._priority, self._overwrite = priority, overwrite
        self._exit_code, self._on_ended = exit_code, on_ended
        self._awaited = awaited
        self._run = uuid4().hex
        self.counts = Enqueued()

    async def run(self, readings: Sequence[Reading]) -> Enqueued:
        """Queue every row that has not ended. May be repeated after anything.

        Raises:
            StateUnavailable: the database cannot be used; what is queued stays queued.
        """
        rows = self._lines(readings)
        while batch := await in_thread(list, islice(rows, _BATCH)):
            await self._queue([line for line in batch if line is not None])
        manifests = [storable(stream.name) for stream, _ in readings]
        with in_our_words():
            async with self._pool.connection() as connection:
                values = {"manifests": manifests, "run": self._run}
                await connection.execute(_FORGET_ABSENT, values)
        return self.counts

    # --- rows into lines --------------------------------------------------------------

    def _lines(self, readings: Sequence[Reading]) -> Iterator[_Line | None]:
        """In a thread: read, check and write down. None for a row that is done."""
        for checked in read_rows(readings, self._ledger):
            self.counts.read_count += 1
            if checked.known.is_done:
                self.counts.done_count += 1
                yield None
            else:
                yield self._line(checked)

    def _line(self, checked: CheckedRow) -> _Line:
        row, record, queue = checked.row, None, None
        if row.error is None:
            queue = self._places.queue_of(checked.real_path or row.path)
        else:
            self.counts.refused_count += 1
            code = self._exit_code(row.error)
            record = json.dumps(failure_record(row, row.error, exit_code=code, attempts=0))
        spec = spec_of(checked, overwrite=self._overwrite)
        return _Line(row, f"{id_of(row):016x}", queue, spec, record)

    # --- lines into the database ------------------------------------------------------

    async def _queue(self, lines: Sequence[_Line]) -> None:
        """One transaction for a batch: a row is never known without being queued."""
        if not lines:
            return
        lines = list({line.id: line for line in lines}.values())
        ids = [line.id for line in lines]
        with in_our_words():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_UPSERT, self._values(lines))
                cursor = await connection.execute(_JOBLESS, {"ids": ids})
                jobless = await cursor.fetchall()
                if jobless:
                    deferred = await connection.execute(_DEFER, self._deferral(jobless))
                    row = await deferred.fetchone()
                    await connection.execute(_LINK, {"jobs": row[0] if row else []})
                cursor = await connection.execute(_ENDED, {"ids": ids})
                ended = await cursor.fetchall()
        self._count(ids, len(jobless), [record_of(*row) for row in ended])

    def _values(self, lines: Sequence[_Line]) -> dict[str, Any]:
        return {
            "run": self._run,
            "ids": [line.id for line in lines],
            "manifests": [storable(line.row.manifest) for line in lines],
            "numbers": [line.row.number for line in lines],
            "queues": [line.queue for line in lines],
            "specs": [line.spec for line in lines],
            "records": [line.record for line in lines],
        }

    def _deferral(self, jobless: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        return {
            "task": _TASK,
            "priority": self._priority,
            "ids": [row[0] for row in jobless],
            "queues": [row[1] for row in jobless],
        }

    def _count(self, ids: Sequence[str], queued: int, ended: Sequence[Mapping[str, Any]]) -> None:
        self.counts.queued_count += queued
        self.counts.waiting_count += len(ids) - queued - len(ended)
        for record in ended:
            self.counts.done_count += record["status"] == "done"
            self._on_ended(record)
        if self._awaited is not None:
            self._awaited.expect(set(ids) - {str(record["id"]) for record in ended})
