"""Ctrl-C and SIGTERM before a command has begun, and after it has ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest

from .conftest import Cli, Ended

pytestmark = pytest.mark.usefixtures("unmeasured")

SIGNAL_AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
from uploader.cli import main
main()
"""
SIGNAL_AT_EXIT = """
import atexit, os
atexit.register(os.kill, os.getpid(), {number})
from uploader.cli import main
main()
"""
MARKED = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "uploader.cli.printing":
            os.write(2, b".")
sys.meta_path.insert(0, Finder())
from uploader.cli import main
main()
"""


def python(cli: Cli, code: str, *words: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cli.folder,
        env=cli.env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "module"),
    [
        (("--help",), "click"),
        (("status",), "uploader.cli.records"),
        (("push", "none.mp4"), "asyncio"),
        (("push", "none.mp4"), "ssl"),
        (("push", "none.mp4"), "sqlite3"),
        (("devserver",), "uploader.devserver.server"),
    ],
)
def test_a_signal_while_modules_are_loaded_prints_at_most_a_line(
    cli: Cli, words: tuple[str, ...], module: str, number: signal.Signals
) -> None:
    ended = python(cli, SIGNAL_AT_IMPORT.format(module=module, number=int(number)), *words)

    assert ended.code == 128 + number
    assert ended.err.count("\n") <= 1, ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [("version",), ("status",)])
def test_a_signal_while_the_interpreter_ends_prints_at_most_a_line(
    cli: Cli, words: tuple[str, ...], number: signal.Signals
) -> None:
    ended = python(cli, SIGNAL_AT_EXIT.format(number=int(number)), *words)

    assert ended.code == 128 + number
    assert ended.err.count("\n") <= 1, ended.err
    assert ended.out


def test_an_ignored_signal_stays_ignored(cli: Cli) -> None:
    code = SIGNAL_AT_IMPORT.format(module="click", number=int(signal.SIGINT))
    ended = python(cli, f"import signal; signal.signal(2, signal.SIG_IGN)\n{code}", "version")

    assert ended.code == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["push", "status", "ingest", "doctor", "version", "demo"])
def test_a_signal_at_any_time_of_the_first_second(
    cli: Cli, command: str, number: signal.Signals
) -> None:
    cli.file("movie.mp4", 40_000)
    words = {"push": ["movie.mp4"], "ingest": ["-r", "."], "demo": ["--size", "64M"]}
    moments, longest_s = random.Random(command), 3.0 if command == "demo" else 0.7
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", MARKED, command, *words.get(command, [])],
            cwd=cli.folder,
            env=cli.env | {"TMPDIR": str(cli.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        assert os.read(process.stderr.fileno(), 1) == b"."
        try:
            process.wait(moments.uniform(0, longest_s))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert process.returncode in {128 + number, 0, 3}, err.decode()
        assert b"Traceback" not in err
        assert process.returncode != 128 + number or err.count(b"\n") <= 1, err.decode()
        assert not list(cli.folder.glob("vodup-demo-*"))
