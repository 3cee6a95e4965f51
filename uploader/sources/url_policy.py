"""Which URLs a source may be read from: no address that only this machine or its network reaches.

A URL may come from a manifest, and whoever wrote that must not make this machine ask its
neighbours, or a cloud's metadata service, and send the answer to a bucket (SSRF).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from yarl import URL

from uploader.errors import ConfigurationError, PolicyError

__all__ = ["URL", "UrlPolicy", "identity_of", "is_public", "parsed_url", "shown"]

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_V4_COMPATIBLE: Final = ipaddress.ip_network("::/96")  # RFC 4291, deprecated

_SIGNED: Final = frozenset(
    # What presigned URLs carry beside what names the object; differs each time one is made.
    """
    ossaccesskeyid signature expires security-token x-oss-signature x-oss-signature-version
    x-oss-credential x-oss-date x-oss-expires x-oss-security-token x-amz-algorithm
    x-amz-credential x-amz-date x-amz-expires x-amz-security-token x-amz-signature
    x-amz-signedheaders awsaccesskeyid x-goog-algorithm x-goog-credential x-goog-date
    x-goog-expires x-goog-signature x-goog-signedheaders googleaccessid sig se sp sr sv st skoid
    sktid skt ske sks skv spr auth_key
    """.split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlPolicy:
    """What may be read from a URL. Comes from code or flags, never from data.

    Attributes:
        allow_private: addresses of this machine and of private networks, too.
        max_redirects: hops that are followed; each is held to the same rules, and none
            leads from https to http.
    """

    allow_private: bool = False
    max_redirects: int = 5

    def require_address(self, address: str, host: str) -> None:
        """Refuse an address that a host's name stands for.

        Raises:
            PolicyError: it is not public.
        """
        if not self.allow_private and not is_public(address):
            named = host if host == address else f"{host} ({address})"
            raise PolicyError(
                f"{named} is not a public address, and a source may not lead there.",
                next_step="If that is meant, pass --allow-private-sources "
                "(UrlPolicy(allow_private=True) in code).",
            )

    def next_hop(self, url: URL, location: str | None) -> URL:
        """Where a redirect leads.

        Raises:
            PolicyError: nowhere it may lead.
        """
        if location is None:
            raise PolicyError(f"{shown(url)} redirects without saying where.")
        try:
            following = url.join(URL(location))
        except ValueError:
            raise PolicyError(f"{shown(url)} redirects to what is no URL.") from None
        if following.scheme not in ("http", "https") or not following.host:
            raise PolicyError(f"{shown(url)} redirects to another kind of place.")
        if url.scheme == "https" and following.scheme == "http":
            raise PolicyError(f"{shown(url)} redirects from https to http.")
        if following.user is not None or following.password is not None:
            raise PolicyError(f"{shown(url)} redirects to a URL with a password in it.")
        return following


def is_public(address: str) -> bool:
    """Whether the whole internet reaches an IP address; of one inside another, both."""
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
    """IPv4 addresses that a gateway would take out of an IPv6 address."""
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _V4_COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


def parsed_url(text: str) -> URL:
    """Read a URL of a source.

    Raises:
        ConfigurationError: it is none, or it has a password in it.
    """
    try:
        url = URL(text)
    except ValueError:
        raise ConfigurationError("The source is not a URL.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(f"{shown(url)} is not an http or https URL with a host.")
    if url.user is not None or url.password is not None:
        raise ConfigurationError(
            f"{shown(url)} has a name or a password in it.",
            next_step="vodup sends no credentials to a source: use a presigned URL, or "
            "vodup[fsspec] for the store's own protocol.",
        )
    return url.with_fragment(None)


def shown(url: URL) -> str:
    """A URL without what may be secret: name, password, query and fragment."""
    if not url.host:
        return f"{url.scheme}:…" if url.scheme else "The source"
    return str(url.with_user(None).with_query(None).with_fragment(None))


def identity_of(url: URL) -> str:
    """What names the object: the URL without a presigner's parameters."""
    kept = [(name, value) for name, value in url.query.items() if name.lower() not in _SIGNED]
    return str(url.with_query(kept))
