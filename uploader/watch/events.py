"""When to look at the folder again: notifications of the system, or polling where there are none.

Notifications only say that it is time to look. What is complete is decided by looking, so a lost
notification delays a file until the next regular look, and loses none.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable, Sequence
from typing import Final

from uploader.errors import VodupError
from uploader.sources.files import open_regular_file
from uploader.tasks import one_error

# File systems whose changes come from other machines: the kernel reports only its own.
_NETWORK: Final = frozenset(
    "nfs nfs4 cifs smb3 smbfs ncpfs 9p virtiofs ceph glusterfs lustre afs gpfs beegfs pvfs2 "
    "orangefs ocfs2 gfs2 vboxsf prl_fs vmhgfs drvfs davfs s3fs".split()
)

_F_SETSIG: Final = getattr(fcntl, "F_SETSIG", 10)


def file_system_of(path: str) -> str:
    """Return the type of the file system of a folder; "" if it is not known."""
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            # proc(5): "id parent dev root MOUNT options [fields] - TYPE source options".
            for line in file:
                before, _, after = line.partition(b" - ")
                mount = os.fsdecode(before.split()[4].decode("unicode_escape").encode("latin-1"))
                is_above = path == mount or path.startswith(f"{mount.rstrip('/')}/")
                if is_above and len(mount) >= len(best):
                    best, kind = mount, after.split()[0].decode()
    except (OSError, ValueError, IndexError):
        return ""
    return kind


def is_network(file_system: str) -> bool:
    """Whether other machines may change files there, without a notification here."""
    return file_system in _NETWORK or file_system.startswith("fuse")


async def notify(
    folders: Sequence[str], wake: asyncio.Event, on_failure: Callable[[str], None]
) -> None:
    """Set `wake` when something in these folders changes; not below them.

    Ends, after a call of `on_failure`, if the system gives no notifications.
    """
    try:
        from watchfiles import awatch
    except ImportError:
        on_failure("watchfiles is not installed (`pip install 'vodup[watch]'`)")
        return
    changes = awatch(
        *folders, recursive=False, watch_filter=None, debounce=500, ignore_permission_denied=True
    )

    async def listen() -> None:
        async for _ in changes:
            wake.set()

    try:
        async with one_error() as group:
            group.create_task(listen())
            await asyncio.sleep(0)  # it has run up to its first wait: the folders are watched
            wake.set()
    except (OSError, RuntimeError) as error:  # the limits of inotify, or a folder is gone
        on_failure(str(error)[:200])


def is_open_for_writing(path: str, *, root: str) -> bool:
    """Whether a process has the file open for writing, as far as the system tells.

    Linux grants a read lease only on a file that nobody writes to, to the file's owner, on local
    file systems. The lease is given back at once; the signal that a writer in between would cause
    is one that is ignored unless somebody handles it (the default, SIGIO, ends the process).
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        descriptor = open_regular_file(path, follow_symlinks=False, root=root)
    except (OSError, VodupError):
        return False  # the upload finds out why
    try:
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
