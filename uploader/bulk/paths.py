"""Which files a batch may read: those below its root."""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass

from uploader.errors import SourceUnreadable, UnsafePath

__all__ = ["Root"]


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
        """Make a root; `folder` may be relative to the working directory."""
        return cls(os.path.abspath(folder), follow_symlinks)

    def absolute(self, path: str) -> str:
        """Make a row's path absolute, without looking at the disk.

        Raises:
            UnsafePath: the path as written leaves the root.
        """
        absolute = os.path.normpath(path if path.startswith(os.sep) else f"{self.folder}/{path}")
        if not _is_below(absolute, self.folder):
            raise UnsafePath(
                f"{path} is outside of {self.folder}.",
                next_step="To upload files of another folder, pass it with --root FOLDER.",
            )
        # normpath makes "b" of "a/../b", which is another file if "a" is a link.
        if ".." in path and ".." in path.split(os.sep):
            raise UnsafePath(f"{path} contains '..'.", next_step="Write the path without '..'.")
        return absolute

    def resolved(self, absolute: str) -> tuple[str, int]:
        """Return the path with links resolved, and the file's size in bytes.

        Raises:
            UnsafePath: a symbolic link leads out of the root.
            SourceUnreadable: it is missing, empty or not a regular file.
        """
        try:
            real, status = _resolved(absolute)
            if not self.follow_symlinks and not _is_below(real, _real(self.folder)):
                raise UnsafePath(
                    f"{absolute} leads out of {self.folder} by a symbolic link.",
                    next_step="To follow such links, pass --follow-symlinks.",
                )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise SourceUnreadable(f"{absolute} cannot be read: {reason}.") from error
        if not stat.S_ISREG(status.st_mode):
            raise SourceUnreadable(f"{absolute} is not a regular file.")
        if status.st_size == 0:
            raise SourceUnreadable(f"{absolute} is empty.")
        return real, status.st_size


def _resolved(absolute: str) -> tuple[str, os.stat_result]:
    """Resolve a path and stat it; the links of each folder are looked up once."""
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
