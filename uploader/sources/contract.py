"""What every source promises.

Most sources are there as a whole. Some arrive: where they end is not known when their
upload begins. Those have an `Arrival`, and everything else is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from uploader.protocol.plan import Part
from uploader.protocol.wire import Body
from uploader.sources.fingerprints import Fingerprint

__all__ = ["Arrival", "Source"]


class Source(Protocol):
    """Something to upload; an async context manager, open only inside it.

    Between entering and leaving, every read yields the bytes that were there on
    entering, or raises `SourceChanged`: never other bytes and never fewer. A source with
    an `Arrival` promises the same of every part that has been reached.
    """

    @property
    def name(self) -> str:
        """For people: a path, without secrets."""

    @property
    def identity(self) -> str:
        """What stays the same from run to run: an absolute path, a URL. Names the upload."""

    @property
    def size(self) -> int:
        """Bytes, at least 1; known once entered. 0 while an arriving source has no end."""

    @property
    def arrival(self) -> Arrival | None:
        """How it arrives; None if it is there as a whole. Known once entered."""

    async def fingerprint(self) -> Fingerprint:
        """What identifies the source right now.

        Raises:
            SourceChanged: the name stands for something else by now.
        """

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """The range as a request's body; `on_sent` is told how far it has been sent."""

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """CRC-64 of the range, and its MD5 (upper-case hex) if asked for; reads it again."""

    async def __aenter__(self) -> Self:
        """Open it. Raises `SourceUnreadable`."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; bodies must not be read any more."""


class Arrival(Protocol):
    """How a source comes that has no end yet.

    Parts are reached in order, each as it is planned, one at a time; a run that begins
    anew asks from the first part again.
    """

    @property
    def is_rereadable(self) -> bool:
        """Whether parts can be read at any time, or only between `reached` and `release`."""

    @property
    def largest_part(self) -> int:
        """Bytes of one part that it can keep."""

    @property
    def expected_size(self) -> int | None:
        """A guess of the whole; None without one."""

    @property
    def resumption(self) -> str:
        """What a user does to go on after a failure, as one sentence with `{key}` in it."""

    async def begin(self, reference: str) -> None:
        """Get ready for the upload of this name; what was kept for another one is dropped.

        "" is none: the upload is finished, and the bytes are only to be compared.
        Called once before the first part, and again when a run begins anew.
        """

    async def reached(self, part: Part) -> int:
        """Wait until the part is there; returns how many of its bytes are, the rest has ended.

        Waits for room as well: whoever produces is not read from meanwhile.

        Raises:
            SourceNotRepeatable: the part was released before, or belongs to a former run.
            SourceError: whoever produces has failed.
        """

    async def release(self, part: Part) -> None:
        """OSS has the part: it need not be kept any more."""
