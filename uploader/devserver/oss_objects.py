"""Whole objects of OSS. Sources: "OSS API: PutObject, HeadObject, GetObject"."""

from __future__ import annotations

from .answers import Answer, FileSlice, Refusal
from .backend import Backend, http_date
from .bodies import receive_body
from .exchange import Exchange
from .oss_call import OssCall
from .oss_documents import body_headers, crc_header
from .oss_headers import kept_headers, replaced_headers, unmet_condition
from .oss_rules import check_body, check_length, check_overwrite
from .storage import Credential, StoredObject


class Objects:
    """The operations on objects; every one is called after access was checked."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._storage = backend.storage

    async def put(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """Store an object in one request."""
        check_length(call)
        check_overwrite(self._backend, call)
        body = await receive_body(exchange)
        try:
            check_body(self._backend, call, body, credential)
            check_overwrite(self._backend, call)  # again: another request may have stored it
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
                kept_headers=kept_headers(call),
            )
        )
        self._backend.stats.puts += 1
        self._backend.upload_finished(credential.video_id, call.bucket, call.object_key)
        return Answer(200, headers=body_headers(self._backend, body.etag, body))

    async def head(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """Headers of an object."""
        stored = self._existing_object(call)
        if (unmet := unmet_condition(call, stored)) is not None:
            return unmet
        headers = self._object_headers(stored)
        headers["Content-Length"] = str(stored.size)
        return Answer(200, headers=headers, content_type=stored.content_type)

    async def get(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """An object, or a range of it."""
        stored = self._existing_object(call)
        if (unmet := unmet_condition(call, stored)) is not None:
            return unmet
        headers = self._object_headers(stored) | replaced_headers(call)
        start, stop = 0, stored.size
        wanted = _parse_range(call.headers.get("range", ""), stored.size)
        if wanted is not None:
            start, stop = wanted
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
        elif "range" in call.headers and call.headers.get("x-oss-range-behavior") == "standard":
            raise Refusal("InvalidRange", fields={"ActualObjectSize": str(stored.size)})
        headers["Content-Length"] = str(stop - start)
        return Answer(
            206 if wanted else 200,
            headers=headers,
            content_type=headers.pop("Content-Type", stored.content_type),
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
            **crc_header(self._backend, stored.crc64),
            **dict(stored.kept_headers),
        }


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
