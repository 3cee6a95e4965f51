"""Stores under test: every implementation, each test with an empty one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from uploader.protocol.grants import UploadTarget
from uploader.state import Journal, MemoryState, Phase, SqlState, StateStore, UploadRecord


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


@pytest.fixture(params=["sqlite"])
def sqlite_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """SQLite alone."""
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
    url: str = request.getfixturevalue("postgres_url")
    return PostgresPlace(lambda **options: SqlState(url, **options), url=url)


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


async def set_video(journal: Journal, video_id: str) -> None:
    """Give a new upload its video."""
    target = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-1", "sv/1.mp4")
    await journal.set_target(video_id, target, region=None, plan=None, one_request=False)


def record(key: str = "movie", **changes: Any) -> UploadRecord:
    """A new upload."""
    plain: dict[str, Any] = {
        "key": key,
        "phase": Phase.UPLOADING,
        "source": f"/media/{key}.mp4",
        "fingerprint": "fp-1",
        "size": 1 << 40,
    }
    return UploadRecord(**plain | changes)
