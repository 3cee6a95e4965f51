"""OSS: the object operations an uploader uses, as strict as the documents.

Sources: "OSS API: InitiateMultipartUpload, UploadPart, ListParts, CompleteMultipartUpload,
AbortMultipartUpload, ListMultipartUploads, PutObject, HeadObject, GetObject".
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from aiohttp import web

from . import crc
from .answers import OSS_ERRORS, Answer, FileSlice, Refusal
from .backend import Backend, http_date, iso_date
from .bodies import ReceivedBody, receive_body
from .encoding import (
    OSS_XML_NAMESPACE,
    Node,
    Pairs,
    parse_query,
    percent_decode,
    percent_encode,
    render_xml,
    split_target,
    to_base64,
)
from .exchange import BodyTimeout, Exchange
from .listing import page_of_parts
from .oss_access import OssTarget, check_access, check_expiry
from .signatures import SignedRequest, parse_oss_authorization
from .stats import RequestRecord
from .storage import Credential, Part, StoredObject, Upload

MAX_PART_NUMBER = 10_000
MAX_PART_SIZE = 5 * 1024**3  # "OSS API: UploadPart", also the limit of PutObject
MAX_COMPLETE_BODY_SIZE = 8 * 1024**2


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


def parse_call(request: web.BaseRequest) -> OssCall:
    """Read the raw request target: nothing here goes through a URL library."""
    raw_path, raw_query = split_target(request.raw_path)
    host = request.headers.get("Host", "")
    bucket, object_key = _bucket_and_key(host, percent_decode(raw_path))
    query = parse_query(raw_query)
    headers = {name.lower(): value for name, value in request.headers.items()}
    operation = _operation(request.method, object_key, {name for name, _ in query})
    return OssCall(request.method, operation, bucket, object_key, query, headers, host)


def _bucket_and_key(host: str, path: str) -> tuple[str, str]:
    name = host.rsplit(":", 1)[0].strip("[]")
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
    if not object_key:
        is_listing = method == "GET" and "uploads" in names
        return "ListMultipartUploads" if is_listing else "Unsupported"
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
    return {"PUT": "PutObject", "HEAD": "HeadObject", "GET": "GetObject"}.get(method, "Unsupported")


class OssService:
    """OSS behind one port."""

    name = "oss"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._storage = backend.storage
        self._operations: Mapping[
            str, Callable[[Exchange, OssCall, Credential], Awaitable[Answer]]
        ] = {
            "InitiateMultipartUpload": self._initiate,
            "UploadPart": self._upload_part,
            "ListParts": self._list_parts,
            "CompleteMultipartUpload": self._complete,
            "AbortMultipartUpload": self._abort,
            "ListMultipartUploads": self._list_uploads,
            "PutObject": self._put_object,
            "HeadObject": self._head_object,
            "GetObject": self._get_object,
        }

    # what the front asks

    async def describe(self, exchange: Exchange) -> None:
        """Say what a request is, before anything is checked or read."""
        call, record = parse_call(exchange.request), exchange.record
        record.operation = call.operation
        record.subject = call.object_key
        record.part_number = call.part_number
        record.upload_id = call.upload_id
        self._describe_credential(call, record)

    def _describe_credential(self, call: OssCall, record: RequestRecord) -> None:
        try:
            authorization = parse_oss_authorization(call.headers.get("authorization", ""))
        except ValueError:
            return
        record.signature_version = authorization.version
        credential = self._storage.credential(authorization.access_key_id)
        if credential is not None:
            record.video_id = credential.video_id
            record.generation = credential.generation

    async def perform(self, exchange: Exchange) -> Answer:
        """Check a request and do what it asks."""
        call = parse_call(exchange.request)
        target = OssTarget(call.operation, call.bucket, call.object_key)
        credential = check_access(self._backend, target, call.signed)
        operation = self._operations.get(call.operation)
        if operation is None:
            raise Refusal("MethodNotAllowed", fields={"Method": call.method})
        try:
            return await operation(exchange, call, credential)
        except BodyTimeout:
            raise Refusal("RequestTimeout") from None

    def refuse(self, exchange: Exchange, refusal: Refusal, request_id: str) -> Answer:
        """The error document of OSS; for HEAD it travels in ``x-oss-err``."""
        request = exchange.request
        row = refusal.row(OSS_ERRORS)
        nodes = [
            Node("Code", refusal.code),
            Node("Message", row.message),
            Node("RequestId", request_id),
            Node("HostId", request.headers.get("Host", "")),
            *(Node(name, value) for name, value in refusal.fields.items()),
        ]
        headers = {}
        if row.ec:
            nodes.append(Node("EC", row.ec))
            doc = f"https://api.aliyun.com/troubleshoot?q={row.ec}"
            nodes.append(Node("RecommendDoc", doc))
            headers["x-oss-ec"] = row.ec
        body = self._xml(Node("Error", nodes))
        if request.method == "HEAD":
            headers["x-oss-err"] = to_base64(body)
            body = b""
        return Answer(row.status, body, headers, code=refusal.code)

    def decorate(self, request_id: str, started_at: float) -> dict[str, str]:
        """Headers every answer of OSS has."""
        elapsed_ms = max(1, round((time.time() - started_at) * 1000))
        return {
            "Server": "AliyunOSS",
            "Date": http_date(self._backend.now()),
            "x-oss-request-id": request_id,
            "x-oss-server-time": str(elapsed_ms),
        }

    def request_id(self) -> str:
        """24 upper-case hex digits."""
        return secrets.token_hex(12).upper()

    # multipart

    async def _initiate(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        await exchange.drain()
        upload = Upload(
            upload_id=secrets.token_hex(16).upper(),
            bucket=call.bucket,
            object_key=call.object_key,
            initiated_at=self._backend.now(),
            content_type=call.headers.get("content-type", "application/octet-stream"),
            is_sequential=call.has("sequential"),
        )
        self._storage.save_upload(upload)
        self._backend.stats.initiates += 1
        exchange.record.upload_id = upload.upload_id
        nodes = [
            *self._encoding_node(call),
            Node("Bucket", call.bucket),
            Node("Key", self._listed_key(call, call.object_key)),
            Node("UploadId", upload.upload_id),
        ]
        return self._document("InitiateMultipartUploadResult", nodes)

    async def _upload_part(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        upload = self._open_upload(call)
        number = self._valid_part_number(call)
        self._check_length(call)
        was_stored = self._storage.part(upload.upload_id, number) is not None
        self._check_sequence(upload, number)
        body = await receive_body(exchange)
        try:
            self._check_body(call, body, credential)
            self._open_upload(call)
            part = self._store_part(upload, number, body)
        except Refusal:
            body.forget()
            raise
        self._backend.stats.stored_part(body.size, again=was_stored)
        return Answer(200, headers=self._body_headers(part.etag, body))

    def _store_part(self, upload: Upload, number: int, body: ReceivedBody) -> Part:
        part = Part(
            upload_id=upload.upload_id,
            part_number=number,
            path=self._storage.keep_body(body.path) if body.path else "",
            size=body.size,
            etag=body.etag,
            crc64=body.stored_crc64,
            modified_at=self._backend.now(),
        )
        self._storage.save_part(part)
        return part

    def _body_headers(self, etag: str, body: ReceivedBody) -> dict[str, str]:
        return {
            "ETag": f'"{etag}"',
            "Content-MD5": body.content_md5,
            **self._crc_header(body.crc64),
        }

    async def _list_parts(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        upload = self._open_upload(call, ec="0042-00000002")
        marker = self._number(call, "part-number-marker", 0, 0, 2**31)
        max_parts = self._number(call, "max-parts", 1000, 1, 1000)
        limit = min(max_parts, self._backend.options.list_page_size)
        page = page_of_parts(exchange, self._storage.parts(upload.upload_id), marker, limit)
        nodes = [
            *self._encoding_node(call),
            Node("Bucket", call.bucket),
            Node("Key", self._listed_key(call, call.object_key)),
            Node("UploadId", upload.upload_id),
            Node("StorageClass", "Standard"),
            Node("PartNumberMarker", marker),
            Node("NextPartNumberMarker", page.next_marker),
            Node("MaxParts", max_parts),
            Node("IsTruncated", "true" if page.is_truncated else "false"),
            *(self._part_node(part) for part in page.parts),
        ]
        return self._document("ListPartsResult", nodes)

    def _part_node(self, part: Part) -> Node:
        nodes = [
            Node("PartNumber", part.part_number),
            Node("LastModified", iso_date(part.modified_at, millis=True)),
            Node("ETag", f'"{part.etag}"'),
        ]
        if self._backend.options.list_crc:
            nodes.append(Node("HashCrc64ecma", part.crc64))
        return Node("Part", [*nodes, Node("Size", part.size)])

    async def _complete(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        upload = self._open_upload(call, ec="0042-00000203")
        try:
            body = await exchange.read_body(MAX_COMPLETE_BODY_SIZE)
        except ValueError:
            raise Refusal("MalformedXML") from None
        self._open_upload(call, ec="0042-00000203")
        parts = await self._wanted_parts(call, upload, body)
        self._check_part_sizes(parts)
        self._check_overwrite(call)
        stored = await self._join(upload, parts)
        self._open_upload(call, ec="0042-00000203")
        self._storage.save_object(stored)
        self._storage.remove_upload(upload.upload_id, keep=frozenset(part.path for part in parts))
        self._backend.stats.completes += 1
        self._backend.upload_finished(call.bucket, call.object_key)
        return self._completed(call, stored)

    def _completed(self, call: OssCall, stored: StoredObject) -> Answer:
        location = f"http://{call.bucket}.{call.host}/{call.object_key}"
        nodes = [
            *self._encoding_node(call),
            Node("Location", location),
            Node("Bucket", call.bucket),
            Node("Key", self._listed_key(call, call.object_key)),
            Node("ETag", f'"{stored.etag}"'),
        ]
        headers = {"ETag": f'"{stored.etag}"', **self._crc_header(stored.crc64)}
        return self._document("CompleteMultipartUploadResult", nodes, headers)

    async def _wanted_parts(self, call: OssCall, upload: Upload, body: bytes) -> tuple[Part, ...]:
        known = self._storage.parts(upload.upload_id)
        if call.headers.get("x-oss-complete-all", "").lower() == "yes":
            if body:
                raise Refusal(
                    "InvalidArgument",
                    "Should not speficy both complete all header and http body.",
                    ec="0042-00000216",
                )
            return known
        wanted = await asyncio.to_thread(_parse_part_list, body)
        by_number = {part.part_number: part for part in known}
        return tuple(_matching_part(by_number, number, etag) for number, etag in wanted)

    def _check_part_sizes(self, parts: tuple[Part, ...]) -> None:
        if not parts:
            raise Refusal("MalformedXML")
        for part in parts[:-1]:
            if part.size < self._backend.options.min_part_size:
                raise Refusal(
                    "EntityTooSmall",
                    fields={
                        "ETag": part.etag,
                        "MinSizeAllowed": str(self._backend.options.min_part_size),
                        "ProposedSize": str(part.size),
                        "PartNumber": str(part.part_number),
                    },
                )

    async def _join(self, upload: Upload, parts: tuple[Part, ...]) -> StoredObject:
        pieces = [(part.crc64, part.size) for part in parts]
        return StoredObject(
            bucket=upload.bucket,
            object_key=upload.object_key,
            size=sum(part.size for part in parts),
            etag=multipart_etag(part.etag for part in parts),
            crc64=await asyncio.to_thread(crc.combine_all, pieces),
            kind="Multipart",
            content_type=upload.content_type,
            modified_at=self._backend.now(),
            files=tuple((part.path, part.size) for part in parts),
        )

    async def _abort(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        upload = self._open_upload(call, ec="0042-00000002")
        await exchange.drain()
        self._storage.remove_upload(upload.upload_id)
        self._backend.stats.aborts += 1
        return Answer(204)

    async def _list_uploads(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        prefix = call.parameter("prefix")
        after = (call.parameter("key-marker"), call.parameter("upload-id-marker"))
        limit = self._number(call, "max-uploads", 1000, 1, 1000)
        shown = min(limit, self._backend.options.list_page_size)
        later = [u for u in self._storage.uploads(call.bucket) if _is_after(u, prefix, after)]
        page = later[:shown]
        last = page[-1] if page else None
        nodes = [
            *self._encoding_node(call),
            Node("Bucket", call.bucket),
            Node("KeyMarker", self._listed_key(call, after[0])),
            Node("UploadIdMarker", after[1]),
            Node("NextKeyMarker", self._listed_key(call, last.object_key) if last else ""),
            Node("NextUploadIdMarker", last.upload_id if last else ""),
            Node("Delimiter", ""),
            Node("Prefix", self._listed_key(call, prefix)),
            Node("MaxUploads", limit),
            Node("IsTruncated", "true" if len(later) > shown else "false"),
            *(self._upload_node(call, upload) for upload in page),
        ]
        return self._document("ListMultipartUploadsResult", nodes)

    def _upload_node(self, call: OssCall, upload: Upload) -> Node:
        return Node(
            "Upload",
            [
                Node("Key", self._listed_key(call, upload.object_key)),
                Node("UploadId", upload.upload_id),
                Node("StorageClass", "Standard"),
                Node("Initiated", iso_date(upload.initiated_at, millis=True)),
            ],
        )

    # objects

    async def _put_object(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        self._check_length(call)
        self._check_overwrite(call)
        body = await receive_body(exchange)
        try:
            self._check_body(call, body, credential)
        except Refusal:
            body.forget()
            raise
        name = self._storage.keep_body(body.path) if body.path else ""
        self._storage.save_object(
            StoredObject(
                bucket=call.bucket,
                object_key=call.object_key,
                size=body.size,
                etag=body.etag,
                crc64=body.crc64,
                kind="Normal",
                content_type=call.headers.get("content-type", "application/octet-stream"),
                modified_at=self._backend.now(),
                files=((name, body.size),),
            )
        )
        self._backend.stats.puts += 1
        self._backend.upload_finished(call.bucket, call.object_key)
        return Answer(200, headers=self._body_headers(body.etag, body))

    async def _head_object(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        stored = self._existing_object(call)
        headers = self._object_headers(stored)
        headers["Content-Length"] = str(stored.size)
        return Answer(200, headers=headers, content_type=stored.content_type)

    async def _get_object(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        stored = self._existing_object(call)
        headers = self._object_headers(stored)
        start, stop = 0, stored.size
        wanted = _parse_range(call.headers.get("range", ""), stored.size)
        if wanted is not None:
            start, stop = wanted
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
        headers["Content-Length"] = str(stop - start)
        return Answer(
            206 if wanted else 200,
            headers=headers,
            content_type=stored.content_type,
            slices=self._slices(stored, start, stop),
        )

    def _slices(self, stored: StoredObject, start: int, stop: int) -> tuple[FileSlice, ...]:
        slices, position = [], 0
        for name, size in stored.files:
            first, last = max(start, position), min(stop, position + size)
            if first < last:
                path = self._storage.body_path(name)
                slices.append(FileSlice(path, first - position, last - first))
            position += size
        return tuple(slices)

    def _existing_object(self, call: OssCall) -> StoredObject:
        stored = self._storage.object(call.bucket, call.object_key)
        if stored is None:
            raise Refusal("NoSuchKey", fields={"Key": call.object_key})
        return stored

    def _object_headers(self, stored: StoredObject) -> dict[str, str]:
        return {
            "ETag": f'"{stored.etag}"',
            "Last-Modified": http_date(stored.modified_at),
            "Accept-Ranges": "bytes",
            "x-oss-object-type": stored.kind,
            "x-oss-storage-class": "Standard",
            **self._crc_header(stored.crc64),
        }

    # rules

    def _open_upload(self, call: OssCall, *, ec: str = "0042-00000104") -> Upload:
        upload = self._storage.upload(call.upload_id)
        if upload is None or (upload.bucket, upload.object_key) != (call.bucket, call.object_key):
            raise Refusal("NoSuchUpload", ec=ec, fields={"UploadId": call.upload_id})
        return upload

    def _valid_part_number(self, call: OssCall) -> int:
        number = call.part_number
        if number is None or not 1 <= number <= MAX_PART_NUMBER:
            raise _invalid_argument(
                "Part number must be an integer between 1 and 10000, inclusive.",
                "partNumber",
                call.parameter("partNumber"),
            )
        return number

    def _number(self, call: OssCall, name: str, default: int, low: int, high: int) -> int:
        text = call.parameter(name)
        if not text:
            return default
        if not (text.isdecimal() and text.isascii() and low <= int(text) <= high):
            raise _invalid_argument(
                f"Argument {name} must be an integer between {low} and {high}.", name, text
            )
        return int(text)

    def _check_length(self, call: OssCall) -> None:
        length = call.headers.get("content-length")
        if length is None and "transfer-encoding" not in call.headers:
            raise Refusal("MissingContentLength")
        if length is not None and int(length) > MAX_PART_SIZE:
            raise Refusal("EntityTooLarge", fields={"MaxSizeAllowed": str(MAX_PART_SIZE)})

    def _check_sequence(self, upload: Upload, number: int) -> None:
        if not upload.is_sequential:
            return
        stored = self._storage.part(upload.upload_id, number)
        if stored is not None:
            fields = {"PartNumber": str(number), "PartEtag": stored.etag}
            raise Refusal("PartAlreadyExist", fields=fields)
        if number != len(self._storage.parts(upload.upload_id)) + 1:
            raise Refusal("PartNotSequential")

    def _check_body(self, call: OssCall, body: ReceivedBody, credential: Credential) -> None:
        if self._backend.options.check_expiry_at_end:
            check_expiry(self._backend, credential)
        claimed = call.headers.get("content-md5")
        if claimed is not None and claimed != body.content_md5:
            raise Refusal("InvalidDigest", fields={"Content-MD5": claimed})
        claimed_crc = call.headers.get("x-oss-hash-crc64ecma")
        if claimed_crc is not None and claimed_crc != str(body.crc64):
            raise Refusal(
                "InvalidCRC64",
                "The x-oss-hash-crc64ecma you specified does not match what we calculated.",
            )

    def _check_overwrite(self, call: OssCall) -> None:
        forbidden = call.headers.get("x-oss-forbid-overwrite", "").lower() == "true"
        if forbidden and self._storage.object(call.bucket, call.object_key) is not None:
            raise Refusal("FileAlreadyExists")

    # documents

    def _document(
        self, name: str, nodes: list[Node], headers: Mapping[str, str] | None = None
    ) -> Answer:
        return Answer(200, self._xml(Node(name, nodes)), dict(headers or {}))

    def _xml(self, root: Node) -> bytes:
        namespace = OSS_XML_NAMESPACE if self._backend.options.xml_namespace else ""
        return render_xml(root, namespace=namespace)

    def _crc_header(self, value: int) -> dict[str, str]:
        return {"x-oss-hash-crc64ecma": str(value)} if self._backend.options.crc_headers else {}

    def _encoding_node(self, call: OssCall) -> list[Node]:
        encoding = call.parameter("encoding-type")
        return [Node("EncodingType", encoding)] if encoding else []

    def _listed_key(self, call: OssCall, key: str) -> str:
        return percent_encode(key) if call.parameter("encoding-type") == "url" else key


def multipart_etag(etags: Iterable[str]) -> str:
    """OSS's ETag of a multipart object: MD5 of the upper-case hex ETags joined, and the count."""
    names = [etag.strip('"').upper() for etag in etags]
    digest = hashlib.md5("".join(names).encode(), usedforsecurity=False).hexdigest().upper()
    return f"{digest}-{len(names)}"


def _parse_part_list(body: bytes) -> tuple[tuple[int, str], ...]:
    """The (number, ETag) pairs of a Complete request.

    Raises: Refusal when it is no such document or not in ascending order.
    """
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise Refusal("MalformedXML") from None
    if _local(root.tag) != "CompleteMultipartUpload":
        raise Refusal("MalformedXML")
    pairs = tuple(_parse_part(element) for element in root)
    numbers = [number for number, _ in pairs]
    if any(not 1 <= number <= MAX_PART_NUMBER for number in numbers):
        raise Refusal(
            "InvalidPartOrder", "Part number must be an integer between 1 and 10000, inclusive."
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise Refusal("InvalidPartOrder")
    return pairs


def _parse_part(element: ElementTree.Element) -> tuple[int, str]:
    values = {_local(child.tag): (child.text or "").strip() for child in element}
    if _local(element.tag) != "Part" or not values.get("PartNumber", "").isdecimal():
        raise Refusal("MalformedXML")
    if "ETag" not in values:
        raise Refusal("MalformedXML")
    return int(values["PartNumber"]), values["ETag"]


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _matching_part(known: Mapping[int, Part], number: int, etag: str) -> Part:
    part = known.get(number)
    if part is None or part.etag != etag.strip('"').upper():
        fields = {"PartNumber": str(number), "ETag": etag}
        raise Refusal("InvalidPart", fields=fields)
    return part


def _is_after(upload: Upload, prefix: str, marker: tuple[str, str]) -> bool:
    if not upload.object_key.startswith(prefix):
        return False
    key_marker, id_marker = marker
    if not id_marker:
        return upload.object_key > key_marker
    return (upload.object_key, upload.upload_id) > (key_marker, id_marker)


def _invalid_argument(message: str, name: str, value: str) -> Refusal:
    fields = {"ArgumentName": name, "ArgumentValue": value}
    return Refusal("InvalidArgument", message, fields=fields)


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """``bytes=a-b`` as a half-open range; ``None`` for the whole object, as OSS does for junk."""
    unit, _, spec = header.partition("=")
    first, dash, last = spec.partition("-")
    if unit != "bytes" or not dash or not (first or last) or not (first + last).isdecimal():
        return None
    if not first:
        return max(0, size - int(last)), size
    start, stop = int(first), min(size, int(last) + 1 if last else size)
    return (start, stop) if start < stop else None
