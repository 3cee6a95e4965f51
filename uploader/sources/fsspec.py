"""What fsspec reads: S3, GCS, HDFS, SFTP and whatever else has an implementation.

Ranges are read in threads of their own, a few megabytes at a time. Credentials for the
store are its implementation's business: environment, profiles, `storage_options`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from uploader.errors import ConfigurationError, SourceChanged, SourceUnreadable, VodupError
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources.fingerprints import Fingerprint
from uploader.sources.ranges import Checksums
from uploader.sources.refusals import changed_while_read, empty, ends_early
from uploader.threads import Threads

__all__ = ["FsspecSource"]

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_SIZE: Final = 4 * 1024 * 1024
"""Bytes of one reading. Too small: each costs a round trip; too large: every connection
holds one in memory."""

_THREADS: Final = Threads("vodup-fsspec", 32)
"""As many as the uploader has connections at most."""

_VOLATILE: Final = frozenset({"name", "Key", "atime", "time", "accessed", "StorageClass"})
"""What an implementation tells of a file that changes without the file, or says nothing."""


class FsspecSource:
    """An object behind a URL that fsspec understands. Mutable: open or not.

    Args:
        url: "s3://bucket/movie.mp4", "sftp://host/path", also chained ("zip://…::s3://…").
        name: what VOD is told the file is called; None takes it from the URL.
        storage_options: for the implementation; may hold secrets, and is shown nowhere.
        read_timeout_s: one reading that takes longer is given up.
    """

    def __init__(
        self,
        url: str,
        name: str | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        read_timeout_s: float = 120.0,
    ) -> None:
        self._url = url
        self._given_name = name
        self._options = dict(storage_options or {})
        self._read_timeout_s = read_timeout_s
        self._fs: Any = None
        self._path = ""
        self._seen: Fingerprint | None = None

    # --- as a source ----------------------------------------------------------------

    @property
    def name(self) -> str:
        """The URL without names, passwords and queries."""
        return self._given_name or self.identity

    @property
    def identity(self) -> str:
        """The URL without names, passwords and queries."""
        return re.sub(r"\?[^:]*", "", re.sub(r"//[^/@]*@", "//", self._url))

    @property
    def size(self) -> int:
        """Bytes when it was opened."""
        return self._opened().size

    @property
    def arrival(self) -> None:
        """It is there as a whole."""

    async def fingerprint(self) -> Fingerprint:
        """What the store tells of the object, asked again."""
        self._opened()
        return await self.in_thread(self._look)

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """The range as a request's body."""
        return _Blocks(self, offset, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """Checksums of the range, read again."""
        checksums = Checksums(with_md5=with_md5)
        for position in range(offset, offset + size, BLOCK_SIZE):
            block = await self.block(position, min(BLOCK_SIZE, offset + size - position))
            await self.in_thread(checksums.update, memoryview(block))
        await self.check()
        return checksums.result()

    async def __aenter__(self) -> Self:
        """Find the object.

        Raises:
            ConfigurationError: fsspec, or what it needs for this URL, is not installed.
            SourceUnreadable: it is missing, empty, no file, or of unknown size.
        """
        self._fs, self._path = await self.in_thread(self._connect)
        self._seen = await self.in_thread(self._look)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._seen = None

    # --- reading ----------------------------------------------------------------------

    async def block(self, offset: int, size: int) -> bytes:
        """Read a range.

        Raises:
            SourceChanged: it ends early.
        """
        block = await self.in_thread(self._fs.cat_file, self._path, start=offset, end=offset + size)
        if len(block) != size:
            raise ends_early(self.name, offset + len(block))
        return bytes(block)

    async def check(self) -> None:
        """Raise `SourceChanged` if the store tells something else of it than at first."""
        if changed := self._opened().changes(await self.fingerprint()):
            raise changed_while_read(self.name, changed)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work; whatever an implementation raises becomes ours."""
        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await _THREADS.run(work, *args, **kwargs)
        except VodupError:
            raise
        except TimeoutError as error:
            raise self._passing(f"it does not answer within {self._read_timeout_s:g} s") from error
        except FileNotFoundError as error:
            raise SourceUnreadable(f"{self.name} does not exist.") from error
        except PermissionError as error:
            raise SourceUnreadable(f"{self.name} may not be read with these rights.") from error
        except Exception as error:  # each store has errors of its own
            raise self._passing(f"{type(error).__name__}") from error

    def _passing(self, why: str) -> SourceUnreadable:
        failure = SourceUnreadable(
            f"{self.name} cannot be read: {why}.",
            next_step="Check the store and its credentials, then run the same command again.",
        )
        failure.is_temporary = True
        return failure

    def _connect(self) -> tuple[Any, str]:
        try:
            import fsspec.core

            fs, path = fsspec.core.url_to_fs(self._url, **self._options)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"{self.name} cannot be read: {error}.",
                next_step="Install vodup[fsspec], and what fsspec needs for this kind of URL.",
            ) from error
        return fs, path

    def _look(self) -> Fingerprint:
        self._fs.invalidate_cache()
        info = self._fs.info(self._path)
        size = info.get("size")
        if info.get("type") != "file" or not isinstance(size, int):
            raise SourceUnreadable(f"{self.name} is no file, or its size is not known.")
        if size == 0:
            raise empty(self.name)
        told = repr(sorted((str(k), str(v)) for k, v in info.items() if k not in _VOLATILE))
        return Fingerprint(size, 0, 0, crc64(told.encode()), 0)

    def _opened(self) -> Fingerprint:
        if self._seen is None:
            raise RuntimeError("the source is not open: use it inside `async with`")
        return self._seen


class _Blocks:
    """A range as a request's body, read block by block. Mutable: the last block."""

    def __init__(
        self, source: FsspecSource, offset: int, size: int, on_sent: Callable[[int], None] | None
    ) -> None:
        self.size = size
        self._source = source
        self._offset = offset
        self._on_sent = on_sent
        self._block = memoryview(b"")
        self._begin = 0

    def read_now(self, into: memoryview, position: int) -> int | None:
        """Copy from the last block; the last bytes of all are given by `read`, which looks."""
        left = self._block[position - self._begin :] if position >= self._begin else self._block[:0]
        count = min(len(left), len(into))
        if count == 0 or position + count == self.size:
            return None
        into[:count] = left[:count]
        return count

    async def read(self, into: memoryview, position: int) -> int:
        """Read the next block if the last one is used up."""
        is_there = self._begin <= position < self._begin + len(self._block)
        if not is_there:
            size = min(BLOCK_SIZE, self.size - position)
            if size < 1:
                raise SourceChanged(f"{self._source.name} ends early.")
            self._block = memoryview(await self._source.block(self._offset + position, size))
            self._begin = position
        piece = self._block[position - self._begin :][: len(into)]
        into[: len(piece)] = piece
        if position + len(piece) == self.size:
            self._block = memoryview(b"")
            await self._source.check()
        return len(piece)

    def sent(self, position: int) -> None:
        """Pass it on to whoever asked."""
        if self._on_sent is not None:
            self._on_sent(position)
