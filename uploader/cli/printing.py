"""All that a command writes to standard output and standard error.

A disk may be full, a terminal closed or stopped (Ctrl-S), the reader of a pipe gone or asleep: no
upload ends or waits for that. Each stream is written by a thread of its own (`Output`). One that
fails is dropped and the other one reports it. What programs and people requested goes to standard
output: if any of that is lost, success becomes exit code 74 (EX_IOERR).
"""

from __future__ import annotations

import atexit
import codecs
import io
import json
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TextIO, cast

from uploader.errors import VodupError
from uploader.redaction import redacted

LOST: Final = 74
_MAX_WAITING: Final = 32 * 2**20
_MAX_LINES: Final = 4096
"""Bytes per write, unless a line is longer: a pipe keeps that many together."""
_STDOUT_STALL_S: Final = 30.0
"""How long the end of a command waits for a reader that takes nothing, if nobody watches."""
_STDERR_STALL_S: Final = 5.0
_INTERRUPTED_STALL_S: Final = 0.5

# Line ends too: a file name must not forge a line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


_STYLE = re.compile("\x1b\\[[0-9;]*m")
_STYLES: Final = {"Uploaded": 32, "vodup:": 1, "next:": 1, "Interrupted:": 33}
"""SGR codes of the words that a line may begin with: green, bold, yellow."""


def _styled(line: str) -> str:
    word = line.partition(" ")[0]
    code = _STYLES.get(word)
    return line if code is None else f"\x1b[{code}m{word}\x1b[0m{line[len(word) :]}"


def is_coloured(stream: object) -> bool:
    """Whether colours may be written to a stream: to a terminal, unless NO_COLOR is set."""
    if (choice := Outputs.color) != "auto":
        return choice == "always"
    is_terminal = bool(getattr(stream, "isatty", bool)())
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Return `text` as one line, without what could steer a terminal or looks secret.

    File names and messages of servers come from others.
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", redacted(text))


def paragraph(error: VodupError, *, about: str | None = None) -> tuple[str, str]:
    """Say what failed and what to do next, in two lines."""
    subject = f"{about}: " if about and about not in error.message else ""
    return f"vodup: {subject}{error.message}", f"next: {error.next_step}"


def out(*lines: str) -> None:
    """Print lines for programs and pipes."""
    _write(sys.stdout, lines)


def out_json(fields: Mapping[str, Any]) -> None:
    """Print one JSON object for programs, in ASCII."""
    out(json.dumps({name: _clean(value) for name, value in fields.items()}))


def _clean(value: object) -> object:
    return "\n".join(map(printable, value.split("\n"))) if isinstance(value, str) else value


def err(*lines: str) -> None:
    """Print lines for people."""
    _write(sys.stderr, lines)


def report_notices(*sources: object) -> None:
    """Print, at the end of a run, what the state store has repaired, put aside or left out.

    Each source may have sentences as `notices`: the state store, the notifications.
    """
    notices = (sentence for source in sources for sentence in getattr(source, "notices", ()))
    err(*(f"vodup: {sentence}" for sentence in notices))


def _write(stream: TextIO, lines: tuple[str, ...]) -> None:
    texts = map(printable, lines)
    if is_coloured(stream):
        texts = map(_styled, texts)
    stream.write("".join(f"{text}\n" for text in texts))
    stream.flush()


async def room() -> None:
    """Wait while the reader of standard output is far behind: for lists of any length."""
    import asyncio

    while getattr(sys.stdout, "waiting_size", 0) > _MAX_WAITING // 2:  # noqa: ASYNC110 (a thread writes)
        await asyncio.sleep(0.05)


class Output(io.TextIOBase):
    """Stands in for a standard stream and is written by a thread. Never raises, never waits.

    Mutable: what waits to be written, and the lines shown below it. What the encoding of the stream
    lacks becomes "?".

    Args:
        stream: None if it is closed.
        on_lost: called once, with the reason, when text is lost.
    """

    encoding, errors = "utf-8", "replace"

    def __init__(
        self, descriptor: int, stream: TextIO | None, on_lost: Callable[[str], None]
    ) -> None:
        self._descriptor, self._stream, self._on_lost = descriptor, stream, on_lost
        if stream and _can_replace(stream.encoding):
            self.encoding = stream.encoding
        self._encoder = codecs.getincrementalencoder(self.encoding)(self.errors)
        self._changed = threading.Condition()
        self._waiting = bytearray()
        self._block: tuple[str, ...] = ()
        self._failure = "" if stream else "it is closed"
        self.is_lost = False
        threading.Thread(target=self._run, name="vodup-output", daemon=True).start()

    @property
    def waiting_size(self) -> int:
        """Bytes that are not written yet."""
        return len(self._waiting)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and os.isatty(self._descriptor)

    @property
    def columns(self) -> int:
        """Of the terminal; 80 where it does not say."""
        chosen = os.environ.get("COLUMNS", "")
        try:
            return int(chosen) if chosen.strip("0").isdecimal() else self._size().columns or 80
        except OSError:
            return 80

    def _size(self) -> os.terminal_size:
        return os.get_terminal_size(self._descriptor)

    def can_write(self, text: str) -> bool:
        """Whether its encoding has these characters."""
        try:
            return bool(text.encode(self.encoding))
        except UnicodeError:
            return False

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines below everything that is written, in place of those before."""
        with self._changed:
            erased, self._block = self._erased(), tuple(lines)
            self._hand_over(erased + "\n".join(lines))

    def _erased(self) -> str:
        """Return what removes the lines that are shown: the cursor is at the end of the last."""
        if not self._block:
            return ""
        columns = self.columns  # a narrower terminal has wrapped them
        height = sum(max(1, -(-len(_STYLE.sub("", line)) // columns)) for line in self._block)
        return f"\r\x1b[{height - 1}A\x1b[J" if height > 1 else "\r\x1b[J"

    def write(self, text: str) -> int:
        """Hand text to the thread. It is lost if the stream has failed, or too much waits."""
        with self._changed:
            if self._block:
                erased, lines = self._erased(), "\n".join(self._block)
                if not text.endswith("\n"):  # the rest of the line follows
                    self._block, lines = (), ""
                self._hand_over(erased + text + lines)
                return len(text)
        return self._hand_over(text)

    def _hand_over(self, text: str) -> int:
        data = self._encoder.encode(text)
        with self._changed:
            if not self._failure and len(self._waiting) < _MAX_WAITING:
                self._waiting += data
                self._changed.notify_all()
                return len(text)
        if text:
            self._lose(self._failure or "nobody reads it")
        return len(text)

    def _lose(self, reason: str) -> None:
        with self._changed:
            is_first, self.is_lost = not self.is_lost, True
        if is_first:
            self._on_lost(reason)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines_size = self._waiting.rfind(b"\n", 0, _MAX_LINES) + 1
                data = bytes(self._waiting[: lines_size or _MAX_LINES])
            try:
                size = os.write(self._descriptor, data)
            except BlockingIOError:  # somebody else made it so
                select.select([], [self._descriptor], [], 1)
                continue
            except OSError as error:
                with self._changed:
                    self._failure = error.strerror or "it failed"
                self._lose(self._failure)
                size = len(self._waiting)
            with self._changed:
                del self._waiting[:size]
                self._changed.notify_all()

    def drain(self, stall_s: float | None) -> None:
        """Wait until all is written, or nothing was for `stall_s`."""
        with self._changed:
            while self._waiting and self._changed.wait(stall_s):
                pass
        if self._waiting:
            self._lose("nobody reads it")


def _can_replace(encoding: str) -> bool:
    """Whether an encoding is for text of any kind; that of domain names (IDNA) is not."""
    try:
        return bool("\ud800 and more\n".encode(encoding, "replace"))
    except (LookupError, UnicodeError):
        return False


class Outputs:
    """Both streams of this process, as long as it lives.

    Mutable: whether results are JSON, or VideoIds only, and when colours are used.
    """

    is_json = is_quiet = False
    color = "auto"
    has_progress = True

    def __init__(self) -> None:
        """Take over `sys.stdout` and `sys.stderr`."""
        Outputs.is_json = not {"--json", "--output=json", "-ojson"}.isdisjoint(
            sys.argv
        )  # until the flags have been read
        _fill_descriptors()
        self._stdout = Output(1, sys.stdout, self._report_stdout)
        self._stderr = self._stdout  # one thread keeps the order
        if not (sys.stdout and sys.stderr and os.path.samestat(os.fstat(1), os.fstat(2))):
            self._stderr = Output(2, sys.stderr, self._report_stderr)
        sys.stdout, sys.stderr = cast("TextIO", self._stdout), cast("TextIO", self._stderr)
        atexit.register(self._drain, _INTERRUPTED_STALL_S)  # what the interpreter adds

    def _report_stdout(self, reason: str) -> None:
        if self._stderr is not self._stdout:
            err(
                f"vodup: cannot write to standard output: {reason}. The command continues.",
                "next: `vodup status` lists the uploads and their VideoIds.",
            )

    def _report_stderr(self, reason: str) -> None:
        sentence = f"cannot write to standard error: {reason}. The command continues."
        if self.is_json:
            out_json({"type": "output.failed", "message": sentence})
        elif not self.is_quiet:  # then only VideoIds are printed
            out(f"vodup: {sentence}")

    def close(self, code: int) -> int:
        """Wait for the streams at the end of a command; returns its final exit code."""
        self._drain(_INTERRUPTED_STALL_S if code > 128 else None)
        return LOST if code == 0 and self._stdout.is_lost else code

    def _drain(self, stall_s: float | None) -> None:
        is_watched = self._stderr.isatty() or self._stdout.isatty()
        self._stdout.drain(stall_s or (None if is_watched else _STDOUT_STALL_S))
        self._stderr.drain(stall_s or _STDERR_STALL_S)


def _fill_descriptors() -> None:
    """Where a standard stream is closed, the next file or socket would take its place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
