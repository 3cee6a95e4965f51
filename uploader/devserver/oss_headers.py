"""Which requests OSS's part of this server performs: all others are refused, never half done.

An operation is known by its method and parameters, and every parameter and header that changes
what it means is either acted on here or refused.

Sources: "OSS API" of each operation, "OSS: Common HTTP headers", "OSS: Single-connection bandwidth
throttling", "OSS API: PutObject" (storage classes, server-side encryption).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from .answers import Answer, Refusal
from .oss_call import OssCall
from .signatures import parse_http_date
from .storage import StoredObject

TRAFFIC_LIMIT: Final = range(819_200, 838_860_801)
"""Bits a second that ``x-oss-traffic-limit`` can name."""

_SIGNING: Final = frozenset(
    """
    OSSAccessKeyId Expires Signature security-token x-oss-signature x-oss-signature-version
    x-oss-credential x-oss-date x-oss-expires x-oss-additional-headers x-oss-security-token
    """.split()
)
_RESPONSE: Final = {
    "response-content-type": "Content-Type",
    "response-content-language": "Content-Language",
    "response-expires": "Expires",
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-encoding": "Content-Encoding",
}
PARAMETERS: Final[Mapping[str, frozenset[str]]] = {
    "PutObject": frozenset({"x-oss-traffic-limit"}),
    "HeadObject": frozenset({"objectMeta"}),
    "GetObject": frozenset({"x-oss-traffic-limit", *_RESPONSE}),
    "InitiateMultipartUpload": frozenset({"uploads", "sequential", "encoding-type"}),
    "UploadPart": frozenset({"uploadId", "partNumber", "x-oss-traffic-limit"}),
    "CompleteMultipartUpload": frozenset({"uploadId", "encoding-type"}),
    "AbortMultipartUpload": frozenset({"uploadId"}),
    "ListParts": frozenset({"uploadId", "part-number-marker", "max-parts", "encoding-type"}),
    "ListObjects": frozenset("prefix marker max-keys delimiter encoding-type".split()),
    "ListObjectsV2": frozenset(
        """
        list-type prefix start-after continuation-token max-keys delimiter encoding-type fetch-owner
        """.split()
    ),
    "DeleteObject": frozenset(),
    "DeleteMultipleObjects": frozenset({"delete", "encoding-type"}),
    "ListMultipartUploads": frozenset(
        "uploads prefix delimiter key-marker upload-id-marker max-uploads encoding-type".split()
    ),
}
"""The parameters of each operation that is performed. One more makes it another operation."""

_EVERYWHERE: Final = frozenset(
    """
    x-oss-date x-oss-security-token x-oss-content-sha256 x-oss-additional-headers
    x-oss-notification x-oss-user-agent
    """.split()
)
_OF_A_BODY: Final = frozenset({"x-oss-hash-crc64ecma", "x-oss-traffic-limit"})
_OF_AN_OBJECT: Final = frozenset(
    """
    x-oss-storage-class x-oss-server-side-encryption x-oss-server-side-encryption-key-id
    x-oss-server-side-data-encryption x-oss-forbid-overwrite
    """.split()
)
HEADERS: Final[Mapping[str, frozenset[str]]] = {
    "PutObject": _OF_A_BODY | _OF_AN_OBJECT,
    "InitiateMultipartUpload": _OF_AN_OBJECT,
    "UploadPart": _OF_A_BODY,
    "CompleteMultipartUpload": frozenset({"x-oss-complete-all", "x-oss-forbid-overwrite"}),
    "GetObject": frozenset({"x-oss-range-behavior", "x-oss-traffic-limit"}),
}
"""The ``x-oss-`` headers of each operation that are acted on; ``x-oss-meta-*`` is kept."""

_DENIED: Final = frozenset({"x-oss-object-acl", "x-oss-tagging", "x-oss-acl"})
"""They need permissions of their own, which upload credentials do not have."""

_CONDITIONS: Final = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
_READS: Final = frozenset({"GetObject", "HeadObject"})
_STORAGE_CLASSES: Final = frozenset("Standard IA Archive ColdArchive DeepColdArchive".split())
_ENCRYPTIONS: Final = frozenset("AES256 KMS SM4".split())
_KEPT: Final = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-oss-storage-class",
    "x-oss-server-side-encryption",
    "x-oss-server-side-encryption-key-id",
    "x-oss-server-side-data-encryption",
)


def is_performed(call: OssCall) -> bool:
    """Whether this server does what the method, the parameters and the copy source ask for."""
    allowed = PARAMETERS.get(call.operation)
    if allowed is None or "x-oss-copy-source" in call.headers:
        return False
    groups_uploads = call.operation == "ListMultipartUploads" and call.parameter("delimiter")
    return not groups_uploads and {name for name, _ in call.query} <= allowed | _SIGNING


def check_headers(call: OssCall) -> None:
    """Refuse every header that changes the meaning of a request and is not acted on."""
    acted_on = _EVERYWHERE | HEADERS.get(call.operation, frozenset())
    makes_an_object = "x-oss-storage-class" in acted_on
    for name in call.headers:
        if name in _DENIED:
            raise Refusal("AccessDenied", ec="0003-00000905")
        if name in _CONDITIONS and call.operation not in _READS:
            raise _not_implemented(name)
        if not name.startswith("x-oss-") or name in acted_on:
            continue
        if not (name.startswith("x-oss-meta-") and makes_an_object):
            raise _not_implemented(name)
    _check_traffic_limit(call)
    if makes_an_object:
        _check_object_headers(call.headers)


def _not_implemented(header: str) -> Refusal:
    message = f"A header you provided implies functionality that is not implemented: {header}."
    return Refusal("NotImplemented", message)


def _check_traffic_limit(call: OssCall) -> None:
    given = [call.headers.get("x-oss-traffic-limit", ""), call.parameter("x-oss-traffic-limit")]
    limits = [text for text in given if text]
    if len(limits) > 1:
        message = "x-oss-traffic-limit is either in query string or header, not both."
        raise Refusal("InvalidArgument", message)
    if limits and not (re.fullmatch("[0-9]{1,10}", limits[0]) and int(limits[0]) in TRAFFIC_LIMIT):
        raise Refusal(
            "InvalidArgument",
            "x-oss-traffic-limit is invalid, should be specified between 819200(100KB/s) and "
            "838860800(100MB/s).",
        )


def _check_object_headers(headers: Mapping[str, str]) -> None:
    storage_class = headers.get("x-oss-storage-class", "Standard")
    if storage_class not in _STORAGE_CLASSES:
        raise Refusal("InvalidArgument", "The storage class you specified is not valid.")
    encryption = headers.get("x-oss-server-side-encryption")
    if encryption is not None and encryption not in _ENCRYPTIONS:
        raise Refusal("InvalidEncryptionAlgorithmError")
    if encryption != "KMS" and "x-oss-server-side-encryption-key-id" in headers:
        raise Refusal("InvalidArgument", "A key ID needs the encryption algorithm KMS.")


def kept_headers(call: OssCall) -> tuple[tuple[str, str], ...]:
    """Headers of the request that stay with the object and are answered to HEAD and GET."""
    names = (n for n in call.headers if n in _KEPT or n.startswith("x-oss-meta-"))
    return tuple((name, call.headers[name]) for name in sorted(names))


def replaced_headers(call: OssCall) -> dict[str, str]:
    """Headers of the answer to GET that the parameters ``response-*`` ask for."""
    names = (name for name in _RESPONSE if call.has(name))
    return {_RESPONSE[name]: call.parameter(name) for name in names}


def unmet_condition(call: OssCall, stored: StoredObject) -> Answer | None:
    """304 for a GET or HEAD of what the client has already; None: answer with the object.

    Raises: Refusal(PreconditionFailed).
    """
    headers, etag = call.headers, f'"{stored.etag}"'
    modified_at = int(stored.modified_at)
    wanted, unmodified_since = headers.get("if-match"), _instant(headers, "if-unmodified-since")
    if wanted is not None and not _names(wanted, etag):
        raise Refusal("PreconditionFailed", fields={"Condition": "If-Match"})
    if unmodified_since is not None and modified_at > unmodified_since:
        raise Refusal("PreconditionFailed", fields={"Condition": "If-Unmodified-Since"})
    had, modified_since = headers.get("if-none-match"), _instant(headers, "if-modified-since")
    if had is not None:
        is_known = _names(had, etag)
    else:
        is_known = modified_since is not None and modified_at <= modified_since
    return Answer(304, headers={"ETag": etag}, code="NotModified") if is_known else None


def _names(condition: str, etag: str) -> bool:
    return condition.strip() == "*" or etag.strip('"') in re.split(r'[\s,"]+', condition)


def _instant(headers: Mapping[str, str], name: str) -> float | None:
    """Seconds since 1970; None for no date, which OSS ignores."""
    try:
        return parse_http_date(headers[name]).timestamp()
    except (KeyError, ValueError):
        return None
