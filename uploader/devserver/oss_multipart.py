"""Multipart uploads of OSS.

Sources: "OSS API: InitiateMultipartUpload, UploadPart, ListParts, CompleteMultipartUpload,
AbortMultipartUpload, ListMultipartUploads".
"""

from __future__ import annotations

import asyncio

from . import crc
from .answers import Answer, Refusal
from .backend import Backend, iso_date
from .bodies import ReceivedBody, receive_body
from .encoding import Node
from .exchange import Exchange
from .listing import page_of_parts
from .oss_call import OssCall
from .oss_documents import body_headers, crc_header, document, encoding_node, listed_key
from .oss_headers import kept_headers
from .oss_part_list import matching_part, multipart_etag, parse_part_list
from .oss_rules import (
    check_body,
    check_length,
    check_overwrite,
    check_part_sizes,
    check_sequence,
    number_parameter,
    open_upload,
    valid_part_number,
)
from .storage import Credential, Part, StoredObject, Upload

MAX_COMPLETE_BODY_SIZE = 8 * 1024**2


class Multipart:
    """The operations on uploads; every one is called after access was checked."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._storage = backend.storage

    async def initiate(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """Open an upload."""
        await exchange.drain()
        check_overwrite(self._backend, call)
        upload = Upload(
            upload_id=self._backend.ids.hex("upload", 16).upper(),
            bucket=call.bucket,
            object_key=call.object_key,
            initiated_at=self._backend.now(),
            content_type=call.headers.get("content-type", "application/octet-stream"),
            is_sequential=call.has("sequential"),
            kept_headers=kept_headers(call),
        )
        self._storage.save_upload(upload)
        self._backend.stats.initiates += 1
        exchange.record.upload_id = upload.upload_id
        nodes = [
            *encoding_node(call),
            Node("Bucket", call.bucket),
            Node("Key", listed_key(call, call.object_key)),
            Node("UploadId", upload.upload_id),
        ]
        return document(self._backend, "InitiateMultipartUploadResult", nodes)

    async def upload_part(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        """Store one part; an earlier one of this number is replaced."""
        upload = open_upload(self._backend, call)
        number = valid_part_number(call)
        check_length(call)
        was_stored = self._storage.part(upload.upload_id, number) is not None
        check_sequence(self._backend, upload, number)
        body = await receive_body(exchange)
        try:
            check_body(self._backend, call, body, credential)
            open_upload(self._backend, call)
            part = self._store_part(upload, number, body)
        except Refusal:
            body.forget()
            raise
        self._backend.stats.stored_part(body.size, again=was_stored)
        return Answer(200, headers=body_headers(self._backend, part.etag, body))

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

    async def list_parts(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """One page of the parts that are stored."""
        upload = open_upload(self._backend, call, ec="0042-00000002")
        marker = number_parameter(call, "part-number-marker", 0, 0, 2**31)
        max_parts = number_parameter(call, "max-parts", 1000, 1, 1000)
        limit = min(max_parts, self._backend.options.list_page_size)
        page = page_of_parts(exchange, self._storage.parts(upload.upload_id), marker, limit)
        nodes = [
            *encoding_node(call),
            Node("Bucket", call.bucket),
            Node("Key", listed_key(call, call.object_key)),
            Node("UploadId", upload.upload_id),
            Node("StorageClass", "Standard"),
            Node("PartNumberMarker", marker),
            Node("NextPartNumberMarker", page.next_marker),
            Node("MaxParts", max_parts),
            Node("IsTruncated", "true" if page.is_truncated else "false"),
            *(self._part_node(part) for part in page.parts),
        ]
        return document(self._backend, "ListPartsResult", nodes)

    def _part_node(self, part: Part) -> Node:
        nodes = [
            Node("PartNumber", part.part_number),
            Node("LastModified", iso_date(part.modified_at, millis=True)),
            Node("ETag", f'"{part.etag}"'),
        ]
        if self._backend.options.list_crc:
            nodes.append(Node("HashCrc64ecma", part.crc64))
        return Node("Part", [*nodes, Node("Size", part.size)])

    async def complete(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """Join the listed parts into the object, and close the upload."""
        upload = open_upload(self._backend, call, ec="0042-00000203")
        try:
            body = await exchange.read_body(MAX_COMPLETE_BODY_SIZE)
        except ValueError:
            raise Refusal("MalformedXML") from None
        open_upload(self._backend, call, ec="0042-00000203")
        stored = await self._joined(call, upload, body)
        self._storage.finish_upload(upload.upload_id, stored)
        self._backend.stats.completes += 1
        self._backend.stats.completes_by_video[credential.video_id] += 1
        self._backend.upload_finished(credential.video_id, call.bucket, call.object_key)
        return self._completed(call, stored)

    def _completed(self, call: OssCall, stored: StoredObject) -> Answer:
        location = f"http://{call.bucket}.{call.host}/{call.object_key}"
        nodes = [
            *encoding_node(call),
            Node("Location", location),
            Node("Bucket", call.bucket),
            Node("Key", listed_key(call, call.object_key)),
            Node("ETag", f'"{stored.etag}"'),
        ]
        headers = {"ETag": f'"{stored.etag}"', **crc_header(self._backend, stored.crc64)}
        return document(self._backend, "CompleteMultipartUploadResult", nodes, headers)

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
        wanted = await asyncio.to_thread(parse_part_list, body)
        by_number = {part.part_number: part for part in known}
        return tuple(matching_part(by_number, number, etag) for number, etag in wanted)

    async def _joined(self, call: OssCall, upload: Upload, body: bytes) -> StoredObject:
        """The resulting object. If a part is replaced meanwhile, the new one is used."""
        while True:
            parts = await self._wanted_parts(call, upload, body)
            check_part_sizes(self._backend, parts)
            check_overwrite(self._backend, call)
            await asyncio.sleep(self._backend.options.complete_delay_s)
            stored = await self._join(upload, parts)
            open_upload(self._backend, call, ec="0042-00000203")
            check_overwrite(self._backend, call)
            if set(parts) <= set(self._storage.parts(upload.upload_id)):
                return stored

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
            kept_headers=upload.kept_headers,
        )

    async def abort(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """Close an upload and delete its parts."""
        upload = open_upload(self._backend, call, ec="0042-00000002")
        await exchange.drain()
        self._storage.remove_upload(upload.upload_id)
        self._backend.stats.aborts += 1
        return Answer(204)

    async def list_uploads(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        """One page of the uploads that are open."""
        prefix = call.parameter("prefix")
        after = (call.parameter("key-marker"), call.parameter("upload-id-marker"))
        limit = number_parameter(call, "max-uploads", 1000, 1, 1000)
        shown = min(limit, self._backend.options.list_page_size)
        later = [u for u in self._storage.uploads(call.bucket) if _is_after(u, prefix, after)]
        page = later[:shown]
        last = page[-1] if page else None
        nodes = [
            *encoding_node(call),
            Node("Bucket", call.bucket),
            Node("KeyMarker", listed_key(call, after[0])),
            Node("UploadIdMarker", after[1]),
            Node("NextKeyMarker", listed_key(call, last.object_key) if last else ""),
            Node("NextUploadIdMarker", last.upload_id if last else ""),
            Node("Delimiter", ""),
            Node("Prefix", listed_key(call, prefix)),
            Node("MaxUploads", limit),
            Node("IsTruncated", "true" if len(later) > shown else "false"),
            *(self._upload_node(call, upload) for upload in page),
        ]
        return document(self._backend, "ListMultipartUploadsResult", nodes)

    def _upload_node(self, call: OssCall, upload: Upload) -> Node:
        return Node(
            "Upload",
            [
                Node("Key", listed_key(call, upload.object_key)),
                Node("UploadId", upload.upload_id),
                Node("StorageClass", "Standard"),
                Node("Initiated", iso_date(upload.initiated_at, millis=True)),
            ],
        )


def _is_after(upload: Upload, prefix: str, marker: tuple[str, str]) -> bool:
    if not upload.object_key.startswith(prefix):
        return False
    key_marker, id_marker = marker
    if not id_marker:
        return upload.object_key > key_marker
    return (upload.object_key, upload.upload_id) > (key_marker, id_marker)
