"""Lines on standard output and standard error, safe for a terminal."""

from __future__ import annotations

import re
import sys
from typing import TextIO

from uploader.errors import VodupError

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SECRET = re.compile(r"STS\.[A-Za-z0-9]{8,}|CAIS[A-Za-z0-9+/=_-]{20,}")


def printable(text: str) -> str:
    """Return `text` without what could steer a terminal, and without what looks secret.

    File names and messages of servers come from others.
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _SECRET.sub("[redacted]", text))


def paragraph(error: VodupError, *, about: str | None = None) -> str:
    """Say what failed and what to do next."""
    subject = f"{about}: " if about and about not in error.message else ""
    return printable(f"vodup: {subject}{error.message}\nnext: {error.next_step}")


class Printer:
    """Writes lines to a stream that may be closed early. Mutable: whether it is closed.

    `vodup push --json | head -1` ends the reader, not the upload.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_closed = False

    def line(self, text: str) -> None:
        """Write one line at once."""
        if self._is_closed:
            return
        try:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self._is_closed = True


def out(text: str) -> None:
    """Print one line for programs and pipes."""
    Printer(sys.stdout).line(printable(text))


def err(text: str) -> None:
    """Print one line for people."""
    Printer(sys.stderr).line(printable(text))
