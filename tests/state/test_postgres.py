"""What only a server can do to us."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from tests.state.conftest import Place, record
from uploader.errors import ConfigurationError, StateUnavailable, UnsupportedState
from uploader.state import PartAck, SqlState, queries
from uploader.state.locations import PostgresUrl
from uploader.state.postgres import PostgresDatabase, connection_options, conninfo_of, open_server
from uploader.state.queries import SCHEMA_VERSION, Query
from uploader.state.transactions import Connection


@pytest.fixture
def server(postgres_url: str) -> Iterator[PostgresDatabase]:
    with closing(open_server(PostgresUrl(postgres_url))) as database:
        yield database


def value(database: PostgresDatabase, text: str) -> Any:  # noqa: ANN401 - any column's
    """The one value that a query answers."""
    return database.transact(lambda connection: connection.rows(Query(text))[0][0])


async def test_a_connection_the_server_closed_is_replaced(pg: Place) -> None:
    async with pg.open() as store, store.claim("movie") as journal:
        await journal.create_record(record())
        pg.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'vodup'"
        )
        await journal.add_part(PartAck(1, 1, "E", 1))
        await journal.record_error("x")
    async with pg.open() as store, store.claim("movie") as journal:
        assert set(journal.acks) == {1}


async def test_a_newer_version_is_refused(pg: Place) -> None:
    async with pg.open():
        pass
    pg.execute("UPDATE vodup_store SET schema_version = 2")
    with pytest.raises(UnsupportedState, match="schema 2"):
        await pg.open().__aenter__()


async def test_stores_opened_at_once_create_the_tables_once(pg: Place) -> None:
    code = (
        "import asyncio, sys\n"
        "from uploader.state import SqlState\n"
        "async def main():\n"
        "    async with SqlState(sys.argv[1]): pass\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, pg.url]
    running = [subprocess.Popen(command) for _ in range(4)]  # noqa: ASYNC220 - nothing else runs
    assert [process.wait(30) for process in running] == [0] * 4


async def test_an_unreachable_server_is_a_typed_error_without_the_password() -> None:
    with pytest.raises(StateUnavailable) as caught:
        await SqlState("postgresql://user:hunter2@127.0.0.1:1/db").__aenter__()
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in f"{error!r} {error}"
        error = error.__cause__


async def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "uploader.state.postgres")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError) as caught:
        await SqlState("postgresql://user@127.0.0.1:1/db").__aenter__()
    assert caught.value.message == "a PostgreSQL state needs the psycopg driver."
    assert caught.value.next_step == "Run `pip install 'vodup[postgres]'`."


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host:port/db",
        "postgresql://h:hunter2/d",
        "postgres://h/?hunter2=1",
    ],
)
async def test_a_url_nobody_understands_is_refused_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await SqlState(url).__aenter__()
    assert caught.value.message == "The state URL cannot be parsed."
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_any_of_its_schemes_is_known(scheme: str) -> None:
    assert conninfo_of(PostgresUrl(f"{scheme}://u:p@h:1,i:2/d")) == "postgresql://u:p@h:1,i:2/d"


def test_how_a_connection_is_set_up(server: PostgresDatabase, pg: Place) -> None:
    settings = {
        "application_name": "vodup",
        "statement_timeout": "20s",
        "idle_in_transaction_session_timeout": "10s",
        "synchronous_commit": "on",
    }
    assert {name: value(server, f"SHOW {name}") for name in settings} == settings
    assert connection_options("name") == {
        "application_name": "name",
        "connect_timeout": 10,
        "tcp_user_timeout": 20_000,
        "keepalives_idle": 20,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }


@pytest.mark.parametrize(("given", "used"), [("off", "on"), ("remote_apply", "remote_apply")])
def test_what_is_written_is_durable_whatever_the_server_prefers(
    postgres_url: str, given: str, used: str
) -> None:
    url = f"{postgres_url}&options=-csynchronous_commit%3D{given}"
    with closing(open_server(PostgresUrl(url))) as database:
        assert value(database, "SHOW synchronous_commit") == used


def test_the_clock_is_the_servers(server: PostgresDatabase) -> None:
    def moments(connection: Connection) -> tuple[float, float]:
        text = "SELECT CAST(extract(epoch FROM now()) AS double precision)"
        return connection.now, connection.rows(Query(text))[0][0]

    ours, began = server.transact(moments)
    assert 0 <= ours - began < 5


def test_the_tables_are_made_once(server: PostgresDatabase, postgres_url: str) -> None:
    with closing(open_server(PostgresUrl(postgres_url))) as again:
        assert again.store_id == server.store_id
    rows = server.transact(lambda connection: connection.rows(queries.STORE))
    assert rows == [(SCHEMA_VERSION, server.store_id)]


def test_a_server_without_space_says_so(server: PostgresDatabase) -> None:
    raising = Query("DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$")
    with pytest.raises(StateUnavailable) as caught:
        server.transact(lambda connection: connection.run(raising))
    assert caught.value.message == "there is no space left at state database."


def test_what_the_driver_raises_is_a_typed_error(server: PostgresDatabase) -> None:
    with pytest.raises(StateUnavailable) as caught:
        value(server, "SELECT no_such_column")
    assert caught.value.message.startswith(
        "state database cannot be used (UndefinedColumn: column "
    )
    assert "reachable" in caught.value.next_step
    assert value(server, "SELECT 7") == 7


def test_a_connection_that_dies_twice_is_given_up(server: PostgresDatabase) -> None:
    attempts: list[object] = []

    def dying(connection: Connection) -> None:
        attempts.append(connection)
        connection.run(Query("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(StateUnavailable, match="AdminShutdown"):
        server.transact(dying)
    assert len(set(map(id, attempts))) == len(attempts) == 2
    assert value(server, "SELECT 7") == 7


def test_a_transaction_whose_confirmation_was_lost_is_done_again(server: PostgresDatabase) -> None:
    """The second time everything is there already."""
    times: list[int] = []

    def adding(connection: Connection) -> None:
        connection.run(Query("UPDATE vodup_store SET store_id = 'x'"))
        times.append(1)
        if len(times) == 1:
            connection.run(Query("SELECT pg_terminate_backend(pg_backend_pid())"))

    server.transact(adding)
    assert len(times) == 2
    assert value(server, "SELECT store_id FROM vodup_store") == "x"


def test_a_connection_that_cannot_be_set_up_is_closed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[psycopg.Connection[Any]] = []
    connect = psycopg.connect

    def connecting(*given: Any, **options: Any) -> psycopg.Connection[Any]:
        opened.append(connect(*given, **options))
        opened[-1].close()
        return opened[-1]

    monkeypatch.setattr(psycopg, "connect", connecting)
    with pytest.raises(StateUnavailable):
        open_server(PostgresUrl(postgres_url))
    monkeypatch.undo()
    monkeypatch.undo()
    assert len(opened) == 1


async def test_a_worker_frozen_in_mid_transaction_is_succeeded(pg: Place) -> None:
    """Its locks would outlast its lease; the server ends its session first."""
    async with pg.open() as store, store.claim("movie") as journal:
        await journal.create_record(record())
    with closing(psycopg.connect(pg.url)) as frozen:
        frozen.execute(b"SET idle_in_transaction_session_timeout = '1s'")
        frozen.execute(b"INSERT INTO vodup_lease (key, owner, expires) VALUES ('movie', 'x', 9e9)")

        async with pg.open() as store, store.claim("movie") as journal:
            assert journal.record is not None

        with pytest.raises(psycopg.Error):
            frozen.execute(b"SELECT 1")
