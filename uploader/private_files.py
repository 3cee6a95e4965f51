"""Folders and files that only this user may read or write, whatever the umask.

For what must not be read by others (checkpoints, videos on their way) and must not be prepared
by them: a link in the place of a file would have this process write somewhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from uploader.errors import UnsafePath


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


def require_private_folder(folder: Path, *, next_step: str) -> None:
    """Make sure that `folder` is ours, that others cannot read it, and cannot replace it.

    Raises:
        UnsafePath: it is a link, or belongs to another user, or others may write into it or
            into the folder above it.
    """
    found, above = folder.lstat(), folder.parent.stat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise UnsafePath(
            f"{folder} is a link, not a folder, or belongs to another user.", next_step=next_step
        )
    # Where the sticky bit is set, as in /tmp, others cannot replace what is ours.
    is_replaceable = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
    if found.st_mode & 0o022 or is_replaceable:
        unsafe = folder.parent if is_replaceable else folder
        raise UnsafePath(
            f"Other users may write into {unsafe}.",
            next_step=f"Run `chmod go-w {unsafe}`, or: {next_step}",
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def open_private_file(path: Path, flags: int) -> int:
    """Open a regular file of ours and return its descriptor; it has mode 0600 afterwards.

    Raises:
        UnsafePath: it is a link, not a regular file, or belongs to another user.
        OSError: it cannot be opened.
    """
    try:
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _unsafe_file(path) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise _unsafe_file(path)
    if stat.S_IMODE(found.st_mode) != 0o600:
        os.fchmod(descriptor, 0o600)
    return descriptor


def _unsafe_file(path: Path) -> UnsafePath:
    return UnsafePath(
        f"{path} is a link, not a regular file, or belongs to another user.",
        next_step="Find out who created it; use another folder until then.",
    )
