"""Making and migrating the tables."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from tests.cli.conftest import VODUP
from tests.cluster.conftest import Cluster
from uploader.cluster import database
from uploader.errors import ConfigurationError, UnsupportedState


def tables(url: str) -> list[tuple[str, str, int]]:
    """The tables of the database; the last number changes when one is made again."""
    query = (
        "SELECT relname, relkind::text, oid::int FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_upgrading_twice_changes_nothing(cluster: Cluster) -> None:
    before = tables(cluster.url)
    again = cluster.run("db", "upgrade")
    assert again.code == 0
    assert "already" in again.err
    assert tables(cluster.url) == before


def test_upgrades_at_once_make_the_tables_once(cluster: Cluster) -> None:
    execute(cluster.url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    command = [*VODUP, "db", "upgrade"]
    running = [subprocess.Popen(command, env=cluster.env()) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    database.require_current(cluster.url)


@pytest.mark.parametrize(
    "newer",
    [
        "UPDATE vodup_cluster SET schema_version = schema_version + 1",
        "UPDATE vodup_cluster SET procrastinate = '99.00.00_01_other.sql'",
        "UPDATE vodup_store SET schema_version = schema_version + 1",
    ],
)
def test_a_newer_schema_is_refused_and_unchanged(cluster: Cluster, newer: str) -> None:
    execute(cluster.url, newer)
    before = tables(cluster.url)
    for words in (["db", "upgrade"], ["worker"]):
        refused = cluster.run(*words)
        assert refused.code == 2
        assert "newer" in refused.err
    assert tables(cluster.url) == before


def test_an_older_procrastinate_is_migrated(postgres_url: str) -> None:
    """As made by the release before its last migrations."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        files = database._migration_files()
        older, newer = files[:-2], files[-2:]
        for path in older:
            connection.execute(path.read_bytes())
        connection.execute(database._tables())
        connection.execute("INSERT INTO vodup_cluster VALUES (1, 1, %s)", [older[-1].name])
    with pytest.raises(ConfigurationError, match="older"):
        database.require_current(postgres_url)
    assert database.upgrade(postgres_url)
    database.require_current(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        row = connection.execute("SELECT procrastinate FROM vodup_cluster").fetchone()
        assert row == (newer[-1].name,)
        assert connection.execute("SELECT to_regproc('procrastinate_retry_job_v2')").fetchone()


def test_an_upgrade_that_fails_leaves_nothing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_tables", lambda: b"CREATE TABLE half (); SELECT 1/0")
    with pytest.raises(Exception, match="division"):
        database.upgrade(postgres_url)
    assert tables(postgres_url) == []


def test_tables_of_another_procrastinate_are_unchanged(postgres_url: str) -> None:
    execute(postgres_url, "CREATE TABLE procrastinate_jobs ()")
    with pytest.raises(ConfigurationError, match="not vodup's"):
        database.upgrade(postgres_url)
    assert [name for name, _, _ in tables(postgres_url)] == ["procrastinate_jobs"]


@pytest.mark.parametrize("words", [["worker"], ["enqueue", "m.csv"], ["results"]])
def test_without_an_upgrade_the_error_names_the_command(cluster: Cluster, words: list[str]) -> None:
    execute(cluster.url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    cluster.files(1, size=1)
    refused = cluster.run(*words)
    assert refused.code == 2
    assert "vodup db upgrade" in refused.err
    assert tables(cluster.url) == []


def test_a_newer_queue_is_a_typed_error(cluster: Cluster) -> None:
    execute(cluster.url, "UPDATE vodup_cluster SET schema_version = 99")
    with pytest.raises(UnsupportedState, match="schema 99"):
        database.require_current(cluster.url)
