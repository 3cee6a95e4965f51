"""Taking a row out of the queue again."""

from __future__ import annotations

import json

from uploader.bulk.ledger import failure_record, id_of
from uploader.bulk.rows import Row
from uploader.cluster.database import connection_options, in_our_words
from uploader.cluster.jobs import row_of
from uploader.errors import VodupError

__all__ = ["withdraw"]

_EXIT_CODE = 1  # failed for good

_IS_THERE = "SELECT to_regclass('vodup_job') IS NOT NULL"

_ROW = """
SELECT spec::text, manifest, number, failure_count, job_id FROM vodup_job
WHERE id = %s AND status = 'queued' FOR UPDATE
"""

_DELETE = "DELETE FROM procrastinate_jobs WHERE id = %s AND status = 'todo' RETURNING id"

_END = """
UPDATE vodup_job SET status = 'failed', record = %s, job_id = NULL,
    ended_xid = pg_current_xact_id(), ended_at = clock_timestamp()
WHERE id = %s
"""


def withdraw(conninfo: str, key: str) -> bool:
    """End the row of an upload that waits in the queue; False if none does. Blocks.

    A row that a worker has is left to it.

    Raises:
        StateUnavailable: the database cannot be used.
    """
    import psycopg

    row_id = f"{id_of(Row('', 0, key=key)):016x}"
    with in_our_words(), psycopg.connect(conninfo, **connection_options()) as connection:
        there = connection.execute(_IS_THERE).fetchone()
        if there is None or not there[0]:
            return False
        found = connection.execute(_ROW, [row_id]).fetchone()
        if found is None or connection.execute(_DELETE, [found[4]]).fetchone() is None:
            return False
        row = row_of(json.loads(found[0]), found[1], found[2])
        record = failure_record(row, _given_up(), exit_code=_EXIT_CODE, attempts=found[3])
        connection.execute(_END, [json.dumps(record), row_id])
    return True


def _given_up() -> VodupError:
    return VodupError(
        "The upload was given up with `vodup abort`.", next_step="Queue it again if it is wanted."
    )
