"""A whole `push` is frozen for longer than its lease lives, and another process takes over."""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bulk.conftest import Quick
from tests.waiting import is_stopped, wait_until
from uploader.devserver import DevServer, Fault, ThreadedDevServer
from uploader.state import SqlState

from .conftest import Cli, Ended

TTL_S = 0.6
SHORT_LEASES = (
    "from uploader.state import SqlState; from uploader.cli import main; "
    f"SqlState.__init__.__kwdefaults__['lease_ttl_s'] = {TTL_S}; main()"
)
PUSH = ("push", "movie.mp4", "--json", "--part-size", "100K", "--concurrency", "4")
KIB = 1024


@pytest.fixture
def server() -> Iterator[DevServer]:
    """One for each test: requests are counted."""
    with ThreadedDevServer() as threaded:
        yield threaded.server


@pytest.fixture
def cli(server: DevServer, tmp_path: Path) -> Cli:
    return Cli(server, tmp_path, command=(sys.executable, "-W", "error", "-c", SHORT_LEASES))


@dataclass(frozen=True)
class Freeze:
    """When the first process is frozen: `after_s` from its first `operation`, which takes long."""

    operation: str
    size: int
    after_s: float


def freeze(cli: Cli, when: Freeze) -> tuple[Ended, Ended]:
    """How the frozen process and its successor end."""
    stats = cli.server.stats
    cli.file(size=when.size)
    cli.server.faults.replace(
        [Fault(action="delay", operation=when.operation, delay_s=1.2, count=2)]
    )
    first = cli.start(*PUSH)
    wait_until(lambda: stats.requests[when.operation] > 0)
    time.sleep(when.after_s)
    first.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(first.process.pid))
    time.sleep(1.3 * TTL_S)
    before = sum(stats.requests.values())
    second = cli.start(*PUSH)
    wait_until(lambda: sum(stats.requests.values()) > before or second.process.poll() is not None)
    first.process.send_signal(signal.SIGCONT)
    return first.ended(), second.ended()


def assert_lost(cli: Cli, first: Ended, second: Ended) -> None:
    """The first ends typed, with a JSON line and without a trace; the second is undisturbed."""
    assert first.code == 6, first.err
    assert first.last["type"] == "upload.failed"
    assert first.last["error"] == "LeaseLost"
    assert first.last["next_step"]
    assert "Traceback" not in first.err
    assert second.code == 0, second.err
    (video_id,) = cli.server.videos
    assert second.last["video_id"] == video_id
    assert cli.server.object_bytes(video_id) == (cli.folder / "movie.mp4").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "when",
    [
        Freeze("CreateUploadVideo", 2400 * KIB, 0.1),
        Freeze("PutObject", 100 * KIB, 0.3),
        Freeze("UploadPart", 2400 * KIB, 0.5),
        Freeze("CompleteMultipartUpload", 2400 * KIB, 0.2),
    ],
    ids=lambda when: when.operation,
)
def test_a_push_that_was_frozen_ends_in_a_lost_lease(cli: Cli, when: Freeze) -> None:
    assert_lost(cli, *freeze(cli, when))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_push_that_is_frozen_at_any_moment_ends_in_a_lost_lease(cli: Cli, seed: int) -> None:
    chance = random.Random(seed)
    operation = chance.choice(["CreateUploadVideo", "InitiateMultipartUpload", "UploadPart"])
    cli.server.set_options(bandwidth=2e6)
    assert_lost(cli, *freeze(cli, Freeze(operation, 2400 * KIB, chance.uniform(0, 1))))


@pytest.mark.parametrize("words", [PUSH, ("ingest", "m.csv", "--json", "--part-size", "100K")])
def test_a_lease_that_another_process_has_taken_ends_typed(
    server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(SqlState.__init__.__kwdefaults__ or {}, "lease_ttl_s", 0.3)
    quick = Quick(server, tmp_path, monkeypatch=monkeypatch)
    quick.file(size=800 * KIB)
    (tmp_path / "m.csv").write_text("path\nmovie.mp4\n")
    server.faults.add(Fault(action="delay", operation="UploadPart", delay_s=5, count=None))

    def take_over() -> None:
        wait_until(lambda: server.stats.requests["UploadPart"] > 0)
        with closing(sqlite3.connect(tmp_path / "state.db", timeout=10)) as database:
            database.execute("UPDATE vodup_lease SET epoch = epoch + 1000")
            database.commit()

    other = threading.Thread(target=take_over)
    other.start()
    ended = quick.run(*words)
    other.join()

    assert ended.code == 6, ended.err
    errors = [line["error"] for line in ended.lines if "error" in line]
    assert errors == ["LeaseLost"]
    assert "Traceback" not in ended.err
    assert "CancelledError" not in ended.err
