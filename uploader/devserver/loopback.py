"""Which URLs lead to this machine."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Whether an http(s) URL names ``localhost`` or a loopback address, without a look-up."""
    with suppress(ValueError):
        parts = urlsplit(url)
        name = parts.hostname or ""
        if parts.scheme not in ("http", "https"):
            return False
        return name == "localhost" or ip_address(name).is_loopback
    return False
