"""`vodup watch`: what it prints, how it ends, and what it tells systemd."""

from __future__ import annotations

import asyncio
import configparser
import json
import os
import shlex
import socket
from pathlib import Path

import aiohttp
import pytest

from tests.bulk.conftest import Quick, cli, quick, server
from tests.cli.conftest import Cli
from tests.waiting import until
from uploader.cli.app import app
from uploader.cli.watch import service
from uploader.metrics import Metrics

from .conftest import Place

DOCS = Path(__file__).parents[2] / "docs"

__all__ = ["cli", "quick", "server"]


def ingest(cli: Cli) -> Path:
    folder = cli.folder / "ingest"
    folder.mkdir()
    (folder / "one.mp4").write_bytes(b"1")
    (folder / "bad.mp4").write_bytes(b"2")
    (folder / "bad.json").write_text("[]")
    (folder / "notes.txt").write_text("")
    return folder


def test_once_uploads_what_is_there_and_reports_each_file(quick: Quick) -> None:
    ingest(quick)
    words = ["watch", "ingest", "--once", "--settle", "0", "--after", "move:done"]

    ended = quick.run(*words, "--failed-dir", "failed", "--json")

    assert ended.code == 2
    by_type = {line["type"]: line for line in ended.lines if line["type"] != "watch.progress"}
    assert by_type["file.done"]["moved_to"] == str(quick.folder / "done/one.mp4")
    assert by_type["file.failed"]["moved_to"] == str(quick.folder / "failed/bad.mp4")
    assert by_type["file.skipped"]["path"].endswith("notes.txt")
    assert by_type["watch.ended"]["done"] == 1
    [ledger] = (quick.folder / ".local/state/vodup").glob("watch-*.jsonl")
    assert len(ledger.read_text().splitlines()) == 2

    assert quick.run(*words).code == 0


def test_the_cover_and_the_subtitles_are_uploaded(quick: Quick) -> None:
    folder = quick.folder / "ingest"
    folder.mkdir()
    for name in ("one.mp4", "one.png", "one.zh.srt", "two.mp4", "two.srt"):
        (folder / name).write_bytes(name.encode())
    words = ["watch", "ingest", "--once", "--settle", "0", "--json"]

    ended = quick.run(*words, "--after", "delete")

    assert ended.code == 0, ended.err
    done = {Path(str(line["path"])).name: line for line in ended.lines if "path" in line}
    cover, subtitle = done["one.mp4"]["attached"]
    assert subtitle["url"].endswith(".srt")
    video = quick.server.videos[done["one.mp4"]["video_id"]]
    assert video.detail("CoverURL") == cover["url"]
    assert list(folder.iterdir()) == []

    (folder / "three.mp4").write_bytes(b"3")
    (folder / "three.srt").write_bytes(b"3")
    assert quick.run(*words, "--after", "delete", "--no-companions").code == 0
    assert [path.name for path in folder.iterdir()] == ["three.srt"]


def test_sentences_say_what_happened(quick: Quick) -> None:
    ingest(quick)
    ended = quick.run("watch", "ingest", "--once", "--settle", "0", "--verbose")
    assert "ingest/one.mp4: video " in ended.out
    assert "bad.json cannot be used as metadata: it is not a JSON object" in ended.err
    assert "notes.txt: not a type of video that VOD accepts." in ended.err
    assert "1 file uploaded and verified, 1 failed." in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--after", "shred"], "--after: expected keep, delete or move:FOLDER"),
        (["--priority", "high"], "--priority: expected GLOB=N"),
        (["--ready", "{y}"], "--ready: cannot use"),
        (["--after", "move:ingest"], "is the folder that is watched"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(quick: Quick, words: list[str], message: str) -> None:
    ingest(quick)
    ended = quick.run("watch", "ingest", "--once", *words)
    assert ended.code == 2
    assert message in ended.err


async def test_systemd_is_told_that_the_service_is_ready_alive_and_stopping(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = place.desk.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        async with place.watching(is_once=False) as watcher, service(watcher):
            place.write("one.mp4")
            await anext(watcher)
            lines = await _received(systemd, "STATUS=0 uploading, 0 queued, 1 done, 0 failed.")
        lines += await _received(systemd, "STOPPING=1")
    assert lines[0] == "READY=1"
    assert "WATCHDOG=1" in lines


async def _received(systemd: socket.socket, last: str) -> list[str]:
    lines: list[str] = []
    async with asyncio.timeout(10):
        while last not in lines:
            try:
                lines += systemd.recv(4096).decode().split("\n")
            except BlockingIOError:
                await asyncio.sleep(0.01)
    return lines


async def test_health_is_served_beside_the_live_page(place: Place) -> None:
    from uploader.bulk.dashboard import serving

    async with place.watching(is_once=False) as watcher:
        place.write("one.mp4")
        await anext(watcher)
        async with (
            serving(watcher.progress, 0, watcher.figures) as url,
            aiohttp.ClientSession() as session,
        ):
            async with session.get(f"{url}health") as answer:
                assert answer.status == 200
                assert json.loads(await answer.text())["done"] == 1
            place.folder.rename(place.folder.with_name("away"))
            await until(lambda: watcher.problem)
            async with session.get(f"{url}health") as answer:
                assert answer.status == 503


async def test_the_counts_of_a_folder_are_metrics(place: Place) -> None:
    metrics = Metrics()
    async with place.watching(is_once=False, settle_s=60.0) as watcher:
        metrics.add_watcher(watcher.counts)
        place.write("one.mp4")
        place.write("notes.txt")
        value = metrics.registry.get_sample_value
        await until(lambda: value("vodup_watch_files", {"state": "settling"}) == 1)
        assert value("vodup_watch_files", {"state": "left_alone"}) == 1
        assert value("vodup_watch_healthy") == 1
        place.folder.rename(place.folder.with_name("away"))
        await until(lambda: value("vodup_watch_healthy") == 0)


def test_the_unit_for_systemd_runs_a_command_that_exists() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    text = (DOCS / "deploy/vodup-watch.service").read_text()
    unit.read_string(text.replace("\\\n", ""))
    service_of = unit["Service"]
    program, command, *words = shlex.split(service_of["ExecStart"])

    assert (os.path.basename(program), command) == ("vodup", "watch")
    app.commands["watch"].make_context("watch", words)
    assert service_of["Type"] == "notify"
    assert float(service_of["WatchdogSec"]) > 60  # `Watcher.is_late` says so after a minute
