"""``/_vodup/...``: the state of the server, its options and faults, over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
import re
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from .backend import Backend
from .storage import Part, Storage, StoredObject, Video

_HASH_SIZE = 1024 * 1024
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")


class Admin:
    """The administrative paths of both ports."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one administrative request, but none that a page of another site made."""
        token = request.headers.get("X-Vodup-Token", "")
        if not hmac.compare_digest(token.encode(), self._backend.admin_token.encode()):
            error = "X-Vodup-Token must be the admin_token that the server printed at its start"
            return web.json_response({"error": error}, status=403)
        if not self._is_from_here(request):
            error = "only requests to this host, and from no other site, are answered here"
            return web.json_response({"error": error}, status=403)
        try:
            return web.json_response(await self._perform(request))
        except LookupError as error:
            return web.json_response({"error": str(error)}, status=404)
        except (ValueError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=400)

    def _is_from_here(self, request: web.BaseRequest) -> bool:
        """A page elsewhere may point its own name at this address, or send a form to it."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        name = (urlsplit(f"//{host}").hostname or "") if _HOST.fullmatch(host) else ""
        is_ours = name in {self._backend.options.host, self._backend.options.cname, "localhost"}
        with suppress(ValueError):
            is_ours |= ip_address(name).is_loopback
        return bool(name) and is_ours and origin in {None, f"http://{host}", f"https://{host}"}

    async def _perform(self, request: web.BaseRequest) -> object:
        path = request.raw_path.partition("?")[0].removeprefix("/_vodup/")
        if request.method == "GET":
            return await self._show(path)
        values = json.loads(await request.read() or b"null")
        return self._change(path, values)

    async def _show(self, path: str) -> object:
        if path == "stats":
            return self.stats()
        if path == "requests":
            return self._backend.stats.requests_snapshot()
        if path == "options":
            options = self._options().items()
            return {name: str(v) if isinstance(v, Path) else v for name, v in options}
        if path.startswith("videos/"):
            return await self.video(path.removeprefix("videos/"))
        raise LookupError(f"no such path: {path}")

    def _options(self) -> dict[str, Any]:
        return dataclasses.asdict(self._backend.options)

    def _change(self, path: str, values: object) -> object:
        if path == "faults":
            self._backend.faults.replace(_list_of_objects(values))
        elif path == "options":
            self._backend.set_options(**_object(values))
        elif path == "clock":
            self._backend.clock.advance(float(_object(values).get("advance_s", 0)))
        elif path == "expire":
            self._backend.expire_credentials(_object(values).get("video_id"))
        else:
            raise LookupError(f"no such path: {path}")
        return {"ok": True}

    def stats(self) -> dict[str, Any]:
        """The counters, with faults consumed and uploads open."""
        return {
            **self._backend.stats.snapshot(),
            "faults_consumed": self._backend.faults.consumed,
            "open_uploads": self._backend.storage.open_upload_count(),
        }

    async def video(self, video_id: str) -> dict[str, Any]:
        """State of one video: status, object, open uploads and their parts."""
        storage = self._backend.storage
        video = storage.video(video_id)
        if video is None:
            raise LookupError(f"no such video: {video_id}")
        stored = storage.object(video.bucket, video.object_key)
        return {
            **dataclasses.asdict(video),
            "status": self._backend.status_of(video),
            "object": await describe_object(storage, stored) if stored else None,
            "uploads": _describe_uploads(storage, video),
        }


def _describe_uploads(storage: Storage, video: Video) -> list[dict[str, Any]]:
    return [
        {
            "upload_id": upload.upload_id,
            "parts": [_without_path(part) for part in storage.parts(upload.upload_id)],
        }
        for upload in storage.uploads(video.bucket)
        if upload.object_key == video.object_key
    ]


def _without_path(part: Part) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(part).items() if k != "path"}


async def describe_object(storage: Storage, stored: StoredObject) -> dict[str, Any]:
    """Size, checksums and SHA-256 (``None`` when bodies are discarded) of an object."""
    return {
        "size": stored.size,
        "etag": stored.etag,
        "crc64": stored.crc64,
        "part_count": len(stored.files),
        "sha256": await asyncio.to_thread(sha256_of, storage, stored),
    }


def sha256_of(storage: Storage, stored: StoredObject) -> str | None:
    """The SHA-256 of an object's bytes; reads all of them."""
    digest = hashlib.sha256()
    for name, _ in stored.files:
        path = storage.body_path(name)
        if path is None:
            return None
        with path.open("rb") as file:
            while data := file.read(_HASH_SIZE):
                digest.update(data)
    return digest.hexdigest()


def _object(values: object) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError("a JSON object is expected")
    return values


def _list_of_objects(values: object) -> list[dict[str, Any]]:
    if values is None:
        return []
    if not isinstance(values, list):
        raise ValueError("a JSON list is expected")
    return [_object(value) for value in values]
