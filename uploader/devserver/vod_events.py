"""Event callbacks: VOD posts what happened to the application's URL, signed, three times at most.

Sources: "VOD: HTTP callbacks" (signature, delivery), "VOD: Event notifications" (fields),
"VOD: UserData" (MessageCallback, Extend).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from .backend import Backend, iso_date
from .loopback import is_loopback
from .storage import Video

Event = dict[str, Any]

_TRIES: Final = 3
_TIMEOUT_S: Final = 5
_IMAGE, _VIDEO = "image/", "sv/"


class Background:
    """Tasks of the server itself. Mutable: those that run.

    A TaskGroup would wrap what the block of the server raises, which is its user's.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until it ends, or the server does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancel all of them and wait for their end."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Events:
    """What VOD reports of uploads, transcoding and deletion, in the order in which it happens."""

    def __init__(self, backend: Backend, background: Background) -> None:
        self._backend = backend
        self._background = background

    def resume(self) -> None:
        """Report the end of transcoding that was still to come when the server stopped."""
        for video in self._backend.storage.videos():
            if self._backend.status_of(video) in ("UploadSucc", "Transcoding"):
                self.transcode(video)

    def uploaded(self, video: Video) -> None:
        """The object of a video, picture or attached medium is stored."""
        stored = self._backend.storage.object(video.bucket, video.object_key)
        size, url = stored.size if stored else 0, self._backend.url_of(video)
        if video.object_key.startswith(_VIDEO):
            fields: Event = {"VideoId": video.video_id, "Size": size, "FileUrl": url}
            self.publish("FileUploadComplete", fields, video.detail("UserData"))
            self.transcode(video)
        elif video.object_key.startswith(_IMAGE):
            fields = {"ImageId": video.video_id, "Size": size, "FileURL": url}
            self.publish("ImageUploadComplete", fields, video.detail("UserData"))
        else:
            fields = {"AttachedMediaId": video.video_id, "Size": size, "FileURL": url}
            self.publish("AttachedMediaUploadComplete", fields, video.detail("UserData"))

    def deleted(self, video: Video) -> None:
        """DeleteVideo removed a video."""
        fields = {"MediaId": video.video_id, "MediaType": "video", "DeleteType": "all"}
        self.publish("DeleteMediaComplete", fields, video.detail("UserData"))

    def transcode(self, video: Video) -> None:
        """Report the streams of a video once they are there, unless none are made."""
        is_transcoded = video.detail("TemplateGroupId") != "VOD_NO_TRANSCODE"
        if is_transcoded and self._backend.options.callback_url:
            self._background.start(self._transcode(video))

    async def _transcode(self, video: Video) -> None:
        backend = self._backend
        await backend.clock.sleep_until(video.finished_at + backend.options.processing_s)
        now = backend.storage.video(video.video_id)
        if now is None or now.finished_at != video.finished_at or now.status == "Deleted":
            return  # it was stored again, or is gone
        is_good = backend.status_of(now) != "TranscodeFail"
        stored = backend.storage.object(now.bucket, now.object_key)
        stream: Event = {
            "Status": "success" if is_good else "fail",
            "JobId": now.video_id,
            "Definition": "HD",
            "Format": "mp4",
            "Size": stored.size if stored else 0,
            "Encrypt": False,
            "FileUrl": backend.url_of(now) if is_good else "",
        }
        if not is_good:
            stream |= {"ErrorCode": "InternalError", "ErrorMessage": "The transcoding failed."}
        about = {"VideoId": now.video_id}
        self.publish("StreamTranscodeComplete", about | stream, now.detail("UserData"))
        end: Event = {"Status": stream["Status"], "StreamInfos": [stream]}
        self.publish("TranscodeComplete", about | end, now.detail("UserData"))

    def publish(self, event_type: str, fields: Event, user_data: str = "") -> None:
        """Send an event to the URL of the account, or to that of ``user_data``."""
        options = self._backend.options
        if not options.callback_url or not {"ALL", event_type} & set(options.callback_events):
            return
        own_url, extend = _from_user_data(user_data)
        event: Event = {
            "EventTime": iso_date(self._backend.now()),
            "EventType": event_type,
            "Status": "success",
            **fields,
        }
        if extend:
            event["Extend"] = extend
        url = options.callback_url
        if own_url and (is_loopback(own_url) or _host(own_url) == _host(url)):
            url = own_url
        self._background.start(self._deliver(url, event))

    async def _deliver(self, url: str, event: Event) -> None:
        """Any answer but 200, and none within five seconds, is tried again, twice."""
        for number in range(1, _TRIES + 1):
            if number > 1:
                await asyncio.sleep(self._backend.options.callback_pause_s)
            status = await self._post(url, event)
            self._backend.stats.callbacks.append(
                {"url": url, "attempt": number, "status": status, "event": event}
            )
            if status == 200:
                return

    async def _post(self, url: str, event: Event) -> int:
        """The status of the answer; 0 is none."""
        body = json.dumps(event, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json;charset=utf-8"}
        headers |= signature(url, int(self._backend.now()), self._backend.callback_key or "")
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                session.post(
                    URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0


def signature(url: str, timestamp: int, key: str) -> dict[str, str]:
    """The headers that authenticate a callback; none without a key."""
    if not key:
        return {}
    text = f"{url}|{timestamp}|{key}".encode()
    digest = hashlib.md5(text, usedforsecurity=False).hexdigest()
    return {"X-VOD-TIMESTAMP": str(timestamp), "X-VOD-SIGNATURE": digest}


def _from_user_data(text: str) -> tuple[str, str]:
    """The callback URL and the extension of UserData; either may be an object or its JSON."""
    given = _object(text)
    callback, extend = _object(given.get("MessageCallback")), given.get("Extend", "")
    url = str(callback.get("CallbackURL", ""))
    return url, extend if isinstance(extend, str) else json.dumps(extend, ensure_ascii=False)


def _object(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
