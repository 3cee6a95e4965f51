"""Uploads in a SQLite file: opening, damage, transactions, and what sqlite3 raises.

Everything here blocks and runs in the store's own thread.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Final, TypeVar

from uploader.errors import ConfigurationError, StateUnavailable
from uploader.state import files, queries
from uploader.state.leases import FileLock, lock_holder, shared_clock
from uploader.state.locations import SqliteFile
from uploader.state.queries import SCHEMA_VERSION, Query
from uploader.state.transactions import Connection, Values, cannot_be_used, create_tables

T = TypeVar("T")

_BUSY_TIMEOUT_S: Final = 5.0
_OPENING_WAIT_S: Final = 15.0
_MARK_AS_OURS: Final = Query(f"PRAGMA application_id={files.APPLICATION_ID}")

_LOCKED = "{where} is locked by {holder} for more than 5 s."
_READ_ONLY = "{where} may not be written."
_SENTENCES: Final = {
    sqlite3.SQLITE_FULL: "there is no space left at {where}.",
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: "{where} cannot be opened.",
    sqlite3.SQLITE_IOERR: "{where} cannot be read or written (disk error or no space).",
}
_SYNC_CODES: Final = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)
_DAMAGE_CODES: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _SqliteConnection(Connection):
    """sqlite3 keeps its statements compiled. Mutable: whether commits wait for the disk."""

    def __init__(self, path: Path) -> None:
        # Transactions are begun here, not by the driver.
        super().__init__(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None))
        self.is_flushing = True
        try:
            _configure(self.driver)
        except sqlite3.Error:
            self.driver.close()
            raise

    def text(self, query: Query) -> str:
        return query.sqlite

    def insert(self, query: Query, values: Values) -> int | None:
        cursor = self.driver.execute(query.sqlite, values)
        return cursor.lastrowid if cursor.rowcount == 1 else None

    def set_flushing(self, *, is_flushing: bool) -> None:
        """FULL waits for the disk at each commit; NORMAL, in WAL mode, at none.

        A later commit in FULL syncs the whole log, so what came before is durable with it
        (SQLite: PRAGMA synchronous). Between transactions only.
        """
        if is_flushing != self.is_flushing:
            self.driver.execute(f"PRAGMA synchronous={'FULL' if is_flushing else 'NORMAL'}")
            self.is_flushing = is_flushing


def _configure(driver: sqlite3.Connection) -> None:
    (mode,) = driver.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        # Refused without an error, and commits that do not wait for the disk need it: with
        # another journal a loss of power could take the whole file.
        raise sqlite3.OperationalError(f"its journal stays {mode!r} instead of 'wal'")
    driver.execute("PRAGMA synchronous=FULL")
    # Damaged text is read as text that no field accepts, so that it does not fail the whole query.
    driver.text_factory = lambda stored: stored.decode("utf-8", "surrogateescape")


class SqliteDatabase:
    """A `Database` in a file, and the lock that shows other processes that it is open.

    Mutable: the connection is replaced when a rollback failed; once the disk has refused to
    keep something, nothing is written any more.
    """

    def __init__(self, path: Path, in_use: FileLock) -> None:
        self._path = path
        self._where = f"state file {path}"
        self._in_use = in_use
        self._connection: _SqliteConnection | None = None
        self._has_lost_a_write = False
        self.store_id = ""
        self.locks = path.parent / "locks"
        self._lease_clock = shared_clock(self.locks)

    def transact(self, work: Callable[[Connection], T], *, is_flushed: bool = True) -> T:
        """As `Database.transact`."""
        if self._has_lost_a_write:
            raise self._lost_a_write()
        try:
            return self._transact(work, is_flushed=is_flushed)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def close(self) -> None:
        """Close the connection, then release the lock."""
        try:
            self.disconnect()
        finally:
            self._in_use.close()

    def disconnect(self) -> None:
        """Close the connection; the next transaction opens a new one."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.driver.close()
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def create(self) -> None:
        """Create what is missing, and look at every column.

        Raises:
            Damaged: it is not a database, or has other columns.
            StateUnavailable: it cannot be used.
        """
        try:
            self.store_id = self._transact(_create, is_flushed=True)
        except sqlite3.Error as error:
            if files.is_damage(error):
                raise files.Damaged(str(error)) from error
            raise self._translated(error) from error

    def _transact(self, work: Callable[[Connection], T], *, is_flushed: bool) -> T:
        if self._connection is None:
            self._connection = _SqliteConnection(self._path)
        connection = self._connection
        connection.set_flushing(is_flushing=is_flushed)
        # In the queue of writers from the beginning: upgrading a transaction that has only
        # read fails when another one has written meanwhile.
        connection.driver.execute("BEGIN IMMEDIATE")
        try:
            connection.now = time.time()
            connection.lease_now = self._lease_clock()
            outcome = work(connection)
            connection.driver.commit()
        except BaseException:
            self._roll_back(connection.driver)
            raise
        return outcome

    def _roll_back(self, driver: sqlite3.Connection) -> None:
        if not driver.in_transaction:  # SQLite has done it, as after a full disk
            return
        try:
            driver.rollback()
        except sqlite3.Error:  # the connection itself is in doubt: the next one is new
            self._connection = None
            with suppress(sqlite3.Error):
                driver.close()

    def _translated(self, error: sqlite3.Error) -> StateUnavailable:
        code = getattr(error, "sqlite_errorcode", 0)
        if code in _SYNC_CODES:
            self._has_lost_a_write = True
            files.suspect(self._path)
            return self._lost_a_write()
        code &= 0xFF
        if code in _DAMAGE_CODES:
            files.suspect(self._path)
            return StateUnavailable(
                f"{self._where} is damaged ({error}).",
                next_step="Run the same command again: the damaged file is put aside then.",
            )
        if code in _SENTENCES:
            holder, next_step = "", None
            if _SENTENCES[code] is _LOCKED:
                shared = self._path.with_name(f"{self._path.name}-shm")
                holder, next_step = lock_holder(self._path, shared)
            sentence = _SENTENCES[code].format(where=self._where, holder=holder)
            return StateUnavailable(sentence, next_step=next_step)
        return cannot_be_used(self._where, error)

    def _lost_a_write(self) -> StateUnavailable:
        """After a failed fsync another one proves nothing: Linux has marked the pages as clean."""
        return StateUnavailable(
            f"the disk did not keep what was written to {self._where}.",
            next_step="Check the disk, then run the same command again to rewrite the file.",
        )


def _create(connection: Connection) -> str:
    _, store_id = create_tables(connection)
    connection.run(_MARK_AS_OURS)
    for columns in queries.CHECK_COLUMNS:  # a damaged schema shows here, not in mid-upload
        connection.rows(columns)
    return store_id


def open_file(
    location: SqliteFile, notice: Callable[[str], None], *, wait_s: float = _OPENING_WAIT_S
) -> SqliteDatabase:
    """Open or create a state file. Waits while another process opens it.

    Raises:
        StateUnavailable: it cannot be opened or created.
        UnsupportedState: a newer vodup wrote it.
        ConfigurationError, UnsafePath: it may not be used.
    """
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
            holder, next_step = lock_holder(locks / f"{path.name}.opening")
            raise StateUnavailable(
                f"{location} is being opened by {holder} for too long.", next_step=next_step
            )
        files.create_private(path)
        if not is_ours:
            _refuse_damaged(path)
        in_use = _lock_file(in_use_path)
        database = undo.enter_context(closing(SqliteDatabase(path, in_use)))
        _open_or_replace(database, path, in_use, notice)
        in_use.take(shared=True)
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


def _open_or_replace(
    database: SqliteDatabase, path: Path, in_use: FileLock, notice: Callable[[str], None]
) -> None:
    try:
        _inspect(path)
        database.create()
    except files.Damaged as damage:
        database.disconnect()
        _put_aside(path, in_use, damage, notice)
        database.create()


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
