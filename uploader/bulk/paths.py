"""Which files a batch may read: those below its root."""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass
from typing import Final

from uploader.errors import SourceUnreadable, UnsafePath

__all__ = ["Root"]

_OUTSIDE: Final = "Pass --root FOLDER if files of that folder are meant."


@dataclass(frozen=True, slots=True)
class Root:
    """The folder that a batch's paths are relative to and must stay below.

    Attributes:
        folder: absolute.
        follow_symlinks: whether symbolic links may lead out of it.
    """

    folder: str
    follow_symlinks: bool = False

    @classmethod
    def at(cls, folder: str | os.PathLike[str], *, follow_symlinks: bool = False) -> Root:
        """A root; `folder` may be relative to the working directory."""
        return cls(os.path.abspath(folder), follow_symlinks)

    def absolute(self, path: str) -> str:
        """The path a row means, without asking the disk.

        Raises:
            UnsafePath: it says by itself that it leaves the root.
        """
        absolute = os.path.normpath(path if path.startswith(os.sep) else f"{self.folder}/{path}")
        if not _is_below(absolute, self.folder):
            raise UnsafePath(f"{path} is outside of {self.folder}.", next_step=_OUTSIDE)
        # normpath takes "a/../b" for "b", which a link at "a" would make another file.
        if ".." in path and ".." in path.split(os.sep):
            raise UnsafePath(f"{path} goes up with '..'.", next_step="Write the path without '..'.")
        return absolute

    def resolved(self, absolute: str) -> tuple[str, int]:
        """Where the file really is, and its size.

        Raises:
            UnsafePath: a symbolic link leads out of the root.
            SourceUnreadable: it is missing, empty or no regular file.
        """
        try:
            real, status = _looked_up(absolute)
            if not self.follow_symlinks and not _is_below(real, _real(self.folder)):
                raise UnsafePath(
                    f"{absolute} leads out of {self.folder} by a symbolic link.",
                    next_step="Pass --follow-symlinks if that is meant.",
                )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise SourceUnreadable(f"{absolute} cannot be read: {reason}.") from error
        if not stat.S_ISREG(status.st_mode):
            raise SourceUnreadable(f"{absolute} is not a regular file.")
        if status.st_size == 0:
            raise SourceUnreadable(f"{absolute} is empty.")
        return real, status.st_size


def _looked_up(absolute: str) -> tuple[str, os.stat_result]:
    """Where a path leads, and what is there; asks once for the links in each folder."""
    folder, name = os.path.split(absolute)
    real = os.path.join(_real(folder), name)
    status = os.lstat(real)
    if stat.S_ISLNK(status.st_mode):
        real = os.path.realpath(real, strict=True)
        status = os.stat(real)
    return real, status


@functools.lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder, strict=True)


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)
