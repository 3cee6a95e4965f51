"""What differs between operating systems: each has one way on Linux, and a portable one.

Linux has all of it, macOS most; Windows has neither `fcntl` nor `resource`, and no process groups.
Which way is used is decided when this is loaded. `make test-portable` runs the tests on Linux
without what the others lack. No other module imports what only some systems have.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

fcntl: Any = None
resource: Any = None
with suppress(ImportError):  # Windows has neither
    import fcntl
with suppress(ImportError):
    import resource

# --- opening and reading files ------------------------------------------------------------

CLOSE_ON_EXEC: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""For every `os.open`. Windows translates the ends of lines without O_BINARY."""
NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
"""0 where a link has to be looked for before a file is opened."""
FOLDER: Final = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", 0) | NO_LINK | CLOSE_ON_EXEC
HAS_FOLDER_DESCRIPTORS: Final = hasattr(os, "O_DIRECTORY") and os.open in os.supports_dir_fd
CAN_READ_CACHED: Final = hasattr(os, "RWF_NOWAIT") and hasattr(os, "preadv")
_preadv: Final = getattr(os, "preadv", None)
_readv: Final = getattr(os, "readv", None)
_POSITION: Final = threading.Lock()
"""Threads share the position of a descriptor."""


def read_at(descriptor: int, into: memoryview, offset: int) -> int:
    """Read into a buffer from a position; returns the number of bytes, 0 at the end."""
    if _preadv is not None:
        return int(_preadv(descriptor, [into], offset))
    with _POSITION:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(into))
    into[: len(data)] = data
    return len(data)


def read_cached(descriptor: int, into: memoryview, offset: int) -> int:
    """As `read_at`, from the page cache alone. Only where `CAN_READ_CACHED`.

    Raises:
        BlockingIOError: some of it is not there.
    """
    return os.preadv(descriptor, [into], offset, os.RWF_NOWAIT)


def read_into(descriptor: int, into: memoryview) -> int:
    """Read into a buffer; returns the number of bytes, 0 at the end."""
    if _readv is not None:
        return int(_readv(descriptor, [into]))
    data = os.read(descriptor, len(into))
    into[: len(data)] = data
    return len(data)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable, where a folder can be opened for that."""
    if not HAS_FOLDER_DESCRIPTORS:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | CLOSE_ON_EXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- users and their files ----------------------------------------------------------------

HAS_OWNERS: Final = hasattr(os, "geteuid")
"""Whether files have an owner and a mode that say who else may use them."""


def is_own(found: os.stat_result, *, owner: int | None = None) -> bool:
    """Whether a file belongs to this user, or to `owner`."""
    return not HAS_OWNERS or found.st_uid == (os.geteuid() if owner is None else owner)


def is_shared(found: os.stat_result, rights: int) -> bool:
    """Whether group and others have any of `rights`, for example 0o022."""
    return HAS_OWNERS and bool(found.st_mode & rights)


def set_mode(descriptor: int, mode: int) -> None:
    """Set the mode of an open file, where it has one."""
    if HAS_OWNERS and hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)


# --- locks --------------------------------------------------------------------------------


def lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock a file, or convert the lock. The system releases it when the descriptor is closed.

    Raises:
        BlockingIOError: another opening of the file has a lock that excludes this one.
        OSError: the file system has no locks.
    """
    if fcntl is None:
        _lock_in_windows(descriptor, shared=shared)
    else:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


_LOCKED_OFFSET: Final = 0x7FFFFFFF
"""Windows keeps others from reading what is locked: one byte that no file of ours has."""


def _lock_in_windows(descriptor: int, *, shared: bool) -> None:
    """LockFileEx (Win32: fileapi.h); a lock is not converted, but released and taken again."""
    import ctypes
    import msvcrt

    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    handle = ctypes.c_void_p(msvcrt.get_osfhandle(descriptor))  # type: ignore[attr-defined]
    place = (ctypes.c_uint32 * 8)()  # OVERLAPPED: Offset follows two pointers
    place[2 * ctypes.sizeof(ctypes.c_void_p) // 4] = _LOCKED_OFFSET
    kernel.UnlockFileEx(handle, 0, 1, 0, ctypes.byref(place))
    at_once, exclusive = 1, 2
    flags = at_once | (0 if shared else exclusive)
    if not kernel.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(place)):
        raise BlockingIOError(ctypes.get_last_error(), "another process has locked the file")  # type: ignore[attr-defined]


def append_only(descriptor: int) -> None:
    """Have every write go to the end, on a descriptor that was opened without that."""
    if fcntl is not None:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)


def enlarge_pipe(descriptor: int, size: int) -> None:
    """Have a pipe hold `size` bytes, where the system can do that."""
    with suppress(AttributeError, OSError):  # Linux only
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size)


CAN_SEE_WRITERS: Final = hasattr(fcntl, "F_SETLEASE")
_F_SETSIG: Final = getattr(fcntl, "F_SETSIG", 10)


def has_writer(descriptor: int) -> bool:
    """Whether a process has an open file open for writing. Only where `CAN_SEE_WRITERS`.

    Linux grants a read lease only on a file that nobody writes to, to the file's owner, on local
    file systems. The lease is given back at once; the signal that a writer in between would cause
    is one that is ignored unless somebody handles it (the default, SIGIO, ends the process).
    """
    try:
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# --- limits -------------------------------------------------------------------------------


def descriptor_limit() -> int | None:
    """How many descriptors this process may open; None: no limit, or not known."""
    return _limit("RLIMIT_NOFILE")


def memory_limit() -> int | None:
    """How many bytes of addresses this process may use; None: no limit, or not known."""
    return _limit("RLIMIT_AS")


def _limit(name: str) -> int | None:
    with suppress(AttributeError, OSError, ValueError):
        soft, _ = resource.getrlimit(getattr(resource, name))
        return None if soft == resource.RLIM_INFINITY else soft
    return None


def disable_core_dumps() -> None:
    """Have a crash write no memory to disk, where the system allows that."""
    with suppress(AttributeError, OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


# --- processes and signals ------------------------------------------------------------------

HAS_PROCESS_GROUPS: Final = hasattr(os, "killpg") and hasattr(os, "setsid")
CHILD: Final[signal.Signals | None] = getattr(signal, "SIGCHLD", None)
HANGUP: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)


def after_fork(call: Callable[[], None]) -> None:
    """Call something in every forked child, where processes can fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


def on_signal(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, call: Callable[[], None]
) -> None:
    """Call something on the loop at each signal, until `off_signal`."""
    try:
        loop.add_signal_handler(number, call)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(call))


def off_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, before: Any) -> None:  # noqa: ANN401 - as `signal.getsignal` has it
    """Undo `on_signal`; `before` is the handler that was there."""
    with suppress(NotImplementedError):
        if not loop.remove_signal_handler(number):
            return
    signal.signal(number, before)
