"""Files that VOD fetches by URL. Here they are really fetched, but only from this machine.

Sources: "VOD API: UploadMediaByURL, GetURLUploadInfos, CancelUrlUploadJobs".
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import aiohttp
from fastcrc import crc64
from yarl import URL

from .answers import Refusal
from .backend import Backend, iso_date
from .loopback import is_loopback
from .storage import StoredObject, UrlJob
from .vod_access import VodCall
from .vod_checks import EXTENSIONS, Fields, check_characters, check_tags
from .vod_events import Background, Events
from .vod_library import SHOWN_DETAILS

_MAX_URLS, _MAX_LISTED = 20, 10
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,50}")
_SESSION_S: Final = 600
"""How long a SessionId cannot be used again."""
_AT_ONCE: Final = 2
_CHUNK_SIZE: Final = 256 * 1024
_ENDED = ("SUCCESS", "DOWNLOAD_FAIL", "UPLOAD_FAIL", "CANCELED")


class _FetchError(Exception):
    """The file of a URL cannot be had."""


class Pull:
    """Jobs that fetch files; ``operations`` has the calls by name. Mutable: SessionIds."""

    def __init__(self, backend: Backend, events: Events, background: Background) -> None:
        self._backend = backend
        self._storage = backend.storage
        self._events = events
        self._background = background
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._sessions: dict[str, float] = {}
        self.operations: Mapping[str, Callable[[VodCall], Fields]] = {
            "UploadMediaByURL": self._submit,
            "GetURLUploadInfos": self._infos,
            "CancelUrlUploadJobs": self._cancel,
        }

    def resume(self) -> None:
        """Go on with the jobs that had not ended when the server stopped."""
        for job in self._storage.url_jobs():
            if job.status not in _ENDED:
                self._background.start(self._run(job))

    # calls

    def _submit(self, call: VodCall) -> Fields:
        urls = _urls(call, "UploadURLs", _MAX_URLS)
        described = _described(call)
        self._use_session(call.parameter("SessionId"))
        defaults = {name: call.parameter(name) for name in ("TemplateGroupId", "UserData")}
        jobs = [self._new_job(url, described.get(url, {}), defaults) for url in urls]
        for job in jobs:
            self._storage.save_url_job(job)
            self._background.start(self._run(job))
        shown: list[Fields] = [{"JobId": j.job_id, "SourceURL": j.source_url} for j in jobs]
        return {"UploadJobs": shown}

    def _new_job(
        self, url: str, metadata: Mapping[str, Any], defaults: Mapping[str, str]
    ) -> UrlJob:
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        extension = str(metadata.get("FileExtension") or name.rpartition(".")[2]).lower()
        given = {name: str(metadata[name]) for name in SHOWN_DETAILS if metadata.get(name)}
        return UrlJob(
            job_id=self._backend.ids.hex("job", 16),
            source_url=url,
            created_at=self._backend.clock.now(),
            title=str(metadata.get("Title") or name or url),
            extension=extension,
            details={name: value for name, value in (dict(defaults) | given).items() if value},
        )

    def _use_session(self, name: str) -> None:
        if not name:
            return
        now = self._backend.clock.now()
        is_new = now - self._sessions.get(name, -_SESSION_S) >= _SESSION_S
        if not (_SESSION_ID.fullmatch(name) and is_new):
            raise Refusal("InvalidParameter", "The specified SessionId is not valid.")
        self._sessions[name] = now

    def _infos(self, call: VodCall) -> Fields:
        found, missing = self._named(call, "UploadURLs")
        return {"URLUploadInfoList": [_shown(job) for job in found], "NonExists": missing}

    def _cancel(self, call: VodCall) -> Fields:
        found, missing = self._named(call, "UploadUrls")
        cancelled = [job for job in found if job.status not in _ENDED]
        for job in cancelled:
            self._save(job, status="CANCELED", completed_at=self._backend.clock.now())
        return {"CanceledJobs": [job.job_id for job in cancelled], "NonExists": missing}

    def _named(self, call: VodCall, urls_name: str) -> tuple[list[UrlJob], list[str]]:
        """The jobs of the ids, or else of the URLs, and the names of no job."""
        jobs = self._storage.url_jobs()
        ids = [name for name in call.parameter("JobIds").split(",") if name]
        if len(ids) > _MAX_LISTED:
            raise Refusal("InvalidParameter", "The specified JobIds is not valid.")
        names = ids or _urls(call, urls_name, _MAX_LISTED)
        found = [job for job in jobs if (job.job_id if ids else job.source_url) in names]
        known = {job.job_id for job in found} | {job.source_url for job in found}
        return found, [name for name in names if name not in known]

    # jobs

    def _save(self, job: UrlJob, **changes: Any) -> UrlJob:
        job = dataclasses.replace(job, **changes)
        self._storage.save_url_job(job)
        return job

    def _is_cancelled(self, job: UrlJob) -> bool:
        now = next(j for j in self._storage.url_jobs() if j.job_id == job.job_id)
        return now.status == "CANCELED"

    async def _run(self, job: UrlJob) -> None:
        async with self._turns:
            if self._is_cancelled(job):
                return
            job = self._save(job, status="DOWNLOADING")
            try:
                stored = await self._fetch(job)
            except _FetchError as error:
                self._fail(job, str(error))
                return
        if self._is_cancelled(job):
            self._storage.drop_bodies(name for name, _ in stored.files)
            return
        self._finish(job, stored)

    def _finish(self, job: UrlJob, stored: StoredObject) -> None:
        """The object, the video and the job in one turn of the loop."""
        details = tuple(job.details.items())
        video = self._backend.new_media(
            stored.object_key, title=job.title, file_name=job.source_url, details=details
        )
        self._storage.save_object(stored)
        self._storage.save_video(video)
        self._backend.upload_finished(video.video_id, video.bucket, video.object_key)
        job = self._save(
            job,
            status="SUCCESS",
            media_id=video.video_id,
            size=stored.size,
            completed_at=self._backend.clock.now(),
        )
        about = {"VideoId": job.media_id, "Size": str(job.size)}
        self._report(job, {"Status": "success", **about})

    def _fail(self, job: UrlJob, message: str) -> None:
        if self._is_cancelled(job):
            return
        job = self._save(
            job,
            status="DOWNLOAD_FAIL",
            completed_at=self._backend.clock.now(),
            error_code="URLInvalidError",
            error_message=f"download video failed by the url, please check it: {message}",
        )
        error = {"ErrorCode": job.error_code, "ErrorMessage": job.error_message}
        self._report(job, {"Status": "fail", **error})

    def _report(self, job: UrlJob, fields: dict[str, str]) -> None:
        about = {"JobId": job.job_id, "SourceURL": job.source_url}
        self._events.publish("UploadByURLComplete", about | fields, job.details.get("UserData", ""))

    async def _fetch(self, job: UrlJob) -> StoredObject:
        if not is_loopback(job.source_url):
            raise _FetchError("this server fetches only from loopback addresses")
        if job.extension not in EXTENSIONS:
            raise _FetchError("the file has no extension of a video or audio format")
        path = self._storage.new_body()
        try:
            size, md5, crc = await self._download(job.source_url, path)
            name = self._storage.keep_body(path)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _FetchError(f"{type(error).__name__} {error}".rstrip()) from error
        finally:
            path.unlink(missing_ok=True)
        return StoredObject(
            bucket=self._backend.bucket,
            object_key=self._backend.media_key("sv", f"x.{job.extension}"),
            size=size,
            etag=md5.hex().upper(),
            crc64=crc,
            kind="Normal",
            content_type="application/octet-stream",
            modified_at=self._backend.now(),
            files=((name, size),),
        )

    async def _download(self, url: str, path: Path) -> tuple[int, bytes, int]:
        """The size, MD5 and CRC-64 of what a 200 brought."""
        options = self._backend.options
        timeout = aiohttp.ClientTimeout(total=options.fetch_timeout_s)
        size, md5, crc = 0, hashlib.md5(usedforsecurity=False), 0
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(URL(url, encoded=True), allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise _FetchError(f"HTTP status {answer.status}")
            with path.open("wb", buffering=0) as sink:
                async for chunk in answer.content.iter_chunked(_CHUNK_SIZE):
                    size += len(chunk)
                    if size > options.fetch_max_size:
                        raise _FetchError(f"more than {options.fetch_max_size} bytes")
                    md5.update(chunk)
                    crc = crc64.xz(chunk, crc)
                    sink.write(chunk)
        claimed = answer.headers.get("Content-MD5")
        if claimed and claimed != base64.b64encode(md5.digest()).decode():
            raise _FetchError("the content has another MD5 than its header says")
        return size, md5.digest(), crc


def _urls(call: VodCall, name: str, most: int) -> list[str]:
    """The URLs of a parameter: each is percent-encoded, commas are between them."""
    urls = [unquote(url) for url in call.parameter(name).split(",") if url]
    if not urls:
        raise Refusal("MissingParameter", f"{name} is mandatory for this action.")
    if len(urls) > most or not all(re.match(r"https?://[^/]", url) for url in urls):
        raise Refusal(f"InvalidParameter.{name}", f"The specified {name} is not valid.")
    return urls


def _described(call: VodCall) -> dict[str, dict[str, Any]]:
    """The entries of UploadMetadatas by their URL."""
    try:
        entries = json.loads(call.parameter("UploadMetadatas") or "[]")
    except ValueError:
        entries = None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and entry.get("SourceURL") and entry.get("Title")
        for entry in entries
    ):
        raise Refusal("InvalidParameter", "The specified UploadMetadatas is not valid.")
    for entry in cast("list[dict[str, Any]]", entries):
        check_tags(str(entry.get("Tags", "")))
        check_characters(str(entry["Title"]))
    return {str(entry["SourceURL"]): entry for entry in entries}


def _shown(job: UrlJob) -> Fields:
    return {
        "JobId": job.job_id,
        "UploadURL": job.source_url,
        "MediaId": job.media_id,
        "Status": job.status,
        "FileSize": str(job.size) if job.size else "",
        "CreationTime": iso_date(job.created_at),
        "CompleteTime": iso_date(job.completed_at) if job.completed_at else "",
        "ErrorCode": job.error_code,
        "ErrorMessage": job.error_message,
        "UserData": job.details.get("UserData", ""),
    }
