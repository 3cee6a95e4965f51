"""The database behind `SqlState`: opening it, transactions, and its errors in our words.

Everything here blocks and runs in the store's own thread. SQLAlchemy's asyncio layer is
left out on purpose: over aiosqlite it passes every cursor operation from thread to
thread (1.4 ms of CPU for a receipt against 0.3 here), and a cancellation in the middle
leaves a connection with half a transaction, which a plain function cannot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from uploader.errors import ConfigurationError, StateError, StateUnavailable, UnsupportedState
from uploader.state import files
from uploader.state.leases import FileLock, Owner, OwnerLock
from uploader.state.locations import PostgresDatabase, SqliteFile, state_directory
from uploader.state.schema import SCHEMA_VERSION, metadata, store
from uploader.state.statements import tell

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

__all__ = ["Database", "open_database"]

T = TypeVar("T")

_BUSY_TIMEOUT_S: Final = 5.0
_OPENING_WAIT_S: Final = 15.0
_ADVISORY_LOCK: Final = 0x766F6475  # any number nobody else in the database uses
_POSTGRES_SECONDS: Final = 20  # until a silent server counts as gone
_FROZEN_SECONDS: Final = 10
"""Until PostgreSQL ends a client that stopped in mid-transaction: its locks would keep others
from taking its uploads over for as long as it is frozen. Ours take milliseconds; one that is
ended and lives is done again on a new connection."""

_NO_SPACE = "there is no space left at {where}."
_SENTENCES: Final = {
    sqlite3.SQLITE_FULL: _NO_SPACE,
    sqlite3.SQLITE_BUSY: "{where} is locked by another process for more than 5 s.",
    sqlite3.SQLITE_LOCKED: "{where} is locked by another process for more than 5 s.",
    sqlite3.SQLITE_READONLY: "{where} may not be written.",
    sqlite3.SQLITE_PERM: "{where} may not be written.",
    sqlite3.SQLITE_CANTOPEN: "{where} cannot be opened.",
    sqlite3.SQLITE_IOERR: "{where} cannot be read or written (disk error or no space).",
}
_SYNC_CODES: Final = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)
_DAMAGE_CODES: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Database:
    """An open database with one connection, and the locks that go with it.

    Mutable: the connection may be replaced when the server went away; once the disk has
    refused to keep something, nothing is written any more.
    """

    def __init__(self, engine: Engine, where: str, file: Path | None) -> None:
        self._engine = engine
        self._where = where
        self._file = file
        self._connection: Connection | None = None
        self._flushes = True
        self._has_lost_a_write = False
        self._owner_lock: OwnerLock | None = None
        self._in_use: FileLock | None = None

    def transact(self, work: Callable[[Connection], T], *, is_flushed: bool = True) -> T:
        """Run `work` in one transaction; what it wrote is durable on return.

        Not flushed: it survives the end of this process, and the loss of power only when
        the next transaction that is flushed has come before. PostgreSQL flushes always.

        A connection that turns out to be dead is replaced once. `work` may therefore run
        twice, even after a commit whose confirmation got lost: it has to be idempotent.

        Raises:
            StateError: in our words; nothing was changed.
        """
        if self._has_lost_a_write:
            raise self._lost_a_write()
        try:
            try:
                return self._transact(work, is_flushed=is_flushed)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            return self._transact(work, is_flushed=is_flushed)
        except SQLAlchemyError as error:
            raise self._in_our_words(error) from error

    def _transact(self, work: Callable[[Connection], T], *, is_flushed: bool) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
            self._flushes = True
        connection = self._connection
        if self._file is not None and is_flushed != self._flushes:
            _set_flushing(connection, is_flushed=is_flushed)
            self._flushes = is_flushed
        try:
            with connection.begin():
                return work(connection)
        except SQLAlchemyError:
            self._drop_unless_usable(connection)
            raise

    def _drop_unless_usable(self, connection: Connection) -> None:
        """After a failed rollback the connection itself is in doubt: start with a new one."""
        if connection.invalidated or connection.in_transaction():
            self._connection = None
            with suppress(SQLAlchemyError):
                connection.close()

    def live_under(self, locks: Path, owner: Owner) -> None:
        """Take the lock that tells others we live."""
        store_id = self.transact(lambda c: c.execute(sa.select(store.c.store_id)).scalar_one())
        try:
            self._owner_lock = OwnerLock(locks, str(store_id), owner)
        except OSError as error:
            raise StateUnavailable(f"no lock file in {locks}: {error.strerror}.") from error

    @property
    def owner_lock(self) -> OwnerLock:
        """How to tell whether another owner lives."""
        if self._owner_lock is None:  # pragma: no cover - opening ends with taking it
            raise RuntimeError("the database is not open")
        return self._owner_lock

    def hold_file(self, in_use: FileLock) -> None:
        """Keep the lock that says "this file is open" until closing."""
        self._in_use = in_use

    def close(self) -> None:
        """Close the connection, then give the locks back."""
        try:
            if self._connection is not None:
                self._connection.close()
            self._engine.dispose()
        except SQLAlchemyError as error:
            raise self._in_our_words(error) from error
        finally:
            self._connection = None
            for lock in (self._owner_lock, self._in_use):
                if lock is not None:
                    lock.close()

    def _in_our_words(self, error: SQLAlchemyError) -> StateError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0)
        if code in _SYNC_CODES and self._file is not None:
            self._has_lost_a_write = True
            files.suspect(self._file)
            return self._lost_a_write()
        code &= 0xFF
        if code in _DAMAGE_CODES and self._file is not None:
            files.suspect(self._file)
            return StateUnavailable(
                f"{self._where} is damaged ({cause}).",
                next_step="Run the same command again: the damaged file is put aside then.",
            )
        if getattr(cause, "sqlstate", None) == "53100":
            return StateUnavailable(_NO_SPACE.format(where=self._where))
        if code in _SENTENCES:
            return StateUnavailable(_SENTENCES[code].format(where=self._where))
        reason = " ".join(str(cause).split())[:300]
        return StateUnavailable(
            f"{self._where} cannot be used ({type(cause).__name__}: {reason}).",
            next_step="Make it reachable, then run the same command again.",
        )

    def _lost_a_write(self) -> StateUnavailable:
        """After a failed fsync another one proves nothing: Linux has forgotten the pages."""
        return StateUnavailable(
            f"the disk did not keep what was written to {self._where}.",
            next_step="Look after the disk, then run the same command again: the file is "
            "written anew then.",
        )


def open_database(
    location: SqliteFile | PostgresDatabase,
    owner: Owner,
    notice: Callable[[str], None],
    *,
    wait_s: float = _OPENING_WAIT_S,
) -> Database:
    """Open or create the store at `location`; a file that others open is waited for.

    Raises:
        StateUnavailable: it cannot be reached or created.
        UnsupportedState: a newer vodup wrote it.
        ConfigurationError, UnsafePath: it may not be used.
    """
    if isinstance(location, PostgresDatabase):
        return _open_postgres(location, owner)
    return _open_file(location, owner, notice, wait_s)


# SQLite


def _open_file(
    location: SqliteFile, owner: Owner, notice: Callable[[str], None], wait_s: float
) -> Database:
    path = location.path
    files.secure_directory(path.parent)
    files.refuse_network_mount(path.parent)
    locks = path.parent / "locks"
    files.secure_directory(locks)
    in_use_path = locks / f"{path.name}.in-use"
    is_ours = location.is_surely_ours or in_use_path.exists()
    with closing(_lock_file(locks / f"{path.name}.opening")) as opening, ExitStack() as undo:
        # One process at a time looks, repairs and creates.
        if not opening.take(wait_s=wait_s):
            raise StateUnavailable(f"{location} is being opened by another process for too long.")
        files.create_private(path)
        if not is_ours:
            _refuse_damaged(path)
        in_use = undo.enter_context(closing(_lock_file(in_use_path)))
        database = undo.enter_context(closing(_open_mended(path, in_use, notice)))
        in_use.take(shared=True)
        database.hold_file(in_use)
        database.live_under(locks, owner)
        undo.pop_all()
    return database


def _lock_file(path: Path) -> FileLock:
    try:
        return FileLock(path)
    except OSError as error:
        raise StateUnavailable(f"{path} cannot be opened: {error.strerror}.") from error


def _refuse_damaged(path: Path) -> None:
    """A file the user named that we never opened: if it is no database, it is not ours."""
    try:
        _inspect(path)
    except files.Damaged as damage:
        raise ConfigurationError(
            f"{path} is not a state file ({damage}).", next_step="Name another file with --state."
        ) from damage


def _open_mended(path: Path, in_use: FileLock, notice: Callable[[str], None]) -> Database:
    try:
        _inspect(path)
        return _connect_file(path)
    except files.Damaged as damage:
        _put_aside(path, in_use, damage, notice)
    return _connect_file(path)


def _inspect(path: Path) -> None:
    try:
        files.inspect(path, newest_version=SCHEMA_VERSION)
        files.clear_suspicion(path)
    except (OSError, sqlite3.Error) as error:
        raise StateUnavailable(f"state file {path} cannot be read ({error}).") from error


def _put_aside(
    path: Path, in_use: FileLock, damage: files.Damaged, notice: Callable[[str], None]
) -> None:
    if not in_use.take():
        raise StateUnavailable(
            f"state file {path} is damaged ({damage}), and another process has it open.",
            next_step="Let that process end, then run the same command again.",
        ) from damage
    try:
        aside = files.quarantine(path)
    except OSError as error:
        raise StateUnavailable(
            f"state file {path} is damaged and cannot be put aside: {error.strerror}."
        ) from error
    files.create_private(path)
    notice(f"state file {path} was damaged ({damage}); it is kept as {aside}, a new one started")


def _connect_file(path: Path) -> Database:
    url = sa.URL.create("sqlite+pysqlite", database=str(path))
    engine = sa.create_engine(
        url,
        poolclass=NullPool,
        # Transactions are ours to begin; the thread that opens is the one that works.
        connect_args={"isolation_level": None, "timeout": _BUSY_TIMEOUT_S},
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    with ExitStack() as undo:
        database = undo.enter_context(closing(Database(engine, f"state file {path}", path)))
        try:
            database.transact(_create_sqlite)
        except StateUnavailable as error:
            cause = getattr(error.__cause__, "orig", None)
            if isinstance(cause, sqlite3.Error) and files.is_damage(cause):
                raise files.Damaged(str(cause)) from error
            raise
        undo.pop_all()
    return database


def _configure_sqlite(connection: Any, record: object) -> None:  # noqa: ANN401 - any driver's
    cursor = connection.cursor()
    (mode,) = cursor.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        # Refused without an error, and commits that do not wait for the disk need it: with
        # another journal a loss of power could take the whole file.
        raise sqlite3.OperationalError(f"its journal stays {mode!r} instead of 'wal'")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
    connection.text_factory = _lenient_text


def _set_flushing(connection: Connection, *, is_flushed: bool) -> None:
    """FULL waits for the disk at each commit; NORMAL, in WAL mode, for none.

    A later commit in FULL syncs the whole log, so what came before is durable with it
    (SQLite: PRAGMA synchronous). Between transactions only.
    """
    tell(connection, f"PRAGMA synchronous={'FULL' if is_flushed else 'NORMAL'}")


def _lenient_text(stored: bytes) -> str:
    """Damaged text as text that no field accepts, so that it does not fail the whole query."""
    return stored.decode("utf-8", "surrogateescape")


def _begin_immediate(connection: Connection) -> None:
    """Queue for writing at the beginning; upgrading later fails when another got in between."""
    tell(connection, "BEGIN IMMEDIATE")


def _create_sqlite(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.exec_driver_sql(f"PRAGMA application_id={files.APPLICATION_ID}")
    _create_store_row(connection)
    for table in metadata.sorted_tables:  # a damaged schema shows here, not in mid-upload
        connection.execute(sa.select(table).limit(1)).first()


# PostgreSQL


def _open_postgres(location: PostgresDatabase, owner: Owner) -> Database:
    locks = state_directory() / "locks"
    files.secure_directory(locks)
    engine = _postgres_engine(location)
    with ExitStack() as undo:
        database = undo.enter_context(closing(Database(engine, str(location), None)))
        database.transact(_create_postgres)
        database.live_under(locks, owner)
        undo.pop_all()
    return database


def _postgres_engine(location: PostgresDatabase) -> Engine:
    try:
        url = sa.make_url(location.url).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url, poolclass=NullPool, connect_args=_postgres_arguments())
    except ImportError as error:
        raise ConfigurationError(
            "a PostgreSQL state needs the psycopg driver.",
            next_step="Run `pip install 'vodup[postgres]'`.",
        ) from error
    except (ArgumentError, ValueError) as error:
        # Neither the URL nor the original text is shown: it may hold a password.
        raise ConfigurationError("the state URL cannot be understood.") from error
    event.listen(engine, "connect", _configure_postgres)
    return engine


def _postgres_arguments() -> dict[str, object]:
    return {
        "connect_timeout": _POSTGRES_SECONDS // 2,
        "tcp_user_timeout": _POSTGRES_SECONDS * 1000,
        "keepalives_idle": _POSTGRES_SECONDS,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "application_name": "vodup",
    }


def _configure_postgres(connection: Any, record: object) -> None:  # noqa: ANN401 - any driver's
    cursor = connection.cursor()
    cursor.execute(f"SET statement_timeout = '{_POSTGRES_SECONDS}s'")
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{_FROZEN_SECONDS}s'")
    # A server that acknowledges before its disk does would make "durable" untrue.
    cursor.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    cursor.close()
    connection.commit()


def _create_postgres(connection: Connection) -> None:
    # CREATE TABLE IF NOT EXISTS fails when two run at once.
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    metadata.create_all(connection)
    _create_store_row(connection)
    version = connection.execute(sa.select(store.c.schema_version)).scalar_one()
    if version > SCHEMA_VERSION:
        raise UnsupportedState(
            f"the state database was written by a newer vodup (schema {version}; this one "
            f"knows {SCHEMA_VERSION})."
        )


def _create_store_row(connection: Connection) -> None:
    if connection.execute(sa.select(store.c.id)).first() is None:
        row = {"id": 1, "schema_version": SCHEMA_VERSION, "store_id": uuid4().hex, "epoch": 0}
        connection.execute(sa.insert(store).values(row))
