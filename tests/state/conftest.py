"""Stores under test: every implementation, each test with an empty one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from uploader.state import MemoryState, Phase, SqlState, StateStore, UploadRecord

POSTGRES_URL = "VODUP_TEST_POSTGRES"


@dataclass
class Place:
    """Where the store of one test lives; `open` may be called again and again."""

    open: Callable[..., StateStore]
    url: str = ""

    def execute(self, statement: str) -> None:
        """Change the database behind the store's back."""
        raise NotImplementedError


@dataclass
class MemoryPlace(Place):
    pass


@dataclass
class SqlitePlace(Place):
    def execute(self, statement: str) -> None:
        import sqlite3

        connection = sqlite3.connect(self.url, timeout=10)
        connection.execute(statement)
        connection.commit()
        connection.close()


@dataclass
class PostgresPlace(Place):
    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url) as connection:
            connection.execute(statement.encode())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str | None]:
    """URL of a PostgreSQL server, or None where there is none."""
    if POSTGRES_URL in os.environ:
        yield os.environ[POSTGRES_URL]
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="vodup-pg-") as directory:
        server = _Postgres(found[-1].parent, Path(directory))
        try:
            yield server.start()
        finally:
            server.stop()


class _Postgres:
    """A throw-away server; as root it runs as the user postgres, who has to exist then."""

    def __init__(self, binaries: Path, directory: Path) -> None:
        self._binaries = binaries
        self._data = directory / "data"
        self._user: str | None = None
        if os.geteuid() == 0:
            self._user = "postgres"
            shutil.chown(directory, self._user)

    def start(self) -> str | None:
        if self._user is not None and not _is_user(self._user):
            return None
        self._run("initdb", "--no-sync", "-A", "trust", "-U", "vodup", "-D", str(self._data))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-p {port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(self._data / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", log, "-o", options, "start")
        return f"postgresql://vodup:hunter2@127.0.0.1:{port}/postgres"

    def stop(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, *arguments],
            user=self._user,
            cwd=self._data.parent,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests out of the user's own state directory."""
    home = tmp_path / "state-home"
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    return home


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Every implementation."""
    return _place(request, tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def sql_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Those that other processes share."""
    return _place(request, tmp_path)


@pytest.fixture(params=["postgres"])
def pg(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """PostgreSQL alone."""
    return _place(request, tmp_path)


def _place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "memory":
        only = MemoryState()
        return MemoryPlace(lambda **_: only)
    if request.param == "sqlite":
        path = str(tmp_path / "private" / "state.db")
        return SqlitePlace(lambda **options: SqlState(path, **options), url=path)
    server = request.getfixturevalue("postgres_server")
    if server is None:
        pytest.skip(f"no PostgreSQL server binaries, and {POSTGRES_URL} is not set")
    url = _new_schema(server)
    return PostgresPlace(lambda **options: SqlState(url, **options), url=url)


def _new_schema(server: str) -> str:
    import psycopg

    schema = f"t{uuid4().hex}"
    with psycopg.connect(server) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    return f"{server}?options=-csearch_path%3D{schema}"


@pytest.fixture
async def store(place: Place) -> AsyncIterator[StateStore]:
    """An open, empty store of each kind."""
    async with place.open() as opened:
        yield opened


@pytest.fixture
def children() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `child.py` in processes of their own; none survives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-m", "tests.state.child", *map(str, arguments)]
        root = Path(__file__).parents[2]
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True, **options)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def record(key: str = "movie", **changes: Any) -> UploadRecord:
    """A new upload."""
    plain: dict[str, Any] = {
        "key": key,
        "phase": Phase.NEW,
        "source": f"/media/{key}.mp4",
        "fingerprint": "fp-1",
        "size": 1 << 40,
    }
    return UploadRecord(**plain | changes)
