"""What every source promises."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from uploader.protocol.wire import Body
from uploader.sources.fingerprints import Fingerprint

__all__ = ["Source"]


class Source(Protocol):
    """Something to upload; an async context manager, open only inside it.

    Between entering and leaving, every read yields the bytes that were there on
    entering, or raises `SourceChanged`: never other bytes and never fewer.
    """

    @property
    def name(self) -> str:
        """For people: a path, without secrets."""

    @property
    def identity(self) -> str:
        """What stays the same from run to run: an absolute path, a URL. Names the upload."""

    @property
    def size(self) -> int:
        """Bytes, at least 1; known once entered."""

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
