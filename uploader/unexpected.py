"""Errors that nothing translates: what the machine refuses, and our own bugs."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path
from typing import Final

from uploader.errors import ConfigurationError, ResourceUnavailable, VodupError
from uploader.portable import memory_limit

_PACKAGE: Final = f"{Path(__file__).parent}{os.sep}"

_OUT_OF_MEMORY: Final = ("start new thread", "map segment", "allocate memory")
"""What Python (threads), the dynamic linker (modules) and the C library say of it."""


def unexpected(error: BaseException) -> VodupError:
    """An error that nothing translates, as the failure of one upload; the others continue.

    Only its class is shown: a foreign message may quote anything.
    """
    failure = _refusal_of_the_machine(error) or VodupError(
        f"Internal error ({type(error).__name__}).",
        next_step="Report it: this is a bug in vodup. Progress is saved; run the command again.",
    )
    failure.__cause__ = error
    return failure


def is_bug(error: BaseException) -> bool:
    """Whether an error is ours to repair, not one of the machine that `unexpected` explains."""
    return not isinstance(error, VodupError) and _refusal_of_the_machine(error) is None


def _refusal_of_the_machine(error: BaseException) -> VodupError | None:
    """Return what the operating system refuses, if the error is about that."""
    if isinstance(error, BaseExceptionGroup):
        refusals = [_refusal_of_the_machine(inner) for inner in error.exceptions]
        return refusals[0] if all(refusals) else None
    if _is_out_of_memory(error):
        return ResourceUnavailable(
            "There is not enough memory.",
            next_step="Raise the limit (ulimit -v, ulimit -u, or that of the container), or lower "
            "--concurrency, then run the same command again.",
        )
    if not isinstance(error, OSError) or error.errno not in errno.errorcode:
        return None
    if error.errno == errno.ENOENT and not _has_current_folder():
        return ConfigurationError(
            "The current folder does not exist any more.",
            next_step="Change to a folder that exists, then run the same command again.",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceUnavailable(
            "Too many files are open.",
            next_step="Raise the limit (ulimit -n), or lower --concurrency and --files, then run "
            "the same command again.",
        )
    where = f": {error.filename}" if error.filename else ""
    return ResourceUnavailable(
        f"The system refuses an operation: {error.strerror}{where}{_place_of(error)}."
    )


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        return True
    # Modules in C raise it where an allocation failed that they did not check; without a limit
    # of memory it is a bug.
    return isinstance(error, SystemError) and memory_limit() is not None


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _place_of(error: BaseException) -> str:
    """Where in this package it came from: it might have to be translated there."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(_PACKAGE)]
    return f" ({ours[-1].filename.removeprefix(_PACKAGE)}:{ours[-1].lineno})" if ours else ""
