"""Sources behind http and https URLs.

A server with ranges is read by position, every response pinned to the object seen first
(`If-Match`, else `If-Unmodified-Since`, and its own validators compared again). Any other
server is read once, as a stream. No credential is ever sent.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Self

import aiohttp

from uploader.clock import Clock, SystemClock
from uploader.errors import SourceUnreadable
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources.contract import (
    Checksums,
    Fingerprint,
    PartStream,
    RandomAccess,
    Ranges,
    changed_source,
    empty_source,
    require_open,
    temporary_failure,
)
from uploader.sources.part_buffer import PartBuffer
from uploader.sources.streams import StreamSource
from uploader.sources.url_client import UrlClient
from uploader.sources.url_policy import UrlPolicy, identity_of, parsed_url, shown

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

_FIRST_PATIENCE_S: Final = 15.0
"""Before the first response: a host that was never there is more likely a wrong URL."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_READ_SIZE: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Pin:
    """What the first response says of the object; compared with every later one."""

    size: int
    etag: str
    modified: str

    @classmethod
    def of(cls, response: aiohttp.ClientResponse, size: int) -> _Pin:
        headers = response.headers
        return cls(size, headers.get("ETag", ""), headers.get("Last-Modified", ""))

    @property
    def has_validator(self) -> bool:
        """Whether there is anything in which a changed object would differ."""
        return bool(self.etag or self.modified)

    @property
    def headers(self) -> dict[str, str]:
        """Let the server refuse what has changed; a weak ETag never matches (RFC 9110, 13.1.1)."""
        if self.etag and not self.etag.startswith("W/"):
            return {"If-Match": self.etag}
        return {"If-Unmodified-Since": self.modified} if self.modified else {}

    @property
    def fingerprint(self) -> Fingerprint:
        """The same as numbers."""
        modified_ns = 0
        with suppress(ValueError, TypeError, OverflowError):
            modified_ns = int(parsedate_to_datetime(self.modified).timestamp() * 1e9)
        return Fingerprint(self.size, modified_ns, 0, crc64(self.etag.encode()), 0)


class UrlSource(Ranges):
    """An object behind a URL. Mutable: open or not.

    Args:
        url: http or https; its query may be a presigned one, which is shown nowhere.
        name: the file name for VOD; None takes it from the path.
        policy: which addresses may be read.
        read_timeout_s: how long a server may send nothing before the request is repeated.
            Too small fails with slow stores; too large notices a dead server late.
        patience_s: how long reading may fail without a byte. Too small fails when a server
            restarts; too large keeps a broken upload waiting.
        buffer: holds parts of a server without ranges; None for 96 MiB of memory.
        clock, resolver: for tests, and for networks whose names are resolved elsewhere.
    """

    def __init__(
        self,
        url: str,
        name: str | None = None,
        *,
        policy: UrlPolicy | None = None,
        read_timeout_s: float = 30.0,
        patience_s: float = 120.0,
        buffer: PartBuffer | None = None,
        clock: Clock | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        parsed = parsed_url(url)
        self.identity = identity_of(parsed)
        self.name = name or shown(parsed)
        self._patience_s = patience_s
        self._buffer = buffer
        self._client = UrlClient(
            url=parsed,
            name=self.name,
            policy=policy or UrlPolicy(),
            read_timeout_s=read_timeout_s,
            clock=clock or SystemClock(),
            resolver=resolver,
        )
        self._pin: _Pin | None = None
        self._stream: StreamSource | None = None

    # --- as a source ----------------------------------------------------------------

    @property
    def size(self) -> int:
        """As in the first response."""
        return self._stream.size if self._stream else require_open(self._pin).size

    @property
    def stream(self) -> PartStream | None:
        """None, unless the server has no ranges."""
        return self._stream

    async def fingerprint(self) -> Fingerprint:
        """Request size, ETag and time of the last change again."""
        if self._stream is not None:
            return await self._stream.fingerprint()
        pin = await self._client.retried(self._look_up_again, self._patience_s)
        return pin.fingerprint

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return the range as a request body; it is requested when it is read."""
        if self._stream is not None:
            return self._stream.body(offset, size, on_sent)
        download = _Download(self, self._client, offset + size, self._patience_s)
        return download.body(offset, size, on_sent)

    async def read_crc(self, offset: int, size: int, *, with_md5: bool = False) -> Checksums:
        """Read the range again, or return what the buffer knows of a part."""
        if self._stream is not None:
            return await self._stream.read_crc(offset, size, with_md5=with_md5)
        return await super().read_crc(offset, size, with_md5=with_md5)

    async def __aenter__(self) -> Self:
        """Request the first byte; its response describes the object.

        Raises:
            SourceUnreadable: it is missing, empty, or cannot be read without credentials.
            PolicyError: the URL leads where it must not.
        """
        await self._client.open()
        try:
            patience_s = min(self._patience_s, _FIRST_PATIENCE_S)
            self._pin = await self._client.retried(self._look_up, patience_s)
            if self._pin is None:
                self._stream = StreamSource(
                    self._download(), self.name, identity=self.identity, buffer=self._buffer
                )
        except BaseException:
            await self._client.close()
            raise
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        stream, self._stream, self._pin = self._stream, None, None
        try:
            if stream is not None:
                await stream.__aexit__(kind, error, trace)
        finally:
            await self._client.close()

    # --- requests -------------------------------------------------------------------

    async def open_range(self, offset: int, end: int) -> tuple[aiohttp.ClientResponse, int]:
        """Request a range of the pinned object; return the response and where it ends.

        Raises:
            SourceChanged: it is not the object that was seen first.
            SourceUnreadable: the server refuses; `is_temporary` if a later request may succeed.
        """
        headers = {"Range": f"bytes={offset}-{end - 1}", **require_open(self._pin).headers}
        response = await self._client.get(headers)
        try:
            return response, self._end_of(response, offset, end)
        except BaseException:
            self._client.release(response)
            raise

    async def _download(self) -> AsyncGenerator[bytes, None]:
        """Request all of the object and yield it; without ranges, nothing can be repeated."""
        response = await self._client.get({})
        try:
            if response.status != 200:
                raise SourceUnreadable(
                    f"{self.name} cannot be read: its server answers {response.status}."
                )
            self._require_end(response)
            while piece := await response.content.read(_READ_SIZE):
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise temporary_failure(
                f"The download of {self.name} was interrupted, and its server has no ranges "
                f"({type(error).__name__}).",
                "Run the same command again: what OSS has is compared and not sent again.",
            ) from None
        finally:
            self._client.release(response)

    async def _look_up(self) -> _Pin | None:
        """Return what the object is now; None if the server has no ranges that can be pinned."""
        response = await self._client.get({"Range": "bytes=0-0"})
        try:
            pin = self._pin_of(response)
            if pin is not None and response.content_length == 1:
                await response.read()  # so that its connection is reused
            return pin
        finally:
            self._client.release(response)

    async def _look_up_again(self) -> _Pin:
        pin = await self._look_up()
        if pin is None:
            raise self._range_ignored()
        return pin

    def _pin_of(self, response: aiohttp.ClientResponse) -> _Pin | None:
        if response.status == 416:
            raise empty_source(self.name)
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status != 206 or found is None:
            self._require_end(response)
            return None
        pin = _Pin.of(response, int(found[3]))
        return pin if pin.has_validator else None

    def _require_end(self, response: aiohttp.ClientResponse) -> None:
        """Refuse a response that only the end of its connection delimits (RFC 9112, 8)."""
        is_chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        if response.content_length is None and not is_chunked:
            raise SourceUnreadable(
                f"{self.name} has no length: a truncated response could not be detected.",
                next_step="Download the file, check that it is complete, and upload it.",
            )

    def _end_of(self, response: aiohttp.ClientResponse, offset: int, end: int) -> int:
        """Check a range; it may end before the requested `end` (RFC 9110, 15.3.7)."""
        pin = require_open(self._pin)
        if response.status == 416:
            raise changed_source(self.name, "it has become shorter")
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        first, last, size = map(int, found.groups()) if found else (0, 0, pin.size)
        if _Pin.of(response, size) != pin:
            raise changed_source(self.name, "it is another object now")
        if response.status != 206 or found is None:
            raise self._range_ignored()
        if first != offset or not offset <= last < end:
            raise SourceUnreadable(
                f"{self.name} cannot be read: its server sent bytes {first} to {last} instead of "
                f"{offset} to {end - 1}.",
                next_step="Download the file and upload it, or report this to its server.",
            )
        return last + 1

    def _range_ignored(self) -> SourceUnreadable:
        return temporary_failure(
            f"{self.name} cannot be read: its server ignored the requested range.",
            "Run the same command again; if that fails as well, download the file and upload it.",
        )


class _Download(RandomAccess):
    """The object up to `end`, read by one body. Mutable: the response, and how far it is read.

    After a failure the rest is requested again: this repeats a read, not a send, and is
    limited by the time without a byte.
    """

    def __init__(self, source: UrlSource, client: UrlClient, end: int, patience_s: float) -> None:
        self._source = source
        self._client = client
        self._end = end
        self._patience_s = patience_s
        self._response: aiohttp.ClientResponse | None = None
        self._response_end = 0
        self._offset = 0

    async def read(self, into: memoryview, offset: int) -> int:
        """Continue to read, or request another offset."""
        return await self._client.retried(lambda: self._read(into, offset), self._patience_s)

    async def _read(self, into: memoryview, offset: int) -> int:
        try:
            if self._response is None or self._offset != offset:
                self._release()
                opened = await self._source.open_range(offset, self._end)
                self._response, self._response_end = opened
                self._offset = offset
            piece = await self._response.content.read(min(len(into), self._response_end - offset))
            if not piece:
                raise aiohttp.ClientPayloadError("the response ended early")
        except BaseException:
            self._release()
            raise
        into[: len(piece)] = piece
        self._offset += len(piece)
        if self._offset == self._response_end:
            self._release()  # the server may have sent less than requested
        return len(piece)

    def _release(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            self._client.release(response)
