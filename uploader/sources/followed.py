"""Files that are uploaded while another process still writes them.

A part can be sent as soon as the file is long enough. What the writer changes afterwards (a
muxer goes back to the header of an MP4) is found by reading the whole file once more after
its end, and is sent again.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from uploader.clock import Clock, SystemClock
from uploader.errors import ConfigurationError
from uploader.portable import CLOSE_ON_EXEC
from uploader.protocol.plan import MAX_PART_SIZE, Part
from uploader.sources.contract import Fingerprint, PartStream, empty_source
from uploader.sources.files import FileSource, OpenFile

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncFileIO

_POLL_S: Final = 0.1
"""Seconds between two looks at the size. Shorter: more wake-ups; longer: the last bytes are
sent later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """How the end of the file is recognized: by whichever of these comes first.

    Attributes:
        marker: this file exists.
        idle_s: nothing was written for this long. Too short takes a pause for the end.
        pid: this process has ended, or does not exist.
    """

    marker: str | os.PathLike[str] | None = None
    idle_s: float | None = None
    pid: int | None = None


class _UncheckedFile(OpenFile):
    """A descriptor of a file that may change; the last reading finds what has changed."""

    def check_now(self) -> None:
        return None

    def check_untouched_now(self) -> None:
        return None


class FollowedFile(FileSource):
    """A regular file that is still being written. Mutable: open or not, ended or not.

    Args:
        path: of the file; it must exist, and may be empty.
        until: how its end is recognized; a call of `finish` ends it, too.
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
        self._stream = _FollowedParts(self)
        self._writer: int | None = None
        self._is_finished = False
        self._has_ended = False
        self._last_state = (0, 0)
        self._changed_at_s = 0.0

    def finish(self) -> None:
        """Declare that the file is complete. May be called at any time, on the event loop."""
        self._is_finished = True

    @property
    def size(self) -> int:
        """Bytes; 0 while the file is being written."""
        return self._opened().fingerprint.size if self._has_ended else 0

    @property
    def stream(self) -> PartStream:  # type: ignore[override]  # a complete file has none
        """Its parts, which arrive as they are written."""
        return self._stream

    async def fingerprint(self) -> Fingerprint:
        """While it is being written, only which file it is; after its end, as of every file."""
        now = await super().fingerprint()
        if self._has_ended:
            return now
        return Fingerprint(0, 0, 0, now.inode, now.device)

    async def wait_for_size(self, end: int) -> int:
        """Wait until the file has `end` bytes or is complete; return how many it has.

        Raises:
            SourceUnreadable: it is complete and empty.
            SourceChanged: it has been replaced.
        """
        while True:
            has_ended = self._has_ended or await self._opened().in_thread(self._is_complete)
            size = await self._current_size(fresh=has_ended)
            if has_ended:
                self._has_ended = True
                if size == 0:
                    raise empty_source(self.name)
                return size
            if size >= end:
                return size
            await self._clock.sleep(_POLL_S)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            os.close(writer)
        self._has_ended = False
        await super().__aexit__(kind, error, trace)

    def _open_file(self, handle: AsyncFileIO, read_timeout_s: float) -> OpenFile:
        """Accept a file that is still empty."""
        self._changed_at_s = self._clock.elapsed_s()
        self._writer = _open_process(self._until.pid)
        return _UncheckedFile(self._path, handle, read_timeout_s)

    async def _current_size(self, *, fresh: bool) -> int:
        file = self._opened()
        if fresh:
            await file.in_thread(_refresh, self._path)
        now = await super().fingerprint()
        if (now.size, now.mtime_ns) != self._last_state:
            self._last_state = (now.size, now.mtime_ns)
            self._changed_at_s = self._clock.elapsed_s()
        file.fingerprint = now
        return now.size

    def _is_complete(self) -> bool:
        until = self._until
        idle_s = self._clock.elapsed_s() - self._changed_at_s
        return (
            self._is_finished
            or (until.marker is not None and os.path.lexists(until.marker))
            or (until.idle_s is not None and idle_s >= until.idle_s)
            or (until.pid is not None and _has_exited(until.pid, self._writer))
        )


@dataclass(frozen=True, slots=True)
class _FollowedParts(PartStream):
    """The parts of a followed file: it buffers them, and the next run reads the same file."""

    file: FollowedFile
    is_rereadable = True
    max_part_size = MAX_PART_SIZE

    async def wait_for(self, part: Part) -> int:
        size = await self.file.wait_for_size(part.offset + part.size)
        return min(part.size, max(0, size - part.offset))


def _open_process(pid: int | None) -> int | None:
    """Open a descriptor of the process: its number may be reused once it has ended."""
    if pid is None:
        return None
    if pid < 1:
        raise ConfigurationError(f"{pid} is not a process ID.")
    with suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def _has_exited(pid: int, descriptor: int | None) -> bool:
    if descriptor is not None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _refresh(path: str) -> None:
    """Open the file, which makes a network file system request the size from its server."""
    with suppress(OSError):
        os.close(os.open(path, os.O_RDONLY | CLOSE_ON_EXEC))
