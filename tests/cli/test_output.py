"""Output that is gone: a full disk, a closed or stopped terminal, a reader that does not read."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from uploader.cli.printing import LOST, printable
from uploader.devserver import DevServer

from .conftest import MIB, VODUP, Cli, shell

FEW = 3
PUSH = ("push", "a.mp4", "b.mp4", "c.mp4")
MANY = 60


@pytest.fixture
def movies(cli: Cli) -> Cli:
    for name in PUSH[1:]:
        cli.file(name, 40_000, seed=name.encode())
    return cli


def stored(cli: Cli) -> int:
    """How many uploads are verified, by the state."""
    return [line["state"] for line in cli.run("status", "--json").lines].count("done")


@contextmanager
def started(cli: Cli, *words: str, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command of a session of its own: its terminal is the one that is passed."""
    process = subprocess.Popen(
        [*VODUP, *words], cwd=cli.folder, env=cli.env, start_new_session=True, **streams
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], Any], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- streams that fail --------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--json",), ("-q",)])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "it is closed"),
        ("> >(exec <&-; sleep 0.1)", "Broken pipe"),
    ],
)
def test_results_that_cannot_be_written_are_74_and_reported_once(
    movies: Cli, flags: tuple[str, ...], redirection: str, reason: str
) -> None:
    ended = shell(movies, (*PUSH, *flags), redirection)

    assert ended.code == LOST
    assert ended.err.count("cannot write to standard output") == 1
    assert reason in ended.err
    assert stored(movies) == FEW


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_lines_for_people_that_cannot_be_written_change_nothing(
    movies: Cli, redirection: str
) -> None:
    ended = shell(movies, (*PUSH, "--log-level", "debug"), redirection)

    assert ended.code == 0
    assert ended.out.count("cannot write to standard error") == 1
    assert ended.out.count("Uploaded ") == FEW


def test_json_reports_it_and_a_quiet_command_prints_only_video_ids(
    movies: Cli,
) -> None:
    ended = shell(movies, (*PUSH, "--json", "--log-level", "debug"), "2>/dev/full")
    quiet = shell(movies, (*PUSH, "-q", "--log-level", "debug"), "2>/dev/full")

    assert (ended.code, quiet.code) == (0, 0)
    assert [line["type"] for line in ended.lines].count("output.failed") == 1
    assert [len(line) for line in quiet.out.splitlines()] == [32] * FEW


@pytest.mark.parametrize("redirection", [">/dev/full 2>&1", ">&- 2>&-", "<&- >&- 2>&-"])
def test_nothing_that_can_be_written_ends_no_upload(movies: Cli, redirection: str) -> None:
    assert shell(movies, PUSH, redirection).code == LOST
    assert stored(movies) == FEW


def test_a_failure_keeps_its_exit_code_without_output(cli: Cli) -> None:
    for redirection in (">/dev/full", "2>/dev/full", ">/dev/full 2>&1"):
        assert shell(cli, ("push", "none.mp4", "--json"), redirection).code == 4
        assert shell(cli, ("push", "--no-such-flag"), redirection).code == 2


@pytest.mark.parametrize("words", [("--help",), ("version",), ("status", "--json"), ("doctor",)])
def test_other_commands_report_it_too(movies: Cli, words: tuple[str, ...]) -> None:
    movies.run("push", "a.mp4")
    ended = shell(movies, words, ">/dev/full")

    assert ended.code in {LOST, 2, 3}
    assert "Traceback" not in ended.err
    assert "cannot write to standard output" in ended.err


def test_ingest_continues_without_output(movies: Cli) -> None:
    ended = shell(movies, ("ingest", "-r", ".", "--report", "r.jsonl", "--json"), ">/dev/full")

    assert ended.code == LOST
    assert stored(movies) == FEW


@pytest.mark.parametrize(
    "words",
    [
        ("push", "-", "--file-name", "a.mp4"),
        ("push", "a.mp4", "--grant", "-"),
        ("inspect", "-"),
        ("ingest", "--files-from", "-"),
    ],
)
def test_a_closed_standard_input_is_a_usage_error(movies: Cli, words: tuple[str, ...]) -> None:
    ended = shell(movies, words, "<&-")

    assert ended.code == 2
    assert "Standard input is closed." in ended.err


def test_a_closed_standard_input_that_nobody_reads_changes_nothing(movies: Cli) -> None:
    assert shell(movies, PUSH, "<&-").code == 0


# --- encodings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding",
    [
        "ascii:strict",
        "gbk:strict",
        pytest.param("ascii", marks=pytest.mark.slow),
        pytest.param("cp1252", marks=pytest.mark.slow),
        pytest.param("utf-16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["电影 é.mp4", "\udcff.mp4"])
def test_what_an_encoding_lacks_ends_no_upload(cli: Cli, encoding: str, name: str) -> None:
    cli.file(name, 40_000)
    done = subprocess.run(
        [*VODUP, "push", name, "--json", "--log-level", "debug"],
        cwd=cli.folder,
        env=cli.env | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    again = subprocess.run(
        [*VODUP, "push", name],
        cwd=cli.folder,
        env=cli.env | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )

    text = done.stdout.decode(encoding.partition(":")[0])
    assert (done.returncode, again.returncode) == (0, 0)
    assert text.isascii()
    assert json.loads(text.splitlines()[-1])["source"] == name


def test_the_c_locale_ends_no_upload(cli: Cli) -> None:
    cli.file("电影.mp4", 40_000)
    ended = cli.run("push", "电影.mp4", env={"LC_ALL": "C", "PYTHONUTF8": "0"})

    assert ended.code == 0


def test_a_file_name_forges_no_line(cli: Cli) -> None:
    name = "a\nvodup: forged\r\x1b[2J\u2028.mp4"
    cli.file(name, 40_000)
    for words in (("push", name), ("push", name), ("status",), ("push", f"no{name}")):
        ended = cli.run(*words, "--log-level", "debug")
        for line in (ended.out + ended.err).splitlines():
            assert not line.startswith("vodup: forged")
            assert "\x1b" not in line
    assert json.loads(cli.run("push", name, "--json").out)["source"].startswith("a\nvodup: forged")
    assert "\n" not in printable(name)


# --- readers that do not read -------------------------------------------------------------


def small_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    return reading, writing


def test_a_pipe_that_nobody_reads_stops_no_upload_and_loses_no_line(cli: Cli) -> None:
    names = [cli.file(f"{number}.mp4", 1000, seed=b"%d" % number).name for number in range(MANY)]
    reading, writing = small_pipe()
    with started(cli, "push", *names, "--json", stdout=writing, stderr=subprocess.DEVNULL) as push:
        os.close(writing)
        until(lambda: stored(cli) == MANY)
        assert push.poll() is None
        with open(reading, "rb") as pipe:
            lines = [json.loads(line) for line in pipe]
        assert push.wait(10) == 0
    assert [line["type"] for line in lines].count("upload.finished") == MANY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_whose_output_nobody_reads(
    cli: Cli, slow_server: DevServer, number: signal.Signals
) -> None:
    cli.file(size=40 * MIB)
    reading, writing = small_pipe()
    words = ("push", "movie.mp4", "--part-size", "100K", "--log-level", "debug")
    with started(cli, *words, stdout=writing, stderr=writing) as push:
        until(lambda: select.select([], [writing], [], 0)[1] == [])
        push.send_signal(number)
        assert push.wait(10) == 128 + number
    os.close(reading)
    os.close(writing)


def test_a_signal_ends_the_wait_for_a_reader_after_the_upload(cli: Cli) -> None:
    names = [cli.file(f"{number}.mp4", 1000, seed=b"%d" % number).name for number in range(MANY)]
    reading, writing = small_pipe()
    with started(cli, "push", *names, "--json", stdout=writing, stderr=subprocess.DEVNULL) as push:
        until(lambda: stored(cli) == MANY)
        push.send_signal(signal.SIGINT)
        assert push.wait(10) == 130
    os.close(reading)
    os.close(writing)


# --- terminals ----------------------------------------------------------------------------


class Terminal:
    """A terminal, and what was shown on it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self._is_open = True
        self.shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            while self._is_open:
                if select.select([self.master], [], [], 0.05)[0]:
                    self.shown += os.read(self.master, 65536)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._reader.join()
            os.close(self.slave)
            os.close(self.master)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def on_terminal(cli: Cli, terminal: Terminal, *words: str) -> subprocess.Popen[bytes]:
    """Start a command whose controlling terminal it is."""

    def control() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    return subprocess.Popen(
        [*VODUP, *words],
        cwd=cli.folder,
        env=cli.env,
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        start_new_session=True,
        preexec_fn=control,
    )


@pytest.mark.parametrize("columns", ["0", "1", "80"])
def test_results_are_shown_on_a_terminal_of_any_width(
    movies: Cli, terminal: Terminal, columns: str
) -> None:
    movies.env["COLUMNS"] = columns
    push = on_terminal(movies, terminal, *PUSH)

    assert push.wait(60) == 0
    until(lambda: terminal.shown.replace(b"\r\n", b"").count(b"Uploaded") == FEW, 5)


def test_a_stopped_terminal_stops_no_upload(movies: Cli, terminal: Terminal) -> None:
    terminal.type(b"\x13")  # Ctrl-S
    time.sleep(0.2)
    push = on_terminal(movies, terminal, *PUSH)
    until(lambda: stored(movies) == FEW)
    assert b"Uploaded" not in terminal.shown
    terminal.type(b"\x11")  # Ctrl-Q

    assert push.wait(60) == 0
    until(lambda: terminal.shown.count(b"Uploaded") == FEW, 5)


def test_ctrl_c_ends_a_command_on_a_stopped_terminal(
    cli: Cli, slow_server: DevServer, terminal: Terminal
) -> None:
    cli.file(size=40 * MIB)
    push = on_terminal(cli, terminal, "push", "movie.mp4", "--part-size", "1M")
    until(lambda: b"MiB" in terminal.shown)
    terminal.type(b"\x13")
    time.sleep(1)
    terminal.type(b"\x03")

    assert push.wait(10) == 130


@pytest.mark.parametrize(
    "flags", [(), pytest.param(("--json",), marks=pytest.mark.slow), ("--log-level", "debug")]
)
def test_a_closed_terminal_ends_no_upload(
    cli: Cli, slow_server: DevServer, terminal: Terminal, flags: tuple[str, ...]
) -> None:
    names = [cli.file(f"{number}.mp4", MIB, seed=b"%d" % number).name for number in range(9)]
    push = on_terminal(cli, terminal, "push", *names, *flags)
    until(lambda: terminal.shown)
    until(lambda: stored(cli) >= 1)
    terminal.close()

    assert push.wait(60) == LOST
    assert stored(cli) == 9


def test_a_hang_up_ends_no_upload(cli: Cli, slow_server: DevServer) -> None:
    cli.file(size=3 * MIB)
    push = cli.start("push", "movie.mp4", "--json", "--part-size", "1M")
    push.until(lambda event: event["type"] == "upload.started")
    push.process.send_signal(signal.SIGHUP)

    assert push.ended().code == 0


def test_a_watched_status_ends_with_its_terminal(cli: Cli, tmp_path: Path) -> None:
    assert shell(cli, ("status", "--watch"), ">/dev/full").code == LOST
