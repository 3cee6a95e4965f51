"""What lies behind an http or https URL.

A server that can give ranges is read by position, every answer pinned to the object seen
first (`If-Match`, else `If-Unmodified-Since`, and its own validators compared again). Any
other is read once, as a stream. Addresses are checked where the name has been resolved
and again on the socket that is about to connect, so that a name which changes its mind
in between (DNS rebinding) gets nowhere. No credential is ever sent.
"""

from __future__ import annotations

import functools
import itertools
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from uploader.clock import Clock, SystemClock
from uploader.errors import PolicyError, SourceChanged, SourceError, SourceUnreadable
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources.contract import Arrival
from uploader.sources.fingerprints import Fingerprint
from uploader.sources.part_buffer import Window
from uploader.sources.ranges import Checksums
from uploader.sources.refusals import empty
from uploader.sources.streams import StreamSource
from uploader.sources.url_policy import UrlPolicy, identity_of, parsed_url, shown
from uploader.threads import in_thread
from uploader.transport import tls_context

if TYPE_CHECKING:
    from yarl import URL

__all__ = ["UrlSource"]

CONNECTIONS: Final = 64
"""To one source. Fewer than the uploader has connections: parts wait for each other."""

_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_FIRST_PATIENCE_S: Final = 15.0
"""A host that was never there is more likely a slip of the pen."""

_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_READ_SIZE: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Pin:
    """What is known of the object from the first answer on, and compared with every later one."""

    size: int
    etag: str
    modified: str

    @classmethod
    def of(cls, answer: aiohttp.ClientResponse, size: int) -> _Pin:
        headers = answer.headers
        return cls(size, headers.get("ETag", ""), headers.get("Last-Modified", ""))

    @property
    def is_any(self) -> bool:
        """Whether there is anything that a changed object would differ in."""
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


class UrlSource:
    """An object behind a URL. Mutable: open or not.

    Args:
        url: http or https; its query may be a presigned one, which is shown nowhere.
        name: what VOD is told the file is called; None takes it from the path.
        policy: which addresses may be read.
        connections: the most at once.
        read_timeout_s: a server that gives no byte for so long is asked again. Too small
            breaks on slow stores; too large notices late.
        patience_s: how long it may go on failing without a byte. Too small gives up on a
            restart; too large keeps a broken upload.
        window: keeps parts of a server that gives no ranges; None for 96 MiB of memory.
        clock, resolver: for tests, and for networks whose names are resolved elsewhere.
    """

    def __init__(
        self,
        url: str,
        name: str | None = None,
        *,
        policy: UrlPolicy | None = None,
        connections: int = CONNECTIONS,
        read_timeout_s: float = 30.0,
        patience_s: float = 120.0,
        window: Window | None = None,
        clock: Clock | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._url = parsed_url(url)
        self._given_name = name
        self._policy = policy or UrlPolicy()
        self._connections = connections
        self._read_timeout_s = read_timeout_s
        self._patience_s = patience_s
        self._window = window
        self._clock = clock or SystemClock()
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._pin: _Pin | None = None
        self._stream: StreamSource | None = None
        self._answers: set[aiohttp.ClientResponse] = set()

    # --- as a source ----------------------------------------------------------------

    @property
    def name(self) -> str:
        """The URL without its query."""
        return self._given_name or shown(self._url)

    @property
    def identity(self) -> str:
        """The URL without a presigner's parameters."""
        return identity_of(self._url)

    @property
    def size(self) -> int:
        """As the first answer told it."""
        return self._stream.size if self._stream else self._pinned().size

    @property
    def arrival(self) -> Arrival | None:
        """None, unless its server gives no ranges."""
        return self._stream

    async def fingerprint(self) -> Fingerprint:
        """Size, ETag and time of the last change, asked for again."""
        if self._stream is not None:
            return await self._stream.fingerprint()
        pin = await self._look()
        if pin is None:
            raise SourceChanged(f"{self.name} is not given in ranges any more.")
        return pin.fingerprint

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """The range as a request's body; it is asked for when it is read."""
        if self._stream is not None:
            return self._stream.body(offset, size, on_sent)
        return _UrlRange(self, offset, size, on_sent)

    async def read_crc(
        self, offset: int, size: int, *, with_md5: bool = False
    ) -> tuple[int, str | None]:
        """Checksums of the range, read again."""
        if self._stream is not None:
            return await self._stream.read_crc(offset, size, with_md5=with_md5)
        checksums = Checksums(with_md5=with_md5)
        body = _UrlRange(self, offset, size, None)
        buffer = memoryview(bytearray(min(size, _READ_SIZE)))
        position = 0
        while position < size:
            count = await body.read(buffer, position)
            checksums.update(buffer[:count])
            position += count
        return checksums.result()

    async def __aenter__(self) -> Self:
        """Ask for the first byte, which tells the rest.

        Raises:
            SourceUnreadable: it is missing, empty, or not to be had without credentials.
            PolicyError: it leads where it must not.
        """
        self._session = await self._new_session()
        try:
            pin = await self._look()
            if pin is None:
                self._stream = StreamSource(
                    _UrlInflow(self), self.name, identity=self.identity, window=self._window
                )
            self._pin = pin
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stream, self._stream, self._pin = self._stream, None, None
        try:
            if stream is not None:
                await stream.__aexit__(kind, error, trace)
        finally:
            await self._close()

    # --- asking -----------------------------------------------------------------------

    async def open(self, offset: int | None, end: int = 0) -> aiohttp.ClientResponse:
        """Ask for a range of the pinned object, or for all there is (`offset` None).

        Raises:
            SourceChanged: it is not the object that was seen first.
            SourceUnreadable: it is not given; `is_temporary` if that may pass.
        """
        pin = self._pin
        headers = {} if offset is None else {"Range": f"bytes={offset}-{end - 1}"}
        answer = await self._ask(headers | (pin.headers if pin else {}))
        try:
            if offset is None:
                self._require_whole(answer)
            else:
                self._require_range(answer, offset, end)
        except BaseException:
            self.done_with(answer)
            raise
        return answer

    def done_with(self, answer: aiohttp.ClientResponse) -> None:
        """Give its connection back if it was read to its end, else close it."""
        self._answers.discard(answer)
        answer.close()

    async def pause(
        self, failed_count: int, since_s: float, error: Exception, patience_s: float | None = None
    ) -> None:
        """Wait before asking again.

        Raises:
            SourceUnreadable: nothing came for too long; `is_temporary`.
        """
        if self._clock.elapsed_s() - since_s > (patience_s or self._patience_s):
            failure = SourceUnreadable(
                f"{self.name} could not be read: {str(error) or type(error).__name__}",
                next_step="Run the same command again once its server answers.",
            )
            failure.is_temporary = True
            raise failure from None
        await self._clock.sleep(_PAUSES_S[min(failed_count, len(_PAUSES_S) - 1)])

    async def _look(self) -> _Pin | None:
        """What the object is now; None if its server gives no ranges that can be pinned."""
        began_s = self._clock.elapsed_s()
        patience_s = min(self._patience_s, _FIRST_PATIENCE_S) if self._pin is None else None
        for failed_count in itertools.count():
            try:
                answer = await self._ask({"Range": "bytes=0-0"})
            except SourceUnreadable as error:
                if not error.is_temporary:
                    raise
                await self.pause(failed_count, began_s, error, patience_s)
                continue
            try:
                pin = self._pin_of(answer)
                if pin is not None and answer.content_length == 1:
                    await answer.read()  # so that its connection is used again
                return pin
            finally:
                self.done_with(answer)
        raise RuntimeError("patience has an end")

    def _pin_of(self, answer: aiohttp.ClientResponse) -> _Pin | None:
        if answer.status == 416:
            raise empty(self.name)
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status != 206 or found is None:
            self._require_an_end(answer)
            return None
        pin = _Pin.of(answer, int(found[3]))
        return pin if pin.is_any else None

    async def _ask(self, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Get an answer of 200, 206 or 416, following redirects as far as the policy allows."""
        url = self._url
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._request(url, headers)
            if answer.status not in _REDIRECTS:
                return self._accepted(answer)
            location = answer.headers.get("Location")
            self.done_with(answer)
            url = self._policy.next_hop(url, location)
        raise PolicyError(
            f"{self.name} redirects more than {self._policy.max_redirects} times.",
            next_step="Name the last of its URLs, or allow more (--max-redirects).",
        )

    async def _request(self, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the source is not open: use it inside `async with`")
        self._require_literal(url)
        try:
            answer = await self._session.get(
                url, headers={"Accept-Encoding": "identity", **headers}, allow_redirects=False
            )
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _Refused):
                raise error.os_error.reason from None
            raise self._passing(f"no connection ({error.os_error.strerror or error})") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._passing(f"no answer ({type(error).__name__})") from None
        self._answers.add(answer)
        return answer

    def _require_literal(self, url: URL) -> None:
        """An address written in the URL is resolved by nobody."""
        host = url.host or ""
        if ":" in host or host.replace(".", "").isdigit():
            self._policy.require_address(host, host)

    def _accepted(self, answer: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        failure = self._failure_of(answer)
        if failure is not None:
            self.done_with(answer)
            raise failure
        return answer

    def _failure_of(self, answer: aiohttp.ClientResponse) -> SourceError | None:
        status = answer.status
        if status == 412:
            return self._changed("it is another object now")
        if status in (401, 403):
            return SourceUnreadable(
                f"{self.name} is not given to us ({status}).",
                next_step="vodup sends no credentials to a source: use a presigned URL that is "
                "still valid, or vodup[fsspec].",
            )
        if status in (404, 410):
            return SourceUnreadable(f"{self.name} does not exist ({status}).")
        if status in _PASSING:
            return self._passing(f"its server answers {status}")
        if status not in (200, 206, 416):
            return SourceUnreadable(f"{self.name} is not given to us ({status}).")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            return SourceUnreadable(f"{self.name} comes compressed, although that was not asked.")
        return None

    def _require_whole(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status != 200:
            raise SourceUnreadable(f"{self.name} is not given as a whole ({answer.status}).")
        self._require_an_end(answer)

    def _require_an_end(self, answer: aiohttp.ClientResponse) -> None:
        """An answer that only its connection's end delimits may have lost its own (RFC 9112, 8)."""
        is_chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
        if answer.content_length is None and not is_chunked:
            raise SourceUnreadable(
                f"{self.name} comes without its length: nobody could tell whether all of it came.",
                next_step="Download it, see that it is whole, and upload the file.",
            )

    def _require_range(self, answer: aiohttp.ClientResponse, offset: int, end: int) -> None:
        pin = self._pinned()
        if answer.status == 416:
            raise self._changed("it has become shorter")
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status != 206 or found is None:
            raise self._changed("its server gives no ranges any more")
        if _Pin.of(answer, int(found[3])) != pin:
            raise self._changed("it is another object now")
        if (int(found[1]), int(found[2])) != (offset, end - 1):
            raise self._changed(f"bytes {found[1]} to {found[2]} came instead of {offset} on")

    def _changed(self, how: str) -> SourceChanged:
        return SourceChanged(f"{self.name} changed while it was read: {how}.")

    def _passing(self, why: str) -> SourceUnreadable:
        failure = SourceUnreadable(
            f"{self.name} cannot be read: {why}.",
            next_step="Run the same command again once its server answers.",
        )
        failure.is_temporary = True
        return failure

    def _pinned(self) -> _Pin:
        if self._pin is None:
            raise RuntimeError("the source is not open: use it inside `async with`")
        return self._pin

    # --- its own connections ----------------------------------------------------------

    async def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=await _trusted(),
            limit=self._connections,
            resolver=_CheckedResolver(self._policy, self._resolver or ThreadedResolver()),
            socket_factory=functools.partial(_checked_socket, self._policy),
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._read_timeout_s, sock_read=self._read_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def _close(self) -> None:
        for answer in [*self._answers]:
            self.done_with(answer)
        session, self._session = self._session, None
        if session is not None:
            await session.close()


# --- addresses ------------------------------------------------------------------------


class _Refused(OSError):
    """A policy's refusal on its way through aiohttp."""

    def __init__(self, reason: PolicyError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class _CheckedResolver(AbstractResolver):
    """Resolves names to addresses that may be read; one that may not refuses all of them."""

    def __init__(self, policy: UrlPolicy, inner: AbstractResolver) -> None:
        self._policy = policy
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for one in found:
            _refuse(self._policy, one["host"], host)
        return found

    async def close(self) -> None:
        await self._inner.close()


def _checked_socket(policy: UrlPolicy, address: tuple[Any, ...]) -> socket.socket:
    """Make a socket for an address that may be connected to: the last look there is."""
    family, kind, protocol, _, peer = address
    _refuse(policy, peer[0], peer[0])
    return socket.socket(family=family, type=kind, proto=protocol)


def _refuse(policy: UrlPolicy, address: str, host: str) -> None:
    try:
        policy.require_address(address, host)
    except PolicyError as reason:
        raise _Refused(reason) from None


_contexts: dict[str, ssl.SSLContext] = {}


async def _trusted() -> ssl.SSLContext:
    """The authorities of the system; read once, because it takes a while."""
    if "system" not in _contexts:
        _contexts["system"] = await in_thread(tls_context, None)
    return _contexts["system"]


# --- reading --------------------------------------------------------------------------


class _UrlRange:
    """A range as a request's body. Mutable: the answer that is being read, and how far.

    What breaks off is asked for again from there: that is reading, not sending, and
    bounded by the time without a byte.
    """

    def __init__(
        self, source: UrlSource, offset: int, size: int, on_sent: Callable[[int], None] | None
    ) -> None:
        self.size = size
        self._source = source
        self._offset = offset
        self._on_sent = on_sent
        self._answer: aiohttp.ClientResponse | None = None
        self._position = 0
        self._clock = source._clock

    def read_now(self, into: memoryview, position: int) -> int | None:
        """Never: a network has to be waited for."""
        return None

    async def read(self, into: memoryview, position: int) -> int:
        """Read on, or from another position if that is asked for."""
        since_s = self._clock.elapsed_s()
        failed_count = 0
        while True:
            try:
                return await self._read(into[: self.size - position], position)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure: Exception = error
            except SourceUnreadable as error:
                if not error.is_temporary:
                    raise
                failure = error
            self._drop_answer()
            await self._source.pause(failed_count, since_s, failure)
            failed_count += 1

    def sent(self, position: int) -> None:
        """Pass it on to whoever asked."""
        if self._on_sent is not None:
            self._on_sent(position)

    async def _read(self, into: memoryview, position: int) -> int:
        if self._answer is None or self._position != position:
            self._drop_answer()
            end = self._offset + self.size
            self._answer = await self._source.open(self._offset + position, end)
            self._position = position
        piece = await self._answer.content.read(len(into))
        if not piece:
            raise aiohttp.ClientPayloadError("the answer ended early")
        into[: len(piece)] = piece
        self._position += len(piece)
        if self._position == self.size:
            self._drop_answer()
        return len(piece)

    def _drop_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self._source.done_with(answer)


class _UrlInflow:
    """All of an object, read once. Mutable: the answer."""

    def __init__(self, source: UrlSource) -> None:
        self._source = source
        self._answer: aiohttp.ClientResponse | None = None

    async def read(self, into: memoryview) -> int:
        """Read on; what breaks off cannot be read on."""
        if self._answer is None:
            self._answer = await self._source.open(None)
        try:
            piece = await self._answer.content.read(min(len(into), _READ_SIZE))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = SourceUnreadable(
                f"{self._source.name} broke off, and its server gives no ranges "
                f"({type(error).__name__}).",
                next_step="Run the same command again: what OSS has is compared and not sent "
                "again.",
            )
            failure.is_temporary = True
            raise failure from None
        into[: len(piece)] = piece
        return len(piece)

    async def close(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self._source.done_with(answer)
