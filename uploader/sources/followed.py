"""Files that are uploaded while somebody writes them.

Parts are there as soon as the file is long enough. What its writer changes afterwards (a
muxer goes back to the header of an MP4) is found by reading the whole file once more after
its end, and sent again.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from uploader.clock import Clock, SystemClock
from uploader.errors import ConfigurationError
from uploader.protocol.plan import MAX_PART_SIZE, Part
from uploader.sources.contract import Arrival
from uploader.sources.files import FileSource, OpenFile
from uploader.sources.fingerprints import Fingerprint
from uploader.sources.refusals import empty

__all__ = ["FollowedFile", "Until"]

_POLL_S: Final = 0.1
"""Seconds between two looks. Shorter costs wake-ups; longer sends the last bytes later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """How the end of a file is known; the first of these that comes true.

    Attributes:
        marker: this file exists.
        idle_s: nothing was written for so long. Too short takes a pause for the end.
        pid: this process has ended; one that is not there has.
    """

    marker: str | os.PathLike[str] | None = None
    idle_s: float | None = None
    pid: int | None = None


class _Growing(OpenFile):
    """A descriptor of a file that changes: what differs is found by the last reading."""

    async def check(self) -> None:
        return None

    def check_now(self) -> None:
        return None


class FollowedFile(FileSource):
    """A regular file that is still written. Mutable: open or not, ended or not.

    Args:
        path: where it is; it must exist, and may be empty.
        until: how its end is known, beside a call of `finish`.
        read_timeout_s: as of a `FileSource`.
    """

    def __init__(
        self,
        path: str | Path,
        until: Until | None = None,
        *,
        read_timeout_s: float = 120.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(path, read_timeout_s=read_timeout_s)
        self._until = until or Until()
        self._clock = clock or SystemClock()
        self._arrival = _Growth(self)
        self._writer: int | None = None
        self._is_finished = False
        self._has_ended = False
        self._seen = (0, 0)
        self._changed_at_s = 0.0

    def finish(self) -> None:
        """Say that the file is at its end. May be called at any time, from the loop."""
        self._is_finished = True

    @property
    def size(self) -> int:
        """Bytes; 0 while it is written."""
        return self._opened().fingerprint.size if self._has_ended else 0

    @property
    def arrival(self) -> Arrival:  # type: ignore[override]  # a file that is there has none
        """It arrives."""
        return self._arrival

    async def fingerprint(self) -> Fingerprint:
        """While it is written, which file it is; after its end, what every file is known by."""
        now = await super().fingerprint()
        if self._has_ended:
            return now
        return Fingerprint(0, 0, 0, now.inode, now.device)

    async def wait_for(self, end: int) -> int:
        """Wait until the file has `end` bytes or is at its end; returns how many it has.

        Raises:
            SourceUnreadable: it is at its end, and empty.
            SourceChanged: it has been replaced.
        """
        while True:
            has_ended = self._has_ended or await self._opened().in_thread(self._is_over)
            size = await self._size_now(fresh=has_ended)
            if has_ended:
                self._has_ended = True
                if size == 0:
                    raise empty(self.name)
                return size
            if size >= end:
                return size
            await self._clock.sleep(_POLL_S)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            os.close(writer)
        self._has_ended = False
        await super().__aexit__(kind, error, trace)

    def _kind(self) -> type[OpenFile]:
        return _Growing

    def _admit(self, file: OpenFile) -> None:
        """It may be empty as yet."""
        self._changed_at_s = self._clock.elapsed_s()
        self._writer = _handle_of(self._until.pid)

    async def _size_now(self, *, fresh: bool) -> int:
        file = self._opened()
        if fresh:
            await file.in_thread(_refresh, self._path)
        now = await super().fingerprint()
        if (now.size, now.mtime_ns) != self._seen:
            self._seen, self._changed_at_s = (now.size, now.mtime_ns), self._clock.elapsed_s()
        file.fingerprint = now
        return now.size

    def _is_over(self) -> bool:
        until = self._until
        idle_s = self._clock.elapsed_s() - self._changed_at_s
        return (
            self._is_finished
            or (until.marker is not None and os.path.lexists(until.marker))
            or (until.idle_s is not None and idle_s >= until.idle_s)
            or (until.pid is not None and _has_exited(until.pid, self._writer))
        )


@dataclass(frozen=True, slots=True)
class _Growth:
    """How a followed file arrives."""

    file: FollowedFile

    @property
    def is_rereadable(self) -> bool:
        """Yes: it is a file."""
        return True

    @property
    def largest_part(self) -> int:
        """As large as OSS takes: the file keeps it."""
        return MAX_PART_SIZE

    @property
    def expected_size(self) -> None:
        """Nobody knows."""

    @property
    def resumption(self) -> str:
        """The file is there for the next run, too."""
        return ""

    async def begin(self, reference: str) -> None:
        """There is nothing to prepare."""

    async def reached(self, part: Part) -> int:
        """Wait until it is written."""
        size = await self.file.wait_for(part.offset + part.size)
        return min(part.size, max(0, size - part.offset))

    async def release(self, part: Part) -> None:
        """Nothing was kept."""


# --- the writer -----------------------------------------------------------------------


def _handle_of(pid: int | None) -> int | None:
    """A handle of the process itself: its number may be another's once it has ended."""
    if pid is None:
        return None
    if pid < 1:
        raise ConfigurationError(f"{pid} is no number of a process.")
    with suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def _has_exited(pid: int, handle: int | None) -> bool:
    if handle is not None:
        return bool(select.select([handle], [], [], 0)[0])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _refresh(path: str) -> None:
    """Opening makes a network file system ask its server how long the file is by now."""
    with suppress(OSError):
        os.close(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
