"""Commands of the caller's: whatever they do, they end in time, with all that they started."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from uploader.commands import (
    CommandNotStarted,
    CommandOutputTooLong,
    CommandResult,
    RunningCommand,
    describe_output,
    describe_status,
    run_command,
)
from uploader.redaction import remember

PROMPT_S = 8.0
"""What ends at once ends within this, on a machine with other work; `LONG` commands do not."""

LONG = "sleep 60"


class Marked:
    """Finds the processes of one test by a variable in their environment."""

    def __init__(self, mark: str) -> None:
        self.environment = {**os.environ, "VODUP_TEST_MARK": mark}
        self._mark = f"VODUP_TEST_MARK={mark}".encode()

    def alive(self) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found


def children() -> set[int]:
    """Of this process, also those that have ended and are not reaped."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(child) for children in lists for child in children.read_text().split()}


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[Marked]:
    """Whatever is left of a test's processes at its end is killed, and there are no zombies."""
    marked, others = Marked(str(tmp_path)), children()
    yield marked
    for pid in marked.alive():
        os.kill(pid, signal.SIGKILL)
    gc.collect()  # an unreaped process warns, and warnings are errors here
    assert children() <= others


async def sh(script: str, marked: Marked, **options: object) -> CommandResult:
    options = {"environment": marked.environment, "output_limit": 1_000_000} | options
    return await run_command(["sh", "-c", script], **options)  # type: ignore[arg-type]


async def until_written(path: Path) -> None:
    while not (path.exists() and path.read_text().strip()):  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)


# --- what it gives ---------------------------------------------------------------------


async def test_output_and_exit_status_are_returned(marked: Marked) -> None:
    assert await sh("printf hello", marked) == CommandResult(0, b"hello")
    assert await sh("echo no; exit 3", marked) == CommandResult(3, b"no\n")
    assert await sh("kill -9 $$", marked) == CommandResult(-9, b"")
    assert await sh("true", marked, output_limit=None) == CommandResult(0, b"")


@pytest.mark.parametrize("size", [1, 64 * 1024, 3_000_000])
async def test_standard_input_is_given_whole(marked: Marked, size: int) -> None:
    result = await sh("cat", marked, stdin=b"x" * size, output_limit=size)
    assert result == CommandResult(0, b"x" * size)


@pytest.mark.parametrize("script", ["true", "exec <&-; sleep 0.2", "head -c 10 >/dev/null"])
async def test_standard_input_need_not_be_read(marked: Marked, script: str) -> None:
    assert (await sh(script, marked, stdin=b"x" * 3_000_000)).status == 0


async def test_without_standard_input_there_is_nothing_to_read(marked: Marked) -> None:
    assert await sh("cat", marked) == CommandResult(0, b"")


async def test_a_command_has_a_session_of_its_own(marked: Marked) -> None:
    result = await sh(f"exec {sys.executable} -c 'import os; print(os.getsid(0))'", marked)
    assert int(result.output) != os.getsid(0)


async def test_a_command_inherits_none_of_our_descriptors(marked: Marked, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        result = await sh("ls -l /proc/self/fd", marked, stdin=b"x")
    assert b"secret" not in result.output


def test_a_status_is_described() -> None:
    assert describe_status(3) == "failed with exit status 3"
    assert describe_status(-15) == "was ended by SIGTERM"
    assert describe_status(-60) == "was ended by signal 60"
    assert "not known" in describe_status(None)


# --- what cannot be started ------------------------------------------------------------


def program(path: Path, text: str, *, is_executable: bool = True) -> str:
    path.write_text(text)
    if is_executable:
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    reasons = {
        "no-such-command-here": "No such file or directory",
        program(tmp_path / "a", "#!/no/such/shell\n"): "interpreter that its first line names",
        program(tmp_path / "b", "#!/bin/sh\n", is_executable=False): "Permission denied",
        program(tmp_path / "c", "echo"): "names no interpreter",
        str(tmp_path): "Permission denied",
        "a\0b": "null byte",
    }
    for name, reason in reasons.items():
        with pytest.raises(CommandNotStarted, match=reason) as caught:
            await run_command([name])
        assert not caught.value.is_temporary
    with pytest.raises(CommandNotStarted, match="Argument list too long"):
        await run_command(["true", "x" * 3_000_000])


def test_what_the_machine_has_no_room_for_is_temporary() -> None:
    script = """if 1:
        import asyncio, os, resource
        from uploader.commands import CommandNotStarted, run_command
        async def run():
            await run_command(["true"])
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2,) * 2)
            try:
                await run_command(["true"], output_limit=10)
            except CommandNotStarted as error:
                print(error, error.is_temporary)
        asyncio.run(run())
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert ended.stdout == b"Too many open files True\n"
    assert ended.stderr == b""


# --- what does not end by itself -------------------------------------------------------

FORKING = """
fork() {
    if [ "$1" -gt 0 ]; then
        (fork $(($1 - 1))) &
        (fork $(($1 - 1))) &
    fi
    sleep 60
}
fork 3
"""

DEAF = f"""exec {sys.executable} -c '
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
'"""

STUBBORN = pytest.mark.parametrize(
    "script",
    [
        LONG,
        f"exec {LONG}",
        f"{LONG}; echo answer",
        f"{LONG} & wait",
        f"{LONG} | cat",
        f"exec >&-; {LONG}",
        f"trap '' TERM; {LONG}",
        f"trap '' TERM; {LONG} & {LONG}",
        "while :; do sleep 0.01; done",
        "kill -STOP $$",
        FORKING,
    ],
    ids=[
        "child", "itself", "then answers", "job", "pipeline", "closes its output",
        "ignores TERM", "ignores TERM with a job", "busy", "stopped", "three levels",
    ],
)  # fmt: skip


@STUBBORN
async def test_its_whole_group_ends_when_its_time_is_over(marked: Marked, script: str) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await sh(script, marked, timeout_s=0.3, grace_s=0.3)
    assert time.monotonic() - began < PROMPT_S
    assert marked.alive() == []


@STUBBORN
async def test_its_whole_group_ends_when_its_task_is_cancelled(marked: Marked, script: str) -> None:
    task = asyncio.ensure_future(sh(script, marked, grace_s=0.3))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert time.monotonic() - began < PROMPT_S
    assert marked.alive() == []


async def test_a_command_may_be_cancelled_at_any_moment(marked: Marked) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for moment in range(40):
        task = asyncio.ensure_future(sh("cat", marked, stdin=b"x" * 200_000))
        await asyncio.sleep(moment / 4000)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.result().status == 0
    assert marked.alive() == []
    assert len(os.listdir("/proc/self/fd")) == before


def cleaning(folder: Path) -> str:
    trap = f"sleep 0.3; echo cleaned > {folder}/note; exit"
    return f"trap '{trap}' TERM; while :; do sleep 0.01; done"


async def test_a_command_may_clean_up(marked: Marked, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        await sh(cleaning(tmp_path), marked, timeout_s=0.5, grace_s=30)
    assert (tmp_path / "note").read_text() == "cleaned\n"


async def test_a_child_may_clean_up_longer_than_its_parent(marked: Marked, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        await sh(f"({cleaning(tmp_path)}) & exec {LONG}", marked, timeout_s=0.5, grace_s=30)
    assert (tmp_path / "note").read_text() == "cleaned\n"
    assert marked.alive() == []


async def test_a_second_cancellation_takes_the_grace_away(marked: Marked) -> None:
    task = asyncio.ensure_future(sh(DEAF, marked, grace_s=60))
    await asyncio.sleep(1)
    began = time.monotonic()
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert time.monotonic() - began < PROMPT_S
    assert marked.alive() == []


async def test_a_scope_that_cancels_again_and_again_still_ends_it(marked: Marked) -> None:
    began, others = time.monotonic(), children()
    with anyio.move_on_after(1) as scope:
        await sh(DEAF, marked, grace_s=60)
    assert scope.cancelled_caught
    assert time.monotonic() - began < PROMPT_S
    while marked.alive():  # noqa: ASYNC110 - killed, but perhaps not yet reaped
        await asyncio.sleep(0.01)
    while children() - others:  # noqa: ASYNC110 - a thread does that
        await asyncio.sleep(0.01)


# --- what it prints --------------------------------------------------------------------


async def test_too_much_output_ends_it(marked: Marked) -> None:
    began = time.monotonic()
    with pytest.raises(CommandOutputTooLong, match="more than 1000 bytes"):
        await sh(f"yes & {LONG}", marked, output_limit=1000)
    assert time.monotonic() - began < PROMPT_S
    assert marked.alive() == []
    assert len((await sh("head -c 1000 /dev/zero", marked, output_limit=1000)).output) == 1000


@pytest.mark.parametrize("script", [f"{LONG} &", f"setsid {LONG} &", f"(setsid {LONG} &);"])
async def test_who_keeps_the_pipe_open_is_not_waited_for(marked: Marked, script: str) -> None:
    began = time.monotonic()
    assert await sh(f"{script} echo answer", marked) == CommandResult(0, b"answer\n")
    assert time.monotonic() - began < PROMPT_S
    assert len(marked.alive()) == 1  # what a command leaves running when it succeeds is its own


async def test_what_a_child_prints_last_is_waited_for(marked: Marked) -> None:
    assert (await sh("(sleep 0.2; echo late) & echo soon", marked)).output == b"soon\nlate\n"


async def test_who_has_left_the_group_is_not_waited_for(marked: Marked, tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; {LONG}' & wait"
    began = time.monotonic()
    task = asyncio.ensure_future(sh(script, marked))
    await until_written(tmp_path / "pid")
    task.cancel()
    await asyncio.wait([task])
    assert time.monotonic() - began < PROMPT_S
    assert int((tmp_path / "pid").read_text()) in marked.alive()


# --- what it prints to standard error --------------------------------------------------


async def test_the_end_of_standard_error_is_returned(
    marked: Marked, capfd: pytest.CaptureFixture[str]
) -> None:
    """And of standard output where nobody reads that; none of it gets to ours."""
    script = "echo one >&2; echo two; exit 3"

    assert await sh(script, marked) == CommandResult(3, b"two\n", "one")
    assert await sh(script, marked, output_limit=None) == CommandResult(3, b"", "one two")
    assert capfd.readouterr() == ("", "")


async def test_megabytes_of_standard_error_block_nothing_and_are_not_kept(marked: Marked) -> None:
    """A line that has lost its beginning is left out: it may be the rest of a secret."""
    script = "head -c 3000000 /dev/zero | tr '\\0' x >&2; ({}) >&2; echo answer"

    assert await sh(script.format("echo"), marked) == CommandResult(0, b"answer\n")
    ended = await sh(script.format("yes | head -c 5001; echo; echo end"), marked)
    assert ended.output == b"answer\n"
    assert ended.last_output.endswith("y y y end")
    assert 4000 < len(ended.last_output) <= 4096


async def test_what_a_child_prints_for_ever_is_not_read_for_ever(marked: Marked) -> None:
    ended = await sh("yes >&2 & sleep 0.1; exit 1", marked)
    assert ended.last_output.endswith("y y")


async def test_standard_error_steers_no_terminal_and_shows_no_secret(marked: Marked) -> None:
    remember("a-password-of-a-proxy")
    environment = {**marked.environment, "MY_API_TOKEN": "plain words of mine"}
    script = r"""
        printf '\033[31mred\033[0m \033]0;title\007 \a\r\n{"type": "upload.finished"}\n' >&2
        printf 'a-pass\033[1mword-of-a-proxy %s STS.NUrvEQpDzuXx5Dv\n' "$MY_API_TOKEN" >&2
    """
    ended = await sh(script, marked, environment=environment)
    secrets = "[redacted] [redacted] [redacted]"
    assert ended.last_output == f'red {{"type": "upload.finished"}} {secrets}'


async def test_what_it_printed_before_its_time_was_over_is_the_error(marked: Marked) -> None:
    with pytest.raises(TimeoutError, match=r"^waiting for an answer$"):
        await sh(f"echo waiting for an answer >&2; {LONG}", marked, timeout_s=0.2, grace_s=0.2)


def test_a_message_shows_the_end_of_what_was_printed() -> None:
    assert describe_status(3, "no disk") == "failed with exit status 3 (its last output: no disk)"
    assert describe_status(-9, "no disk") == "was ended by SIGKILL (its last output: no disk)"
    shown = describe_output("begin " + 600 * "x" + " end")
    assert "begin" not in shown
    assert shown.endswith("x end)")
    assert len(shown) < 550
    assert describe_output("") == ""


async def test_what_it_printed_is_logged_at_debug_once(
    marked: Marked, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "vodup"):
        await sh("echo done >&2", marked)
        await sh("true", marked)
    (record,) = caplog.records
    assert (record.message, record.levelname) == ("command.output", "DEBUG")
    assert vars(record)["output"] == "done"
    assert vars(record)["command"] == "sh"
    caplog.clear()
    with caplog.at_level(logging.INFO, "vodup"):
        await sh("echo done >&2", marked)
    assert not caplog.records


# --- in streams ------------------------------------------------------------------------


async def test_a_running_command_is_read_from_its_descriptor(marked: Marked) -> None:
    command = RunningCommand(["sh", "-c", "printf hello; exit 7"], environment=marked.environment)
    try:
        output = bytearray()
        await command.collect(output, 100)
        assert (bytes(output), await command.wait()) == (b"hello", 7)
    finally:
        await command.stop()
    await command.stop()


async def test_stopping_ends_what_a_command_has_left_behind(marked: Marked) -> None:
    """Such as the rest of a pipeline whose shell has been killed; it may still write."""
    command = RunningCommand(["sh", "-c", f"{LONG} & exit"], environment=marked.environment)
    await asyncio.sleep(0.3)
    await command.stop()
    assert marked.alive() == []


async def test_stopping_closes_what_others_write_to(marked: Marked) -> None:
    command = RunningCommand(["sh", "-c", f"yes & {LONG}"], environment=marked.environment)
    await command.stop()
    assert marked.alive() == []


# --- in surroundings of many kinds -----------------------------------------------------

SURROUNDED = """
import asyncio, signal, sys
from uploader.commands import describe_status, run_command

async def run():
    ended = await run_command(["sh", "-c", "cat; exit 0"], stdin=b"x" * 100_000, output_limit=10**6)
    print(len(ended.output), ended.status)
    try:
        await run_command(["sh", "-c", "sleep 60; true"], timeout_s=0.2, output_limit=10)
    except TimeoutError:
        print("timeout")

{setting}
"""


def surrounded(setting: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", SURROUNDED.format(setting=setting)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
    return ended.stdout


def test_a_command_runs_on_other_loops_and_in_other_threads() -> None:
    well = "100000 0\ntimeout\n"
    assert surrounded("import uvloop; uvloop.run(run())") == well
    thread = "import threading; t = threading.Thread(target=asyncio.run, args=(run(),)); t.start()"
    assert surrounded(thread) == well


def test_where_exit_statuses_are_discarded_nothing_is_called_a_success() -> None:
    """A truncated stream would be completed; `Popen.poll` says 0 here."""
    ignoring = "signal.signal(signal.SIGCHLD, signal.SIG_IGN); asyncio.run(run())"
    assert surrounded(ignoring) == "100000 None\ntimeout\n"


async def test_a_command_of_a_bundle_gets_the_libraries_of_the_system(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyInstaller names its own first, and keeps what was named before."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    bundle = {**marked.environment, "LD_LIBRARY_PATH": "/bundle"}
    show = 'printf "${LD_LIBRARY_PATH-unset}"'

    assert (await sh(show, marked, environment=bundle)).output == b"unset"
    bundle["LD_LIBRARY_PATH_ORIG"] = "/system"
    assert (await sh(show, marked, environment=bundle)).output == b"/system"
