"""The tables of the queue: ours beside procrastinate's, made and migrated by `vodup db upgrade`.

Everything happens in one transaction under an advisory lock: two upgrades at once do the
work once, and one that is killed has done nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uploader.cluster.database import connection_options, in_our_words
from uploader.errors import ConfigurationError, UnsupportedState

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

__all__ = ["SCHEMA_VERSION", "refuse_newer", "require_current", "upgrade"]

SCHEMA_VERSION: Final = 1

_ADVISORY_LOCK: Final = 0x766F6476  # the next after the state's

_TABLES: Final = """
CREATE TABLE vodup_cluster (
    id integer PRIMARY KEY CHECK (id = 1),
    schema_version integer NOT NULL,
    procrastinate text NOT NULL      -- the newest of its migrations that is applied
);
-- One row for each row of a manifest, whatever became of it. json, not jsonb: a record is
-- given back as it was written, and a path may hold bytes that are no UTF-8.
CREATE TABLE vodup_job (
    id text PRIMARY KEY,             -- as in a ledger
    manifest text NOT NULL,
    number bigint NOT NULL,
    run text NOT NULL,               -- of the enqueue that named it last
    queue text,                      -- NULL for a row that was refused
    spec json NOT NULL,
    job_id bigint,                   -- procrastinate's, while there is one
    status text NOT NULL CHECK (status IN ('queued', 'done', 'failed')),
    failure_count integer NOT NULL DEFAULT 0,
    problem text,                    -- why the last run did not end it
    record json,                     -- the terminal one
    ended_xid xid8,                  -- the transaction that ended it: readers follow these
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
CREATE INDEX vodup_job_ended ON vodup_job (ended_xid) WHERE ended_xid IS NOT NULL;
CREATE INDEX vodup_job_manifest ON vodup_job (manifest);
CREATE TABLE vodup_budget (
    name text PRIMARY KEY,
    next_at double precision NOT NULL  -- seconds since 1970 on this database's clock
);
"""

_MIGRATIONS: Final[dict[int, str]] = {}
"""What brings a schema of the version before to each version from 2 on."""


def upgrade(conninfo: str) -> bool:
    """Make or migrate the tables of the queue; tells whether there was anything to do. Blocks.

    Raises:
        UnsupportedState: a newer vodup, or procrastinate, made them; they are as they were.
        ConfigurationError: there are tables of a procrastinate that is not ours.
        StateUnavailable: the database cannot be used.
    """
    import psycopg

    with (
        in_our_words(),
        psycopg.connect(conninfo, **connection_options()) as connection,
    ):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK])
        found = _found(connection)
        if found is None:
            _create(connection)
            return True
        _refuse(*found)
        return _migrate(connection, *found)


def refuse_newer(conninfo: str) -> None:
    """Look whether `upgrade` would refuse, before anything else is touched. Blocks."""
    import psycopg

    with in_our_words(), psycopg.connect(conninfo, **connection_options()) as connection:
        found = _found(connection)
    if found is not None:
        _refuse(*found)


def require_current(conninfo: str) -> None:
    """Make sure that this vodup can work with the tables that are there. Blocks.

    Raises:
        ConfigurationError: `vodup db upgrade` has to be run first.
        UnsupportedState: they are newer than this vodup.
        StateUnavailable: the database cannot be used.
    """
    import psycopg

    with in_our_words(), psycopg.connect(conninfo, **connection_options()) as connection:
        found = _found(connection)
    if found is not None:
        _refuse(*found)
    if found != (SCHEMA_VERSION, _newest_migration()):
        there = "has no queue yet" if found is None else "is of an older vodup"
        raise ConfigurationError(
            f"The state database {there}.",
            next_step="Run `vodup db upgrade` with the same --state, once, then this again.",
        )


def _found(connection: Connection) -> tuple[int, str] | None:
    row = connection.execute("SELECT to_regclass('vodup_cluster') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute("SELECT schema_version, procrastinate FROM vodup_cluster").fetchone()
    return None if row is None else (row[0], row[1])


def _refuse(version: int, migration: str) -> None:
    newest = _newest_migration()
    if version > SCHEMA_VERSION or migration > newest:
        raise UnsupportedState(
            f"the queue in the state database is newer (schema {version}, {migration}) than this "
            f"vodup knows (schema {SCHEMA_VERSION}, {newest}).",
            next_step="Use the vodup and procrastinate that made it, or newer ones.",
        )


def _create(connection: Connection) -> None:
    from procrastinate.schema import SchemaManager

    row = connection.execute("SELECT to_regclass('procrastinate_jobs') IS NOT NULL").fetchone()
    if row is not None and row[0]:
        raise ConfigurationError(
            "The state database has a procrastinate queue that is not vodup's.",
            next_step="Make a database for vodup alone, and name that one.",
        )
    connection.execute(SchemaManager.get_schema())
    connection.execute(_TABLES)
    connection.execute(
        "INSERT INTO vodup_cluster VALUES (1, %s, %s)", [SCHEMA_VERSION, _newest_migration()]
    )


def _migrate(connection: Connection, version: int, migration: str) -> bool:
    pending = [path for path in _migration_files() if path.name > migration]
    for path in pending:
        connection.execute(path.read_bytes())
    for step in range(version + 1, SCHEMA_VERSION + 1):
        connection.execute(_MIGRATIONS[step].encode())
    connection.execute(
        "UPDATE vodup_cluster SET schema_version = %s, procrastinate = %s",
        [SCHEMA_VERSION, _newest_migration()],
    )
    return bool(pending) or version < SCHEMA_VERSION


def _migration_files() -> list[Path]:
    from procrastinate.schema import SchemaManager

    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))


def _newest_migration() -> str:
    return _migration_files()[-1].name
