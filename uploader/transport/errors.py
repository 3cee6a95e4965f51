"""Translates errors of aiohttp, TLS and sockets into ours.

Theirs carry the request's headers, and with them the signature, and may quote URLs. So none
of them leaves this package, not even as a cause.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

import aiohttp
from yarl import URL

from uploader.errors import TransportError, UntrustedCertificate
from uploader.protocol.wire import SignedRequest

FOREIGN_ERRORS: Final = (aiohttp.ClientError, OSError, ValueError)
"""What aiohttp, ssl and sockets raise; TimeoutError and ssl.SSLError are OSErrors."""


class UnusableAnswer(Exception):
    """An answer arrived, or broke off, in a way that makes it useless; the text says how."""


_CONNECT_HELP: Final = (
    "Check the region or the endpoint, the network and the firewall, then run the same command "
    "again to resume."
)
_UNTRUSTED: Final = (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)

_NEVER_SENT: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    ValueError,
)

# The first line that fits; subclasses stand before their bases.
_EXPLANATIONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientConnectorCertificateError, "its certificate is not trusted ({reason})"),
    (aiohttp.ServerFingerprintMismatch, "its certificate is not the expected one"),
    (aiohttp.ClientConnectorSSLError, "the TLS handshake failed ({reason})"),
    (aiohttp.ClientConnectorDNSError, "the host name cannot be resolved ({reason})"),
    (aiohttp.ClientProxyConnectionError, "the proxy cannot be reached ({reason})"),
    (aiohttp.ClientHttpProxyError, "the proxy refused the connection"),
    (aiohttp.ConnectionTimeoutError, "cannot connect in time"),
    (aiohttp.ClientConnectorError, "cannot connect ({reason})"),
    (aiohttp.ServerDisconnectedError, "the server closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the answer was cut off"),
    (aiohttp.ClientResponseError, "the answer is not valid HTTP"),
    (aiohttp.InvalidURL, "the URL is not valid"),
    (aiohttp.NonHttpUrlClientError, "the URL is not valid"),
    (ssl.SSLError, "TLS failed ({reason})"),
    (OSError, "the connection broke ({reason})"),
    (ValueError, "the request cannot be written as HTTP"),
    (UnusableAnswer, "{reason}"),
    (Exception, "the connection broke"),
)


def transport_error(
    error: Exception, request: SignedRequest, *, timeout_reason: str = ""
) -> TransportError | UntrustedCertificate:
    """Our error for one of aiohttp's or the system's, without any of its content.

    `timeout_reason` explains a TimeoutError that is not one of aiohttp's.
    """
    if isinstance(error, _UNTRUSTED):
        return UntrustedCertificate(f"{_name_of(request)}: {_explain(error)}.")
    is_ours = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError)
    return TransportError(
        f"{_name_of(request)}: {timeout_reason if is_ours else _explain(error)}.",
        is_sent=not isinstance(error, _NEVER_SENT),
        is_timeout=isinstance(error, TimeoutError),  # aiohttp's are subclasses; errno ETIMEDOUT
        next_step=_CONNECT_HELP if isinstance(error, aiohttp.ClientConnectorError) else None,
    )


async def without_hidden_retry(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """aiohttp middleware: a broken connection is an error, not a second request.

    aiohttp would send idempotent requests again after these errors, once and uncounted.
    Retries are the session's, each with a new signature.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # there was no connection; aiohttp does not retry these
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
        text = _explain(exc)
    raise UnusableAnswer(text)


def _explain(error: Exception) -> str:
    text = next(text for kind, text in _EXPLANATIONS if isinstance(error, kind))
    return text.format(reason=_reason(error))


def _reason(error: Exception) -> str:
    """The system's words: of a certificate, of TLS, or of errno."""
    if isinstance(error, UnusableAnswer):
        return str(error)
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return getattr(inner, "verify_message", "") or "refused"
    if isinstance(inner, ssl.SSLError):
        return (getattr(inner, "reason", "") or "TLS error").replace("_", " ").lower()
    if isinstance(inner, socket.gaierror):
        return inner.strerror or "DNS error"
    if isinstance(inner, OSError) and inner.errno:
        return os.strerror(inner.errno)
    return "the other side closed it"


def _name_of(request: SignedRequest) -> str:
    """Method and host, without path and query: those may hold names and signatures."""
    try:
        host = URL(request.url, encoded=True).host
    except ValueError:
        host = None
    return f"{request.method} {host or '(no host)'}"
