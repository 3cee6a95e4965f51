"""procrastinate, and what our promises need beyond it.

Used as published: its schema and migrations, `App`, `Worker` (concurrency, LISTEN, polling,
graceful shutdown) with a retry strategy, and of `JobManager`: `batch_defer_jobs_async` and
`cancel_job_by_id` on a connection of ours, `fetch_job`, `get_stalled_jobs`, `list_jobs_async`,
registering and pruning workers. Replaced by SQL of our own, all of it in this module:

| procrastinate has | we need |
|---|---|
| `finish_job`, `retry_job`: by id, from any worker | only while the job is this worker's in this attempt: a worker that was frozen changes nothing when it wakes up |
| `finish_job` commits by itself | the record of the row in the same transaction |
| `update_heartbeat` updates a row that another worker's start may have deleted | insert it again: the next fetch refers to it |
| `list_queues` counts every job | whether any job is left, twice a second |
| no list of workers | one, for `vodup status` |
| an error when the database restarts | repeat the query for a while |
"""  # noqa: E501 - a table

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager
from psycopg.rows import dict_row

from uploader.bulk.ledger import failure_record, id_of
from uploader.bulk.rows import Row
from uploader.cluster.database import connected, has_queue
from uploader.cluster.jobs import TASK, row_of
from uploader.errors import VodupError
from uploader.log import get_logger

if TYPE_CHECKING:
    import datetime

    from procrastinate.connector import Notify
    from procrastinate.jobs import Job, Status

T = TypeVar("T")

_ANSWER_TIMEOUT_S: Final = 30.0
_RETRY_PAUSE_S: Final = 0.5
_FAILED_CODE: Final = 1

_IF_OURS: Final = """
WITH ours AS MATERIALIZED (
    SELECT id FROM procrastinate_jobs
    WHERE id = %(job)s AND worker_id IS NOT DISTINCT FROM %(worker)s
      AND attempts = %(attempts)s AND status = 'doing'
    FOR UPDATE
), changed AS (
    UPDATE vodup_job SET {changes}
    FROM ours WHERE vodup_job.id = %(row)s AND vodup_job.job_id = ours.id
)
SELECT {then} FROM ours
"""

_END: Final = _IF_OURS.format(
    changes="""status = %(status)s, record = %(record)s, problem = NULL, job_id = NULL,
        ended_xid = pg_current_xact_id(), ended_at = clock_timestamp()""",
    then="procrastinate_finish_job_v1(ours.id, 'succeeded', true)",
)

_DROP: Final = _IF_OURS.format(
    changes="job_id = NULL", then="procrastinate_finish_job_v1(ours.id, 'aborted', true)"
)

_GIVE_BACK: Final = _IF_OURS.format(
    changes="failure_count = failure_count + %(failures)s, problem = %(problem)s",
    then="procrastinate_retry_job_v2(ours.id, coalesce(%(retry_at)s, now()), NULL, NULL, NULL)",
)

_ROW: Final = """
SELECT spec::text AS spec, manifest, number, failure_count FROM vodup_job
WHERE id = %(row)s AND job_id = %(job)s
"""

_IS_ANY_LEFT: Final = """
SELECT EXISTS (
    SELECT 1 FROM procrastinate_jobs WHERE task_name = %(task)s
      AND queue_name = ANY(%(queues)s) AND status IN ('todo', 'doing')
) AS is_any
"""

_HEARTBEAT: Final = """
INSERT INTO procrastinate_workers (id, last_heartbeat) OVERRIDING SYSTEM VALUE
VALUES (%(worker)s, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET last_heartbeat = clock_timestamp()
"""


@dataclass(frozen=True, slots=True)
class Ending:
    """What is written when a job leaves this worker.

    Attributes:
        row_id: of `vodup_job`.
        record: the row's final record; None when the job is given back.
        problem: why it is given back, for `status`.
        is_failure: whether giving it back counts against the row's tries.
        wait_s: until it may be taken again; None for a job that ends.
    """

    row_id: str
    record: Mapping[str, Any] | None = None
    problem: str | None = None
    is_failure: bool = False
    wait_s: float | None = None


class Queue(JobManager):
    """procrastinate's job manager, fenced. Mutable: how the jobs that leave us end.

    `endings` is filled in by the task, by job, before it returns or raises.
    """

    def __init__(self, connector: PsycopgConnector) -> None:
        super().__init__(connector)
        self.endings: dict[int, Ending] = {}

    # --- replaced methods of the job manager ------------------------------------------

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        """End a job that is still ours, and write its record."""
        ending = self._ending_of(job)
        if (record := ending.record) is None:
            is_ours = await self._if_ours(_DROP, job, row=ending.row_id)
        else:
            values = {"status": record["status"], "record": json.dumps(record)}
            is_ours = await self._if_ours(_END, job, row=ending.row_id, **values)
        if not is_ours:
            get_logger().warning("job.taken_over", job=job.id, row=ending.row_id)

    async def retry_job(
        self,
        job: Job,
        retry_at: datetime.datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        """Give back a job that is still ours."""
        ending = self._ending_of(job)
        if not await self._give_back(job, ending, retry_at):
            get_logger().warning("job.taken_over", job=job.id, row=ending.row_id)

    async def update_heartbeat(self, worker_id: int) -> None:
        """Record that this worker is alive, even if its row was deleted meanwhile."""
        await self.connector.execute_query_async(_HEARTBEAT, worker=worker_id)

    def _ending_of(self, job: Job) -> Ending:
        return self.endings.pop(job.id or 0, Ending(_row_id(job)))

    async def _give_back(
        self, job: Job, ending: Ending, retry_at: datetime.datetime | None = None
    ) -> bool:
        return await self._if_ours(
            _GIVE_BACK,
            job,
            row=ending.row_id,
            retry_at=retry_at,
            problem=ending.problem,
            failures=int(ending.is_failure),
        )

    async def _if_ours(self, query: str, job: Job, **values: object) -> bool:
        fence = {"job": job.id, "worker": job.worker_id, "attempts": job.attempts}
        return bool(await self.connector.execute_query_all_async(query, **fence, **values))

    # --- what workers need besides ----------------------------------------------------

    async def row(self, row_id: str, job_id: int) -> dict[str, Any] | None:
        """Return the row of a job; None if another job is for that row by now."""
        rows = await self.connector.execute_query_all_async(_ROW, row=row_id, job=job_id)
        return rows[0] if rows else None

    async def held_jobs(self, worker_id: int) -> list[Job]:
        """Return the jobs that the database assigns to this worker."""
        return list(await self.list_jobs_async(task=TASK, status="doing", worker_id=worker_id))

    async def sweep(self, *, silent_s: float, lost: Iterable[Job] = ()) -> list[int]:
        """Give back the jobs of silent workers, and `lost` jobs; returns their ids."""
        stalled = await self.get_stalled_jobs(task_name=TASK, seconds_since_heartbeat=silent_s)
        return [
            job.id or 0
            for job in (*lost, *stalled)
            if await self._give_back(job, Ending(_row_id(job), problem="its worker disappeared"))
        ]

    async def has_jobs(self, queues: list[str]) -> bool:
        """Whether any job of some queues waits, or runs anywhere."""
        rows = await self.connector.execute_query_all_async(_IS_ANY_LEFT, task=TASK, queues=queues)
        return bool(rows[0]["is_any"])


def _row_id(job: Job) -> str:
    return str(job.task_kwargs.get("id"))


def make_queue(patience_s: float) -> tuple[App, Queue]:
    """Return procrastinate's app and its job manager.

    Args:
        patience_s: how long queries are repeated while the database cannot be reached.
    """
    connector = _PatientConnector(patience_s)
    app = App(connector=connector)
    app.job_manager = queue = Queue(connector)
    return app, queue


# --- a database that restarts ---------------------------------------------------------


class _PatientConnector(PsycopgConnector):
    """Repeats queries while the database cannot be reached; all of them may be repeated."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self._patience_s = patience_s

    async def execute_query_async(self, query: Any, **arguments: Any) -> None:  # noqa: ANN401
        call = super().execute_query_async
        await self._repeated(lambda: call(query, **arguments))

    async def execute_query_one_async(self, query: Any, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        call = super().execute_query_one_async
        return await self._repeated(lambda: call(query, **arguments))

    async def execute_query_all_async(self, query: Any, **arguments: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        call = super().execute_query_all_async
        return await self._repeated(lambda: call(query, **arguments))

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Listen again after the connection was lost; the worker polls as well."""
        names = list(channels)
        while True:
            try:
                await super().listen_notify(on_notification, names)
            except ConnectorException as error:
                if not _is_away(error):
                    raise
            await asyncio.sleep(_RETRY_PAUSE_S)

    async def _repeated(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until there is an answer or patience ends; a refused query is an answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        while True:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    return await call()
            except (ConnectorException, TimeoutError) as error:
                if not _is_away(error) or loop.time() >= deadline:
                    raise
                get_logger().warning("queue.waited", reason=type(error.__cause__ or error).__name__)
            await asyncio.sleep(_RETRY_PAUSE_S)


def _is_away(error: Exception) -> bool:
    if isinstance(error, TimeoutError):
        return True
    away = (psycopg.OperationalError, psycopg.InterfaceError)
    return isinstance(error.__cause__, away) and not isinstance(
        error.__cause__, psycopg.errors.ObjectNotInPrerequisiteState
    )


# --- from the command line ------------------------------------------------------------

_QUEUED_ROW: Final = """
SELECT spec::text, manifest, number, failure_count, job_id FROM vodup_job
WHERE id = %s AND status = 'queued' FOR UPDATE
"""

_FAIL: Final = """
UPDATE vodup_job SET status = 'failed', record = %s, job_id = NULL,
    ended_xid = pg_current_xact_id(), ended_at = clock_timestamp()
WHERE id = %s
"""

_QUEUES: Final = """
WITH taken AS (
    SELECT queue_name, count(*) AS count FROM procrastinate_jobs WHERE status = 'doing' GROUP BY 1
)
SELECT coalesce(queue, '') AS queue,
       coalesce(taken.count, 0) AS running,
       count(*) FILTER (WHERE status = 'queued') - coalesce(taken.count, 0) AS waiting,
       count(*) FILTER (WHERE status = 'queued' AND failure_count > 0) AS failing,
       count(*) FILTER (WHERE status = 'done') AS done,
       count(*) FILTER (WHERE status = 'failed') AS failed
FROM vodup_job LEFT JOIN taken ON taken.queue_name = queue GROUP BY 1, taken.count ORDER BY 1
"""

_WORKERS: Final = """
SELECT worker.id, count(job.id) AS running,
       round(extract(epoch FROM clock_timestamp() - last_heartbeat)::numeric, 1)::float8 AS silent_s
FROM procrastinate_workers AS worker
LEFT JOIN procrastinate_jobs AS job ON job.worker_id = worker.id AND job.status = 'doing'
GROUP BY worker.id ORDER BY 1
"""


def cancel_row(conninfo: str, key: str) -> bool:
    """End the row of an upload that waits in the queue; False if none does. Blocks.

    A row that a worker is uploading is left to it.

    Raises:
        StateUnavailable: the database cannot be used.
    """
    row_id = f"{id_of(Row('', 0, key=key)):016x}"
    with connected(conninfo) as connection:
        if not has_queue(connection):
            return False
        found = connection.execute(_QUEUED_ROW, [row_id]).fetchone()
        if found is None:
            return False
        spec, manifest, number, failure_count, job_id = found
        jobs = JobManager(SyncPsycopgConnector())
        if not jobs.cancel_job_by_id(job_id, delete_job=True, connection=connection):
            return False
        row = row_of(json.loads(spec), manifest, number)
        error = VodupError(
            "The upload was aborted with `vodup abort`.", next_step="To upload it, queue it again."
        )
        record = failure_record(row, error, exit_code=_FAILED_CODE, attempts=failure_count)
        connection.execute(_FAIL, [json.dumps(record), row_id])
    return True


def queue_facts(conninfo: str) -> dict[str, Any] | None:
    """Count rows and workers; None where there is no queue. Blocks.

    Raises:
        StateUnavailable: the database cannot be used.
    """
    with connected(conninfo) as connection:
        if not has_queue(connection):
            return None
        cursor = connection.cursor(row_factory=dict_row)
        queues = cursor.execute(_QUEUES).fetchall()
        workers = cursor.execute(_WORKERS).fetchall()
    names = ("running", "waiting", "failing", "done", "failed")
    totals = {name: sum(queue[name] for queue in queues) for name in names}
    return {"queues": queues, "workers": workers, **totals}
