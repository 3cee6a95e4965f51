"""The SQLite file: a private place for it, and what to do when it is not a database.

Uses SQLite itself to look at a database file, never `open()`: closing any descriptor of
a file drops the POSIX locks SQLite holds on it elsewhere in the same process.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Final

from uploader import portable
from uploader.errors import ConfigurationError, StateUnavailable, UnsafePath, UnsupportedState
from uploader.private_files import make_private_folder, open_private_file

APPLICATION_ID: Final = 0x766F6475  # "vodu": what `file` and we recognise a state file by
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_SMALL_BYTES: Final = 4 << 20  # checked whole at every opening; takes a few milliseconds
_SUSPECT_SUFFIX: Final = ".suspect"
_MOUNTS: Final = Path("/proc/self/mountinfo")

# Their locks are advisory at best, and SQLite's shared memory does not reach other machines.
_NETWORK_TYPES: Final = frozenset(
    "9p afs beegfs ceph cifs coda gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs "
    "pvfs2 smb2 smb3 smbfs".split()
)
_LOCAL_FUSE_TYPES: Final = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.portal"})


def companions(path: Path) -> list[str]:
    """The file and those that SQLite may have beside it."""
    return [f"{path}{suffix}" for suffix in ("", *_COMPANIONS)]


class Damaged(Exception):
    """A finding, not an error of ours: the file is not a database, or not a whole one."""


def secure_directory(directory: Path) -> None:
    """Create `directory` for this user only, or make sure no other user can write into it.

    Raises:
        UnsafePath: it belongs to another user, or others may write into it.
        StateUnavailable: it cannot be created.
    """
    try:
        make_private_folder(directory)
        found = directory.stat()
    except OSError as error:
        raise StateUnavailable(
            f"the state directory {directory} cannot be used: {error.strerror}.",
            next_step="Correct its permissions, or choose another place with --state.",
        ) from error
    if not portable.is_own(found):
        raise UnsafePath(
            f"the state directory {directory} belongs to user id {found.st_uid}.",
            next_step="Choose a directory of your own with --state.",
        )
    if portable.is_shared(found, 0o022):
        raise UnsafePath(
            f"others may write into the state directory {directory}.",
            next_step=f"Run `chmod go-w {directory}`, or choose another place with --state.",
        )


def refuse_network_mount(directory: Path, *, mounts: Path = _MOUNTS) -> None:
    """Refuse file systems on which two machines would break the database.

    Raises:
        ConfigurationError: `directory` is on one.
    """
    kind = _mount_type(directory, mounts)
    is_fuse = kind.startswith("fuse.") and kind not in _LOCAL_FUSE_TYPES
    if kind in _NETWORK_TYPES or is_fuse:
        raise ConfigurationError(
            f"the state directory {directory} is on a network file system ({kind}), where "
            "the locks SQLite needs do not hold.",
            next_step="Put it on a local disk with --state, or share it as postgresql://...",
        )


def _mount_type(directory: Path, mounts: Path) -> str:
    """The type of the file system as the table of mounts names it; "" if unknown."""
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:  # there is such a table only in Linux
        return ""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def create_private(path: Path) -> None:
    """Make sure `path` is a regular file of ours with mode 0600; create it if missing.

    SQLite gives its companion files the mode of the database, whatever the umask.

    Raises:
        UnsafePath: it is a link, or belongs to another user.
        StateUnavailable: it cannot be created.
    """
    try:
        os.close(open_private_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        portable.sync_folder(path.parent)  # SQLite does, and does not look at how that went
    except FileExistsError:
        pass
    except OSError as error:
        raise StateUnavailable(
            f"the state file {path} cannot be created: {error.strerror}."
        ) from error
    for existing in (path, *(_beside(path, suffix) for suffix in _COMPANIONS)):
        _require_private(existing)


def _require_private(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or not portable.is_own(found):
        raise UnsafePath(
            f"{path} is a link, not a regular file, or belongs to another user.",
            next_step="Find out who put it there; choose another place with --state meanwhile.",
        )
    if portable.is_shared(found, 0o077):
        path.chmod(0o600)  # no other user writes here: it is still the file just checked


def inspect(path: Path, *, newest_version: int) -> None:
    """Look at a database file without changing it.

    One whose last writer died in the middle of creating it has a journal that says how it
    was before. No other user can read it until that is done, which needs the right to write.

    Raises:
        Damaged: it is not a database, or not a whole one.
        UnsupportedState: a newer vodup wrote it.
        ConfigurationError: another program wrote it.
    """
    if path.stat().st_size == 0:
        return
    try:
        try:
            _inspect_as(path, "ro", newest_version)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            _inspect_as(path, "rw", newest_version)
    except sqlite3.Error as error:
        if is_damage(error):
            raise Damaged(str(error)) from error
        raise


def _inspect_as(path: Path, mode: str, newest_version: int) -> None:
    url = f"{path.as_uri()}?mode={mode}"
    with closing(sqlite3.connect(url, uri=True, timeout=5)) as database:
        _inspect_open(database, path, newest_version)


def _inspect_open(database: sqlite3.Connection, path: Path, newest_version: int) -> None:
    application_id = database.execute("PRAGMA application_id").fetchone()[0]
    tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
    if application_id != APPLICATION_ID:
        if tables or application_id:
            raise ConfigurationError(
                f"{path} is the database of another program.",
                next_step="Name another file with --state.",
            )
        return
    _require_version(database, path, newest_version)
    if path.stat().st_size <= _SMALL_BYTES or is_suspect(path):
        finding = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if finding != "ok":
            raise Damaged(str(finding))


def _require_version(database: sqlite3.Connection, path: Path, newest_version: int) -> None:
    row = database.execute("SELECT schema_version FROM vodup_store").fetchone()
    if row is None or not isinstance(row[0], int) or row[0] < 1:
        raise Damaged("it has no version")
    if row[0] > newest_version:
        raise UnsupportedState(
            f"{path} was written by a newer vodup (schema {row[0]}; this one knows "
            f"{newest_version})."
        )


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the content is wrong, rather than out of reach."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return not isinstance(error, sqlite3.OperationalError) or "UTF-8" in str(error)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def quarantine(path: Path) -> Path:
    """Put a damaged database and its companions aside; returns its new name."""
    number = 1
    while (aside := _beside(path, f".corrupt-{number}")).exists():
        number += 1
    for suffix in _COMPANIONS:
        companion = _beside(path, suffix)
        if companion.exists():
            companion.rename(_beside(aside, suffix))
    path.rename(aside)
    _beside(path, _SUSPECT_SUFFIX).unlink(missing_ok=True)
    portable.sync_folder(path.parent)
    return aside


def suspect(path: Path) -> None:
    """Have the next opening check the whole file, however large it is."""
    try:
        _beside(path, _SUSPECT_SUFFIX).touch(mode=0o600)
    except OSError:  # full or read-only: the failed write reports that
        return


def is_suspect(path: Path) -> bool:
    """Whether a process has found damage in this file."""
    return _beside(path, _SUSPECT_SUFFIX).exists()


def clear_suspicion(path: Path) -> None:
    """Record that the file was checked and is whole.

    Pages that a disk did not keep are written again before: Linux marks pages whose fsync
    failed as clean, so that a later fsync of the log succeeds without them.

    Raises:
        sqlite3.Error: the disk refuses still.
    """
    if is_suspect(path):
        with closing(sqlite3.connect(path, timeout=5)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    _beside(path, _SUSPECT_SUFFIX).unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
