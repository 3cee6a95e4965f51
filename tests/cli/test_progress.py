"""The progress display, drawn on a terminal in memory."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import cast

import pytest

from uploader.cli import progress
from uploader.cli.flag_groups import OutputFlags
from uploader.cli.flags import PushFlags
from uploader.cli.meters import Gauge, Style, block, cells, outage, wrapped
from uploader.cli.printing import Output, err
from uploader.cli.progress import Shown, upload_meter
from uploader.cli.push import waited_for
from uploader.cli.push_views import PushedFile, TextView, service_waited_for, total_meter
from uploader.events import (
    CredentialsRenewed,
    Event,
    PartStored,
    RequestRetried,
    UploadProgress,
    UploadStarted,
)
from uploader.tracker import Tracker, Trouble
from uploader.units import MIB

from .screen import lines_of

REFUSED = "PUT movies.oss-cn-shanghai.aliyuncs.com: cannot connect (Connection refused)."
HOST = "movies.oss-cn-shanghai.aliyuncs.com:443"
WHOSE = {"key": "k", "video_id": "v"}


class Scene:
    """Files of a push, a clock, and what is shown."""

    def __init__(self, count: int = 1, size: int = 100 * MIB) -> None:
        self.now_s = 0.0
        self.tracker = Tracker(lambda: self.now_s)
        self.files = [
            PushedFile(f"clip{number:03}.mp4", f"clip{number:03}.mp4", size=size)
            for number in range(count)
        ]
        self.size = size

    def send(self, index: int, event: Event) -> None:
        self.files[index].update(event, self.tracker)

    def start(self, index: int = 0, resumed: int = 0) -> None:
        event = UploadStarted(
            key=f"k{index}",
            video_id="v",
            source="clip",
            size=self.size,
            part_count=10,
            done_bytes=resumed,
            resumed_part_count=0,
            upload_id="u",
            is_resumed=bool(resumed),
        )
        self.send(index, event)

    def move(self, done: int, index: int = 0) -> None:
        event = UploadProgress(
            key=f"k{index}",
            video_id="v",
            done_bytes=done,
            size=self.size,
            acked_part_count=0,
            part_count=10,
            renewal_count=0,
            retry_count=0,
        )
        self.send(index, event)

    def run(self, seconds: int, bytes_per_s: int, done: int = 0, index: int = 0) -> None:
        """Send for some seconds, sampled as on a real clock."""
        for _ in range(seconds):
            self.tracker.sample()
            self.now_s += 1
            done += bytes_per_s
            self.move(done, index)

    def fail(self, reason: str = REFUSED, left_s: float = 899.0, index: int = 0) -> None:
        event = RequestRetried(
            key=f"k{index}",
            video_id="v",
            operation="UploadPart",
            part_number=3,
            reason=reason,
            code="ConnectionRefused",
            request_id="",
            action="RETRY",
            pause_s=1.0,
            left_s=left_s,
            service="OSS",
            address=HOST,
        )
        self.send(index, event)

    def shown(self, columns: int = 80) -> list[str]:
        view = Shown(
            self.tracker,
            lambda: total_meter(self.files, self.tracker),
            lambda: [
                upload_meter(self.tracker, file.upload, file.label)
                for file in self.files
                if file.is_active and file.upload and len(self.files) > 1
            ],
            lambda: service_waited_for(
                self.files, self.tracker, "VOD (vod.cn-shanghai.aliyuncs.com)"
            ),
        )
        lines = view.block(Style(columns))
        assert all(cells(line) < columns for line in lines), lines
        return lines


# --- how it looks -------------------------------------------------------------------------


def test_a_line_has_a_bar_percent_bytes_rate_and_eta() -> None:
    scene = Scene()
    scene.start()
    scene.run(5, 4 * MIB)
    bar = "━" * 4 + "─" * 17
    assert scene.shown() == [f"clip000.mp4  {bar}   20 %  20.0 of 100 MiB  4.0 MiB/s  ETA 0:20"]


def test_a_narrow_terminal_shows_the_name_percent_rate_and_eta() -> None:
    scene = Scene()
    scene.start()
    scene.run(5, 4 * MIB)
    assert scene.shown(45) == ["clip000.mp4   20 %  4.0 MiB/s  ETA 0:20"]
    assert scene.shown(30) == ["…ip000.mp4   20 %  ETA 0:20"]


def test_the_total_of_all_files_is_known_before_the_first_one_starts() -> None:
    scene = Scene(count=13, size=2 * MIB)
    assert "0 %  0 bytes of 26.0 MiB  0 of 13 files" in scene.shown()[-1]
    scene.start(0)
    scene.move(2 * MIB)
    first = scene.shown()[-1]
    scene.files[0].code, scene.files[0].is_stored = 0, True
    scene.start(1)
    assert "7 %" in first
    assert "7 %" in scene.shown()[-1]
    assert scene.shown()[-1].endswith("1 of 13 files")


def test_a_resumed_upload_says_how_much_is_there() -> None:
    scene = Scene()
    scene.start(resumed=58 * MIB)
    scene.run(2, MIB, done=58 * MIB)
    assert scene.shown()[0].endswith("60 %  1.0 MiB/s  ETA 0:40  resuming, 58 % already uploaded")


def test_when_all_is_sent_the_answers_are_waited_for() -> None:
    scene = Scene()
    scene.start()
    scene.run(10, 10 * MIB)
    assert scene.shown()[0].endswith("100 %  100 of 100 MiB  waiting for confirmation")


@pytest.mark.parametrize("columns", [1, 2, 10, 20, 40, 60, 80, 200])
def test_no_state_is_wider_than_the_terminal(columns: int) -> None:
    meters = [
        Gauge(
            name="很长的文件名" * 5,
            done=1,
            of=2,
            amount="1,023 of 1,024 MiB",
            bytes_per_s=1e6,
            left_s=4000,
            notes=("resuming, 58 % already uploaded", "3 failed"),
        ),
        Gauge(name="x", done=5, of=0, amount="5 bytes"),
    ]
    problem = outage(Trouble("OSS", HOST, REFUSED, 0.0, 900.0), 14.0)
    lines = block(meters, problem, Style(columns))
    if columns >= 40:
        assert all(cells(line) < columns for line in lines), lines
        assert "50 %" in lines[0]
        assert "ETA 1:06:40" in lines[0]


def test_colours_and_other_bars_only_where_the_terminal_has_them() -> None:
    meter = Gauge(name="a", done=1, of=2, amount="1 of 2 bytes")
    plain = meter.line(Style(80, is_unicode=False), 1)
    coloured = meter.line(Style(80, is_coloured=True), 1)
    assert "#" * 14 + "-" * 14 in plain
    assert "\x1b[" in coloured
    assert "\x1b[" not in plain
    assert "\x1b[33m" in block([meter], "OSS is away", Style(80, is_coloured=True))[-1]


# --- outages ------------------------------------------------------------------------------


def test_an_outage_is_named_after_two_seconds_without_progress() -> None:
    scene = Scene()
    scene.start()
    scene.run(5, 4 * MIB)
    scene.fail()
    assert len(scene.shown()) == 1  # something may still move
    scene.now_s += 14
    line, *problem = scene.shown()
    assert "MiB/s" not in line
    assert "ETA" not in line
    assert " ".join(problem) == (
        f"OSS at {HOST}: connection refused, for 14 s; gives up in 14 min 45 s"
    )
    scene.send(0, PartStored(key="k0", video_id="v", part_number=1, size=1, seconds=1.0))
    assert len(scene.shown()) == 1


def test_an_outage_lasts_from_its_first_failure_and_ends_with_the_first_request() -> None:
    scene = Scene()
    scene.start()
    scene.fail()
    scene.now_s += 10
    scene.fail(reason=f"PUT {HOST}: no answer in 30 s.", left_s=2000.0)
    trouble = scene.tracker.trouble
    assert trouble is not None
    assert (trouble.since_s, trouble.until_s) == (0.0, 899.0)
    assert "no answer in 30 s, for 10 s" in " ".join(scene.shown())
    scene.send(0, CredentialsRenewed(key="k0", video_id="v", renewal_count=1, seconds=0.1))
    assert scene.tracker.trouble is None


def test_what_is_repaired_at_once_is_no_outage() -> None:
    scene = Scene()
    scene.start()
    scene.fail(left_s=0.0)
    scene.now_s += 5
    assert "connection refused" not in " ".join(scene.shown())


def test_a_service_that_never_answers_is_named() -> None:
    scene = Scene()
    assert len(scene.shown()) == 1
    scene.now_s = 12.0
    assert scene.shown()[1] == "Waiting for VOD (vod.cn-shanghai.aliyuncs.com), for 12 s"
    scene.start()
    scene.tracker.active.clear()  # it is verified, and its hooks run
    scene.now_s = 24.0
    assert len(scene.shown()) == 1


def test_while_no_url_has_answered_its_server_is_named_too() -> None:
    flags = PushFlags(paths=(), vod_endpoint="https://vod.example.com")
    file, url = PushedFile("a.mp4", "a.mp4"), PushedFile("https://films.example/a.mp4", "a.mp4")
    assert waited_for(flags, [file]) == "VOD (vod.example.com)"
    assert waited_for(flags, [file, url]) == "the source or VOD (vod.example.com)"


def test_long_words_are_broken() -> None:
    assert wrapped("ab cdefgh i", 3) == ["ab", "cde", "fgh", "i"]


# --- on a terminal ------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], None]], str]]:
    """What runs a function with a terminal as standard error and returns what it wrote."""
    for name, value in {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": ""}.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()

    def run(work: Callable[[], None]) -> str:
        output = Output(slave, stream, lambda _: None)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", output)
            work()
        output.drain(1.0)
        data = b""
        while select.select([master], [], [], 0)[0]:
            data += os.read(master, 4096)
        return data.decode()

    with open(slave, "w", encoding="utf-8") as stream:
        yield run
    os.close(master)


def test_sentences_are_printed_above_the_bars(drawn: Callable[[Callable[[], None]], str]) -> None:
    def work() -> None:
        output = cast("Output", sys.stderr)
        output.show(["one", "two"])
        err("Uploaded a.mp4.")
        output.show(["three"])
        output.write("half a line")
        output.write(" and its end\n")
        output.show(["four"])

    text = drawn(work)
    assert lines_of(text) == ["Uploaded a.mp4.", "half a line and its end", "four"]
    assert lines_of(drawn(lambda: err("next"))) == ["next", ""]


def test_progress_is_drawn_and_removed(
    drawn: Callable[[Callable[[], None]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_FRAME_S", 0.02)
    scene = Scene()
    view = TextView(OutputFlags())

    async def perform() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await view.watch(scene.files, scene.tracker)

    text = drawn(lambda: asyncio.run(perform()))
    assert "clip000.mp4  ──" in text
    assert lines_of(text) == [""]


def test_on_a_dumb_terminal_lines_are_written(
    drawn: Callable[[Callable[[], None]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> None:
        assert progress.bars_of(sys.stderr) is sys.stderr
        monkeypatch.setenv("TERM", "dumb")
        assert progress.bars_of(sys.stderr) is None
        err("done")

    drawn(look)


def test_a_line_of_a_log_has_an_eta_over_the_whole_run() -> None:
    scene = Scene(count=2, size=50 * MIB)
    scene.start(0)
    scene.run(20, MIB)
    scene.run(10, 3 * MIB // 2, done=20 * MIB)
    line = total_meter(scene.files, scene.tracker).log_line()
    assert line == "35 %, 35.0 of 100 MiB, 1.5 MiB/s, ETA 56 s, 0 of 2 files"
