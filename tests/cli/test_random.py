"""No input, file, environment or signal of a user makes a command fail in a way that is ours.

    VODUP_RANDOM_SEED=12345 pytest tests/cli/test_random.py -k in_this_process

A failure prints the seed of its case; `make_case(random.Random(seed))` makes it again.
"""

from __future__ import annotations

import fcntl
import os
import pty
import random
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

from tests.bulk.conftest import Quick
from uploader.devserver import DevServer

from .chaos import COMMANDS, Case, make_case, make_files
from .conftest import VODUP, Cli

SEED: Final = int(os.environ.get("VODUP_RANDOM_SEED", "20261130"))
LONGEST_S: Final = 20.0
PLAIN_ENVIRONMENT: Final = {"VODUP_RETRY_FOR": "0.2", "VODUP_UNTIL_IDLE": "0.1"}


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(quick: Quick, folder: Path, seed: int) -> str:
    """Run one case in this process; returns what is wrong with it, or ""."""
    rnd = random.Random(seed)
    make_files(rnd, folder)
    case = make_case(rnd)
    try:
        with no_longer_than(LONGEST_S):
            ended = quick.run(*case.words, env=case.env)
    except BaseException as error:
        problem, err = f"it raises {error!r}"[:500], ""
    else:
        problem, err = case.problem(ended.code, ended.out, ended.err), ended.err
    shown = [word[:80] for word in case.words]
    env = {name: value[:80] for name, value in case.env.items()}
    return problem and f"seed {seed}: {problem}\n  {shown}\n  {env}\n  {err[-1500:]}"


@pytest.fixture
def quick(server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    folder = tmp_path / "work"
    folder.mkdir()
    return Quick(server, folder, env=PLAIN_ENVIRONMENT, monkeypatch=monkeypatch)


def problems(quick: Quick, first: int, count: int) -> list[str]:
    print(f"seeds {first} to {first + count - 1}")
    found = (run_case(quick, quick.folder, seed) for seed in range(first, first + count))
    return [problem for problem in found if problem]


def test_random_commands_end_as_documented(quick: Quick) -> None:
    found = problems(quick, SEED, 60)

    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(20))
def test_random_commands_end_as_documented_in_this_process(quick: Quick, part: int) -> None:
    found = problems(quick, SEED + 1000 * (part + 1), 150)

    assert not found, "\n".join(found)


# --- processes ----------------------------------------------------------------------------

REDIRECTIONS: Final = (
    *("", "", "", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&-", "2>&-", "<&-"),
    *("<&- >&- 2>&-", "</dev/zero", "<.", "| true", "2>&1 | head -c 10"),
)
LIMITS: Final = ("", "", "", "ulimit -v 60000;", "ulimit -n 10;", "ulimit -f 1;", "ulimit -s 256;")


def start(cli: Cli, case: Case, rnd: random.Random, redirection: str) -> subprocess.Popen[bytes]:
    """Start it with odd streams and limits, or on a terminal."""
    env = {**cli.env, **case.env}
    if rnd.random() < 0.25:
        return on_terminal([*VODUP, *case.words], cli.folder, env)
    script = f'{rnd.choice(LIMITS)} exec "$@" {redirection}'
    words = ["/bin/bash", "-c", f"set -o pipefail; {script}", "bash", *VODUP, *case.words]
    return subprocess.Popen(
        words,
        cwd=cli.folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def on_terminal(words: list[str], folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start it on a terminal whose output is standard error's pipe too."""
    master, slave = pty.openpty()
    try:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    finally:
        os.close(slave)
        os.set_inheritable(master, False)
        TERMINALS.append(master)


TERMINALS: Final[list[int]] = []
"""Terminals that nobody reads; closed after each case. Mutable."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(5))
def test_random_processes_end_as_documented(cli: Cli, tmp_path: Path, part: int) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    own = Cli(cli.server, folder, env=PLAIN_ENVIRONMENT)
    found = []
    for seed in range(SEED + 100 * part, SEED + 100 * part + 12):
        print(f"seed {seed}")
        found.append(run_process(own, folder, seed))
    assert not any(found), "\n".join(found)


def run_process(cli: Cli, folder: Path, seed: int) -> str:
    rnd = random.Random(seed)
    make_files(rnd, folder)
    case = make_case(rnd, (*COMMANDS, "devserver", "demo"))
    if len(max((*case.words, *case.env.values(), ""), key=len)) > 60_000:
        return ""  # longer than a shell passes on
    redirection = rnd.choice(REDIRECTIONS)
    process = start(cli, case, rnd, redirection)
    if rnd.random() < 0.4 or case.words[0] in ("devserver", "demo"):
        time.sleep(rnd.uniform(0.15, 2))
        os.killpg(process.pid, rnd.choice((signal.SIGINT, signal.SIGTERM)))
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"seed {seed}: no end: {case}"
    finally:
        while TERMINALS:
            os.close(TERMINALS.pop())
    code = process.returncode
    code = 128 - code if code in (-signal.SIGINT, -signal.SIGTERM) else code
    texts = [(data or b"").decode("utf-8", "replace") for data in (out, err)]
    problem = case.problem(code, *texts, is_mixed="|" in redirection)
    return problem and f"seed {seed}: {problem} {redirection}\n  {case}\n  {texts[1][-1500:]}"
