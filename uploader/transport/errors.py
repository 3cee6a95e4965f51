"""Translates errors of aiohttp, TLS and sockets into ours, each with its cause and its cure.

Theirs carry the request's headers, and with them the signature, and may quote URLs. So none
of them leaves this package, not even as a cause.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from uploader.errors import PolicyError, ProxyRefused, TransportError, UntrustedCertificate
from uploader.protocol.documents import clean_text
from uploader.protocol.wire import SignedRequest

if TYPE_CHECKING:
    from uploader.transport.proxies import Proxy

FOREIGN_ERRORS: Final = (aiohttp.ClientError, OSError, ValueError)
"""What aiohttp, ssl and sockets raise; TimeoutError and ssl.SSLError are OSErrors."""


class UnusableAnswer(Exception):
    """An answer arrived, or broke off, in a way that makes it useless; the text says how."""


_AGAIN: Final = "then run the same command again to resume."

_NEXT_STEPS: Final = {
    "NameNotResolved": "Check the region or the endpoint for a typing error, and the name server "
    "of this machine. Where only a proxy leads out, pass --proxy URL (proxy= in code), "
    f"{_AGAIN}",
    "ConnectionRefused": "Check the endpoint. A firewall may close its port: have it opened, or "
    f"pass --proxy URL (proxy= in code), {_AGAIN}",
    "NetworkUnreachable": "Check the network of this machine, its VPN and its default route, "
    f"{_AGAIN}",
    "ConnectTimeout": "A firewall may drop the packets: have port 443 to this host opened, or "
    f"pass --proxy URL (proxy= in code), {_AGAIN}",
    "NotTls": "Something else answers at this port, such as a login page of this network: open a "
    f"web page in a browser to log in, or check the endpoint, {_AGAIN}",
    "TlsFailed": "A firewall or a proxy on the way may cut TLS: have this host allowed, or pass "
    f"--proxy URL (proxy= in code), {_AGAIN}",
    "ConnectionFailed": f"Check the region or the endpoint, the network and the firewall, {_AGAIN}",
    "ProxyUnreachable": f"Check the address of the proxy and the network, {_AGAIN}",
    "ProxyFailed": "The proxy works, but cannot reach this host now: check the endpoint, or ask "
    f"whoever runs the proxy, {_AGAIN}",
}
"""By `VodupError.code`: why there is no connection, and what to do about it."""

_CODES: Final = {
    errno.ECONNREFUSED: "ConnectionRefused",
    errno.ENETUNREACH: "NetworkUnreachable",
    errno.EHOSTUNREACH: "NetworkUnreachable",
    errno.EADDRNOTAVAIL: "NetworkUnreachable",  # no address of that family
    errno.ETIMEDOUT: "ConnectTimeout",
    errno.ECONNRESET: "TlsFailed",  # during the handshake: there is a connection already
}
_NOT_TLS: Final = frozenset({"wrong version number", "http request", "record layer failure"})

_OTHER_TIME: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED
_OTHER_HOST: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH

UNTRUSTED: Final = (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)

_NEVER_SENT: Final = (
    aiohttp.ClientConnectorError,
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
    error: Exception,
    request: SignedRequest,
    *,
    timeout_reason: str = "",
    proxy: Proxy | None = None,
    unused_variable: str = "",
    issuer: str = "",
) -> TransportError | PolicyError:
    """Our error for one of aiohttp's or the system's, without any of its content.

    Args:
        error: theirs.
        request: what could not be sent, or was not answered.
        timeout_reason: explains a TimeoutError that is not one of aiohttp's.
        proxy: what the request went through.
        unused_variable: the environment variable that names a proxy, where nothing chose one.
        issuer: who issued the certificate that is not trusted, where that is known.
    """
    name = _name_of(request)
    if isinstance(error, aiohttp.ClientHttpProxyError) and proxy is not None:
        offered = error.headers.get("Proxy-Authenticate", "") if error.headers else ""
        return proxy_refusal(name, proxy, error.status, offered)
    if is_of_proxy(error, proxy):
        name = f"{name}: the proxy {proxy}"
    elif proxy is not None and isinstance(error, _NEVER_SENT):
        name = f"{name} (through the proxy {proxy})"
    if isinstance(error, UNTRUSTED):
        return _untrusted(error, name, issuer)
    code = "ProxyUnreachable" if is_of_proxy(error, proxy) else _code(error)
    next_step = _NEXT_STEPS.get(code)
    if code and unused_variable:
        next_step = (
            f"{unused_variable} names a proxy, and vodup uses it only on request: pass --proxy env "
            f'(proxy="env" in code), {_AGAIN}'
        )
    is_ours = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError)
    return TransportError(
        f"{name}: {timeout_reason if is_ours else _explain(error)}.",
        is_sent=not isinstance(error, _NEVER_SENT),
        is_timeout=isinstance(error, TimeoutError),  # aiohttp's are subclasses; errno ETIMEDOUT
        next_step=next_step,
        code=code,
    )


def proxy_refusal(
    name: str, proxy: Proxy, status: int, offered: str
) -> TransportError | ProxyRefused:
    """Our error for a proxy that answers with `status` instead of connecting.

    `offered` is its `Proxy-Authenticate`; NTLM and Negotiate are not spoken here.
    """
    if status >= 500 or status in (408, 429):
        return TransportError(
            f"{name}: the proxy {proxy} cannot connect to it ({status}).",
            is_sent=False,
            is_timeout=status in (408, 429, 503, 504),
            next_step=_NEXT_STEPS["ProxyFailed"],
            code="ProxyFailed",
        )
    if status != 407:
        message = f"{name}: the proxy {proxy} does not allow this connection ({status})."
        return ProxyRefused(message, code="ProxyForbidden")
    if offered and "basic" not in offered.lower():
        why = f"offers only {clean_text(offered, 40)}, and vodup authenticates with Basic"
        next_step = (
            f"Run a local proxy that speaks it, such as cntlm or px, and pass its URL, {_AGAIN}"
        )
    else:
        why = "does not accept the user name and password" if proxy.headers else "requires a login"
        next_step = (
            "Set VODUP_PROXY_USER and VODUP_PROXY_PASSWORD, or --proxy-login-file (in code: "
            f'proxy="http://USER:PASSWORD@HOST:PORT"), {_AGAIN}'
        )
    message = f"{name}: the proxy {proxy} {why} (407)."
    return ProxyRefused(message, next_step=next_step, code="ProxyLogin")


def _untrusted(error: Exception, name: str, issuer: str) -> UntrustedCertificate:
    inner = getattr(error, "certificate_error", None)
    number = getattr(inner, "verify_code", 0)
    text, next_step, code = _explain(error), None, "CertificateIssuer"
    if number in _OTHER_TIME:
        code = "CertificateTime"
        next_step = (
            f"Check the clock of this machine: it shows {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. If "
            "that is right, a proxy or a login page answers in place of the service."
        )
    elif number in _OTHER_HOST:
        code = "CertificateHost"
        next_step = (
            "Another server answers, such as a login page of this network or a proxy: open a web "
            f"page in a browser to log in, or check the endpoint and the name server, {_AGAIN}"
        )
    elif issuer:
        text = f"{text.removesuffix(')')}; it is issued by {issuer!r})"
    return UntrustedCertificate(f"{name}: {text}.", next_step=next_step, code=code)


def is_of_proxy(error: Exception, proxy: Proxy | None) -> bool:
    """Whether it is the connection to the proxy itself that failed."""
    if proxy is None or not isinstance(error, aiohttp.ClientConnectorError):
        return False
    is_there = (error.host, error.port) == (proxy.url.raw_host, proxy.url.port)
    return is_there or isinstance(error, aiohttp.ClientProxyConnectionError)


def _code(error: Exception) -> str:
    """Why there is no connection; "" where there was one."""
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return "NotTls" if _reason(error) in _NOT_TLS else "TlsFailed"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "NameNotResolved"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "ConnectTimeout"
    if not isinstance(error, aiohttp.ClientConnectorError):
        return ""
    number = getattr(getattr(error, "os_error", None), "errno", None)
    return _CODES.get(number or 0, "ConnectionFailed")


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
        host = URL(request.url, encoded=True).host_subcomponent  # an IPv6 address in brackets
    except ValueError:
        host = None
    return f"{request.method} {host or '(no host)'}"
