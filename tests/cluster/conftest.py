"""A cluster of real processes: one PostgreSQL, one devserver, workers to be killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.bulk.conftest import Quick
from tests.cli.conftest import VODUP, Cli, Ended
from tests.postgres import database
from tests.waiting import wait_until
from uploader.devserver import DevServer, ThreadedDevServer

PART = 100 * 1024
QUICK = ("--part-size", "102400", "--concurrency", "2", "--heartbeat", "0.4", "--files", "2")
"""Small parts, and deaths that are noticed after 1.2 s."""


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


class Process:
    """A worker in a process of its own; its output goes to a file."""

    def __init__(self, words: tuple[str, ...], env: Mapping[str, str], folder: Path) -> None:
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        self._file: IO[bytes] = self.log.open("wb")
        self.process = subprocess.Popen(
            [*VODUP, *words], cwd=folder, env=env, stdout=self._file, stderr=self._file
        )

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.output
        return "is ready" in self.output

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()

    def ended(self, *, within_s: float = 60) -> int:
        code = self.process.wait(within_s)
        self._file.close()
        return code


@dataclass
class Cluster:
    """One database and one VOD; `node` gives a command a machine of its own."""

    server: DevServer
    url: str
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    processes: list[Process] = field(default_factory=list)

    def env(self, node: str = "here", **more: str) -> dict[str, str]:
        """What a command on that machine sees: other machines cannot see its locks."""
        home = self.folder / f"home-{node}"
        home.mkdir(exist_ok=True)
        cli = Cli(self.server, home)
        changes = {"VODUP_STATE": self.url, "VODUP_NODE": node, "VODUP_API_RATE": "500"}
        return {**cli.env, "XDG_STATE_HOME": str(home / "state"), **changes, **more}

    def run(self, *words: str, node: str = "here", **env: str) -> Ended:
        """Run a command in this process: starting another takes longer than most of them."""
        home = Path(self.env(node)["HOME"])
        quick = Quick(self.server, home, env=self.env(node, **env), monkeypatch=self.monkeypatch)
        quick.folder = self.folder
        return quick.run(*words)

    def worker(self, *words: str, node: str = "here", **env: str) -> Process:
        """Start one; it is killed at the end of the test."""
        process = Process(("worker", *QUICK, *words), self.env(node, **env), self.folder)
        self.processes.append(process)
        return process

    def files(self, count: int, *, size: int, name: str = "m.csv") -> Path:
        """Make files that differ, in a folder that all machines share, and their manifest."""
        folder = self.folder / "shared"
        folder.mkdir(exist_ok=True)
        lines = ["path"]
        for number in range(count):
            (folder / f"{number}.mp4").write_bytes(content(number, size))
            lines.append(f"shared/{number}.mp4")
        manifest = self.folder / name
        manifest.write_text("\n".join(lines) + "\n")
        return manifest

    def add(self, lines: str) -> None:
        """Write more rows into the manifest."""
        manifest = self.folder / "m.csv"
        manifest.write_text(manifest.read_text() + lines)

    def enqueue(self, *words: str, code: int = 0) -> Ended:
        done = self.run("enqueue", "m.csv", "--shared", str(self.folder / "shared"), *words)
        assert done.code == code, done.err
        return done

    def records(self, *, code: int | None = None) -> list[dict[str, Any]]:
        """The ledger as `results` writes it."""
        path = self.folder / "results.jsonl"
        path.unlink(missing_ok=True)
        done = self.run("results", "m.csv", "--report", str(path))
        assert code is None or done.code == code, done.err
        return [json.loads(line) for line in path.read_text().splitlines()]

    def count(self, query: str) -> int:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(query.encode()).fetchone()
        return int(row[0]) if row else 0

    def execute(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode(), values)

    def left(self) -> int:
        return self.count("SELECT count(*) FROM vodup_job WHERE status = 'queued'")

    def check(self, count: int, *, size: int, resent: int) -> None:
        """Every row ended once, every video was completed once, no more was sent again."""
        records = self.records(code=0)
        assert Counter(r["row"] for r in records) == Counter(range(2, count + 2))
        assert {r["status"] for r in records} == {"done"}
        stats = self.server.stats
        assert stats.creates == len(self.server.videos) == count
        assert len({r["video_id"] for r in records}) == count
        ended = stats.completes_by_video or Counter({r["video_id"]: 1 for r in records})
        assert set(ended.values()) == {1}
        assert stats.overwrite_refreshes == 0
        assert stats.bytes_sent_twice + stats.partial_bytes <= resent
        for record in records:
            number = int(Path(record["path"]).stem)
            assert self.server.object_bytes(record["video_id"]) == content(number, size)
        assert self.count("SELECT count(*) FROM procrastinate_jobs") == 0


@pytest.fixture
def server() -> Iterator[DevServer]:
    """One for each test: what is counted there is this test's."""
    with ThreadedDevServer() as threaded:
        yield threaded.server


@pytest.fixture(scope="session")
def upgraded(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a database as `vodup db upgrade` makes it, to be copied."""
    with database(postgres_server, "template1") as url:
        home = str(tmp_path_factory.mktemp("upgrading"))
        env = os.environ | {"VODUP_STATE": url, "XDG_STATE_HOME": home}
        subprocess.run([*VODUP, "db", "upgrade", "-q"], env=env, check=True)
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
def cluster(
    server: DevServer,
    postgres_server: str,
    upgraded: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cluster]:
    """An upgraded database without workers."""
    with database(postgres_server, upgraded) as url:
        made = Cluster(server, url, tmp_path, monkeypatch)
        yield made
        end(made)


def end(made: Cluster) -> None:
    """Leave no process behind."""
    for process in made.processes:
        if process.process.poll() is None:
            process.send(signal.SIGCONT)
            process.kill()


def acked_parts(cluster: Cluster) -> int:
    return cluster.count("SELECT count(*) FROM vodup_part")


def until_under_way(cluster: Cluster, parts: int = 2) -> None:
    wait_until(lambda: acked_parts(cluster) >= parts)
