"""A request as OSS reads it: addressing, parameters, operation, all from the raw target."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from .encoding import Pairs, parse_query, percent_decode, split_target
from .signatures import SignedRequest


@dataclass(frozen=True, slots=True)
class OssCall:
    """A request as OSS understands it; header names are lower-case."""

    method: str
    operation: str
    bucket: str
    object_key: str
    query: Pairs
    headers: Mapping[str, str]
    host: str

    def parameter(self, name: str, default: str = "") -> str:
        """A query parameter."""
        return next((value for key, value in self.query if key == name), default)

    def has(self, name: str) -> bool:
        """Whether a query parameter is there, with or without a value."""
        return any(key == name for key, _ in self.query)

    @property
    def upload_id(self) -> str:
        """``uploadId``, or an empty string."""
        return self.parameter("uploadId")

    @property
    def part_number(self) -> int | None:
        """``partNumber`` when it is a number."""
        text = self.parameter("partNumber")
        return int(text) if text.isdecimal() and text.isascii() else None

    @property
    def signed(self) -> SignedRequest:
        """What the signature covers."""
        resource = f"/{self.bucket}/{self.object_key}" if self.bucket else "/"
        return SignedRequest(self.method, resource, self.query, self.headers)


def parse_call(request: web.BaseRequest, *, cname: str, bound_bucket: str) -> OssCall:
    """Read the raw request target: nothing here goes through a URL library.

    Requests to the host ``cname`` are for ``bound_bucket``.
    """
    raw_path, raw_query = split_target(request.raw_path)
    host = request.headers.get("Host", "")
    path = percent_decode(raw_path)
    if cname and host_name(host) == cname:
        bucket, object_key = bound_bucket, path.removeprefix("/")
    else:
        bucket, object_key = _bucket_and_key(host, path)
    query = parse_query(raw_query, plus_is_space=True)  # oss2 writes a prefix with blanks so
    headers = {name.lower(): value for name, value in request.headers.items()}
    operation = _operation(request.method, object_key, {name for name, _ in query})
    return OssCall(request.method, operation, bucket, object_key, query, headers, host)


def host_name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).strip("[]")


def _bucket_and_key(host: str, path: str) -> tuple[str, str]:
    name = host_name(host)
    if name == "localhost" or _is_ip(name):
        bucket, _, object_key = path.removeprefix("/").partition("/")
        return bucket, object_key
    return name.partition(".")[0], path.removeprefix("/")


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _operation(method: str, object_key: str, names: set[str]) -> str:
    if method == "OPTIONS":
        return "OptionObject"
    if not object_key:
        return _bucket_operation(method, names)
    if "uploadId" in names:
        part = "UploadPart" if "partNumber" in names else "Unsupported"
        multipart = {
            "PUT": part,
            "POST": "CompleteMultipartUpload",
            "GET": "ListParts",
            "DELETE": "AbortMultipartUpload",
        }
        return multipart.get(method, "Unsupported")
    if method == "POST":
        return "InitiateMultipartUpload" if "uploads" in names else "Unsupported"
    whole = {
        "PUT": "PutObject",
        "HEAD": "HeadObject",
        "GET": "GetObject",
        "DELETE": "DeleteObject",
    }
    return whole.get(method, "Unsupported")


def _bucket_operation(method: str, names: set[str]) -> str:
    if method == "GET":
        named = {"uploads": "ListMultipartUploads", "list-type": "ListObjectsV2"}
        return next((named[name] for name in named if name in names), "ListObjects")
    is_deletion = method == "POST" and "delete" in names
    return "DeleteMultipleObjects" if is_deletion else "Unsupported"
