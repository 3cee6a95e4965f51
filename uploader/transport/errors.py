"""Errors of aiohttp, TLS and sockets, translated into ours.

Theirs carry the request's headers, and with them the signature, so none of them leaves this
package, not even as a cause.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

import aiohttp
from yarl import URL

from uploader.errors import TransportError
from uploader.protocol.wire import SignedRequest

__all__ = ["Unusable", "named", "reason", "translated"]


class Unusable(Exception):
    """An answer arrived that we do not take."""


_CERTIFICATE_HELP: Final = (
    "Check this machine's clock and its CA certificates; behind a proxy that inspects TLS, "
    "point VODUP_CA_FILE at the proxy's certificate (SSL_CERT_FILE is not read). Verification "
    "cannot be switched off."
)


def translated(exc: Exception, request: SignedRequest) -> TransportError:
    """Our error for one of aiohttp's or the system's, without any of its content.

    Messages of aiohttp may quote headers and URLs with signatures.
    """
    is_sent = not isinstance(exc, _NEVER_SENT)
    next_step = _CERTIFICATE_HELP if isinstance(exc, _CERTIFICATE_ERRORS) else None
    return TransportError(
        f"{named(request)}: {_explained(exc)}.",
        is_sent=is_sent,
        is_timeout=isinstance(exc, TimeoutError),  # aiohttp's are subclasses; errno ETIMEDOUT
        next_step=next_step,
    )


_CERTIFICATE_ERRORS: Final = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ServerFingerprintMismatch,
)

_NEVER_SENT: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    aiohttp.ServerFingerprintMismatch,
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
    (aiohttp.ConnectionTimeoutError, "no connection in time"),
    (aiohttp.ClientConnectorError, "no connection ({reason})"),
    (aiohttp.ServerDisconnectedError, "the server closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the answer was cut off"),
    (aiohttp.ClientResponseError, "the answer is not valid HTTP"),
    (aiohttp.InvalidURL, "the URL is not valid"),
    (aiohttp.NonHttpUrlClientError, "the URL is not valid"),
    (ssl.SSLError, "TLS failed ({reason})"),
    (OSError, "the connection broke ({reason})"),
    (ValueError, "the request cannot be written as HTTP"),
    (Exception, "the connection broke"),
)


def _explained(exc: Exception) -> str:
    text = next(text for kind, text in _EXPLANATIONS if isinstance(exc, kind))
    return text.format(reason=reason(exc))


def reason(exc: BaseException) -> str:
    """Why, in the words of the system: of a certificate, of TLS, or of errno."""
    inner = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", None) or exc
    if isinstance(inner, ssl.SSLCertVerificationError):
        return getattr(inner, "verify_message", "") or "refused"
    if isinstance(inner, ssl.SSLError):
        return (getattr(inner, "reason", "") or "TLS error").replace("_", " ").lower()
    if isinstance(inner, socket.gaierror):
        return inner.strerror or "DNS error"
    if isinstance(inner, OSError) and inner.errno:
        return os.strerror(inner.errno)
    return "the other side closed it"


def named(request: SignedRequest) -> str:
    """The request without its path and query: those may hold names and signatures."""
    try:
        host = URL(request.url, encoded=True).host
    except ValueError:
        host = None
    return f"{request.method} {host or '(no host)'}"
