"""When to look at the folder again: notifications of the system, or polling where there are none.

Notifications only say that it is time to look. What is complete is decided by looking, so a lost
notification delays a file until the next regular look, and loses none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final

from uploader.errors import VodupError
from uploader.portable import CAN_SEE_WRITERS, has_writer
from uploader.sources.files import open_regular_file
from uploader.tasks import one_error

# File systems whose changes come from other machines: the kernel reports only its own.
_NETWORK: Final = frozenset(
    "nfs nfs4 cifs smb3 smbfs ncpfs 9p virtiofs ceph glusterfs lustre afs gpfs beegfs pvfs2 "
    "orangefs ocfs2 gfs2 vboxsf prl_fs vmhgfs drvfs davfs s3fs".split()
)


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
    """Whether a process has the file open for writing, as far as the system tells."""
    if not CAN_SEE_WRITERS:
        return False
    try:
        descriptor = open_regular_file(path, follow_symlinks=False, root=root)
    except (OSError, VodupError):
        return False  # the upload finds out why
    try:
        return has_writer(descriptor)
    finally:
        os.close(descriptor)
