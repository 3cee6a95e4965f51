"""GET requests to a source: only to addresses that its policy allows, without credentials.

Addresses are checked when the name has been resolved and again on the socket that is about
to connect, so that a name whose address changes in between (DNS rebinding) has no effect.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from uploader.clock import Clock
from uploader.errors import PolicyError, ProxyRefused, SourceError, SourceUnreadable, VodupError
from uploader.sources.contract import changed_source, require_open, temporary_failure
from uploader.sources.url_policy import UrlPolicy
from uploader.threads import in_thread
from uploader.transport import tls_context
from uploader.transport.errors import is_of_proxy, proxy_refusal
from uploader.transport.proxies import Proxies, Proxy

if TYPE_CHECKING:
    from yarl import URL

T = TypeVar("T")

_CONNECTION_COUNT: Final = 64
"""To one source. Fewer than the uploader has connections: parts wait for each other."""

_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_TEMPORARY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PAGES: Final = frozenset(
    "text/html application/xhtml+xml text/xml application/xml application/problem+xml "
    "application/json application/problem+json".split()
)
"""Content types that no video has. Others are accepted: many servers know no video types."""


@dataclass(slots=True, kw_only=True)
class UrlClient:
    """GET requests to one URL. Mutable: its session, and responses that are being read.

    Attributes:
        name: of the source, for messages.
        policy: which addresses may be read.
        read_timeout_s: how long a server may send nothing.
        resolver: for tests, and for networks whose names are resolved elsewhere.
    """

    url: URL
    name: str
    policy: UrlPolicy
    read_timeout_s: float
    clock: Clock
    resolver: AbstractResolver | None
    _session: aiohttp.ClientSession | None = None
    _proxies: Proxies = field(default_factory=lambda: Proxies("none"))
    _responses: set[aiohttp.ClientResponse] = field(default_factory=set)

    async def open(self) -> None:
        """Get ready for requests."""
        connector = aiohttp.TCPConnector(
            ssl=await in_thread(_tls, self.policy.ca_file),
            limit=_CONNECTION_COUNT,
            resolver=CheckedResolver(self.policy, self.resolver or ThreadedResolver()),
            socket_factory=functools.partial(checked_socket, self.policy),
        )
        self._proxies = Proxies(self.policy.proxy)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self.read_timeout_s, sock_read=self.read_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        for response in [*self._responses]:
            self.release(response)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Return a response with status 200, 206 or 416; follow redirects that are allowed.

        Raises:
            SourceChanged: a condition in `headers` does not hold.
            SourceUnreadable: the server refuses; `is_temporary` if a later request may succeed.
            PolicyError: a redirect leads where it must not.
        """
        url = self.url
        for _ in range(self.policy.max_redirects + 1):
            response = await self._request(url, headers)
            failure = self._failure_of(response)
            if failure is None and response.status not in _REDIRECTS:
                return response
            self.release(response)
            if failure is not None:
                raise failure
            url = self.policy.next_hop(url, response.headers.get("Location"))
        raise PolicyError(
            f"{self.name} redirects more than {self.policy.max_redirects} times.",
            next_step="Pass the last of its URLs, or allow more redirects (--max-redirects).",
        )

    def release(self, response: aiohttp.ClientResponse) -> None:
        """Reuse the connection if the response was read to its end, else close it."""
        self._responses.discard(response)
        response.close()

    async def retried(self, attempt: Callable[[], Awaitable[T]], patience_s: float) -> T:
        """Repeat `attempt` after temporary failures until it succeeds.

        Raises:
            SourceUnreadable: it has failed for longer than `patience_s`; `is_temporary`.
        """
        began_s = self.clock.elapsed_s()
        failure_count = 0
        while True:
            try:
                return await attempt()
            except SourceUnreadable as error:
                if not error.is_temporary:
                    raise
                failure = error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = self.temporary(str(error) or type(error).__name__)
            if self.clock.elapsed_s() - began_s > patience_s:
                raise failure from None
            await self.clock.sleep(_PAUSES_S[min(failure_count, len(_PAUSES_S) - 1)])
            failure_count += 1

    def temporary(self, reason: str) -> SourceUnreadable:
        """The error for a failure that may not occur again."""
        return temporary_failure(
            f"{self.name} cannot be read: {reason}.",
            "Run the same command again once its server responds.",
        )

    async def _request(self, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        session = require_open(self._session)
        self._require_literal(url)
        headers = {"Accept-Encoding": "identity", **headers}
        through: dict[str, Any] = {}
        if (proxy := self._proxies.proxy_for(url)) is not None:
            self.policy.require_proxy(url.host or "")
            through = {"proxy": proxy.url, "proxy_headers": proxy.headers}
            headers |= proxy.headers if url.scheme == "http" else {}
        try:
            response = await session.get(url, headers=headers, allow_redirects=False, **through)
        except aiohttp.ClientHttpProxyError as error:
            offered = error.headers.get("Proxy-Authenticate", "") if error.headers else ""
            raise self._proxy_failure(require_open(proxy), error.status, offered) from None
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", "") or "refused"
            raise SourceUnreadable(
                f"{self.name} cannot be read: its server's certificate is not trusted ({reason}).",
                next_step="Check this machine's clock, and pass the server's CA certificate with "
                "--ca-file (VODUP_CA_FILE, ca_file= in code), then run the same command again.",
            ) from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _AddressRefused):
                raise error.os_error.reason from None
            reason = error.os_error.strerror or type(error).__name__
            if is_of_proxy(error, proxy):
                raise self.temporary(f"no connection to the proxy {proxy} ({reason})") from None
            if variable := self._proxies.unused_variable(url):
                reason += f"; {variable} is not used without --proxy env"
            raise self.temporary(f"no connection ({reason})") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.temporary(f"no response ({type(error).__name__})") from None
        self._responses.add(response)
        if response.status == 407 and proxy is not None:
            self.release(response)
            offered = response.headers.get("Proxy-Authenticate", "")
            raise self._proxy_failure(proxy, 407, offered)
        return response

    def _proxy_failure(self, proxy: Proxy, status: int, offered: str) -> VodupError:
        error = proxy_refusal(self.name, proxy, status, offered)
        is_final = isinstance(error, ProxyRefused)
        return error if is_final else self.temporary(f"the proxy {proxy} answers {status}")

    def _require_literal(self, url: URL) -> None:
        """Check an address that is written in the URL: no resolver sees it."""
        host = url.host or ""
        if ":" in host or host.replace(".", "").isdigit():
            self.policy.require_address(host, host)

    def _failure_of(self, response: aiohttp.ClientResponse) -> SourceError | None:
        status = response.status
        if status == 412:
            return changed_source(self.name, "it is another object now")
        if status in (401, 403):
            return SourceUnreadable(
                f"{self.name} may not be read: its server answers {status}.",
                next_step="vodup sends no credentials to a source: use a presigned URL that is "
                "still valid, or vodup[fsspec].",
            )
        if status in (404, 410):
            return SourceUnreadable(
                f"{self.name} does not exist: its server answers {status}.",
                next_step="Check the URL, then run again.",
            )
        if status in _TEMPORARY_STATUSES:
            return self.temporary(f"its server answers {status}")
        if status in _REDIRECTS:
            return None
        if status not in (200, 206, 416):
            return SourceUnreadable(f"{self.name} cannot be read: its server answers {status}.")
        if encodings := _compressions(response.headers.get("Content-Encoding", "")):
            return SourceUnreadable(
                f"{self.name} is sent compressed ({', '.join(encodings)}) without request.",
                next_step="Store the video uncompressed, or download it and upload the file.",
            )
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if status != 416 and content_type in _PAGES and not self.policy.any_content_type:
            return SourceUnreadable(
                f"{self.name} is served as {content_type}, so it is probably an error or login "
                "page.",
                next_step="Open the URL in a browser. If it is a video, pass --any-content-type "
                "(UrlPolicy(any_content_type=True) in code).",
            )
        return None


def _compressions(content_encoding: str) -> list[str]:
    """The encodings that change bytes. S3 stores the aws-chunked of an upload with the object."""
    encodings = [word.strip().lower() for word in content_encoding.split(",")]
    return [word for word in encodings if word not in ("", "identity", "aws-chunked")]


# --- addresses ------------------------------------------------------------------------


class _AddressRefused(OSError):
    """A policy's refusal on its way through aiohttp."""

    def __init__(self, reason: PolicyError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class CheckedResolver(AbstractResolver):
    """Resolves names to addresses that may be read; one that may not refuses all of them."""

    def __init__(self, policy: UrlPolicy, inner: AbstractResolver) -> None:
        self._policy = policy
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As `AbstractResolver.resolve`; raises an `OSError` for a name that is refused."""
        found = await self._inner.resolve(host, port, family)
        for one in found:
            _require_address(self._policy, one["host"], host)
        return found

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._inner.close()


def checked_socket(policy: UrlPolicy, address: tuple[Any, ...]) -> socket.socket:
    """Make a socket for an address that may be connected to: the last check there is."""
    family, kind, protocol, _, peer = address
    _require_address(policy, peer[0], peer[0])
    return socket.socket(family=family, type=kind, proto=protocol)


def _require_address(policy: UrlPolicy, address: str, host: str) -> None:
    try:
        policy.require_address(address, host)
    except PolicyError as reason:
        raise _AddressRefused(reason) from None


_tls: Final = functools.cache(tls_context)
"""The certificate authorities of the system; read once, because that takes a while."""
