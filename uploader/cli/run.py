"""How a command runs and ends: the event loop, signals, exit codes, errors.

0  done and verified
1  failed for good, or several files failed in different ways
2  usage: an option, an argument, a value
3  credentials or permission
4  the source is missing or has changed
5  temporary: run the same command again
6  another process holds the upload
7  refused by policy
8  finished, but unverified
9  done and verified, but a hook (--on-finished) failed
10  done and verified, but not playable (yet) (--wait)
74  done and verified, but not all results could be written to standard output (`printing.LOST`)
130, 143  interrupted by Ctrl-C, by SIGTERM; resumable
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Final, TextIO, cast

from uploader import errors, portable
from uploader.cli.printing import Outputs, err, out_json, paragraph
from uploader.errors import ServiceError, SourceError, VodupError
from uploader.unexpected import is_bug, unexpected  # at the limit of memory it is too late

if TYPE_CHECKING:
    import asyncio

    from uploader import Uploader
    from uploader.cli.flag_groups import OutputFlags
    from uploader.pace import Pace

# --- exit codes -------------------------------------------------------------------------

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
CREDENTIALS: Final = 3
SOURCE: Final = 4
TEMPORARY: Final = 5
HELD: Final = 6
POLICY: Final = 7
UNVERIFIED: Final = 8
HOOK_FAILED: Final = 9
NOT_PLAYABLE: Final = 10

EXIT_CODES: Final[dict[type[VodupError], int]] = {
    errors.VodupError: FAILED,
    errors.ConfigurationError: USAGE,
    errors.CredentialError: CREDENTIALS,
    errors.OverwriteRefused: POLICY,
    errors.NotPlayable: NOT_PLAYABLE,
    errors.TransferError: TEMPORARY,
    # A refusal is final, unless it is one of those that pass (`exit_code`).
    errors.ServiceError: FAILED,
    # The same command would be refused again: a person has to decide.
    errors.UploadTargetChanged: FAILED,
    errors.UnverifiedCompletion: UNVERIFIED,
    errors.SourceError: SOURCE,
    # Two uploads under one key, or one VideoId under two keys.
    errors.StateError: USAGE,
    errors.StateUnavailable: TEMPORARY,
    errors.ResourceUnavailable: TEMPORARY,
    errors.UploadLocked: HELD,
    errors.LeaseLost: HELD,
    errors.PolicyError: POLICY,
}
"""What differs from the code of the error's base class."""


def code_of(kind: type[VodupError]) -> int:
    """Return the exit code of a class of errors: its own, or that of its nearest base."""
    return EXIT_CODES[next(each for each in kind.__mro__ if each in EXIT_CODES)]


def exit_code(error: VodupError) -> int:
    """Return the exit code of an error."""
    if isinstance(error, ServiceError):
        from uploader.protocol.failures import is_temporary

        if is_temporary(error):
            return TEMPORARY
    if isinstance(error, SourceError) and error.is_temporary:
        return TEMPORARY
    return code_of(type(error))


def common_code(codes: Iterable[int]) -> int:
    """Return the code of a run over several files: theirs if all failures have the same."""
    failures = {code for code in codes if code != DONE}
    return failures.pop() if len(failures) == 1 else FAILED if failures else DONE


def interrupted_code(number: signal.Signals) -> int:
    """Return the code of a run that a signal ended, as shells count them."""
    return 128 + number


# --- a command from its start to its exit -----------------------------------------------


class Interrupted(Exception):
    """A signal of the user or the system ends this process."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.code = interrupted_code(number)


def finish(work: Callable[[], int], output: OutputFlags | None = None) -> int:
    """Do the work of a command and return its exit code; errors are printed."""
    try:
        portable.disable_core_dumps()  # credentials are in this process's memory
        _keep_exit_statuses()
        if output is not None:
            _configure_logging(output)
        return work()
    except Interrupted as interrupted:
        return interrupted.code
    except Exception as error:
        return explain(error)


def explain(error: Exception) -> int:
    """Print why a command failed and return its exit code: the boundary of every command.

    What nothing has translated is the machine's, or a bug of ours.
    """
    failure = error if isinstance(error, VodupError) else unexpected(error)
    if is_bug(error):
        explain_bug(error)
    else:
        err(*paragraph(failure))
    report_error(failure, type(failure).__name__, exit_code(failure))
    return exit_code(failure)


def report_error(error: VodupError, name: str, code: int) -> None:
    """With --json: print an error that is not about one file."""
    if Outputs.is_json:
        fields = {
            "type": "error",
            "error": name,
            "message": error.message,
            "code": error.code,
            "request_id": error.request_id,
            "next_step": error.next_step,
            "exit_code": code,
        }
        out_json(fields)


def explain_bug(error: BaseException) -> None:
    """Print an unexpected error: a sentence, and where it happened, without any values."""
    if not is_bug(error):
        return
    err(
        f"vodup: Internal error ({type(error).__name__}): this is a bug in vodup.",
        "next: Report it with the lines below. Progress is saved; you can run the command again.",
    )
    # format_tb has no locals; the messages of foreign exceptions may quote anything.
    for place in traceback.format_tb(error.__traceback__):
        err(*place.splitlines())
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            explain_bug(inner)


def _keep_exit_statuses() -> None:
    """A parent that ignores SIGCHLD passes that on, and then commands end without a status."""
    if portable.CHILD is not None and signal.getsignal(portable.CHILD) is signal.SIG_IGN:
        signal.signal(portable.CHILD, signal.SIG_DFL)


def _configure_logging(output: OutputFlags) -> None:
    from uploader import log

    Outputs.is_json, Outputs.is_quiet = output.json, output.quiet
    Outputs.color, Outputs.has_progress = output.color, output.progress
    stream, level = cast("TextIO", _CurrentStderr()), output.log_level
    if output.log_file is not None:
        stream = _opened_log(output.log_file)
        level = "info" if level == "critical" else level
    log.configure(level, is_json=output.json, stream=stream)


def _opened_log(path: str) -> TextIO:
    """Open a log file for its owner only; a line is written as soon as it is complete."""

    def private(path: str, flags: int) -> int:
        return os.open(path, flags, 0o600)

    try:
        stream = open(path, "a", encoding="utf-8", buffering=1, opener=private)  # noqa: SIM115
    except OSError as error:
        raise errors.ConfigurationError(
            f"--log-file: cannot write {path}: {error.strerror}.",
            next_step="Check its folder and its permissions.",
        ) from error
    atexit.register(stream.close)  # what ends last may log as well
    return stream


class _CurrentStderr:
    """The sys.stderr of the moment: a progress display replaces it while it is shown."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


# --- the loop and signals ---------------------------------------------------------------

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_DRAIN_S: Final = 5.0
"""How long an interrupted command may finish the parts under way."""
_ACKS_S: Final = 0.3
"""What acks may take to become durable and to be counted in a report of the progress."""


def run_async(work: Coroutine[None, None, int], uploader: Uploader | None = None) -> int:
    """Run `work` on a loop; the first Ctrl-C or SIGTERM cancels it, the second ends the process.

    Before it is cancelled, the requests of `uploader` that are under way may end.

    Raises:
        Interrupted: a signal cancelled the work, and it has cleaned up.
    """
    import asyncio

    with asyncio.Runner() as runner:
        return runner.run(_interruptible(work, uploader))


async def _interruptible(work: Coroutine[None, None, int], uploader: Uploader | None) -> int:
    import asyncio

    task = asyncio.ensure_future(work)
    with _signals_cancelling(task, uploader) as received:
        try:
            return await task
        except asyncio.CancelledError:
            if not received:
                raise
            raise Interrupted(received[0]) from None


@contextlib.contextmanager
def _signals_cancelling(
    task: asyncio.Future[int], uploader: Uploader | None
) -> Iterator[list[signal.Signals]]:
    loop = task.get_loop()
    received: list[signal.Signals] = []
    draining: list[asyncio.Task[None]] = []  # the loop keeps no reference

    def stop(number: signal.Signals) -> None:
        if received:
            _stop_at_once(number)
        received.append(number)
        pace = uploader.pace if uploader else None
        if pace and pace.in_use:
            draining.append(loop.create_task(_drain(pace, task)))
        else:
            task.cancel()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        portable.on_signal(loop, number, functools.partial(stop, number))
    # The terminal is closed: nothing can be printed any more, and uploads continue.
    if portable.HANGUP is not None and signal.getsignal(portable.HANGUP) == signal.SIG_DFL:
        before[portable.HANGUP] = signal.SIG_DFL
        portable.on_signal(loop, portable.HANGUP, lambda: None)  # commands do not inherit this
    try:
        yield received
    finally:
        for number, handler in before.items():
            portable.off_signal(loop, number, handler)


async def _drain(pace: Pace, task: asyncio.Future[int]) -> None:
    """Let the parts under way end: what OSS has is not sent again."""
    import asyncio

    if not Outputs.is_quiet:
        err(f"Finishing parts, {_DRAIN_S:.0f} s at most. To stop at once, press Ctrl-C again.")
    try:
        if await pace.drain(_DRAIN_S):
            await asyncio.sleep(_ACKS_S)
    finally:
        task.cancel()


def _stop_at_once(number: signal.Signals) -> None:
    """End without cleaning up: what must survive is on disk already."""
    if sys.stderr.isatty() and select.select([], [2], [], 0)[1]:  # it may be stopped
        os.write(2, b"\n")
    os._exit(interrupted_code(number))
