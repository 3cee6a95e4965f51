"""Folders and files that only this user may read or write, whatever the umask.

For what must not be read by others (checkpoints, videos on their way) and must not be prepared
by them: a link in the place of a file would have this process write somewhere else.

A file that is written as a whole is written to a draft beside it, which then replaces it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Final

from uploader import portable
from uploader.errors import UnsafePath

_DRAFT: Final = re.compile(r"\d+[-0-9a-f]*\.draft")


def make_private_folder(folder: Path) -> None:
    """Like `mkdir -p -m 700`, for every folder that is missing.

    Raises:
        OSError: it cannot be created.
    """
    if folder.is_dir():
        return
    make_private_folder(folder.parent)  # ends at "/" or ".", which exist, deleted or not
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # another process was faster
        return
    folder.chmod(0o700)  # the umask may have taken even our own rights


def require_private_folder(folder: Path, *, next_step: str, owner: int | None = None) -> None:
    """Make sure that `folder` is ours, that others cannot read it, and cannot replace it.

    `owner`: the user it has to belong to; None: the one who runs this.

    Raises:
        UnsafePath: it is a link, or belongs to another user, or others may write into it or
            into the folder above it.
    """
    found, above = folder.lstat(), folder.parent.stat()
    if not stat.S_ISDIR(found.st_mode) or not portable.is_own(found, owner=owner):
        raise UnsafePath(
            f"{folder} is a link, not a folder, or belongs to another user.", next_step=next_step
        )
    # Where the sticky bit is set, as in /tmp, others cannot replace what is ours.
    is_replaceable = portable.is_shared(above, 0o022) and not above.st_mode & stat.S_ISVTX
    if portable.is_shared(found, 0o022) or is_replaceable:
        unsafe = folder.parent if is_replaceable else folder
        raise UnsafePath(
            f"Other users may write into {unsafe}.",
            next_step=f"Run `chmod go-w {unsafe}`, or: {next_step}",
        )
    if portable.is_shared(found, 0o077):
        folder.chmod(0o700)


def open_private_file(path: Path, flags: int) -> int:
    """Open a regular file of ours and return its descriptor; it has mode 0600 afterwards.

    Raises:
        UnsafePath: it is a link, not a regular file, or belongs to another user.
        OSError: it cannot be opened.
    """
    descriptor = open_regular_file(path, flags)
    found = os.fstat(descriptor)
    if not portable.is_own(found):
        os.close(descriptor)
        raise _unsafe_file(path)
    if stat.S_IMODE(found.st_mode) != 0o600:
        portable.set_mode(descriptor, 0o600)
    return descriptor


def open_regular_file(path: Path, flags: int) -> int:
    """Open a regular file, ours or not; a new one has mode 0600. Returns its descriptor.

    Raises:
        UnsafePath: it is a link or not a regular file.
        OSError: it cannot be opened.
    """
    if not (portable.NO_LINK or flags & os.O_EXCL) and path.is_symlink():
        raise _unsafe_file(path)
    try:
        flags |= portable.NO_LINK | portable.NO_WAIT | portable.CLOSE_ON_EXEC
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _unsafe_file(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _unsafe_file(path)
    return descriptor


def replace_file(path: Path, content: Iterable[bytes]) -> int:
    """Replace a file, or make it: a crash leaves the old one or the new one, whole.

    A new file has mode 0600, a replaced one keeps its mode. Returns a descriptor, for appending.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    draft = path.with_name(f"{_draft_prefix(path)}{os.getpid()}-{token_hex(4)}.draft")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
    flags |= portable.NO_LINK | portable.CLOSE_ON_EXEC
    descriptor = os.open(draft, flags, 0o600)
    try:
        with suppress(OSError):  # a file system without locks
            portable.lock(descriptor)  # see `remove_drafts`
        with suppress(FileNotFoundError):
            portable.set_mode(descriptor, stat.S_IMODE(path.lstat().st_mode))
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.writelines(content)
        os.fsync(descriptor)
        os.replace(draft, path)
    except BaseException:
        os.close(descriptor)
        draft.unlink(missing_ok=True)
        raise
    return descriptor


def remove_drafts(path: Path) -> None:
    """Remove the drafts of `path` that killed processes have left; locked ones are in use."""
    prefix = _draft_prefix(path)
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            name = entry.name
            if not name.startswith(prefix) or not _DRAFT.fullmatch(name, len(prefix)):
                continue
            with (
                suppress(OSError, UnsafePath),
                open(open_private_file(Path(entry.path), os.O_RDWR), "rb") as draft,
            ):
                portable.lock(draft.fileno())
                os.unlink(entry.path)


def _draft_prefix(path: Path) -> str:
    return f".{os.fsdecode(os.fsencode(path.name)[:200])}."  # a name has 255 bytes


def _unsafe_file(path: Path) -> UnsafePath:
    return UnsafePath(
        f"{path} is a link, not a regular file, or belongs to another user.",
        next_step="Find out who created it; use another folder until then.",
    )
