"""How a command begins and ends: exit codes, no core dumps, no traceback for what is expected."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TextIO, cast

import typer

from uploader.cli import exits
from uploader.cli.options import Output, require_one_of
from uploader.cli.text import err, paragraph
from uploader.errors import VodupError

__all__ = ["Interrupted", "end", "explain_bug"]


class Interrupted(Exception):
    """The user, or the system, asked this process to stop."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.code = exits.interrupted_code(number)


def end(work: Callable[[], int], output: Output | None = None) -> None:
    """Do the work of a command and exit with its code."""
    code = _performed(work, output)
    _drop_broken_stdout()
    raise typer.Exit(code)


def _performed(work: Callable[[], int], output: Output | None) -> int:
    try:
        _dump_no_core()
        _configure_logging(output)
        return work()
    except VodupError as error:
        err(paragraph(error))
        return exits.exit_code(error)
    except Interrupted as interrupted:
        return interrupted.code
    except KeyboardInterrupt:
        return exits.interrupted_code(signal.SIGINT)
    except BrokenPipeError:
        return exits.FAILED
    except Exception as error:  # the boundary: whatever comes up here is our mistake
        explain_bug(error)
        return exits.FAILED


def explain_bug(error: BaseException) -> None:
    """Print an unexpected error: a sentence, and where it happened, without any values."""
    err(
        f"vodup: something unexpected happened ({type(error).__name__}); this is a bug in vodup.\n"
        "next: Report it with the lines below. The checkpoint is kept: the same command may go on."
    )
    # format_tb has no locals; the messages of foreign exceptions may quote anything.
    for line in traceback.format_tb(error.__traceback__):
        err(line.rstrip("\n"))
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            explain_bug(inner)


def _dump_no_core() -> None:
    """Credentials are in this process's memory: a crash must not write them to disk."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _configure_logging(output: Output | None) -> None:
    if output is None:
        return
    level = output.log_level.lower()
    require_one_of(level, "--log-level", ("debug", "info", "warning", "error", "critical"))
    from uploader import log

    log.configure(level, is_json=output.json, stream=cast("TextIO", _CurrentStderr()))


class _CurrentStderr:
    """What sys.stderr is at the moment of writing: progress rows put themselves before it."""

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    @property
    def _stream(self) -> TextIO:
        return sys.stderr


def _drop_broken_stdout() -> None:
    """Keep the interpreter from complaining at exit that its reader has gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
