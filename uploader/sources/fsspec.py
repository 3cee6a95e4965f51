"""Whatever fsspec can read: S3, GCS, HDFS, SFTP and others.

Ranges are read in threads of their own, a few megabytes at a time. Credentials for the store
are left to its fsspec implementation: environment, profiles, `storage_options`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, Self, TypeVar

from uploader.errors import ConfigurationError, SourceUnreadable, VodupError
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources.contract import (
    Fingerprint,
    RandomAccess,
    Ranges,
    changed_source,
    empty_source,
    require_open,
    temporary_failure,
)
from uploader.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_SIZE: Final = 4 * 1024 * 1024
"""Bytes per read. Too small: each costs a round trip; too large: every connection holds one
in memory."""

_THREADS: Final = Threads("vodup-fsspec", 32)
"""As many as an uploader has connections at most."""

_VOLATILE: Final = frozenset({"name", "Key", "atime", "time", "accessed", "StorageClass"})
"""What a store reports of a file that may change without the file, or does not describe it."""


class FsspecSource(Ranges):
    """An object behind a URL that fsspec understands. Mutable: open or not.

    Args:
        url: "s3://bucket/movie.mp4", "sftp://host/path", also chained ("zip://…::s3://…").
        name: the file name for VOD; None takes it from the URL.
        storage_options: for the implementation; may hold secrets, and is shown nowhere.
        read_timeout_s: how long one read may take.
    """

    stream = None  # all of it is there

    def __init__(
        self,
        url: str,
        name: str | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        read_timeout_s: float = 120.0,
    ) -> None:
        self._url = url
        # What names the object, without passwords; and what is shown of it.
        self.identity = re.sub(r"//([^/@:]*)(:[^/@]*)?@", r"//\1@", url)
        self.name = name or re.sub(r"\?[^:]*", "", re.sub(r"//[^/@]*@", "//", url))
        self._options = dict(storage_options or {})
        self._read_timeout_s = read_timeout_s
        self._fs: Any = None
        self._path = ""
        self._opened_as: Fingerprint | None = None

    @property
    def size(self) -> int:
        """Bytes when it was opened."""
        return require_open(self._opened_as).size

    async def fingerprint(self) -> Fingerprint:
        """Return what the store reports of the object right now."""
        require_open(self._opened_as)
        return await self._in_thread(self._look_up)

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return the range as a request body."""
        return _Blocks(self, offset + size).body(offset, size, on_sent)

    async def __aenter__(self) -> Self:
        """Find the object.

        Raises:
            ConfigurationError: fsspec, or what it needs for this URL, is not installed.
            SourceUnreadable: it is missing, empty, not a file, or of unknown size.
        """
        self._fs, self._path = await self._in_thread(self._connect)
        self._opened_as = await self._in_thread(self._look_up)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self._opened_as = None

    async def block(self, offset: int, size: int) -> bytes:
        """Read a range.

        Raises:
            SourceChanged: it ends early.
        """
        block = await self._in_thread(
            self._fs.cat_file, self._path, start=offset, end=offset + size
        )
        if len(block) != size:
            raise changed_source(self.name, f"it ends at byte {offset + len(block)}")
        return bytes(block)

    async def check(self) -> None:
        """Raise `SourceChanged` if the store reports something else than on opening."""
        if changes := require_open(self._opened_as).changes(await self.fingerprint()):
            raise changed_source(self.name, *changes)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work; translate whatever an implementation raises."""
        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await _THREADS.run(work, *args, **kwargs)
        except VodupError:
            raise
        except TimeoutError as error:
            raise self._temporary(f"no answer within {self._read_timeout_s:g} s") from error
        except FileNotFoundError as error:
            raise SourceUnreadable(
                f"{self.name} does not exist.", next_step="Check the URL, then run again."
            ) from error
        except PermissionError as error:
            raise SourceUnreadable(
                f"{self.name} cannot be read: permission denied.",
                next_step="Check the credentials for the store, then run the same command again.",
            ) from error
        except Exception as error:  # each store has errors of its own
            raise self._temporary(type(error).__name__) from error

    def _temporary(self, reason: str) -> SourceUnreadable:
        return temporary_failure(
            f"{self.name} cannot be read: {reason}.",
            "Check the store and its credentials, then run the same command again.",
        )

    def _connect(self) -> tuple[Any, str]:
        try:
            import fsspec.core  # the installed package, not this module
        except ImportError as error:
            raise ConfigurationError(
                f"{self.name} needs the package fsspec.",
                next_step="Run `pip install 'vodup[fsspec]'`, and what fsspec needs for this kind "
                "of URL.",
            ) from error
        try:
            fs, path = fsspec.core.url_to_fs(self._url, **self._options)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"{self.name} cannot be read: {error}.",
                next_step="Install vodup[fsspec], and what fsspec needs for this kind of URL.",
            ) from error
        return fs, path

    def _look_up(self) -> Fingerprint:
        self._fs.invalidate_cache()
        info = self._fs.info(self._path)
        size = info.get("size")
        if info.get("type") != "file" or not isinstance(size, int):
            raise SourceUnreadable(
                f"{self.name} is not a file, or its size is not known.",
                next_step="Name a single file.",
            )
        if size == 0:
            raise empty_source(self.name)
        stable = repr(sorted((str(k), str(v)) for k, v in info.items() if k not in _VOLATILE))
        return Fingerprint.of_content(size, crc64(stable.encode()))


class _Blocks(RandomAccess):
    """The object up to `end`, read block by block for one body. Mutable: the last block."""

    def __init__(self, source: FsspecSource, end: int) -> None:
        self._source = source
        self._end = end
        self._block = memoryview(b"")
        self._begin = 0

    def read_now(self, into: memoryview, offset: int) -> int | None:
        """Copy from the last block; `read` reads the end, and then checks the store."""
        rest = self._rest(offset)
        count = min(len(rest), len(into))
        if count == 0 or offset + count == self._end:
            return None
        into[:count] = rest[:count]
        return count

    async def read(self, into: memoryview, offset: int) -> int:
        """Copy from the last block, or read the next one."""
        if not self._rest(offset):
            size = min(BLOCK_SIZE, self._end - offset)
            self._block = memoryview(await self._source.block(offset, size))
            self._begin = offset
        piece = self._rest(offset)[: len(into)]
        into[: len(piece)] = piece
        if offset + len(piece) == self._end:
            self._block = memoryview(b"")
        return len(piece)

    async def check(self) -> None:
        """Raise `SourceChanged` if the store reports something else than on opening."""
        await self._source.check()

    def _rest(self, offset: int) -> memoryview:
        """What the last block has from this offset on."""
        return self._block[offset - self._begin :] if offset >= self._begin else self._block[:0]
