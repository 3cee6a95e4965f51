"""What only a server can do to us."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

import pytest

from tests.state.conftest import Place, record
from uploader.errors import ConfigurationError, StateUnavailable, UnsupportedState
from uploader.state import PartAck, SqlState


async def test_a_connection_the_server_closed_is_replaced(pg: Place) -> None:
    async with pg.open() as store, store.claim("movie") as checkpoint:
        await checkpoint.create(record())
        pg.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'vodup'"
        )
        await checkpoint.ack(PartAck(1, 1, "E", 1))
        await checkpoint.advance(error="x")
    async with pg.open() as store, store.claim("movie") as checkpoint:
        assert set(checkpoint.acks) == {1}


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
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"vodup\[postgres\]"):
        await SqlState("postgresql://user@127.0.0.1:1/db").__aenter__()


async def test_a_url_nobody_understands_is_refused_without_the_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        await SqlState("postgresql://user:hunter2@host:port/db").__aenter__()
    assert "hunter2" not in str(caught.value)


async def test_a_worker_frozen_in_mid_transaction_is_succeeded(pg: Place) -> None:
    """Its locks would outlast its lease; the server ends its session first."""
    import psycopg

    async with pg.open() as store:
        set_to = await store._run(lambda c: c.exec_driver_sql(ASKED).scalar_one())  # type: ignore[attr-defined]
        assert set_to == "10s"
        with closing(psycopg.connect(pg.url)) as frozen:
            frozen.execute(b"SET idle_in_transaction_session_timeout = '1s'")
            frozen.execute(b"UPDATE vodup_store SET epoch = epoch + 1")

            async with store.claim("movie") as checkpoint:
                assert checkpoint.record is None

            with pytest.raises(psycopg.Error):
                frozen.execute(b"SELECT 1")


ASKED = "SHOW idle_in_transaction_session_timeout"
