"""A database that goes away, that requires a password, and that holds the shared budget."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from tests.cluster.conftest import PART, Cluster, until_under_way
from tests.postgres import is_removed, temporary_postgres
from tests.waiting import wait_until
from uploader.cluster.database import open_pool
from uploader.cluster.embedded import EmbeddedPostgres
from uploader.cluster.worker import SharedBudget
from uploader.devserver import DevServer

SIZE = 12 * PART


def postmaster(server: EmbeddedPostgres) -> int:
    return int((server.folder / "data" / "postmaster.pid").read_text().split()[0])


def own_cluster(
    server: DevServer, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Cluster:
    made = Cluster(server, url, folder, monkeypatch)
    assert made.run("db", "upgrade").code == 0
    return made


@pytest.fixture
def slow(server: DevServer) -> DevServer:
    server.set_options(connection_bandwidth=4 * PART)
    return server


def test_workers_survive_a_restart_of_the_database(
    slow: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporary_postgres(restart_pause_s=0.5) as database:
        cluster = own_cluster(slow, database.url, tmp_path, monkeypatch)
        cluster.files(4, size=SIZE)
        cluster.enqueue()
        workers = [cluster.worker("--heartbeat", "1.5", node=f"n{number}") for number in range(2)]
        wait_until(lambda: all(worker.is_ready for worker in workers))
        until_under_way(cluster, parts=6)
        before = postmaster(database)
        os.kill(before, signal.SIGQUIT)  # at once, as by a crash
        wait_until(lambda: _new_postmaster(database, before))
        slow.set_options(connection_bandwidth=None)
        wait_until(lambda: cluster.left() == 0)
        for worker in workers:
            assert worker.process.poll() is None, worker.output
            worker.send(signal.SIGTERM)
            assert worker.ended() == 0, worker.output
        # What was under way when the acks could not be written, and once more after it.
        cluster.check(4, size=SIZE, resent=4 * 2 * 2 * PART)


def _new_postmaster(database: EmbeddedPostgres, before: int) -> bool:
    try:
        if postmaster(database) == before:
            return False
        psycopg.connect(database.url).close()
    except (OSError, IndexError, psycopg.Error):
        return False
    return True


@pytest.mark.slow
def test_without_its_database_a_worker_ends_resumably_and_no_row_is_lost(
    slow: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = temporary_postgres().folder
    folder.rmdir()
    with EmbeddedPostgres(folder, settings=["fsync=off"], restart_pause_s=3600) as database:
        cluster = own_cluster(slow, database.url, tmp_path, monkeypatch)
        cluster.files(3, size=SIZE)
        cluster.enqueue()
        worker = cluster.worker("--grace", "1", node="one")
        until_under_way(cluster)
        os.kill(postmaster(database), signal.SIGQUIT)
        assert worker.ended() == 5, worker.output
        assert "same command again" in worker.output
    wait_until(lambda: not database._is_running())  # or the next one would join it in its pause
    with EmbeddedPostgres(folder, settings=["fsync=off"], is_temporary=True):
        assert cluster.left() == 3
        slow.set_options(connection_bandwidth=None)
        again = cluster.worker("--drain", node="two")
        assert again.ended() == 0, again.output
        cluster.check(3, size=SIZE, resent=2 * 2 * 2 * PART)


# --- passwords --------------------------------------------------------------------------

CANARY = "can4ry-b1rd"


@pytest.fixture
def guarded(
    server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """A database that requires the password."""
    with temporary_postgres() as database:
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE guarded LOGIN PASSWORD '{CANARY}'".encode())
            connection.execute(b"ALTER DATABASE postgres OWNER TO guarded")
            connection.execute(b"ALTER SCHEMA public OWNER TO guarded")
            rules = database.folder / "data" / "pg_hba.conf"
            rules.write_text("local all guarded scram-sha-256\nlocal all vodup trust\n")
            connection.execute(b"SELECT pg_reload_conf()")
        host = quote(str(database.folder), safe="/")
        url = f"postgresql://guarded@/postgres?host={host}"
        wait_until(lambda: _is_refused(url))
        yield Cluster(server, url, tmp_path, monkeypatch)


def _is_refused(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return True
    return False


def with_password(url: str, password: str = CANARY) -> str:
    return url.replace("guarded@", f"guarded:{password}@")


def all_written(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4"]
    return "\n".join(path.read_bytes().decode(errors="replace") for path in files)


def test_the_password_of_the_database_appears_nowhere(guarded: Cluster) -> None:
    guarded.url = with_password(guarded.url)
    guarded.files(2, size=SIZE)
    words = ("--log-level", "debug")
    outputs = [guarded.run("db", "upgrade", *words)]
    guarded.server.set_options(connection_bandwidth=4 * PART)
    outputs.append(guarded.run("enqueue", "m.csv", "--shared", str(guarded.folder), *words))
    worker = guarded.worker("--drain", *words)
    until_under_way(guarded, parts=1)
    command_line = Path(f"/proc/{worker.process.pid}/cmdline").read_bytes()
    assert CANARY.encode() not in command_line
    outputs.append(guarded.run("status", "--json", *words))
    outputs.append(guarded.run("status", *words))
    guarded.server.set_options(connection_bandwidth=None)
    assert worker.ended() == 0, worker.output
    outputs.append(guarded.run("results", "--report", "r.jsonl", *words))
    # And with a wrong password, and without a server.
    wrong = with_password(guarded.url.replace(f":{CANARY}", ""), CANARY + "x")
    outputs.append(guarded.run("worker", *words, VODUP_STATE=wrong))
    gone = f"postgresql://guarded:{CANARY}@127.0.0.1:1/postgres"
    outputs += [
        guarded.run(name, *words, VODUP_STATE=gone) for name in ("worker", "results", "status")
    ]
    broken = f"postgresql://guarded:{CANARY}@host:port/postgres"
    outputs += [guarded.run(name, *words, VODUP_STATE=broken) for name in ("worker", "status")]
    assert [one.code for one in outputs[-6:]] == [5, 5, 5, 5, 2, 2]
    everything = "".join(one.out + one.err for one in outputs) + all_written(guarded.folder)
    assert "r.jsonl" not in everything or '"status": "done"' in everything
    assert CANARY not in everything


def test_the_password_may_come_from_libpq(guarded: Cluster) -> None:
    assert guarded.run("db", "upgrade", PGPASSWORD=CANARY).code == 0
    home = Path(guarded.env()["HOME"])
    (home / ".pgpass").write_text(f"*:*:*:guarded:{CANARY}\n")
    (home / ".pgpass").chmod(0o600)
    guarded.files(1, size=PART)
    shared = ("--shared", str(guarded.folder))
    assert guarded.run("enqueue", "m.csv", *shared, PGPASSFILE=str(home / ".pgpass")).code == 0
    worker = guarded.worker("--drain", PGPASSFILE=str(home / ".pgpass"))
    assert worker.ended() == 0, worker.output


def test_a_password_in_a_flag_causes_a_warning(
    guarded: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = with_password(guarded.url)
    monkeypatch.setattr("sys.argv", ["vodup", "db", "upgrade", "--state", url])
    done = guarded.run("db", "upgrade", "--state", url)
    assert done.code == 0
    assert "other users of this machine can read" in done.err
    assert CANARY not in done.err


# --- the budget -------------------------------------------------------------------------


async def called(budget: SharedBudget, instants: list[float], until: float) -> None:
    while time.monotonic() < until:
        await budget()
        instants.append(time.monotonic())


async def test_all_workers_share_one_budget_of_calls(cluster: Cluster) -> None:
    instants: list[float] = []
    began = time.monotonic()
    async with (
        open_pool(cluster.url) as one,
        open_pool(cluster.url) as two,
        asyncio.TaskGroup() as group,
    ):
        for pool in (one, one, two, two):
            group.create_task(called(SharedBudget(pool, "vod", 20), instants, began + 2))
    in_time = [instant for instant in instants if instant <= began + 2]
    assert len(in_time) <= 2 * 20 + 3
    assert len(in_time) >= 2 * 20 * 0.5, "a loaded machine is slow, but not that slow"


async def test_a_worker_that_dies_while_waiting_wastes_only_its_turns(cluster: Cluster) -> None:
    async with open_pool(cluster.url) as pool:
        budget = SharedBudget(pool, "vod", 10)
        waiting = [asyncio.ensure_future(budget()) for _ in range(200)]
        await asyncio.sleep(0.5)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        began = time.monotonic()
        await budget()
        assert time.monotonic() - began < 8  # 200 turns of a tenth of a second are 20 s
        assert cluster.count("SELECT count(*) FROM pg_locks WHERE NOT granted") == 0


async def test_accounts_have_separate_budgets(cluster: Cluster) -> None:
    async with open_pool(cluster.url) as pool:
        await SharedBudget(pool, "one", 0.1)()
        async with asyncio.timeout(5):
            await SharedBudget(pool, "two", 0.1)()


def test_workers_wait_for_the_budget_before_every_call(cluster: Cluster) -> None:
    cluster.files(3, size=PART)
    cluster.enqueue()
    with psycopg.connect(cluster.url) as connection:
        connection.execute(
            "INSERT INTO vodup_budget VALUES (%s, extract(epoch FROM now() + interval '1 hour'))",
            [cluster.env()["VODUP_VOD_ENDPOINT"]],
        )
    worker = cluster.worker()
    wait_until(lambda: worker.is_ready)
    time.sleep(1.5)
    assert cluster.server.stats.creates == 0
    cluster.execute("DELETE FROM vodup_budget")
    wait_until(lambda: cluster.left() == 0)


# --- status -----------------------------------------------------------------------------


def test_status_shows_queue_workers_and_uploads(cluster: Cluster) -> None:
    cluster.files(2, size=SIZE)
    cluster.server.set_options(connection_bandwidth=4 * PART)
    cluster.add("shared/none.mp4\n")
    cluster.enqueue(code=4)
    cluster.worker("--files", "1", node="one")
    until_under_way(cluster)
    lines = cluster.run("status", "--json").lines
    queue = lines[0]
    assert queue["type"] == "queue.status"
    assert (queue["running"], queue["waiting"], queue["failed"]) == (1, 1, 1)
    assert [worker["running"] for worker in queue["workers"]] == [1]
    assert [line["state"] for line in lines[1:]] == ["uploading"]
    text = cluster.run("status").out
    assert "vodup: 1 running, 1 waiting" in text


# --- all on one machine -----------------------------------------------------------------


def test_with_an_embedded_database_one_command_is_enough(
    server: DevServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    folder = temporary_postgres().folder
    request.addfinalizer(lambda: wait_until(lambda: is_removed(folder)))
    cluster = Cluster(server, "", tmp_path, monkeypatch)
    cluster.files(2, size=PART)
    where = ("--embedded", str(folder))
    queued = cluster.run("enqueue", "m.csv", *where, VODUP_STATE="/nowhere/else.db")
    assert queued.code == 0, queued.err
    worker = cluster.worker(*where, "--drain")
    assert worker.ended() == 0, worker.output
    done = cluster.run("results", "m.csv", *where, "--report", "r.jsonl")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["done", "done"]
    assert "2 done" in cluster.run("status", *where).out
