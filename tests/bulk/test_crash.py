"""The ledger after `kill -9`: every row once, every video once, the bytes as they were."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.conftest import VODUP, Cli
from uploader.devserver import DevServer

COMMAND = ("ingest", "m.csv", "--report", "r.jsonl", "--failed", "f.jsonl", "--files", "16")


def content(number: int) -> bytes:
    return random.Random(number).randbytes(200 + number % 50)


def prepare(cli: Cli, count: int) -> None:
    with (cli.folder / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "title"])
        for number in range(count):
            (cli.folder / f"{number}.mp4").write_bytes(content(number))
            writer.writerow([f"{number}.mp4", f"Title {number}"])
        writer.writerow(["missing.mp4", ""])


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_and_kill(cli: Cli, after_count: int, pause_s: float) -> bool:
    """Kill the command some time after it has ended so many more rows; whether it still ran."""
    report = cli.folder / "r.jsonl"
    goal = line_count(report) + after_count
    with subprocess.Popen(
        [*VODUP, *COMMAND],
        cwd=cli.folder,
        env=cli.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and line_count(report) < goal:
            time.sleep(0.005)
        time.sleep(pause_s)
        is_running = process.poll() is None
        process.kill()
    return is_running


def check(cli: Cli, server: DevServer, count: int) -> None:
    ended = cli.run(*COMMAND)
    assert ended.code == 4, ended.err  # the one that is missing
    lines = (cli.folder / "r.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert Counter(record["row"] for record in records) == Counter(range(2, count + 3))
    done = {record["row"]: record for record in records if record["status"] == "done"}
    assert len(done) == count
    assert server.stats.creates == len(server.videos) == count
    assert server.stats.overwrite_refreshes == 0
    assert len({record["video_id"] for record in done.values()}) == count
    for number in random.Random(1).sample(range(count), min(count, 60)):
        record = done[number + 2]
        assert server.object_bytes(record["video_id"]) == content(number)
        assert server.videos[record["video_id"]].title == f"Title {number}"


def kill_often(cli: Cli, server: DevServer, *, count: int, kill_count: int) -> None:
    draw = random.Random(time.time_ns())
    prepare(cli, count)
    most = max(2, 2 * count // (3 * kill_count))
    kills = [(draw.randrange(most), draw.random() * 0.1) for _ in range(kill_count)]
    kills_in_time = [run_and_kill(cli, *kill) for kill in kills]
    assert sum(kills_in_time) >= kill_count // 2, f"most of them ended before: {kills}"
    check(cli, server, count)


def test_killed_several_times_every_row_ends_once(cli: Cli, server: DevServer) -> None:
    kill_often(cli, server, count=300, kill_count=4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twenty_times_two_thousand_rows_end_once(cli: Cli, server: DevServer) -> None:
    kill_often(cli, server, count=2000, kill_count=20)
