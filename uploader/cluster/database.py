"""The queue's database: connections, errors and tables.

The tables of the queue stand beside procrastinate's own and the checkpoints'. `vodup db
upgrade` makes and migrates them in one transaction under an advisory lock: of two upgrades at
once only one does the work, and one that is killed changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uploader.errors import ConfigurationError, StateUnavailable, UnsupportedState
from uploader.state.locations import PostgresUrl, locate
from uploader.threads import in_thread

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection
    from psycopg_pool import AsyncConnectionPool

    Pool = AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]

SCHEMA_VERSION: Final = 1

_SILENCE_S: Final = 20  # until a server that does not answer counts as gone
_POOL_SIZE: Final = 4
_ADVISORY_LOCK: Final = 0x766F6476  # the next after the state's


# --- connections ----------------------------------------------------------------------


def conninfo_of(state: str | None) -> str:
    """Return the connection string for libpq. It may hold a password and is never shown.

    Raises:
        ConfigurationError: the state is not in PostgreSQL, or a package is missing.
    """
    location = locate(state)
    if not isinstance(location, PostgresUrl):
        raise ConfigurationError(
            "This command needs PostgreSQL.",
            next_step="Pass --state postgresql://USER@HOST/DATABASE (or set VODUP_STATE), "
            "or try it on one machine with --embedded FOLDER.",
        )
    require_packages()
    from uploader.state.postgres import conninfo_of as conninfo_of_url

    return conninfo_of_url(location)


def require_packages() -> None:
    """Load what the queue needs.

    Raises:
        ConfigurationError: a package is missing.
    """
    try:
        import procrastinate  # noqa: F401 - is it installed?
        import psycopg_pool  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"The cluster commands need an optional package ({error.name}).",
            next_step="Run `pip install 'vodup[cluster]'`.",
        ) from error


def _options() -> dict[str, Any]:
    from uploader.state.postgres import connection_options

    return connection_options("vodup-queue")


async def _configure(connection: AsyncConnection[tuple[Any, ...]]) -> None:
    await connection.set_autocommit(True)
    # A worker that is frozen in a transaction must not hold its locks for ever.
    await connection.execute(
        "SELECT set_config('statement_timeout', '20s', false), "
        "set_config('lock_timeout', '10s', false), "
        "set_config('idle_in_transaction_session_timeout', '20s', false)"
    )


@asynccontextmanager
async def open_pool(conninfo: str, *, wait_s: float = _SILENCE_S / 2) -> AsyncIterator[Pool]:
    """Open connections for queue, budget and results, if the tables are up to date.

    Args:
        wait_s: for a connection, before the database counts as unreachable.

    Raises:
        ConfigurationError, UnsupportedState, StateUnavailable: as `require_current`.
    """
    from psycopg_pool import AsyncConnectionPool

    await in_thread(require_current, conninfo)
    pool = AsyncConnectionPool(
        conninfo,
        kwargs=_options(),
        min_size=1,
        max_size=_POOL_SIZE,
        timeout=wait_s,
        reconnect_timeout=_SILENCE_S / 2,
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        open=False,
    )
    with as_state_errors():
        await pool.open(wait=True)
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def borrowed(pool: Pool) -> AsyncIterator[AsyncConnection[tuple[Any, ...]]]:
    """Borrow a connection; raises `StateUnavailable` when the database fails."""
    with as_state_errors():
        async with pool.connection() as connection:
            yield connection


@contextmanager
def connected(conninfo: str) -> Iterator[Connection[tuple[Any, ...]]]:
    """Open one connection with one transaction. Blocks.

    Raises:
        StateUnavailable: the database fails.
    """
    import psycopg

    with as_state_errors(), psycopg.connect(conninfo, **_options()) as connection:
        yield connection


@contextmanager
def as_state_errors() -> Iterator[None]:
    """Translate errors of the driver and of procrastinate.

    Raises:
        StateUnavailable: the database cannot be used.
    """
    import psycopg
    from procrastinate.exceptions import ConnectorException

    try:
        yield
    except (psycopg.Error, ConnectorException, TimeoutError) as error:
        cause = error.__cause__ if isinstance(error, ConnectorException) else error
        reason = " ".join(str(cause or error).split())[:300]
        raise StateUnavailable(
            f"The state database cannot be used ({type(cause or error).__name__}: {reason}).",
            next_step="Check that it is running and reachable, then run the same command again.",
        ) from error


# --- tables ---------------------------------------------------------------------------


def upgrade(conninfo: str) -> bool:
    """Make or migrate the tables; returns whether anything changed. Blocks.

    Raises:
        UnsupportedState: a newer vodup, or procrastinate, made them; they are unchanged.
        ConfigurationError: the database has tables of a procrastinate that is not ours.
        StateUnavailable: the database cannot be used.
    """
    with connected(conninfo) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK])
        found = _version_of(connection)
        if found is None:
            _create(connection)
            return True
        return _migrate(connection, *found)


def refuse_newer(conninfo: str) -> None:
    """Raise what `upgrade` would raise about a newer schema, without changing anything. Blocks."""
    with connected(conninfo) as connection:
        _version_of(connection)


def require_current(conninfo: str) -> None:
    """Make sure that this vodup can work with the tables. Blocks.

    Raises:
        ConfigurationError: `vodup db upgrade` has to be run first.
        UnsupportedState: they are newer than this vodup.
        StateUnavailable: the database cannot be used.
    """
    with connected(conninfo) as connection:
        found = _version_of(connection)
    if found != (SCHEMA_VERSION, _newest_migration()):
        problem = "has no queue yet" if found is None else "has a queue of an older vodup"
        raise ConfigurationError(
            f"The state database {problem}.",
            next_step="Run `vodup db upgrade` with the same --state, once, then this again.",
        )


def has_queue(connection: Connection[tuple[Any, ...]]) -> bool:
    """Whether the tables of the queue exist."""
    row = connection.execute("SELECT to_regclass('vodup_cluster') IS NOT NULL").fetchone()
    return row is not None and bool(row[0])


def _version_of(connection: Connection[tuple[Any, ...]]) -> tuple[int, str] | None:
    """Return the versions of our schema and procrastinate's; refuse newer ones."""
    if not has_queue(connection):
        return None
    row = connection.execute("SELECT schema_version, procrastinate FROM vodup_cluster").fetchone()
    if row is None:
        return None
    (version, migration), newest = row, _newest_migration()
    if version > SCHEMA_VERSION or migration > newest:
        raise UnsupportedState(
            f"The queue in the state database is newer (schema {version}, {migration}) than this "
            f"vodup supports (schema {SCHEMA_VERSION}, {newest}).",
            next_step="Use the vodup and procrastinate that made it, or newer ones.",
        )
    return version, migration


def _create(connection: Connection[tuple[Any, ...]]) -> None:
    from procrastinate.schema import SchemaManager

    row = connection.execute("SELECT to_regclass('procrastinate_jobs') IS NOT NULL").fetchone()
    if row is not None and row[0]:
        raise ConfigurationError(
            "The state database has a procrastinate queue that is not vodup's.",
            next_step="Create a database for vodup alone, and pass its URL.",
        )
    connection.execute(SchemaManager.get_schema())
    connection.execute(_tables())
    connection.execute(
        "INSERT INTO vodup_cluster VALUES (1, %s, %s)", [SCHEMA_VERSION, _newest_migration()]
    )


def _migrate(connection: Connection[tuple[Any, ...]], version: int, migration: str) -> bool:
    pending = [path for path in _migration_files() if path.name > migration]
    for path in pending:
        connection.execute(path.read_bytes())
    connection.execute(
        "UPDATE vodup_cluster SET schema_version = %s, procrastinate = %s",
        [SCHEMA_VERSION, _newest_migration()],
    )
    return bool(pending) or version < SCHEMA_VERSION


def _tables() -> bytes:
    return files(__package__).joinpath("tables.sql").read_bytes()


def _migration_files() -> list[Path]:
    from procrastinate.schema import SchemaManager

    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))


def _newest_migration() -> str:
    return _migration_files()[-1].name
