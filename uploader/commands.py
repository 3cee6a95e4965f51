"""Commands of the caller's: run without a shell, in a session of their own, and always ended.

What a command starts belongs to its process group. The group gets SIGTERM, and SIGKILL if it is
still there after some grace, when the command's time is over, when the task that waits for it is
cancelled, and when it prints too much. What a command leaves running when it ends by itself is left
alone. A process that has left the group is neither ended nor waited for.

What it prints to standard error never reaches ours, where it could break a line of JSON, steer the
terminal or show a secret: the end of it is kept for the error and for the log.

These are not asyncio's subprocesses: with those, `wait` returns only when every pipe is closed
(until Python 3.13), and a grandchild may keep one open for hours.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Final

from uploader.errors import ConfigurationError
from uploader.log import get_logger, is_enabled
from uploader.portable import HAS_PROCESS_GROUPS
from uploader.protocol.documents import clean_text
from uploader.redaction import redacted
from uploader.tasks import beside
from uploader.threads import Threads, in_thread

_GRACE_S: Final = 5.0
_KILL_S: Final = 1.0
"""How long a process may take to end after SIGKILL. Longer: it waits for a dead disk."""

_LAST_OUTPUT_S: Final = 1.0
"""How long what is left in the pipe is waited for once the command has ended."""

_LONGEST_PAUSE_S: Final = 0.1
_READ_SIZE: Final = 64 * 1024
_LAST_READS: Final = 32
"""Reads of standard error after the end: more than a pipe holds; others may still write to it."""

_TAIL_SIZE: Final = 4096
_SHOWN_SIZE: Final = 500
"""Characters of that in a message; the log has all."""

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
_SECRET_NAME = re.compile(r"secret|token|passw|access_?key|api_?key", re.I)

_TEMPORARY: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_HAS_PROC: Final = os.path.exists("/proc/self/stat")

_REAPERS: Final = Threads("vodup-reap", 4)
"""For processes that do not end when killed. They may wait for each other."""


class CommandNotStarted(Exception):
    """The command could not be started; the text says why.

    Attributes:
        is_temporary: memory, processes or descriptors ran out.
    """

    def __init__(self, reason: str, *, is_temporary: bool = False) -> None:
        super().__init__(reason)
        self.is_temporary = is_temporary


class CommandOutputTooLong(Exception):
    """The command printed more than it may, and was ended."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended.

    Attributes:
        status: its exit status, negative for a signal; None if it cannot be known (this process
            ignores SIGCHLD, or other code has taken it). Only 0 is a success.
        output: what it printed; empty if that was not captured.
        last_output: the end of what it printed to standard error, and to standard output where
            that was not captured: 4 KiB at most, as one line without secrets.
    """

    status: int | None
    output: bytes
    last_output: str = ""


def split_command(command: str | Sequence[str], name: str) -> list[str]:
    """Split a command line as a shell would; a list is a command already.

    Raises:
        ConfigurationError: it cannot be split or is empty; `name` says what it is.
    """
    try:
        argv = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise ConfigurationError(f"{name} cannot be split: {error}.") from None
    if not argv:
        raise ConfigurationError(f"{name} is empty.")
    return argv


async def run_command(
    argv: Sequence[str],
    *,
    timeout_s: float | None = None,
    grace_s: float = _GRACE_S,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    output_limit: int | None = None,
) -> CommandResult:
    """Run a command to its end.

    Args:
        timeout_s: when to end it; None leaves that to the caller's cancellation.
        grace_s: how long its process group may take to end after SIGTERM, in seconds.
        environment: None is ours.
        stdin: what it may read; it need not.
        output_limit: how many bytes it may print; what it prints is captured. None: it may
            print any number, and only the last are kept, with those of its standard error.

    Raises:
        CommandNotStarted: it cannot be started.
        CommandOutputTooLong: it printed more than `output_limit`.
        TimeoutError: it did not end within `timeout_s`, and was ended, at most `grace_s` later.
            Its text is `CommandResult.last_output`.
    """
    stdout = None if output_limit is None else subprocess.PIPE
    command = RunningCommand(
        argv, grace_s=grace_s, environment=environment, stdin=stdin, stdout=stdout
    )
    output = bytearray()
    is_whole = asyncio.Event()

    async def collect() -> None:
        if output_limit is not None:
            await command.collect(output, output_limit)
        is_whole.set()

    try:
        async with asyncio.timeout(timeout_s), beside(collect()):
            status = await command.wait()
            with suppress(TimeoutError):  # another process has the pipe and may keep it
                async with asyncio.timeout(_LAST_OUTPUT_S):
                    await is_whole.wait()
    except TimeoutError:
        raise TimeoutError(command.last_output) from None
    finally:
        await command.stop()
    return CommandResult(status, bytes(output), command.last_output)


class RunningCommand:
    """A command that has been started. Mutable: its status, and our ends of its pipes.

    `stop` must be called, also after it has ended.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        grace_s: float = _GRACE_S,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        stdout: int | None = subprocess.PIPE,
    ) -> None:
        """Start it, on a running loop. As in asyncio, this waits for `exec`, about a millisecond.

        Args:
            stdout: None: where its standard error goes.

        Raises:
            CommandNotStarted: it cannot be started.
        """
        if not HAS_PROCESS_GROUPS:
            raise CommandNotStarted("this system has no process groups to end it with")
        self._name, self._grace_s = os.path.basename(argv[0]), grace_s
        self._status: int | None = None
        self._has_ended = False
        environment = os.environ if environment is None else environment
        try:
            with _as_file(stdin) as stdin_file, _Tail.opened(environment) as (self._tail, theirs):
                self._process = subprocess.Popen(  # noqa: S603 - the caller's own
                    argv,
                    bufsize=0,
                    stdin=stdin_file,
                    stdout=theirs if stdout is None else stdout,
                    stderr=theirs,
                    env=_outside_bundle(environment),
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            is_temporary = isinstance(error, OSError) and error.errno in _TEMPORARY
            raise CommandNotStarted(_reason(argv[0], error), is_temporary=is_temporary) from error
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)

    @property
    def output(self) -> int:
        """The descriptor to read its output from, until `stop`. It does not block."""
        if self._process.stdout is None:
            raise RuntimeError("the output of this command is not captured")
        return self._process.stdout.fileno()

    @property
    def last_output(self) -> str:
        """See `CommandResult.last_output`; so far."""
        return self._tail.text()

    async def collect(self, output: bytearray, limit: int) -> None:
        """Add what it prints to `output`, until all processes have closed the pipe.

        Raises:
            CommandOutputTooLong: it is more than `limit` bytes.
        """
        is_open = True
        while is_open:
            await wait_readable(self.output)
            with suppress(BlockingIOError):
                piece = os.read(self.output, _READ_SIZE)
                is_open = len(piece) > 0
                output += piece
            if len(output) > limit:
                raise CommandOutputTooLong(f"it printed more than {limit} bytes")

    async def wait(self) -> int | None:
        """Wait for its end; returns `CommandResult.status`."""
        pause_s = 0.001  # there is no other way on all systems and loops
        while not self._is_reaped():
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
        self._tail.drain()
        return self._status

    async def stop(self) -> None:
        """End all that is in its group, unless `wait` has returned, and close our pipes.

        A cancellation meanwhile ends the grace.
        """
        if self._process.stdout is not None:
            self._process.stdout.close()
        try:
            if not self._has_ended:
                await self._end_group()
        finally:
            if self._tail.close() and (text := self.last_output) and is_enabled(logging.DEBUG):
                log = get_logger(command=self._name, status=self._status)
                log.debug("command.output", output=text)

    async def _end_group(self) -> None:
        cancelled: asyncio.CancelledError | None = None
        for number, patience_s in ((signal.SIGTERM, self._grace_s), (signal.SIGKILL, _KILL_S)):
            # The group's number is not given away as long as it has a member, ended or not.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            try:
                async with asyncio.timeout(patience_s):
                    await self._group_end()
                break
            except TimeoutError:
                pass
            except asyncio.CancelledError as error:
                cancelled = error
        if not self._has_ended:
            _REAPERS.submit(self._process.wait)
        if cancelled is not None:
            raise cancelled

    def _is_reaped(self) -> bool:
        """Not `Popen.poll`: that reports 0 where the exit status is not known."""
        if self._has_ended:
            return True
        try:
            pid, status = os.waitpid(self._process.pid, os.WNOHANG)
        except ChildProcessError:
            self._process.returncode = -1
        else:
            if pid == 0:
                return False
            self._status = self._process.returncode = os.waitstatus_to_exitcode(status)
        self._has_ended = True
        return True

    async def _group_end(self) -> None:
        await self.wait()
        pause_s = 0.001
        while await in_thread(_is_group_alive, self._process.pid):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Tail:
    """The end of what a command prints to its standard error. Mutable.

    A callback of the loop reads it: nobody has to wait for it, and the command never does.
    """

    def __init__(self, descriptor: int, secrets: Collection[str]) -> None:
        self._descriptor, self._secrets = descriptor, secrets
        self._data, self._is_cut, self._is_open = bytearray(), False, True
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    @classmethod
    @contextmanager
    def opened(cls, environment: Mapping[str, str]) -> Iterator[tuple[_Tail, int]]:
        """A tail and the descriptor for the command, which it has inherited after the block."""
        ours, theirs = os.pipe()
        secrets = [value for name, value in environment.items() if _SECRET_NAME.search(name)]
        tail = cls(ours, secrets)
        try:
            yield tail, theirs
        except BaseException:
            tail.close()
            raise
        finally:
            os.close(theirs)

    def _read(self) -> bool:
        """Take what is there, and tell whether there may be more."""
        try:
            piece = os.read(self._descriptor, _READ_SIZE)
        except BlockingIOError:
            return False
        if not piece:
            self._loop.remove_reader(self._descriptor)
        self._data += piece
        self._is_cut = self._is_cut or len(self._data) > _TAIL_SIZE
        del self._data[:-_TAIL_SIZE]
        return bool(piece)

    def drain(self) -> None:
        """Take what the command has printed, once it has ended."""
        for _ in range(_LAST_READS):
            if not self._is_open or not self._read():
                break

    def close(self) -> bool:
        """Stop reading; returns whether that is new."""
        was_open, self._is_open = self._is_open, False
        if was_open:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
        return was_open

    def text(self) -> str:
        """As one line, without secrets. A line whose beginning is lost may be the rest of one."""
        text = self._data.decode(errors="replace")
        if self._is_cut:
            text = re.sub(r"\A[^\r\n]*", "", text)
        return clean_text(redacted(_ESCAPE.sub("", text), *self._secrets), _TAIL_SIZE)


def _as_file(data: bytes) -> IO[bytes]:
    """A file, not a pipe: a command that does not read it blocks no writer."""
    if not data:
        return open(os.devnull, "rb")
    if hasattr(os, "memfd_create"):  # Linux; a container may have no folder to write to
        file: IO[bytes] = os.fdopen(os.memfd_create("stdin"), "w+b")
    else:
        file = TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


def _outside_bundle(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Undo what a bundle of PyInstaller has set: a command must not load the bundle's libraries.

    Source: PyInstaller manual, "Launching external programs from the frozen application".
    """
    if not getattr(sys, "frozen", False):
        return environment
    name, before = "LD_LIBRARY_PATH", environment.get("LD_LIBRARY_PATH_ORIG")
    outside = {key: value for key, value in environment.items() if key != name}
    return outside if before is None else {**outside, name: before}


def describe_status(status: int | None, last_output: str = "") -> str:
    """What became of a command that did not succeed, to follow its name."""
    if status is None:
        return "has ended, but how is not known: something in this process discards exit statuses"
    if status >= 0:
        return f"failed with exit status {status}{describe_output(last_output)}"
    name = f"signal {-status}"
    with suppress(ValueError):
        name = signal.Signals(-status).name
    return f"was ended by {name}{describe_output(last_output)}"


def describe_output(last_output: str) -> str:
    """The end of `CommandResult.last_output`, to follow what happened; "" if there is none."""
    if len(last_output) > _SHOWN_SIZE:
        last_output = f"…{last_output[1 - _SHOWN_SIZE :]}"
    return f" (its last output: {last_output})" if last_output else ""


def _reason(name: str, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT and os.path.isfile(name):
        return f"{reason}: the interpreter that its first line names"
    if error.errno == errno.ENOEXEC:
        return f"{reason}: it is no program, and its first line names no interpreter"
    return reason


def _is_group_alive(group: int) -> bool:
    """Whether a member has not ended. In a container its orphans may never be reaped."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    processes = [name for name in os.listdir("/proc") if name.isdigit()] if _HAS_PROC else []
    return not processes or any(_is_alive_in(group, process) for process in processes)


def _is_alive_in(group: int, process: str) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            # proc(5): "pid (comm) state ppid pgrp …"; comm may hold anything.
            state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(its_group) == group and state not in {b"Z", b"X"}


async def wait_readable(descriptor: int) -> None:
    """Wait until there is something to read, or the end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(descriptor, _set_ready, ready)
    except PermissionError:
        return  # files, /dev/null and the like are always ready
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _set_ready(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
