"""A day of ingest in a minute: 300 files, twenty kills, a restart of the services, a full disk.

Every complete file is exactly one video and has been moved; nothing half-written was taken; every
other file is explained.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.conftest import VODUP, Cli
from tests.waiting import wait_until
from uploader.devserver import DevServer, DevServerOptions, ThreadedDevServer

KILLS = 20
SETTLE_S = 0.4
WORDS = (
    f"watch ingest --settle {SETTLE_S} --rescan 2s --after move:done --failed-dir failed".split()
)
WORDS += ["--report", "ledger.jsonl", "--files", "6", "--json", "--part-size", "100KiB"]

# As root, everything could be read.
UNPRIVILEGED = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
)


@dataclass
class Writer:
    """What other programs put into the folder, from several threads."""

    folder: Path
    complete: set[bytes] = field(default_factory=set)
    replaced: set[bytes] = field(default_factory=set)
    left_alone: set[Path] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def content(self) -> bytes:
        return self.random.randbytes(self.random.choice([500, 5_000, 90_000, 400_000]))

    def renamed(self, number: int) -> None:
        content, path = self.content(), self.folder / f"renamed/{number % 5}/r{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.part")
        draft.write_bytes(content)
        draft.rename(path)
        self.complete.add(content)

    def growing(self, number: int) -> None:
        """Written under its own name, held open, with pauses longer than files take to settle."""
        content, path = self.content(), self.folder / f"g{number}.mov"
        with path.open("wb") as file:
            for begin in range(0, len(content), len(content) // 3 + 1):
                file.write(content[begin : begin + len(content) // 3 + 1])
                file.flush()
                time.sleep(2 * SETTLE_S)
        self.complete.add(content)

    def appended(self, number: int) -> None:
        """Opened for each piece, with pauses shorter than files take to settle."""
        content, path = self.content(), self.folder / f"a{number}.mkv"
        for begin in range(0, len(content), len(content) // 5 + 1):
            with path.open("ab") as file:
                file.write(content[begin : begin + len(content) // 5 + 1])
            time.sleep(SETTLE_S / 8)
        os.utime(path, (1e9, 1e9))  # as rsync -t does
        self.complete.add(content)

    def replacing(self, number: int) -> None:
        """One version after the other, each complete; the first may have been taken."""
        path = self.folder / f"p{number}.mp4"
        for is_last in (False, True):
            content = self.content() + bytes([is_last])
            draft = path.with_name(f".{path.name}.{is_last}")
            draft.write_bytes(content)
            draft.rename(path)
            (self.complete if is_last else self.replaced).add(content)
            time.sleep(self.random.choice([0.05, 1.0, 3.0]))

    def abandoned(self, number: int) -> None:
        path = self.folder / f"half{number}.mp4.part"
        path.write_bytes(self.content())
        self.left_alone.add(path)

    def unreadable_file(self, number: int) -> None:
        path = self.folder / f"u{number}.mp4"
        draft = path.with_suffix(".tmp")
        draft.write_bytes(self.content())
        draft.chmod(0)
        draft.rename(path)
        self.unreadable.add(path.name)

    def linked(self, number: int) -> None:
        path = self.folder / f"l{number}.mp4"
        path.symlink_to(__file__)
        self.left_alone.add(path)

    def on_full_disk(self, number: int) -> None:
        """Some fit on the disk of this folder, some do not, and are left half-written."""
        content, path = self.random.randbytes(120_000), self.folder / f"full/f{number}.mp4"
        draft = path.with_name(f"{path.name}.tmp")
        try:
            draft.write_bytes(content)
        except OSError:
            self.left_alone.add(draft)
        else:
            draft.rename(path)
            self.complete.add(content)

    def run(self) -> None:
        """Write 300 files."""
        kinds = [self.renamed] * 120 + [self.growing] * 20 + [self.appended] * 40
        kinds += [self.replacing] * 40 + [self.abandoned] * 20 + [self.unreadable_file] * 20
        kinds += [self.linked] * 20 + [self.on_full_disk] * 20
        jobs = list(enumerate(kinds))
        self.random.shuffle(jobs)

        def work() -> None:
            with suppress(IndexError):
                while True:
                    number, kind = jobs.pop()
                    kind(number)
                    time.sleep(self.random.uniform(0, 0.3))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own with 1 MB, where this process may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def services(cli_folder: Path, options: DevServerOptions) -> Iterator[ThreadedDevServer]:
    with ThreadedDevServer(options) as threaded:
        threaded.server.set_options(bandwidth=4_000_000)
        yield threaded


def start(cli: Cli, output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as out:
        command = [*UNPRIVILEGED, *VODUP, *WORDS]
        return subprocess.Popen(command, cwd=cli.folder, env=cli.env, stdout=out, stderr=out)


def run_and_kill(cli: Cli, after_s: float, output: Path) -> None:
    process = start(cli, output)
    time.sleep(after_s)
    assert process.poll() is None, output.read_text()
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(
    bool(UNPRIVILEGED) and not shutil.which("setpriv"), reason="root can read every file"
)
def test_a_day_of_ingest(tmp_path: Path) -> None:
    folder, output = tmp_path / "ingest", tmp_path / "output"
    folder.mkdir()
    options = DevServerOptions(data_dir=tmp_path / "data")
    with ExitStack() as stack:
        stack.enter_context(small_disk(folder / "full"))
        running = stack.enter_context(ExitStack())
        server = running.enter_context(services(tmp_path, options)).server
        cli = Cli(server, tmp_path)
        writer = Writer(folder)
        writing = threading.Thread(target=writer.run)
        writing.start()
        for number in range(KILLS):
            run_and_kill(cli, writer.random.uniform(0.9, 2.6), output)
            if number == KILLS // 2:
                ports = [
                    int(url.rpartition(":")[2].strip("/"))
                    for url in (server.vod_endpoint, server.oss_endpoint)
                ]
                running.close()
                options = DevServerOptions(
                    data_dir=tmp_path / "data", port=ports[0], oss_port=ports[1]
                )
                server = running.enter_context(services(tmp_path, options)).server
        writing.join()
        last = start(cli, output)
        try:
            remaining = {*map(str, writer.left_alone), str(folder / "full")}
            wait_until(lambda: not set(_files(folder)) - remaining, within_s=120)
            time.sleep(2)
        finally:
            last.terminate()
            assert last.wait() == 0
        explained = cli.run(*WORDS, "--once")
        _check(writer, contents_of(server), tmp_path, explained.lines)


def contents_of(server: DevServer) -> Counter[bytes]:
    """What OSS holds of each video; some have nothing, whose file was replaced meanwhile."""
    storage = server.backend.storage
    found: Counter[bytes] = Counter()
    for video in server.videos.values():
        if (stored := storage.object(video.bucket, video.object_key)) is not None:
            found[storage.content(stored)] += 1
    return found


def _files(folder: Path) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_symlink() or path.is_file():
                found.append(str(path))
    return found


def _check(
    writer: Writer, stored: Counter[bytes], folder: Path, explained: list[dict[str, object]]
) -> None:
    # Each complete file is exactly one video, and nothing else is one.
    assert [stored[content] for content in writer.complete] == [1] * len(writer.complete)
    assert all(stored[content] <= 1 for content in writer.replaced)
    assert stored.keys() <= writer.complete | writer.replaced
    # It has been moved.
    moved = Counter(Path(path).read_bytes() for path in _files(folder / "done"))
    assert moved == stored - Counter(writer.replaced - moved.keys())
    # Every other one is explained.
    reasons = {
        str(line["path"]): line["reason"] for line in explained if line["type"] == "file.skipped"
    }
    assert set(reasons) >= {str(path) for path in writer.left_alone}
    failed = {path.name for path in (folder / "failed").glob("u*.mp4")}
    assert failed == writer.unreadable
    for name in writer.unreadable:
        reason = json.loads((folder / f"failed/{name}.reason.json").read_text())
        assert reason["error"] == "SourceUnreadable"
    assert set(_files(folder / "ingest")) == {str(path) for path in writer.left_alone}
