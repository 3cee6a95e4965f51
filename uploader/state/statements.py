"""Statements that are turned into SQL once, and run with as little around them as can be.

An upload of one small file runs two dozen of them. SQLAlchemy's result of each costs ten
times what SQLite takes for it, so on SQLite they go to the driver's cursor; what that
raises comes out as SQLAlchemy's error all the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect

__all__ = ["fetch", "fetch_mapping", "fetch_value", "run", "tell"]

Values = Mapping[str, object]
Statement = Any
"""Of SQLAlchemy, with a named parameter for each value; kept by its caller, never made anew."""


def run(connection: Connection, statement: Statement, *rows: Values) -> None:
    """Run a statement that returns nothing, once for each row of values."""
    _run(connection, statement, rows or ({},), is_query=False)


def tell(connection: Connection, text: str) -> None:
    """Give SQLite an instruction of its own, such as BEGIN or a PRAGMA."""
    _run_on_cursor(connection, text, [()], is_query=False)


def fetch(connection: Connection, statement: Statement, values: Values | None = None) -> list[Any]:
    """Run a query and return its rows as tuples."""
    return _run(connection, statement, (values or {},), is_query=True)


def fetch_value(connection: Connection, statement: Statement, values: Values | None = None) -> Any:  # noqa: ANN401
    """Return the first column of the only row; None where there is no row."""
    rows = fetch(connection, statement, values)
    return rows[0][0] if rows else None


def fetch_mapping(
    connection: Connection, statement: Statement, values: Values
) -> dict[str, Any] | None:
    """Return the only row by its columns; None where there is none."""
    rows = fetch(connection, statement, values)
    return dict(zip(_names(statement), rows[0], strict=True)) if rows else None


def _run(
    connection: Connection, statement: Statement, rows: Sequence[Values], *, is_query: bool
) -> list[Any]:
    text, positions = _prepared(statement, connection.dialect)
    if positions is None or connection.dialect.name != "sqlite":
        given = [dict(row) for row in rows] if positions is None else _placed(rows, positions)
        result = connection.exec_driver_sql(text, given)
        return list(result.all()) if is_query else []
    return _run_on_cursor(connection, text, _placed(rows, positions), is_query=is_query)


def _run_on_cursor(
    connection: Connection, text: str, rows: list[tuple[object, ...]], *, is_query: bool
) -> list[Any]:
    cursor = connection.connection.cursor()
    try:
        if len(rows) == 1:
            cursor.execute(text, rows[0])
        else:
            cursor.executemany(text, rows)
        return list(cursor.fetchall()) if is_query else []
    except sqlite3.Error as error:
        dialect = connection.dialect
        raise DBAPIError.instance(text, None, error, sqlite3.Error, dialect=dialect) from error
    finally:
        cursor.close()


def _placed(rows: Sequence[Values], positions: Sequence[str]) -> list[Any]:
    return [tuple([row[name] for name in positions]) for row in rows]


@lru_cache(maxsize=128)
def _prepared(statement: Statement, dialect: Dialect) -> tuple[str, list[str] | None]:
    compiled = statement.compile(dialect=dialect)
    return str(compiled), list(compiled.positiontup) if compiled.positional else None


@lru_cache(maxsize=128)
def _names(statement: Statement) -> tuple[str, ...]:
    return tuple(column.key for column in statement.selected_columns)
