"""Who holds an upload, whether that process still lives, and keeping a lease alive.

A lease has two guards. Its epoch, in the database, fences every write. An flock on a
file named after the owner shows at once, on the same machine, that an owner died: the
kernel releases the lock whatever killed the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, NoReturn, Self
from uuid import uuid4
from weakref import WeakSet

from uploader import portable
from uploader.clock import SystemClock
from uploader.errors import LeaseLost, StateUnavailable, UnsafePath
from uploader.private_files import open_regular_file
from uploader.tasks import one_error

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LOCKS: Final = Path("/proc/locks")
_END_HOLDER: Final = (
    "If that process is stopped, continue it (`kill -CONT {0}`) or end it; then run the same "
    "command again."
)
_LOCK_SUFFIX: Final = ".owner"
_CLOCK_SUFFIX: Final = ".clock"
_POLL_S: Final = 0.02
_CLOCK: Final = SystemClock()
TAKEN_OVER: Final = "another process took it over"
_OLD_S: Final = 86_400.0  # a lease is over by then, whoever held it


class FileLock:
    """An flock on a file. The kernel releases it with the process; a forked child never has it.

    Mutable: the descriptor, None once closed.
    """

    _open: ClassVar[WeakSet[FileLock]] = WeakSet()

    def __init__(self, path: Path) -> None:
        self._fd: int | None = open_regular_file(path, os.O_RDWR | os.O_CREAT)
        portable.set_mode(self._fd, 0o600)  # whatever the umask
        FileLock._open.add(self)

    def take(self, *, shared: bool = False, wait_s: float = 0.0) -> bool:
        """Take or convert the lock; False if another process has it for all of `wait_s`."""
        deadline = time.monotonic() + wait_s
        while not self._try(shared=shared):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def close(self) -> None:
        """Release the lock. May be called twice."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _try(self, *, shared: bool) -> bool:
        if self._fd is None:
            raise RuntimeError("the lock file is closed")
        try:
            portable.lock(self._fd, shared=shared)
        except BlockingIOError:
            return False
        return True

    @classmethod
    def forget_parents(cls) -> None:
        """In a forked child: let go of descriptors that would keep the parent's locks."""
        for lock in list(cls._open):
            lock.close()


portable.after_fork(FileLock.forget_parents)


@dataclass(frozen=True, slots=True)
class Owner:
    """A store opened by a process.

    Attributes:
        boot: identifies one run of one kernel, so that pids and lock files mean something.
        token: unique for each opening; names the lock file.
    """

    host: str
    boot: str
    pid: int
    token: str

    @classmethod
    def this_process(cls, *, boot_id: Path = _BOOT_ID) -> Self:
        """A new owner for a store that is being opened."""
        host = socket.gethostname().replace("/", "-")
        return cls(host=host, boot=_boot_id(boot_id), pid=os.getpid(), token=uuid4().hex)

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """Read `to_text` back; None for anything else."""
        pieces = text.split("/") if isinstance(text, str) else []
        if len(pieces) != 4 or not pieces[2].isdecimal() or not pieces[3].isalnum():
            return None
        return cls(host=pieces[0], boot=pieces[1], pid=int(pieces[2]), token=pieces[3])

    def to_text(self) -> str:
        """As stored with a lease."""
        return f"{self.host}/{self.boot}/{self.pid}/{self.token}"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _boot_id(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""


def lock_holder(*paths: Path) -> tuple[str, str | None]:
    """Name the process that has locked one of these files, and what to do about it, for people.

    Read from /proc: a query through a descriptor of our own would release our locks on the file
    when that is closed (POSIX: close).
    """
    try:
        inodes = {str(path.stat().st_ino) for path in paths if path.exists()}
        lines = [line.split() for line in _LOCKS.read_text("ascii").splitlines()]
    except OSError:
        lines, inodes = [], set()
    for words in lines:
        # "1: POSIX  ADVISORY  WRITE 4711 08:01:131 120 120"; "->" begins one that waits.
        is_here = len(words) > 5 and words[5].rpartition(":")[2] in inodes
        if is_here and words[3] == "WRITE" and words[4] not in {"0", "-1", str(os.getpid())}:
            return f"process {words[4]}", _END_HOLDER.format(words[4])
    return "another process", None


def shared_clock(folder: Path) -> Callable[[], float]:
    """Return a clock for leases that all processes of this machine share, and that nobody sets.

    It counts seconds since 1970, and like the time since boot it goes on while the machine sleeps.
    A file says what the wall clock showed at boot, when the first of them came here. Where the boot
    has no ID, it is the wall clock. Call it while no other process does.
    """
    boot = _boot_id(_BOOT_ID)
    if not boot:
        return time.time
    path = folder / f"{boot}{_CLOCK_SUFFIX}"
    try:
        booted_at = float(path.read_text("ascii"))
    except (OSError, ValueError):
        booted_at = time.time() - _CLOCK.elapsed_s()
        fresh = path.with_suffix(".new")
        with suppress(OSError):
            fresh.write_text(f"{booted_at!r}\n", "ascii")
            fresh.chmod(0o600)
            fresh.rename(path)
    return lambda: booted_at + _CLOCK.elapsed_s()


class OwnerLock:
    """The flock that says "this owner lives", and the judgement of others by theirs.

    The file gets its final name only once it is locked: a file by that name that can be
    locked by another process belongs to a dead process. Only owners of this boot of this
    kernel are judged: on a shared folder, locks of other machines may be invisible.
    """

    def __init__(self, directory: Path, store_id: str, owner: Owner) -> None:
        self._directory = directory
        self._prefix = f"{store_id}.{owner.boot}."
        self._owner = owner
        self._path = self._path_of(owner.token)
        fresh = self._path.with_suffix(".new")
        self._lock = FileLock(fresh)
        self._lock.take()
        fresh.rename(self._path)
        self._is_file_left = False

    def is_dead(self, owner: Owner) -> bool:
        """Whether that process is known to be gone. Unknown counts as alive."""
        if owner.boot != self._owner.boot:
            return False
        return self._is_free(self._path_of(owner.token))

    def dead_tokens(self) -> list[str]:
        """Owners of this store whose processes are gone and whose files are still there."""
        found = {
            path.stem.removeprefix(self._prefix): path
            for path in self._directory.glob(f"{self._prefix}*{_LOCK_SUFFIX}")
        }
        return [token for token, path in found.items() if token.isalnum() and self._is_free(path)]

    def remove(self, token: str) -> None:
        """Remove the file of a dead owner whose leases are gone."""
        self._path_of(token).unlink(missing_ok=True)

    def remove_old_files(self) -> None:
        """Remove what other boots, other stores and broken openings left behind long ago."""
        oldest = time.time() - _OLD_S
        here = f"{self._owner.boot}{_CLOCK_SUFFIX}"
        for pattern in (f"*{_LOCK_SUFFIX}", f"*{_CLOCK_SUFFIX}", "*.new"):
            for path in self._directory.glob(pattern):
                is_old = path.lstat().st_mtime < oldest and path.name != here
                if is_old and self._is_free(path):
                    path.unlink(missing_ok=True)

    def leave_file(self) -> None:
        """Keep the file when we close: there are leases of ours that others must judge."""
        self._is_file_left = True

    def close(self) -> None:
        """Remove the file, then release the lock."""
        if not self._is_file_left:
            with suppress(OSError):  # it stays, unlocked: the next opening removes it
                self._path.unlink(missing_ok=True)
        self._lock.close()

    def _path_of(self, token: str) -> Path:
        return self._directory / f"{self._prefix}{token}{_LOCK_SUFFIX}"

    @staticmethod
    def _is_free(path: Path) -> bool:
        try:
            fd = open_regular_file(path, os.O_RDWR)
        except (OSError, UnsafePath):
            return False
        try:
            portable.lock(fd, shared=True)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True


class Lease:
    """A claim on one key.

    Mutable: `epoch` is 0 until the store has given one; no other owner can
    have taken it before `held_until_s`, on a clock that runs while the machine sleeps; `lost`
    is set once, when another owner took it over.
    """

    __slots__ = ("epoch", "held_until_s", "key", "lost")

    def __init__(self, key: str) -> None:
        self.key = key
        self.epoch = 0
        self.held_until_s = 0.0
        self.lost: LeaseLost | None = None

    def left_s(self) -> float:
        """How long it is certainly ours; negative once another owner may have it."""
        return -1.0 if self.lost else self.held_until_s - _CLOCK.elapsed_s()

    def lose(self, why: str) -> LeaseLost:
        """Note that it is gone; returns the error to raise."""
        if self.lost is None:
            self.lost = LeaseLost(f"upload {self.key!r} is no longer ours: {why}.")
        return self.lost


@asynccontextmanager
async def kept_alive(
    lease: Lease, renew: Callable[[], Awaitable[bool]], *, ttl_s: float
) -> AsyncIterator[None]:
    """Renew `lease` while the block runs; cancel the block when it is lost.

    What the block raises comes out as it is; a lost lease comes out as `LeaseLost`, even
    out of the block's own exception groups; a cancellation from outside stays one.
    """
    try:
        async with one_error() as group:
            tasks: list[asyncio.Task[NoReturn]] = []

            def begin() -> None:
                tasks.append(group.create_task(_renew_until_lost(lease, renew, ttl_s)))

            # Most uploads of small files end before: a timer costs a tenth of a task.
            timer = asyncio.get_running_loop().call_later(ttl_s / 3, begin)
            try:
                yield
            finally:
                timer.cancel()
                for task in tasks:
                    task.cancel()
    except LeaseLost:
        raise
    except Exception as error:
        if lease.lost is not None:
            raise lease.lost from error
        raise


async def _renew_until_lost(
    lease: Lease, renew: Callable[[], Awaitable[bool]], ttl_s: float
) -> NoReturn:
    """Renew now and every third of `ttl_s`; more often while the database does not answer."""
    while True:
        pause_s = ttl_s / 3
        try:
            async with asyncio.timeout(max(lease.left_s(), ttl_s / 3)):
                is_ours = await renew()
        except (StateUnavailable, TimeoutError) as error:
            pause_s = ttl_s / 10
            if lease.left_s() <= 0:
                lease.lose(f"it could not be renewed for {ttl_s:g} s ({error!s})")
        else:
            if not is_ours:
                lease.lose(TAKEN_OVER)
        if lease.lost is not None:
            raise lease.lost
        await asyncio.sleep(pause_s)
