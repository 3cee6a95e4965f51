"""Uploads in PostgreSQL, for many machines: connections, transactions, and psycopg's errors.

psycopg is imported with this module, and this module only when such a store is opened.
Everything here blocks and runs in the store's own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from uploader.errors import ConfigurationError, StateUnavailable, UnsupportedState
from uploader.state import files
from uploader.state.locations import PostgresUrl, state_directory
from uploader.state.queries import SCHEMA_VERSION, Query
from uploader.state.transactions import Connection, Values, cannot_be_used, create_tables

T = TypeVar("T")

_ADVISORY_LOCK: Final = 0x766F6475  # any number that nothing else in the database uses
_SILENCE_S: Final = 20  # until a server that does not answer counts as gone
_FROZEN_S: Final = 10
"""Until PostgreSQL ends a client that stopped in mid-transaction: its locks would keep others
from taking its uploads over for as long as it is frozen. Ours take milliseconds; one that is
ended and lives is done again on a new connection."""

_LOCK_CREATION: Final = Query(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
_BEGIN: Final = "BEGIN; SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
_SETTINGS: Final = (
    f"SET statement_timeout = '{_SILENCE_S}s'",
    f"SET idle_in_transaction_session_timeout = '{_FROZEN_S}s'",
    # A server that acknowledges before its disk does would make "durable" untrue.
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') = 'off'",
)


class _PostgresConnection(Connection):
    """psycopg prepares what it is given often."""

    def __init__(self, conninfo: str) -> None:
        # Transactions are begun here, not by the driver.
        options = connection_options("vodup")
        super().__init__(psycopg.connect(conninfo, autocommit=True, **options))
        try:
            for setting in _SETTINGS:
                self.driver.execute(setting, prepare=False)
        except psycopg.Error:
            self.driver.close()
            raise

    def begin(self) -> None:
        """Begin a transaction and read the server's clock, in one round trip."""
        cursor = self.driver.execute(_BEGIN, prepare=False)
        cursor.nextset()
        [(self.now,)] = cursor.fetchall()
        self.lease_now = self.now

    def text(self, query: Query) -> bytes:
        return query.postgres

    def insert(self, query: Query, values: Values) -> int | None:
        row = self.driver.execute(query.postgres, values).fetchone()
        return int(row[0]) if row is not None else None


class PostgresDatabase:
    """An open database server. Mutable: a connection that died is replaced."""

    def __init__(self, location: PostgresUrl) -> None:
        self._where = str(location)
        self._conninfo = conninfo_of(location)
        self._connection: _PostgresConnection | None = None
        self.store_id = ""
        self.locks = state_directory() / "locks"

    def transact(self, work: Callable[[Connection], T], *, is_flushed: bool = True) -> T:
        """See `Database`. The server flushes always; a dead connection is replaced once."""
        try:
            connection = self._connected()
            try:
                return self._transact(connection, work)
            except psycopg.Error:
                if not connection.driver.closed:
                    raise
            return self._transact(self._connected(), work)
        except psycopg.Error as error:
            if error.sqlstate == "53100":
                raise StateUnavailable(f"there is no space left at {self._where}.") from error
            raise cannot_be_used(self._where, error) from error

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.driver.close()

    def _connected(self) -> _PostgresConnection:
        if self._connection is None or self._connection.driver.closed:
            self._connection = _PostgresConnection(self._conninfo)
        return self._connection

    def _transact(self, connection: _PostgresConnection, work: Callable[[Connection], T]) -> T:
        try:
            connection.begin()
            outcome = work(connection)
            connection.driver.execute("COMMIT")
        except BaseException:
            _roll_back(connection.driver)
            raise
        return outcome


def _roll_back(driver: psycopg.Connection[Any]) -> None:
    try:
        driver.execute("ROLLBACK")
    except psycopg.Error:  # the connection itself is in doubt: the next one is new
        driver.close()


def open_server(location: PostgresUrl) -> PostgresDatabase:
    """Open a database, and create the tables where they are missing.

    Raises:
        StateUnavailable: it cannot be reached or used.
        UnsupportedState: a newer vodup wrote it.
        ConfigurationError: the URL cannot be understood.
    """
    database = PostgresDatabase(location)
    files.secure_directory(database.locks)
    try:
        database.store_id = database.transact(_create)
    except BaseException:
        database.close()
        raise
    return database


def _create(connection: Connection) -> str:
    # CREATE TABLE IF NOT EXISTS fails when two run at once.
    connection.rows(_LOCK_CREATION)
    version, store_id = create_tables(connection)
    if version > SCHEMA_VERSION:
        raise UnsupportedState(
            f"the state database was written by a newer vodup (schema {version}; this one "
            f"knows {SCHEMA_VERSION})."
        )
    return store_id


def conninfo_of(location: PostgresUrl) -> str:
    """What libpq connects to. It may hold a password and is never shown.

    Raises:
        ConfigurationError: the URL cannot be understood.
    """
    _, _, rest = location.url.partition("://")
    conninfo = f"postgresql://{rest}"
    try:
        ports = str(conninfo_to_dict(conninfo).get("port", "")).split(",")
    except psycopg.Error:
        ports = ["unknown"]
    if not all(port.isdecimal() or not port for port in ports):
        # Neither the URL nor the message of libpq is shown or kept: both may quote a password.
        raise ConfigurationError("The state URL cannot be parsed.")
    return conninfo


def connection_options(application_name: str) -> dict[str, Any]:
    """What a connection to the state database is opened with."""
    return {
        "application_name": application_name,
        "connect_timeout": _SILENCE_S // 2,
        "keepalives_idle": _SILENCE_S,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": _SILENCE_S * 1000,
    }
