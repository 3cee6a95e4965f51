"""Requests, answers, bodies and operations, whichever service they are for.

An `Operation` builds a request and parses its answer; a `Signer` signs and a `Transport` sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final, Generic, Protocol, TypeVar

from uploader.errors import ServiceError, TransportError
from uploader.protocol.documents import clean_text

T = TypeVar("T")


class Body(Protocol):
    """The bytes of one request, readable by position and therefore as often as needed.

    Never fewer than `size`: a source that has become shorter raises `SourceChanged` instead.
    """

    @property
    def size(self) -> int:
        """Length in bytes; it becomes Content-Length."""

    def read_now(self, into: memoryview, position: int) -> int | None:
        """Fill `into` from `position` if that needs no waiting; returns how many bytes.

        At least 1; None when they are not in memory and `read` must be awaited instead.
        """

    async def read(self, into: memoryview, position: int) -> int:
        """Fill `into` with the bytes from `position`; returns how many (at least 1)."""

    def sent(self, position: int) -> None:
        """Receive how far the body has been sent: everything before `position`.

        A smaller position than before means that another attempt has started.
        """


@dataclass(frozen=True, slots=True)
class BytesBody:
    """A small body in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    def read_now(self, into: memoryview, position: int) -> int | None:
        """Copy from memory; never has to wait."""
        piece = self.data[position : position + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    async def read(self, into: memoryview, position: int) -> int:
        """Copy from memory."""
        return self.read_now(into, position) or 0

    def sent(self, position: int) -> None:
        """Do nothing: the progress of small bodies is not shown."""


@dataclass(frozen=True, slots=True)
class Request:
    """An unsigned request.

    Attributes:
        endpoint: scheme and host, no trailing slash: "https://oss-cn-shanghai.aliyuncs.com".
        bucket, key: OSS's resource, decoded; both empty for VOD.
        params: query parameters, decoded. An empty value is sent without "=".
        headers: lower-case names.
    """

    method: str
    endpoint: str
    bucket: str = ""
    key: str = field(default="", repr=False)
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as it goes over the wire. It carries secrets: it has no repr.

    Attributes:
        url: percent-encoded exactly as it was signed; must not be quoted again.
        generation: which credentials signed it (grows with each renewal).
        needs_md5: whether the transport shall compute the MD5 of the body as well.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: Body | None = None
    generation: int = 0
    needs_md5: bool = False


@dataclass(frozen=True, slots=True)
class SentBody:
    """What was sent, computed over the very bytes handed to the network.

    Attributes:
        size: bytes handed over; less than the body's size when the answer came early.
        crc64: CRC-64/XZ of them.
        md5: upper-case hex, only if requested.
    """

    size: int = 0
    crc64: int = 0
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, read completely (answers are small and capped).

    Attributes:
        headers: lower-case names; of repeated headers the first.
        sent: what was sent before this answer was complete.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    sent: SentBody = SentBody()

    @property
    def server_epoch_s(self) -> float | None:
        """The server's clock, in seconds since 1970, from the Date header."""
        try:
            return parsedate_to_datetime(self.headers["date"]).timestamp()
        except (KeyError, ValueError, TypeError, OverflowError):
            return None

    @property
    def is_web_page(self) -> bool:
        """Whether it is a page for people or a redirect, as a login page of a network sends.

        OSS and VOD answer with XML and JSON.
        """
        content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return 300 <= self.status < 400 or content_type in {"text/html", "application/xhtml+xml"}

    @property
    def retry_after_s(self) -> float | None:
        """How long the server asks to wait; only whole seconds are read."""
        value = self.headers.get("retry-after", "")
        return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else None


LOG_IN: Final = (
    "A login page of this network or a proxy answers in place of the service: open a web page in a "
    "browser to log in, or check the endpoint and the proxy, then run the same command again to "
    "resume."
)


def web_page(name: str, status: int) -> TransportError:
    """The error for a web page that answers `name` with success."""
    message = f"{name} was answered with a web page ({status})."
    return TransportError(message, is_sent=True, code="WebPage", next_step=LOG_IN)


def unusable(name: str, why: str) -> TransportError:
    """The error for an answer to `name` that reports success and does not hold what it must."""
    return TransportError(f"The answer to {name} is not usable: {why}.", is_sent=True)


def refusal(
    response: Response,
    name: str,
    *,
    code: str = "",
    message: str = "",
    request_id: str = "",
    ec: str = "",
    oss_region: str | None = None,
) -> ServiceError:
    """The error for an answer to `name` that is no success.

    The texts are the service's own; what is not printable is removed here. Nothing else of the
    answer is kept: it may hold a SecurityToken.
    """
    status, code = response.status, clean_text(code, 80)
    request_id, ec = clean_text(request_id, 60), clean_text(ec, 40)
    about = f", request {request_id})" if request_id else ")"
    text = f"{name} was refused ({status} {code or 'without a code'}{about}"
    text += f": {clean_text(message, 200)}" if message else "."
    next_step = None
    if 300 <= status < 400:
        code = "Redirected"
        text = f"{name} was redirected ({status}); redirects are never followed."
        next_step = LOG_IN
    elif response.is_web_page and not code and status < 500:
        text, next_step = f"{name} was answered with a web page ({status}).", LOG_IN
    return ServiceError(
        text,
        operation=name,
        status=status,
        code=code,
        request_id=request_id,
        ec=ec,
        server_epoch_s=response.server_epoch_s,
        retry_after_s=response.retry_after_s,
        oss_region=oss_region,
        next_step=next_step,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Generic[T]):
    """One call of an API: what to send, and how to read the answer.

    Attributes:
        name: the API's name, for example "UploadPart".
        parse: reads the answer; raises `ServiceError` when it is not a success.
        part_number: for messages; None unless it is about a part.
        is_repeatable: whether sending it again after an unknown outcome is harmless.
            CreateUploadVideo is not: it would make a second video.
        answer_timeout_s: how long the answer may take once the request is sent.
        max_attempts: how often it may fail with something that passes, as a busy service does;
            None: for as long as `RetryPolicy` allows. Too small: a short outage ends the upload.
        needs_md5: whether the body's MD5 is wanted in `Response.sent`.
        probe: a request without a body that would be refused for the same reason, if there is
            one. A peer that refuses a body while it is being sent may reset the connection
            before its answer is read; the probe's answer arrives.
    """

    name: str
    request: Request
    parse: Callable[[Response], T]
    part_number: int | None = None
    is_repeatable: bool = True
    answer_timeout_s: float = 30.0
    max_attempts: int | None = None
    needs_md5: bool = False
    probe: Operation[Any] | None = None


class Transport(Protocol):
    """Sends one signed request and returns the whole answer."""

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        """Send `request` once, without following redirects and without retrying.

        Ends in bounded time: fails if no byte was sent or received for the stall timeout, and
        if there is no answer `answer_timeout_s` after the body.

        Raises:
            TransportError, UntrustedCertificate: there is no usable answer.
            SourceError: the body could not be read.
        """


class Signer(Protocol):
    """Signs with credentials that may be renewed while requests are under way."""

    async def prepare(self) -> None:
        """Wait until there are credentials to sign with; may renew them."""

    def is_ready(self) -> bool:
        """Whether the credentials have not been refused since `prepare`.

        Between `prepare` and `sign` a call may have waited long for its slot.
        """

    def sign(
        self, operation: Operation[Any], *, clock_offset_s: float, region: str | None = None
    ) -> SignedRequest:
        """Sign with the newest credentials.

        `clock_offset_s` is what has to be added to the local clock to get the server's; `region`
        is what OSS has said to sign for from now on.
        """

    def is_aged(self, signed: SignedRequest) -> bool:
        """Whether the credentials of `signed` were about to expire, or have been replaced since.

        If so, a refusal that does not name an expiry may still be one.
        """

    async def renew(self, refused: SignedRequest) -> None:
        """Replace the credentials that signed `refused`.

        Of several calls refused at a time, one renews for all of them. Raises a
        `CredentialError` when renewing makes no progress.
        """

    def accepted(self, signed: SignedRequest) -> None:
        """Record that the service accepted the credentials of `signed`."""
