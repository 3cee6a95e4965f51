"""What becomes of a file that has ended: it stays, is deleted, or is moved, and replaces nothing.

A file is first renamed in its own folder, to a name that says which record of the ledger it is
about. Only then is it compared with what was verified: what a writer has put in its place in the
meantime gets its name back. A run that is killed in between leaves the renamed file, and the next
one continues with it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from uploader import portable
from uploader.bulk.ledger import hash_of
from uploader.errors import ConfigurationError, SourceChanged
from uploader.sources.files import open_folder_below
from uploader.watch.scan import OWN_PREFIX

_MAX_SAME_NAME: Final = 10_000
_RENAME_NOREPLACE: Final = 1
_NO_RENAME: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})

IsSame = Callable[[os.stat_result], bool]


@dataclass(frozen=True, slots=True)
class AfterUpload:
    """What becomes of a file that is verified.

    Attributes:
        folder: where "move" moves it, absolute; paths below the watched folder are kept.
    """

    kind: Literal["keep", "delete", "move"] = "keep"
    folder: str | None = None


def parse_after(text: str) -> AfterUpload:
    """Understand what `--after` says.

    Raises:
        ConfigurationError: it is not "keep", "delete" or "move:FOLDER".
    """
    kind, _, folder = text.partition(":")
    if text in ("keep", "delete"):
        return AfterUpload("keep" if text == "keep" else "delete")
    if kind == "move" and folder:
        return AfterUpload("move", os.path.abspath(folder))
    raise ConfigurationError(
        f"--after: expected keep, delete or move:FOLDER, got {text!r}.",
        next_step="Correct --after (or VODUP_AFTER), then run again.",
    )


def own_name(number: int) -> str:
    """Return the name of a file on its way: it says which record is about it."""
    return f"{OWN_PREFIX}{number:016x}"


def set_apart(root: str, path: str, number: int, is_same: IsSame) -> str:
    """Rename a file within its folder, and make sure that it is the one that ended.

    Returns its new path.

    Raises:
        SourceChanged: another file is there now; it keeps its name, or gets one like it.
        OSError: it cannot be renamed.
    """
    hidden = own_name(number)
    with _opened(root, path) as (folder, name):
        _rename_new(folder, name, folder, hidden)
        if not is_same(os.stat(hidden, dir_fd=folder, follow_symlinks=False)):
            _rename_free(folder, hidden, folder, name)
            raise SourceChanged(f"{path} has been replaced by another file.")
    return os.path.join(os.path.dirname(path), hidden)


def return_name(root: str, hidden: str, path: str) -> None:
    """Give a file that was set apart its name back."""
    with _opened(root, hidden) as (folder, name):
        _rename_free(folder, name, folder, os.path.basename(path))


def delete(root: str, path: str) -> None:
    """Delete a file below the root."""
    with _opened(root, path) as (folder, name):
        os.unlink(name, dir_fd=folder)


def move(root: str, path: str, target: str) -> str:
    """Move a file, also to another file system; returns where it is now.

    If the target exists, a number is added to the name, unless a killed run has copied this very
    file there.

    Raises:
        OSError: it cannot be moved; it is still where it was.
    """
    above, name = os.path.split(target)
    os.makedirs(above, exist_ok=True)
    to = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _opened(root, path) as (folder, own):
            try:
                moved = _rename_free(folder, own, to, name)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                moved = _copy_and_delete(folder, own, to, name)
    finally:
        os.close(to)
    return os.path.join(above, moved)


def write_reason(target: str, reason: Mapping[str, Any]) -> str:
    """Write why a file has failed, beside it; replaces nothing. Returns the path."""
    text = json.dumps(reason, indent=2, ensure_ascii=False).encode(errors="backslashreplace")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | portable.NO_LINK | portable.CLOSE_ON_EXEC
    for path in map(f"{target}.reason{{}}.json".format, ["", *_numbers()]):
        with suppress(FileExistsError):
            descriptor = os.open(path, flags, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text + b"\n")
            return path
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), target)


@contextmanager
def _opened(root: str, path: str) -> Iterator[tuple[int, str]]:
    """The folder of a file, without a link on the way from the root, and the file's name."""
    folder, name = open_folder_below(root, path)
    try:
        yield folder, name
    finally:
        os.close(folder)


def _numbers() -> Iterator[str]:
    return (f".{number}" for number in range(1, _MAX_SAME_NAME))


def _rename_free(folder: int, name: str, to: int, wanted: str) -> str:
    """Rename to the first name like `wanted` that is free; returns it."""
    stem, extension = os.path.splitext(wanted)
    for number in ("", *_numbers()):
        try:
            _rename_new(folder, name, to, f"{stem}{number}{extension}")
        except FileExistsError:
            continue
        return f"{stem}{number}{extension}"
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), wanted)


def _rename_new(folder: int, name: str, to: int, new: str) -> None:
    """Rename, but never onto another file.

    Raises:
        FileExistsError: the new name is taken.
    """
    if (rename := _renameat2()) is not None:
        if not rename(folder, os.fsencode(name), to, os.fsencode(new), _RENAME_NOREPLACE):
            return
        if (number := ctypes.get_errno()) not in _NO_RENAME:
            raise OSError(number, os.strerror(number), name)
    # Elsewhere the name is reserved first: only our own empty file is replaced.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(new, flags, 0o600, dir_fd=to))
    try:
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=to)
    except BaseException:
        os.unlink(new, dir_fd=to)
        raise


def _renameat2() -> Callable[..., int] | None:
    """Linux only; glibc 2.28 and musl 1.2.4 have it."""
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _copy_and_delete(folder: int, name: str, to: int, wanted: str) -> str:
    """Move to another file system: the copy is durable before the file is deleted."""
    stem, extension = os.path.splitext(wanted)
    for new in (f"{stem}{number}{extension}" for number in ("", *_numbers())):
        try:
            os.stat(new, dir_fd=to, follow_symlinks=False)
        except FileNotFoundError:
            draft = f"{own_name(hash_of(name))}.draft"
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=to)  # of a run that was killed; no other has this name
            _copy(folder, name, to, draft)
            try:
                _rename_new(to, draft, to, new)
            except FileExistsError:
                continue
        else:
            if not _is_copy(folder, name, to, new):
                continue
        os.fsync(to)
        os.unlink(name, dir_fd=folder)
        return new
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), wanted)


def _copy(folder: int, name: str, to: int, new: str) -> None:
    """Copy a regular file, with its times, to a name that is free; a failure leaves no copy."""
    reading = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    writing = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, reading, dir_fd=folder), "rb") as source:
        status = os.fstat(source.fileno())
        descriptor = os.open(new, writing, status.st_mode & 0o777, dir_fd=to)
        try:
            with open(descriptor, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                os.utime(target.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
                os.fsync(target.fileno())
        except BaseException:
            os.unlink(new, dir_fd=to)
            raise


def _is_copy(folder: int, name: str, to: int, other: str) -> bool:
    """Whether a killed run has copied the file there, and did not get to delete it."""
    stats = [
        os.stat(each, dir_fd=where, follow_symlinks=False)
        for each, where in ((name, folder), (other, to))
    ]
    if stats[0].st_size != stats[1].st_size or not stat.S_ISREG(stats[1].st_mode):
        return False
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with (
        open(os.open(name, flags, dir_fd=folder), "rb") as first,
        open(os.open(other, flags, dir_fd=to), "rb") as second,
    ):
        while piece := first.read(1 << 20):
            if piece != second.read(1 << 20):
                return False
        return not second.read(1)
