"""OSS's operations: builds their requests and parses the answers."""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from uploader.errors import IntegrityError, ServiceError
from uploader.protocol.documents import MalformedDocument, clean_text, decimal, parse_xml
from uploader.protocol.integrity import plain_etag, same_etag
from uploader.protocol.wire import (
    Body,
    BytesBody,
    Operation,
    Request,
    Response,
    SentBody,
    refusal,
    unusable,
)

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from uploader.protocol.grants import UploadTarget
    from uploader.protocol.plan import Part

LIST_PAGE_SIZE = 1000
"""The most parts in one answer (OSS API: ListParts, max-parts)."""
_COMPLETE_TIMEOUT_S = 300.0
_REGION = re.compile(r"(?:oss-)?([a-z]{2}-[a-z0-9-]{1,40})")
"""OSS may need long to join 10,000 parts, and continues when the client has disconnected
(OSS API: CompleteMultipartUpload)."""


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """OSS's answer for a part, or for an object stored with one request.

    Attributes:
        crc64: None where the answer has none.
        sent: what was sent; it agrees with the answer.
    """

    etag: str
    crc64: int | None
    request_id: str
    sent: SentBody


@dataclass(frozen=True, slots=True)
class ListedPart:
    """One part as ListParts returns it."""

    number: int
    size: int
    etag: str
    crc64: int | None


@dataclass(frozen=True, slots=True)
class PartsPage:
    """One page of ListParts; `next_marker` is None on the last."""

    parts: tuple[ListedPart, ...]
    next_marker: int | None


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """OSS's answer about a whole object; None for what the answer does not have."""

    etag: str | None
    crc64: int | None
    size: int | None
    request_id: str


# --- operations ------------------------------------------------------------------


def initiate_multipart_upload(
    target: UploadTarget, headers: Mapping[str, str] | None = None
) -> Operation[str]:
    """Start a multipart upload; the answer is its UploadId.

    If the answer is lost, an unknown upload remains, which OSS's lifecycle rules remove.
    Repeating the call is harmless otherwise.
    """
    request = _request("POST", target, {"uploads": ""}, headers=headers, body=BytesBody(b""))
    return Operation(name="InitiateMultipartUpload", request=request, parse=_parse_initiated)


def upload_part(
    target: UploadTarget, upload_id: str, part: Part, body: Body, *, needs_md5: bool = False
) -> Operation[PartAnswer]:
    """Store one part."""
    params = {"partNumber": str(part.number), "uploadId": upload_id}
    return Operation(
        name="UploadPart",
        request=_request("PUT", target, params, body=body),
        parse=functools.partial(_parse_stored, "UploadPart", body.size),
        part_number=part.number,
        needs_md5=needs_md5,
        probe=list_parts(target, upload_id, page_size=1),
    )


def put_object(
    target: UploadTarget,
    body: Body,
    headers: Mapping[str, str] | None = None,
    *,
    needs_md5: bool = False,
) -> Operation[PartAnswer]:
    """Store a whole object of at most 5 GB with one request."""
    return Operation(
        name="PutObject",
        request=_request("PUT", target, {}, headers=headers, body=body),
        parse=functools.partial(_parse_stored, "PutObject", body.size),
        needs_md5=needs_md5,
    )


def list_parts(
    target: UploadTarget, upload_id: str, *, marker: int = 0, page_size: int | None = None
) -> Operation[PartsPage]:
    """List up to `page_size` (`LIST_PAGE_SIZE`) parts with numbers above `marker`."""
    params = {"part-number-marker": str(marker), "max-parts": str(page_size or LIST_PAGE_SIZE)}
    request = _request("GET", target, {"uploadId": upload_id, **params})
    return Operation(name="ListParts", request=request, parse=_parse_parts_page)


def complete_multipart_upload(
    target: UploadTarget,
    upload_id: str,
    etags: Iterable[tuple[int, str]],
    headers: Mapping[str, str] | None = None,
) -> Operation[ObjectFacts]:
    """Join exactly the listed (part number, ETag) into the object.

    Never `x-oss-complete-all`, which joins whatever the server has. Repeated after a lost
    answer it returns NoSuchUpload, which then means that it has probably succeeded.
    """
    xml = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in etags
    )
    body = BytesBody(f"<CompleteMultipartUpload>{xml}</CompleteMultipartUpload>".encode())
    headers = {"content-type": "application/xml", **(headers or {})}
    return Operation(
        name="CompleteMultipartUpload",
        request=_request("POST", target, {"uploadId": upload_id}, headers=headers, body=body),
        parse=_parse_completed,
        answer_timeout_s=_COMPLETE_TIMEOUT_S,
    )


def abort_multipart_upload(target: UploadTarget, upload_id: str) -> Operation[None]:
    """Delete a multipart upload and its parts; parts being sent may survive the first call."""
    request = _request("DELETE", target, {"uploadId": upload_id})
    return Operation(name="AbortMultipartUpload", request=request, parse=_parse_aborted)


def head_object(target: UploadTarget) -> Operation[ObjectFacts]:
    """Read size and checksums of the object."""
    return Operation(
        name="HeadObject", request=_request("HEAD", target, {}), parse=_parse_object_facts
    )


def read_signed_url(url: str) -> Operation[ObjectFacts]:
    """Read size and checksums of the object behind a URL that VOD has signed.

    Such URLs are signed for GET, so HEAD is refused. The first byte is read instead: its headers
    have the CRC-64 of the whole object (OSS API: GetObject).
    """
    request = Request(method="GET", endpoint=url, headers={"range": "bytes=0-0"})
    return Operation(name="GetObject", request=request, parse=_parse_object_facts)


def _request(
    method: str,
    target: UploadTarget,
    params: Mapping[str, str],
    *,
    headers: Mapping[str, str] | None = None,
    body: Body | None = None,
) -> Request:
    return Request(
        method=method,
        endpoint=target.endpoint,
        bucket=target.bucket,
        key=target.object_key,
        params=params,
        headers=headers or {},
        body=body,
    )


# --- answers ---------------------------------------------------------------------


def _parse_initiated(response: Response) -> str:
    root = _success(response, "InitiateMultipartUpload", "InitiateMultipartUploadResult")
    upload_id = _text(root, "UploadId")
    if not upload_id:
        raise unusable("InitiateMultipartUpload", "it has no UploadId")
    return upload_id


def _parse_stored(name: str, expected_size: int, response: Response) -> PartAnswer:
    _require_success(response, name)
    if response.sent.size != expected_size:
        # A success reported before the body was read says nothing about the body.
        raise unusable(name, "it came before the body was sent completely")
    etag = plain_etag(response.headers.get("etag", ""))
    if not etag:
        raise unusable(name, "it has no ETag")
    answer = PartAnswer(etag, _crc64_header(response), _request_id(response), response.sent)
    _require_intact(name, answer)
    return answer


def _require_intact(name: str, answer: PartAnswer) -> None:
    """Compare what OSS stored with what was sent. Encrypted objects have other ETags."""
    is_same = True
    if answer.crc64 is not None:
        is_same = answer.crc64 == answer.sent.crc64
    elif answer.sent.md5 is not None:
        is_same = same_etag(answer.etag, answer.sent.md5)
    if not is_same:
        raise IntegrityError(
            f"{name}: OSS stored other bytes than were sent (request {answer.request_id}).",
            request_id=answer.request_id,
            next_step="Check this machine's memory and the network (a proxy that changes data?), "
            "then run the same command again. If it fails again, report the request ID.",
        )


def _parse_parts_page(response: Response) -> PartsPage:
    root = _success(response, "ListParts", "ListPartsResult")
    try:
        parts = tuple(_listed_part(element) for element in root.iter("Part"))
        marker = decimal(_text(root, "NextPartNumberMarker") or "0")
    except MalformedDocument as error:
        raise unusable("ListParts", str(error)) from error
    is_truncated = _text(root, "IsTruncated").lower() == "true"
    return PartsPage(parts, marker if is_truncated else None)


def _listed_part(element: Element) -> ListedPart:
    crc64 = _text(element, "HashCrc64ecma")
    return ListedPart(
        number=decimal(_text(element, "PartNumber")),
        size=decimal(_text(element, "Size")),
        etag=plain_etag(_text(element, "ETag")),
        crc64=decimal(crc64) if crc64 else None,
    )


def _parse_completed(response: Response) -> ObjectFacts:
    name = "CompleteMultipartUpload"
    root = _success(response, name, "CompleteMultipartUploadResult")
    etag = plain_etag(_text(root, "ETag") or response.headers.get("etag", ""))
    return ObjectFacts(etag or None, _crc64_header(response), None, _request_id(response))


def _parse_aborted(response: Response) -> None:
    name = "AbortMultipartUpload"
    _require_success(response, name)
    if response.status != 204:  # OSS API: AbortMultipartUpload; a login page answers 200
        raise unusable(name, f"its status is {response.status}")


def _parse_object_facts(response: Response) -> ObjectFacts:
    name = "GetObject" if response.status == 206 else "HeadObject"
    _require_success(response, name)
    if not (_request_id(response) or "x-oss-hash-crc64ecma" in response.headers):
        # There is no document in the body to check, and the answer may be a login page's.
        # Every answer of OSS has its common headers.
        raise unusable(name, "it is not from OSS")
    etag = plain_etag(response.headers.get("etag", ""))
    size = response.headers.get("content-length", "")
    if response.status == 206:
        size = response.headers.get("content-range", "").rpartition("/")[2]
    return ObjectFacts(
        etag=etag or None,
        crc64=_crc64_header(response),
        size=_number(size),
        request_id=_request_id(response),
    )


def _success(response: Response, name: str, root_tag: str) -> Element:
    """Return the root of a success; a 200 that carries an error document is none."""
    _require_success(response, name)
    try:
        root = parse_xml(response.body)
    except MalformedDocument as error:
        raise unusable(name, str(error)) from error
    if root.tag == "Error":
        raise _service_error(response, name, root)
    if root.tag != root_tag:
        raise unusable(name, f"it is a <{clean_text(root.tag, 40)}>")
    return root


def _require_success(response: Response, name: str) -> None:
    """Raise unless the status is a plain success. 203 is CallbackFailed."""
    if response.status not in {200, 204, 206}:
        raise _service_error(response, name, _error_document(response))


def _error_document(response: Response) -> Element | None:
    body = response.body
    if not body and (packed := response.headers.get("x-oss-err")):
        # HEAD has no body: OSS puts the document into this header.
        try:
            body = base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError):
            return None
    try:
        root = parse_xml(body)
    except MalformedDocument:
        return None
    return root if root.tag == "Error" else None


def _bucket_region(response: Response, root: Element | None) -> str | None:
    """The bucket's region, without OSS's prefix. OSS documents the header for HeadBucket only."""
    named = response.headers.get("x-oss-bucket-region") or _text(root, "Region")
    found = _REGION.fullmatch(named)
    return found and found[1]


def _service_error(response: Response, name: str, root: Element | None) -> ServiceError:
    code = _text(root, "Code")
    if not code and response.status == 404 and name == "HeadObject":
        code = "NoSuchKey"
    return refusal(
        response,
        name,
        code=code,
        message=_text(root, "Message"),
        request_id=_request_id(response) or _text(root, "RequestId"),
        ec=_text(root, "EC") or response.headers.get("x-oss-ec", ""),
        oss_region=_bucket_region(response, root),
    )


def _text(element: Element | None, tag: str) -> str:
    if element is None:
        return ""
    return (element.findtext(tag) or "").strip()


def _request_id(response: Response) -> str:
    return clean_text(response.headers.get("x-oss-request-id", ""), 60)


def _crc64_header(response: Response) -> int | None:
    return _number(response.headers.get("x-oss-hash-crc64ecma", ""))


def _number(text: str) -> int | None:
    """Read a header's number; None when it is not one."""
    try:
        return decimal(text.strip())
    except MalformedDocument:
        return None
