"""The real command in processes of its own, against one development server."""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from uploader.devserver import DevServer, ThreadedDevServer

VODUP = [sys.executable, "-W", "error", "-c", "from uploader.cli import main; main()"]
MIB = 1024 * 1024


@dataclass(frozen=True)
class Ended:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]


class Running:
    """A running command; its JSON lines as they arrive."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.seen: list[str] = []

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def until(self, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a line; fails after 20 s."""
        deadline = time.monotonic() + 20
        while True:
            line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            self.seen.append(line)
            event = json.loads(line)
            if accept(event):
                return event

    def ended(self) -> Ended:
        """Wait for the end."""
        code = self.process.wait(timeout=30)
        self._reader.join()
        while not self._lines.empty():
            self.seen.append(self._lines.get())
        assert self.process.stderr is not None
        err = self.process.stderr.read()
        self.process.stderr.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return Ended(code, "".join(self.seen), err)


@dataclass
class Cli:
    """Runs `vodup` in `folder`, with its own state."""

    server: DevServer
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = tuple(VODUP)

    def __post_init__(self) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("VODUP_")}
        self.env = {
            **inherited,
            **self.server.env,
            "VODUP_STATE": str(self.folder / "state.db"),
            "HOME": str(self.folder),
            **self.env,
        }

    def run(
        self,
        *words: str,
        stdin: str = "",
        env: dict[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Ended:
        """Run to the end."""
        done = subprocess.run(
            [*self.command, *words],
            cwd=self.folder,
            env=self.env | (env or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str) -> Running:
        """Start in the background."""
        return Running(
            subprocess.Popen(
                [*self.command, *words],
                cwd=self.folder,
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def file(self, name: str = "movie.mp4", size: int = 3 * MIB, seed: bytes = b"vodup") -> Path:
        """Make a file whose content depends on its size and seed only."""
        path = self.folder / name
        block = (seed * MIB)[:MIB]
        path.write_bytes((block * (size // MIB + 1))[:size])
        return path


def is_under_way(event: dict[str, Any]) -> bool:
    """Some parts are confirmed, some are not."""
    return bool(event["type"] == "upload.progress" and event["acked_part_count"] >= 2)


def interrupt(running: Running, number: signal.Signals) -> Ended:
    running.until(is_under_way)
    running.process.send_signal(number)
    return running.ended()


def shell(
    cli: Cli, words: Iterable[str], redirection: str = "", *, before: str = "true", **env: str
) -> Ended:
    """Run a command as a shell does, with its streams redirected, after a line of shell."""
    done = subprocess.run(
        ["bash", "-c", f"{before}; exec {shlex.join([*cli.command, *words])} {redirection}"],
        cwd=cli.folder,
        env=cli.env | env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands without coverage, which needs memory, a folder and modules of its own."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(scope="session")
def server() -> Iterator[DevServer]:
    with ThreadedDevServer() as threaded:
        yield threaded.server


@pytest.fixture
def cli(server: DevServer, tmp_path: Path) -> Cli:
    return Cli(server, tmp_path)


@pytest.fixture
def slow_server(server: DevServer) -> Iterator[DevServer]:
    """The server at 3 MiB/s, so that there is time to interrupt."""
    server.set_options(bandwidth=3 * MIB)
    yield server
    server.set_options(bandwidth=None)


SLOWLY = ("--json", "--part-size", "1M", "--concurrency", "2")
"""How to push the files of `slow_server`: many small parts."""
