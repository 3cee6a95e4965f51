"""What the queue holds, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from uploader.cluster.database import connection_options, in_our_words

if TYPE_CHECKING:
    import psycopg

__all__ = ["queue_facts"]

_IS_THERE: Final = "SELECT to_regclass('vodup_job') IS NOT NULL"

_COUNTS: Final = """
SELECT coalesce(queue, '') AS queue,
       count(*) FILTER (WHERE status = 'queued') AS queued,
       count(*) FILTER (WHERE status = 'queued' AND failure_count > 0) AS failing,
       count(*) FILTER (WHERE status = 'done') AS done,
       count(*) FILTER (WHERE status = 'failed') AS failed
FROM vodup_job GROUP BY 1 ORDER BY 1
"""

_RUNNING: Final = """
SELECT queue_name, count(*) FROM procrastinate_jobs WHERE status = 'doing' GROUP BY 1
"""

_WORKERS: Final = """
SELECT worker.id, extract(epoch FROM clock_timestamp() - last_heartbeat)::float8,
       count(job.id)
FROM procrastinate_workers AS worker
LEFT JOIN procrastinate_jobs AS job ON job.worker_id = worker.id AND job.status = 'doing'
GROUP BY 1, 2 ORDER BY 1
"""


def queue_facts(conninfo: str) -> dict[str, Any] | None:
    """Count rows and workers; None where there is no queue. Blocks.

    Raises:
        StateUnavailable: the database cannot be asked.
    """
    import psycopg

    with in_our_words(), psycopg.connect(conninfo, **connection_options()) as connection:
        row = connection.execute(_IS_THERE).fetchone()
        return _facts(connection) if row is not None and row[0] else None


def _facts(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, Any]:
    running = dict(connection.execute(_RUNNING).fetchall())
    queues = [
        {
            "queue": queue,
            "running": running.get(queue, 0),
            "waiting": queued - running.get(queue, 0),
            "failing": failing,
            "done": done,
            "failed": failed,
        }
        for queue, queued, failing, done, failed in connection.execute(_COUNTS)
    ]
    workers = [
        {"id": worker, "silent_s": round(silent, 1), "running": count}
        for worker, silent, count in connection.execute(_WORKERS)
    ]
    return {"queues": queues, "workers": workers, **_totals(queues)}


def _totals(queues: list[dict[str, Any]]) -> Mapping[str, int]:
    names = ("running", "waiting", "failing", "done", "failed")
    return {name: sum(queue[name] for queue in queues) for name in names}
