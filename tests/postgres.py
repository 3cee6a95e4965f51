"""A real PostgreSQL for tests, started by themselves; or the one VODUP_TEST_POSTGRES names.

Each pytest process (xdist has several) starts its own, in a temporary folder, within a
second. It ends with that process, even if that is killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest

from uploader.cluster.embedded import EmbeddedPostgres

POSTGRES_URL = "VODUP_TEST_POSTGRES"
_QUICKLY = ("fsync=off", "full_page_writes=off", "autovacuum=off")


def temporary_postgres(**options: float) -> EmbeddedPostgres:
    """Return a server of its own, for tests that stop it. Its folder goes with it."""
    folder = tempfile.mkdtemp(prefix="vodup-pg-")
    return EmbeddedPostgres(folder, settings=_QUICKLY, is_temporary=True, **options)


def is_removed(folder: Path) -> bool:
    """Try to remove a folder whose server may still be closing its files."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server, with a password in it that the server does not ask for."""
    if (given := os.environ.get(POSTGRES_URL)) is not None:
        yield given
        return
    with temporary_postgres() as server:
        yield server.url.replace("vodup@", "vodup:hunter2@")


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty database of this test's own."""
    with database(postgres_server, "template1") as url:
        yield url


@contextmanager
def database(server: str, template: str) -> Iterator[str]:
    """A database made like another one, and dropped afterwards; its URL."""
    name = f"t{uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement.encode())
