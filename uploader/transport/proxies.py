"""Which requests go through an HTTP proxy: `--proxy URL|env|none`.

A proxy is used only where one is configured. Requests to this machine never go through one. Over a
proxy there is TLS end to end (CONNECT): the proxy sees host names, never a request.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from uploader.errors import ConfigurationError
from uploader.redaction import remember

_DIRECT: Final = frozenset({None, "", "none"})
_METADATA_HOST = "100.100.100.200"
"""Answers an ECS instance about itself; behind a proxy, it would answer about the proxy's."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """One HTTP proxy.

    Attributes:
        url: scheme, host and port; never a user name or password.
        headers: the `Proxy-Authorization`, if there is one.
    """

    url: URL
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.url.host_subcomponent}:{self.url.port}"


class Proxies:
    """Chooses the proxy of each request. Immutable; the environment is read once, here.

    Args:
        setting: the URL of a proxy; "env" for those that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and
            NO_PROXY name; "none" or None for none.

    Raises:
        ConfigurationError: the setting, or a variable that it refers to, is not such a URL.
    """

    def __init__(self, setting: str | None) -> None:
        self._is_default = setting is None
        self._environment = urllib.request.getproxies_environment()
        self._rules = _bypass_rules(self._environment.get("no", ""))
        self._by_scheme: dict[str, Proxy] = {}
        if setting == "env":
            for scheme in _DEFAULT_PORTS:
                if name := self._variable(scheme):
                    text = self._environment[name.removesuffix("_PROXY").lower()]
                    self._by_scheme[scheme] = parsed_proxy(text, name)
        elif setting not in _DIRECT:
            only = parsed_proxy(str(setting), "--proxy (proxy= in code)")
            self._by_scheme, self._rules = dict.fromkeys(_DEFAULT_PORTS, only), []

    def proxy_for(self, url: URL) -> Proxy | None:
        """Return the proxy of a request; None to connect directly."""
        found = self._by_scheme.get(url.scheme)
        return None if found is None or self._is_direct(url) else found

    def unused_variable(self, url: URL | str) -> str:
        """Return the variable that names a proxy for this URL, where nothing chose one; or ""."""
        url = URL(url)
        is_chosen = not self._is_default or self._is_direct(url)
        return "" if is_chosen else self._variable(url.scheme)

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(map(str, self._by_scheme.values()))) or "none"

    def _variable(self, scheme: str) -> str:
        found = next((name for name in (scheme, "all") if self._environment.get(name)), "")
        return found and f"{found.upper()}_PROXY"

    def _is_direct(self, url: URL) -> bool:
        """Whether no proxy may be used: this machine, and what NO_PROXY lists."""
        host = (url.host or "").lower().rstrip(".")
        rules = {"no": ",".join(self._rules)}
        bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
        is_listed = bypass(f"{host}:{url.port}", rules)
        return _is_this_machine(host) or bool(is_listed) or _is_in_networks(host, self._rules)


def parsed_proxy(text: str, origin: str) -> Proxy:
    """Parse the URL of a proxy; `origin` names where it is from. The URL is never quoted.

    Raises:
        ConfigurationError: it is not the URL of an HTTP proxy.
    """
    try:
        text = text.strip()
        url = URL(text if "://" in text else f"http://{text}")
        has_port = url.port is not None
    except ValueError:
        url, has_port = URL(), False
    if url.scheme.startswith("socks"):
        raise ConfigurationError(
            f"{origin} names a SOCKS proxy, which vodup does not support.",
            next_step="Use the HTTP port of that proxy, or an HTTP proxy in front of it.",
        )
    if url.scheme not in _DEFAULT_PORTS or not url.host or not has_port:
        raise ConfigurationError(
            f"{origin} is not the URL of an HTTP proxy.",
            next_step="Write it as http://proxy.example.com:3128, or use env or none.",
        )
    headers = {}
    if url.user is not None or url.password is not None:
        pair = f"{url.user or ''}:{url.password or ''}"
        encoded = base64.b64encode(pair.encode()).decode()
        headers["Proxy-Authorization"] = f"Basic {encoded}"
        remember(url.password, encoded)
    return Proxy(url.origin(), headers)


def _is_this_machine(host: str) -> bool:
    if host == _METADATA_HOST or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _bypass_rules(no_proxy: str) -> list[str]:
    """Write NO_PROXY as the standard library reads it: names, suffixes, addresses, ports, "*".

    Networks (10.0.0.0/8), which it does not know, are left for `_is_in_networks`.
    """
    words = re.sub(r"[\[\]]", "", no_proxy.lower()).replace(" ", ",").split(",")
    return ["*"] if "*" in words else [word.removeprefix("*") for word in words if word]


def _is_in_networks(host: str, rules: list[str]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in map(_network, rules) if network)


def _network(rule: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return None
