"""Which hosts, buckets and keys may receive credentials and bytes.

An address is data: it comes from an app server, a file or a command. Whoever chooses the
host receives signatures and tokens, so a host must match Alibaba Cloud's own names as a whole.
An endpoint is parsed once, by one pattern, and the origin used afterwards is built from the
matched groups: no second parser can disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, NoReturn
from urllib.parse import unquote, urlsplit

from uploader.errors import ConfigurationError, UntrustedEndpoint
from uploader.protocol.grants import UploadTarget

MAX_KEY_SIZE = 1023  # bytes of UTF-8 (OSS doc "Object naming")
_MAX_ENDPOINT_LENGTH = 300

_LABEL = r"[a-z0-9]+(?:-+[a-z0-9]+)*"
_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"

# What is accepted as an endpoint at all. No user, path, query or fragment can match.
_ENDPOINT = re.compile(
    r"(?:(?P<scheme>https?)://)?"
    r"(?P<host>[a-z0-9.-]+|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"/?"
)
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# The last label decides whether a host is read as an IPv4 address, in decimal, octal or
# hexadecimal and with one to four parts (WHATWG URL, "ends in a number").
_NUMERIC_TAIL = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

ServiceName = Literal["OSS", "VOD", "IMS"]

_HOSTS: dict[ServiceName, re.Pattern[str]] = {
    # OSS doc "Regions and endpoints": oss-cn-x, oss-cn-x-internal, oss-accelerate,
    # oss-accelerate-overseas, dual stack cn-x.oss, and vpc100-oss-cn-x of older accounts.
    # Not *.aliyuncs.com: customers of other products choose names there.
    "OSS": re.compile(rf"(?:oss(?:-{_NAME})?|vpc100-oss-{_NAME}|{_NAME}\.oss)\.aliyuncs\.com"),
    # VOD doc and IMS doc "Endpoints".
    "VOD": re.compile(rf"(?:vod(?:\.{_NAME})?|vod-vpc\.{_NAME})\.aliyuncs\.com"),
    "IMS": re.compile(rf"(?:ice(?:\.{_NAME})?|ice-vpc\.{_NAME})\.aliyuncs\.com"),
}
_REGION_IN_HOST = re.compile(
    # "-pub" is the public host of a region of the finance cloud.
    r"(?:(?:vpc100-)?oss-(?P<plain>[a-z]{2}-[a-z0-9-]+?)(?:-internal|-pub)?"
    r"|(?P<dual>[a-z]{2}-[a-z0-9-]+?)\.oss)\.aliyuncs\.com"
)
_LOOPBACK = frozenset({"127.0.0.1", "[::1]"})

# OSS doc "Bucket naming": 3 to 63 characters. A bucket becomes part of the host name.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class _Origin:
    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """Decides who may receive credentials.

    Attributes:
        allowed_hosts: further host names, for both services: a CNAME of a bucket, a
            private cloud. Set from code or flags only, never from data. Reached over
            https on port 443 like the others.
        allow_loopback: whether 127.0.0.1 and [::1] may be used, on any port, even over
            plain http: for a development server. Only these literals: a name such as localhost
            may resolve to another host.
        expected_bucket: the one bucket uploads may go to; None: any. The host check does
            not stop a foreign bucket at the real OSS, this does.
    """

    allowed_hosts: frozenset[str] = frozenset()
    allow_loopback: bool = False
    expected_bucket: str | None = None

    def __post_init__(self) -> None:
        # Through object: that is how a frozen dataclass sets its own fields.
        names = frozenset(_checked_host_name(host) for host in self.allowed_hosts)
        object.__setattr__(self, "allowed_hosts", names)

    def check_endpoint(self, service: ServiceName, endpoint: str) -> str:
        """Return the origin to send requests to, such as "https://oss-cn-x.aliyuncs.com".

        Raises:
            UntrustedEndpoint: it is not one of `service`, or not reached over TLS.
        """
        origin = _parse(endpoint, service)
        if self.allow_loopback and origin.host in _LOOPBACK:
            return str(origin)
        if origin.host in _LOOPBACK:
            raise UntrustedEndpoint(
                f"Refusing to send credentials for {service} to this machine ({origin.host}).",
                next_step="For a development server set VODUP_ALLOW_LOOPBACK_HTTP=1, or pass "
                "TrustPolicy(allow_loopback=True) in code.",
            )
        _check_public(origin, service)
        if not _HOSTS[service].fullmatch(origin.host) and origin.host not in self.allowed_hosts:
            _refuse(service, f"{origin.host} is not a host of {service}")
        return f"https://{origin.host}"

    def check_target(self, target: UploadTarget) -> UploadTarget:
        """Return `target` with its endpoint normalised.

        Raises:
            UntrustedEndpoint: endpoint, bucket or key could lead elsewhere.
        """
        endpoint = self.check_endpoint("OSS", target.endpoint)
        self._check_bucket(target.bucket)
        _check_key(target.object_key, "object key")
        if target.object_prefix is not None:
            _check_key(target.object_prefix, "object prefix")
        return target if endpoint == target.endpoint else replace(target, endpoint=endpoint)

    def _check_bucket(self, bucket: str) -> None:
        if not _BUCKET.fullmatch(bucket):
            _refuse_name("bucket", "has 3 to 63 lower-case letters, digits and inner hyphens")
        if self.expected_bucket is not None and bucket != self.expected_bucket:
            raise UntrustedEndpoint(
                f"The address names bucket {bucket}, but only {self.expected_bucket} is expected.",
                next_step="Check who issued this address, or correct the expected bucket.",
            )


def target_of_url(url: str) -> UploadTarget | None:
    """Return the object behind a URL that VOD has signed, unchecked; None if it is no such URL.

    The bucket is the first label of the host; on this machine, the first folder of the path.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    object_key = unquote(parts.path).removeprefix("/")
    if f"{parts.netloc}:".startswith(tuple(f"{name}:" for name in _LOOPBACK)):
        bucket, _, object_key = object_key.partition("/")
        return UploadTarget(f"{parts.scheme}://{parts.netloc}", bucket, object_key)
    bucket, _, host = parts.netloc.partition(".")
    return UploadTarget(f"https://{host}", bucket, object_key) if host else None


def oss_region(endpoint: str) -> str | None:
    """Return the OSS region of a checked endpoint, for signing: "cn-shanghai".

    None where the host does not contain it: acceleration, a CNAME, loopback. It must then be
    configured.
    """
    host = endpoint.rpartition("://")[2].partition(":")[0]
    found = _REGION_IN_HOST.fullmatch(host)
    return found and (found["plain"] or found["dual"])


def oss_host(region: str, kind: str) -> str:
    """Return a region's "public", "internal", "accelerate" or "dualstack" host.

    OSS doc "Regions and endpoints". Acceleration has one host for all regions.
    """
    public = f"oss-{region}-pub" if "-finance-" in region else f"oss-{region}"
    names = {
        "public": public,
        "internal": f"oss-{region}-internal",
        "accelerate": "oss-accelerate",
        "dualstack": f"{region}.oss",
    }
    return f"{names[kind]}.aliyuncs.com"


def is_oss_host(host: str) -> bool:
    """Whether a host is one of OSS's own."""
    return _HOSTS["OSS"].fullmatch(host) is not None


def _parse(endpoint: str, service: str) -> _Origin:
    # ASCII before anything else: lower() turns the Kelvin sign into "k", and IDNA folds
    # full-width dots and circled letters into ordinary ones.
    if not endpoint.isascii() or len(endpoint) > _MAX_ENDPOINT_LENGTH:
        _refuse(service, "it is too long or holds characters that are not ASCII")
    found = _ENDPOINT.fullmatch(endpoint.lower())
    if found is None:
        _refuse(service, "it is not of the form https://host")
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > 65535:
        _refuse(service, "its port does not exist")
    # No scheme means https: some documents print bare host names.
    return _Origin(found["scheme"] or "https", found["host"], port)


def _check_public(origin: _Origin, service: str) -> None:
    if origin.scheme != "https":
        _refuse(service, "it is not https")
    if origin.port not in (None, 443):
        _refuse(service, "its port is not 443")
    if not _is_dns_name(origin.host):
        _refuse(service, "its host is an IP address or no host name")


def _is_dns_name(host: str) -> bool:
    if len(host) > 253 or not _DNS_NAME.fullmatch(host) or _NUMERIC_TAIL.fullmatch(host):
        return False
    return all(len(label) <= 63 for label in host.split("."))


def _checked_host_name(host: str) -> str:
    if not host.isascii() or not _is_dns_name(host.lower()):
        raise ConfigurationError(
            f"{host[:80]!r} cannot be allowed as a host: it is not a plain host name.",
            next_step="Write the name alone, such as media.example.com.",
        )
    return host.lower()


def _check_key(key: str, what: str) -> None:
    """Refuse keys that a client, a proxy or a file system might read as something else."""
    if not 1 <= _utf8_size(key) <= MAX_KEY_SIZE:
        _refuse_name(what, f"has 1 to {MAX_KEY_SIZE} bytes of UTF-8")
    if _CONTROL.search(key):
        _refuse_name(what, "has no control characters")
    if key[0] in "/\\":
        _refuse_name(what, "does not start with a slash")
    if {".", ".."} & set(re.split(r"[/\\]", key)):
        _refuse_name(what, "has no '.' or '..' between slashes")


def _utf8_size(text: str) -> int:
    """Return the size of `text` in UTF-8; 0 when it cannot be written."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def _refuse(service: str, why: str) -> NoReturn:
    # The endpoint itself is not quoted: it may hold a password.
    raise UntrustedEndpoint(f"The endpoint given for {service} is refused: {why}.")


def _refuse_name(what: str, rule: str) -> NoReturn:
    raise UntrustedEndpoint(
        f"The {what} in the address is refused: a valid one {rule}.",
        next_step="Check who issued this address.",
    )
