"""Which URLs a source may be read from: no address that only this machine or its network reaches.

A URL may come from a manifest, whose author must not make this machine send requests to its
network or to a cloud's metadata service and upload the response (SSRF).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from yarl import URL

from uploader.errors import ConfigurationError, PolicyError

__all__ = ["URL", "UrlPolicy", "identity_of", "is_public", "parsed_url", "shown"]

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_V4_COMPATIBLE: Final = ipaddress.ip_network("::/96")  # RFC 4291, deprecated

_SIGNED: Final = tuple(
    # Each way to sign a URL: parameters that only occur together, and further ones of it. They do
    # not name the object, and each new URL has other values.
    (frozenset(all_of.split()), frozenset((all_of + " " + others).split()))
    for all_of, others in (
        ("ossaccesskeyid expires signature", "security-token"),
        (
            "x-oss-credential x-oss-date x-oss-signature",
            "x-oss-expires x-oss-signature-version x-oss-security-token x-oss-additional-headers",
        ),
        ("awsaccesskeyid expires signature", "x-amz-security-token"),
        (
            "x-amz-credential x-amz-date x-amz-signature",
            "x-amz-algorithm x-amz-expires x-amz-security-token x-amz-signedheaders",
        ),
        ("googleaccessid expires signature", ""),
        (
            "x-goog-credential x-goog-date x-goog-signature",
            "x-goog-algorithm x-goog-expires x-goog-signedheaders",
        ),
        ("sv sig se", "sp sr st ss srt sip spr skoid sktid skt ske sks skv"),  # Azure
        ("key-pair-id signature", "expires policy"),  # CloudFront
        (
            "q-ak q-sign-time q-signature",
            "q-sign-algorithm q-key-time q-header-list q-url-param-list x-cos-security-token",
        ),
    )
)
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+(?:%[\w.-]+)?", re.A)
_CDN_KEY: Final = re.compile(r"\d{10}-[0-9A-Za-z]+-\d+-[0-9a-f]{32}")
"""`auth_key` of Alibaba Cloud's CDN: time, random text, user, MD5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlPolicy:
    """Which URLs may be read. Comes from code or flags, never from data.

    Attributes:
        allow_private: also addresses of this machine and of private networks.
        max_redirects: how many redirects are followed; the same rules apply to each, and
            none may lead from https to http.
        any_content_type: also what is served as a web page or a document, which is an
            error or login page more often than a video.
        proxy: as `UploadOptions.proxy`. A proxy resolves names itself, so that addresses cannot
            be checked: it is used only with `allow_private`.
        ca_file: as `UploadOptions.ca_file`.
    """

    allow_private: bool = False
    max_redirects: int = 5
    any_content_type: bool = False
    proxy: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def require_address(self, address: str, host: str) -> None:
        """Check an address of a host.

        Raises:
            PolicyError: it is not public.
        """
        if not self.allow_private and not is_public(address):
            named = host if host == address else f"{host} ({address})"
            raise PolicyError(
                f"{named} is not a public address, so the source may not be read from it.",
                next_step="If you trust this URL, pass --allow-private-sources "
                "(UrlPolicy(allow_private=True) in code).",
            )

    def require_proxy(self, host: str) -> None:
        """Check that a host may be read through a proxy.

        Raises:
            PolicyError: its address has to be public, which only the proxy could tell.
        """
        if not self.allow_private:
            raise PolicyError(
                f"{host} would be read through a proxy, which resolves the name: whether its "
                "address is public cannot be checked.",
                next_step="If you trust this URL, pass --allow-private-sources "
                "(UrlPolicy(allow_private=True) in code), or list the host in NO_PROXY.",
            )

    def next_hop(self, url: URL, location: str | None) -> URL:
        """Return the target of a redirect.

        Raises:
            PolicyError: the target may not be read.
        """
        if location is None:
            raise _redirect_refused(url, "without a target")
        try:
            target = url.join(URL(location))
        except ValueError:
            raise _redirect_refused(url, "to a malformed URL") from None
        if target.scheme not in ("http", "https") or not target.host:
            raise _redirect_refused(url, "to a URL that is not http or https")
        if url.scheme == "https" and target.scheme == "http":
            raise _redirect_refused(url, "from https to http")
        if target.user is not None or target.password is not None:
            raise _redirect_refused(url, "to a URL with a password")
        return target


def _redirect_refused(url: URL, how: str) -> PolicyError:
    return PolicyError(
        f"{shown(url)} redirects {how}.",
        next_step="Check the URL; if its target is right, pass the target itself.",
    )


def is_public(address: str) -> bool:
    """Whether an IP address is public; if another one is embedded in it, both must be."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return _is_public(parsed)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    return all(map(_is_public, _embedded(address)))


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """IPv4 addresses that a gateway would extract from an IPv6 address."""
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _V4_COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


def parsed_url(text: str) -> URL:
    """Parse the URL of a source.

    Raises:
        ConfigurationError: it is malformed, not http or https, or contains a password.
    """
    try:
        url = URL(text)
    except ValueError:
        raise ConfigurationError("The source is a malformed URL.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(f"{shown(url)} is not an http or https URL with a host.")
    if not _HOST.fullmatch(url.raw_host or ""):
        raise ConfigurationError("The source is a malformed URL: its host is no name or address.")
    if url.user is not None or url.password is not None:
        raise ConfigurationError(
            f"{shown(url)} contains a user name or password.",
            next_step="vodup sends no credentials to a source: use a presigned URL, or "
            "vodup[fsspec] for the store's own protocol.",
        )
    return url.with_fragment(None)


def shown(url: URL) -> str:
    """A URL without what may be secret: user name, password, query and fragment."""
    if not url.host:
        return f"{url.scheme}:…" if url.scheme else "The source"
    return str(url.with_user(None).with_query(None).with_fragment(None))


def identity_of(url: URL) -> str:
    """The URL without the parameters of a presigned one: what names the object.

    A parameter that no known way of signing explains may name another object: it is kept.
    """
    names = {name.lower() for name in url.query}
    signed = {name for all_of, every in _SIGNED if all_of <= names for name in every}
    if _CDN_KEY.fullmatch(url.query.get("auth_key", "")):
        signed.add("auth_key")
    query = [(name, value) for name, value in url.query.items() if name.lower() not in signed]
    return str(url.with_query(query))
