"""Why a source cannot be read, in words."""

from __future__ import annotations

import errno
from typing import Final

from uploader.errors import SourceChanged, SourceUnreadable

__all__ = ["NotRegular", "changed_while_read", "empty", "ends_early", "unreadable"]


class NotRegular(ValueError):
    """What a path names instead of a regular file."""


def empty(name: str) -> SourceUnreadable:
    """There is nothing in it."""
    return SourceUnreadable(f"{name} is empty; VOD refuses empty files.")


def ends_early(name: str, offset: int) -> SourceChanged:
    """Bytes that were there are gone."""
    return SourceChanged(f"{name} has become shorter: it ends at byte {offset}.")


def changed_while_read(name: str, changed: list[str]) -> SourceChanged:
    """These fields of its fingerprint differ."""
    return SourceChanged(f"{name} was changed while it was read ({', '.join(changed)}).")


_REASONS: Final = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist: a part of its path is no directory",
    errno.EACCES: "may not be read by this user",
    errno.EPERM: "may not be read by this user",
    errno.EISDIR: "is a directory, not a regular file",
    errno.ELOOP: "is a symbolic link, and links are not followed here",
    errno.ENXIO: "is a socket or a device without a driver, not a regular file",
    errno.EMFILE: "cannot be opened: this process has too many open files",
    errno.ENFILE: "cannot be opened: this machine has too many open files",
    errno.EIO: "cannot be read: its disk reports an error",
    errno.ESTALE: "cannot be read: its network file system lost it",
}


def unreadable(name: str, exc: OSError | ValueError) -> SourceUnreadable:
    """Put what the system said into words."""
    if isinstance(exc, NotRegular):
        return SourceUnreadable(f"{name} is {exc}, not a regular file.")
    if isinstance(exc, OSError):
        reason = _REASONS.get(exc.errno or 0) or f"cannot be read ({exc.strerror or exc})"
        return SourceUnreadable(f"{name} {reason}.")
    return SourceUnreadable(f"{name!r} is not a path.")
