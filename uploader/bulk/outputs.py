"""The files that a batch writes: nothing is replaced that vodup did not write earlier.

All of them are checked before anything is sent, and once more before they are replaced.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from uploader.errors import ConfigurationError
from uploader.private_files import open_regular_file, remove_drafts
from uploader.protocol.vod import refuses_name
from uploader.state.files import companions
from uploader.state.locations import SqliteFile, locate

from .ledger import is_failures, is_ledger
from .report import is_report
from .rows import FileIdentity

_KINDS: Final[dict[str, tuple[Callable[[IO[bytes]], bool], str]]] = {
    "--report": (is_ledger, "a ledger of vodup"),
    "--failed": (is_failures, "a list of failed rows written by vodup"),
    "--html": (is_report, "an HTML report of vodup"),
}


def require_outputs(
    paths: Mapping[str, str | None], *, inputs: Iterable[str], state: str | None
) -> frozenset[FileIdentity]:
    """Check every output, remove the drafts of killed runs, and return what no row may be.

    The failed rows of an earlier run may be read and replaced if there is a ledger: should this
    run be stopped, it has the rows that were not reached.

    Raises:
        ConfigurationError: an output must not be written.
    """
    used = {_identity_of(path): "a file of the state" for path in _files_of(state)}
    used |= {_identity_of(path): f"a manifest of this batch ({path})" for path in inputs}
    outputs = {flag: path for flag, path in paths.items() if path is not None}
    if "--report" in outputs and "--failed" in outputs:
        used.pop(_identity_of(outputs["--failed"]), None)  # what it holds is checked below
    for flag, path in outputs.items():
        if (identity := _identity_of(path)) in used:
            raise _refused(flag, f"{path} is {used[identity]}.")
        used[identity] = f"the file of {flag} as well"
        require_output(flag, path)
    for path in outputs.values():
        remove_drafts(Path(os.path.abspath(path)))
    real_paths = map(os.path.realpath, outputs.values())
    return frozenset(map(_identity_of, outputs.values())).union(real_paths)


def _files_of(state: str | None) -> list[str]:
    """The SQLite file of `--state`, and what SQLite may have beside it."""
    if state == "memory":
        return []
    try:
        place = locate(state or None)
    except ConfigurationError:  # reported when the state is opened, if it is
        return []
    return companions(place.path) if isinstance(place, SqliteFile) else []


def _identity_of(path: str) -> FileIdentity:
    """What a path names, however it is spelled; through links."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def require_output(flag: str, path: str) -> None:
    """Check one output: absent, or a regular file that vodup wrote, in a folder we may write to."""
    name = os.path.abspath(path)
    folder = os.path.dirname(name)
    if not os.path.isdir(folder):
        raise _refused(flag, f"There is no folder {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _refused(flag, f"The folder {folder} is not writable.")
    if not refuses_name(os.path.basename(name)):
        raise _refused(flag, f"{path} has the name of a video.")
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refused(flag, f"{path} cannot be written: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise _refused(flag, f"{path} is {kind}.")
    for descriptor in range(3):
        with suppress(OSError):  # it is closed
            if os.path.samestat(found, os.fstat(descriptor)):
                raise _refused(flag, f"{path} is standard input or output as well.")
    is_ours, what = _KINDS[flag]
    try:
        with open(open_regular_file(Path(name), os.O_RDWR), "rb") as file:
            if not is_ours(file):
                raise _refused(flag, f"{path} exists and is not {what}.")
    except OSError as error:
        raise _refused(flag, f"{path} cannot be written: {error.strerror}.") from error


def _refused(flag: str, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"{flag}: {problem}", next_step=f"Pass another file to {flag}, in an existing folder."
    )
