"""The way to the database: from what `--state` says to connections, and errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from uploader.errors import ConfigurationError, StateUnavailable
from uploader.state.locations import PostgresDatabase, locate

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool

    Pool = AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]

__all__ = ["connection_options", "conninfo_of", "in_our_words", "open_pool"]

_SILENCE_S: Final = 20  # until a server that does not answer counts as gone
_POOL_SIZE: Final = 4


def conninfo_of(state: str | None) -> str:
    """What libpq is told. It may hold a password and is never shown.

    Raises:
        ConfigurationError: the state is not in PostgreSQL, or the driver is missing.
    """
    location = locate(state)
    if not isinstance(location, PostgresDatabase):
        raise ConfigurationError(
            "A cluster needs a PostgreSQL that all its machines reach.",
            next_step="Pass --state postgresql://USER@HOST/DATABASE (or VODUP_STATE), "
            "or try it with --embedded FOLDER.",
        )
    _require_driver()
    _, _, rest = location.url.partition("://")
    conninfo = f"postgresql://{rest}"
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(conninfo)
    except psycopg.Error:
        # Neither the URL nor libpq's words: both may quote a password.
        raise ConfigurationError("the state URL cannot be understood.") from None
    return conninfo


def _require_driver() -> None:
    try:
        import procrastinate
        import psycopg_pool
    except ImportError as error:
        raise ConfigurationError(
            f"A cluster needs packages that are not here ({error.name}).",
            next_step="Run `pip install 'vodup[cluster]'`.",
        ) from error
    del procrastinate, psycopg_pool


def connection_options() -> dict[str, Any]:
    """What every connection is opened with."""
    return {
        "application_name": "vodup-queue",
        "connect_timeout": _SILENCE_S // 2,
        "keepalives_idle": _SILENCE_S,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": _SILENCE_S * 1000,
    }


async def _configure(connection: AsyncConnection[tuple[Any, ...]]) -> None:
    await connection.set_autocommit(True)
    # A worker that is frozen in a transaction must not hold its locks for ever.
    await connection.execute(
        "SELECT set_config('statement_timeout', '20s', false), "
        "set_config('lock_timeout', '10s', false), "
        "set_config('idle_in_transaction_session_timeout', '20s', false)"
    )


def open_pool(conninfo: str, *, wait_s: float = _SILENCE_S / 2) -> Pool:
    """Return the connections that queue, budget and results share; not opened yet.

    Args:
        wait_s: for a connection, before the database counts as away.
    """
    from psycopg_pool import AsyncConnectionPool

    return AsyncConnectionPool(
        conninfo,
        kwargs=connection_options(),
        min_size=1,
        max_size=_POOL_SIZE,
        timeout=wait_s,
        reconnect_timeout=_SILENCE_S / 2,
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        open=False,
    )


@contextmanager
def in_our_words() -> Iterator[None]:
    """Say what the driver says as one of our errors.

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
            f"the state database cannot be used ({type(cause or error).__name__}: {reason}).",
            next_step="Make it reachable, then run the same command again.",
        ) from error
