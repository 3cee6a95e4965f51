"""procrastinate, with what our promises ask of it beyond what it does.

- A database that is away for a while is waited for.
- Ending a job, giving it back and sweeping are fenced: each takes effect only while the job
  is still this worker's, in this attempt. A worker that was frozen changes nothing when it
  wakes up.
- A job ends in the same transaction that writes the record of its row.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager

from uploader.log import get_logger

if TYPE_CHECKING:
    import datetime

    from procrastinate.connector import Notify
    from procrastinate.jobs import Job, Status

__all__ = ["TASK", "Ending", "Queue", "make_queue"]

T = TypeVar("T")

TASK: Final = "vodup.upload"

_ANSWER_TIMEOUT_S: Final = 30.0
_RETRY_PAUSE_S: Final = 0.5

_OURS: Final = """
WITH ours AS MATERIALIZED (
    SELECT id FROM procrastinate_jobs
    WHERE id = %(job)s AND worker_id = %(worker)s AND attempts = %(attempts)s
      AND status = 'doing'
    FOR UPDATE
), noted AS (
    UPDATE vodup_job SET {changes}
    FROM ours WHERE vodup_job.id = %(row)s AND vodup_job.job_id = ours.id
)
SELECT {then} FROM ours
"""

_END: Final = _OURS.format(
    changes="""status = %(status)s, record = %(record)s, problem = NULL, job_id = NULL,
        ended_xid = pg_current_xact_id(), ended_at = clock_timestamp()""",
    then="procrastinate_finish_job_v1(ours.id, 'succeeded', true)",
)

_DROP: Final = _OURS.format(
    changes="job_id = NULL", then="procrastinate_finish_job_v1(ours.id, 'aborted', true)"
)

_GIVE_BACK: Final = _OURS.format(
    changes="failure_count = failure_count + %(failures)s, problem = %(problem)s",
    then="procrastinate_retry_job_v2(ours.id, %(retry_at)s, NULL, NULL, NULL)",
)

_SWEEP: Final = """
WITH stalled AS MATERIALIZED (
    SELECT job.id FROM procrastinate_jobs AS job
    LEFT JOIN procrastinate_workers AS worker ON worker.id = job.worker_id
    WHERE job.status = 'doing' AND job.task_name = %(task)s
      AND (worker.id IS NULL
           OR worker.last_heartbeat < clock_timestamp() - make_interval(secs => %(silent)s)
           OR job.id = ANY(%(ghosts)s::bigint[]) AND job.worker_id = %(worker)s)
    FOR UPDATE OF job SKIP LOCKED
)
SELECT id, procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL) AS done FROM stalled
"""

_DOING: Final = """
SELECT id FROM procrastinate_jobs WHERE status = 'doing' AND worker_id = %(worker)s
"""

_ROW: Final = """
SELECT spec::text AS spec, manifest, number, failure_count FROM vodup_job
WHERE id = %(row)s AND job_id = %(job)s
"""

_LEFT: Final = """
SELECT count(*) AS count FROM procrastinate_jobs
WHERE task_name = %(task)s AND queue_name = ANY(%(queues)s) AND status IN ('todo', 'doing')
"""

_BEAT: Final = """
INSERT INTO procrastinate_workers (id, last_heartbeat) OVERRIDING SYSTEM VALUE
VALUES (%(worker)s, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET last_heartbeat = clock_timestamp()
"""


@dataclass(frozen=True, slots=True)
class Ending:
    """What is to be written when a job leaves this worker.

    Attributes:
        row_id: of `vodup_job`.
        record: the row's terminal record; None when the job is given back.
        problem: why it is given back, for `status`.
        is_failure: whether giving it back counts against the row.
        wait_s: how long it is to wait before it is taken again; None for one that ends.
    """

    row_id: str
    record: Mapping[str, Any] | None = None
    problem: str | None = None
    is_failure: bool = False
    wait_s: float | None = None


class _PatientConnector(PsycopgConnector):
    """Asks again while the database is away. Only what may be asked twice is asked here."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self._patience_s = patience_s

    async def execute_query_async(self, query: Any, **arguments: Any) -> None:  # noqa: ANN401
        call = super().execute_query_async
        await _patiently(lambda: call(query, **arguments), self._patience_s)

    async def execute_query_one_async(
        self,
        query: Any,  # noqa: ANN401
        **arguments: Any,
    ) -> dict[str, Any]:
        call = super().execute_query_one_async
        return await _patiently(lambda: call(query, **arguments), self._patience_s)

    async def execute_query_all_async(
        self,
        query: Any,  # noqa: ANN401
        **arguments: Any,
    ) -> list[dict[str, Any]]:
        call = super().execute_query_all_async
        return await _patiently(lambda: call(query, **arguments), self._patience_s)

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


async def _patiently(ask: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Ask until there is an answer or patience ends; a refusal of the question is an answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while True:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                return await ask()
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


class Queue(JobManager):
    """procrastinate's job manager, fenced. Mutable: how the jobs that leave us end.

    `endings` is filled in by the task, by job, before it returns or raises.
    """

    def __init__(self, connector: PsycopgConnector) -> None:
        super().__init__(connector)
        self.endings: dict[int, Ending] = {}

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        """End a job that is still ours, and write its record."""
        ending = self._ending_of(job)
        if (record := ending.record) is None:
            await self._if_ours(_DROP, job, row=ending.row_id)
        else:
            text = json.dumps(record)
            await self._if_ours(_END, job, row=ending.row_id, status=record["status"], record=text)

    async def retry_job(
        self,
        job: Job,
        retry_at: datetime.datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        """Give a job back that is still ours."""
        ending = self._ending_of(job)
        await self._if_ours(
            _GIVE_BACK,
            job,
            row=ending.row_id,
            retry_at=retry_at,
            problem=ending.problem,
            failures=int(ending.is_failure),
        )

    def _ending_of(self, job: Job) -> Ending:
        return self.endings.pop(job.id or 0, Ending(str(job.task_kwargs.get("id"))))

    async def _if_ours(self, query: str, job: Job, **values: object) -> None:
        ours = {"job": job.id, "worker": job.worker_id, "attempts": job.attempts}
        done = await self.connector.execute_query_all_async(query, **ours, **values)
        if not done:
            get_logger().warning("job.taken_over", job=job.id, row=values["row"])

    async def row(self, row_id: str, job_id: int) -> dict[str, Any] | None:
        """Return the row a job is for; None when another job is for it by now."""
        rows = await self.connector.execute_query_all_async(_ROW, row=row_id, job=job_id)
        return rows[0] if rows else None

    # --- beside the jobs --------------------------------------------------------------

    async def beat(self, worker_id: int) -> None:
        """Say that this worker lives, even if it was struck off while it was frozen."""
        await self.connector.execute_query_async(_BEAT, worker=worker_id)

    async def sweep(self, worker_id: int, *, silent_s: float, ghosts: list[int]) -> list[int]:
        """Give back the jobs of workers that fell silent, and `ghosts` of our own."""
        rows = await self.connector.execute_query_all_async(
            _SWEEP, task=TASK, silent=silent_s, ghosts=ghosts, worker=worker_id
        )
        return [row["id"] for row in rows]

    async def left_count(self, queues: list[str]) -> int:
        """Count the jobs of some queues, waiting or running anywhere."""
        rows = await self.connector.execute_query_all_async(_LEFT, task=TASK, queues=queues)
        return int(rows[0]["count"])

    async def doing(self, worker_id: int) -> set[int]:
        """Return the jobs that the database calls ours."""
        rows = await self.connector.execute_query_all_async(_DOING, worker=worker_id)
        return {row["id"] for row in rows}


def make_queue(patience_s: float) -> tuple[App, Queue]:
    """Return procrastinate's app; it waits so long for a database that is away."""
    connector = _PatientConnector(patience_s)
    app = App(connector=connector)
    queue = Queue(connector)
    app.job_manager = queue
    return app, queue
