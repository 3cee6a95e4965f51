"""Processes to be killed, frozen and raced, and a server that outlives them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Desk, until
from uploader.devserver import DevServer

ROOT = Path(__file__).parents[2]
_NUMBERS = itertools.count(1)


@dataclass
class Child:
    """A process that does one job."""

    pid: int
    out: Path

    @property
    def is_running(self) -> bool:
        """Whether the kernel still knows it."""
        with suppress(OSError):
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state not in "ZX"
        return False

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self, *, timeout_s: float = 60) -> dict[str, Any] | None:
        """Wait for its end; return its report, or None if it could not write one."""
        await until(lambda: not self.is_running, timeout_s=timeout_s)
        report = self.out.read_text() if self.out.exists() else ""
        return json.loads(report) if report else None  # killed while writing it


@dataclass
class Nursery:
    """Starts children by forking. Mutable: those it has started."""

    folder: Path
    children: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.child"],
            cwd=ROOT, stdin=pipe, stdout=pipe, text=True,
        )  # fmt: skip

    def start(self, **job: Any) -> Child:
        """Start a job now, or as soon as its `at_s` has come."""
        out = self.folder / f"report-{next(_NUMBERS)}.json"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({**job, "out": str(out)}), file=self._process.stdin, flush=True)
        child = Child(int(self._process.stdout.readline()), out)
        self.children.append(child)
        return child

    def end_all(self) -> None:
        """No child survives its test."""
        for child in self.children:
            if child.is_running:
                with suppress(ProcessLookupError):
                    child.signal(signal.SIGKILL)
        self.children.clear()

    def close(self) -> None:
        self.end_all()
        self._process.communicate(timeout=30)


@pytest.fixture(scope="session")
def long_lived_nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture
def nursery(long_lived_nursery: Nursery) -> Iterator[Nursery]:
    yield long_lived_nursery
    long_lived_nursery.end_all()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[DevServer]:
    async with DevServer() as running:
        yield running


@pytest.fixture
def desk(server: DevServer, tmp_path: Path) -> Desk:
    return Desk(server, tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def state_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A store that processes share: by its lock files here, by its leases alone there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    if request.param == "sqlite":
        return str(tmp_path / "state" / "vodup.db")
    return str(request.getfixturevalue("postgres_url"))


def job_of(desk: Desk, state: str | None = None, **more: Any) -> dict[str, Any]:
    """What a child needs to know to work for this desk's account."""
    return {
        "access_key_id": desk.server.access_key_id,
        "access_key_secret": desk.server.access_key_secret,
        "vod_endpoint": desk.server.vod_endpoint,
        "state": state or str(desk.state_path),
        "concurrency": 4,
        **more,
    }


def soon_s() -> float:
    """A moment both of two children can be ready for."""
    return time.monotonic() + 0.05
