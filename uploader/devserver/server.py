"""The development server: its two ports and its folder, started and stopped together."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import ssl
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from .admin import Admin, sha256_of
from .backend import Backend
from .faults import Fault, FaultScript
from .front import Front, Service
from .options import DevServerOptions
from .oss import OssService
from .recording import Recorder
from .stats import Stats
from .storage import Storage, Video
from .vod import VodService
from .vod_events import Background, Events
from .vod_pull import Pull

_READ_BUFFER_SIZE = 1024 * 1024
_MAX_LINE_SIZE = 64 * 1024  # a Description of 1,024 Chinese characters is 9 KiB of query
_SHUTDOWN_S = 0.1


class DevServer:
    """A local OSS and VOD; an async context manager.

    Mutable: it listens between ``__aenter__`` and ``__aexit__``; nothing runs afterwards, and
    the state in ``data_dir`` is there for the next one.
    """

    def __init__(
        self,
        options: DevServerOptions | None = None,
        faults: Iterable[Fault | Mapping[str, Any]] = (),
    ) -> None:
        self._initial = options or DevServerOptions()
        self._initial_faults = tuple(faults)
        self._stack = AsyncExitStack()
        self._backend: Backend | None = None
        self._recorder: Recorder | None = None
        self.vod_endpoint = ""
        self.oss_endpoint = ""
        self.ca_file: Path | None = None

    async def __aenter__(self) -> Self:
        async with self._stack:
            await self._start()
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        folder = self._folder()
        storage = Storage(folder)
        self._stack.callback(storage.close)
        backend = self._backend = Backend(self._initial, storage, self._initial_faults)
        if self._initial.record is not None:
            self._recorder = Recorder(self._initial.record)
            self._stack.callback(self._recorder.close)
        background = Background()
        self._stack.push_async_callback(background.stop)
        events = Events(backend, background)
        backend.on_upload = events.uploaded
        pull = Pull(backend, events, background)
        context = self._tls(folder)
        admin = Admin(backend)
        scheme = "https" if context else "http"
        oss_port = await self._listen(OssService(backend), admin, self._initial.oss_port, context)
        vod_port = await self._listen(
            VodService(backend, events, pull), admin, self._initial.port, context
        )
        host = f"[{self._initial.host}]" if ":" in self._initial.host else self._initial.host
        oss_host = self._initial.oss_host or host
        self.oss_endpoint = backend.oss_endpoint = f"{scheme}://{oss_host}:{oss_port}"
        backend.other_oss_endpoint = f"{scheme}://localhost:{oss_port}"
        self.vod_endpoint = f"{scheme}://{host}:{vod_port}"
        events.resume()
        pull.resume()

    def _folder(self) -> Path:
        if self._initial.data_dir is not None:
            self._initial.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._initial.data_dir
        folder = Path(tempfile.mkdtemp(prefix="vodup-devserver-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _tls(self, folder: Path) -> ssl.SSLContext | None:
        if not self._initial.tls:
            return None
        from .tls import server_context

        options = self._initial
        oss_host = options.oss_host or f"oss-{options.region}.localhost"
        names = filter(None, (options.host, options.cname, oss_host, f"*.{oss_host}"))
        context, self.ca_file = server_context(folder, *names)
        return context

    async def _listen(
        self, service: Service, admin: Admin, port: int, context: ssl.SSLContext | None
    ) -> int:
        front = Front(self.backend, service, admin.handle, self._recorder)
        runner = web.ServerRunner(
            web.Server(
                front.handle,
                access_log=None,
                read_bufsize=_READ_BUFFER_SIZE,
                max_line_size=_MAX_LINE_SIZE,
                max_field_size=_MAX_LINE_SIZE,
            ),
            shutdown_timeout=_SHUTDOWN_S,
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        self._stack.push_async_callback(front.stop)
        site = web.TCPSite(runner, self._initial.host, port, ssl_context=context)
        await site.start()
        return int(runner.addresses[0][1])

    @property
    def backend(self) -> Backend:
        """The account behind the ports."""
        if self._backend is None:
            raise RuntimeError("the development server has not been started: use 'async with'")
        return self._backend

    @property
    def access_key_id(self) -> str:
        """The caller's AccessKey id."""
        return self.backend.access_key_id

    @property
    def access_key_secret(self) -> str:
        """The caller's AccessKey secret."""
        return self.backend.access_key_secret

    @property
    def admin_token(self) -> str:
        """What requests to ``/_vodup/`` have in ``X-Vodup-Token``."""
        return self.backend.admin_token

    @property
    def env(self) -> dict[str, str]:
        """Every environment variable ``vodup push`` needs to use this server."""
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": self.access_key_id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": self.access_key_secret,
            "VODUP_REGION": self.backend.options.region,
            "VODUP_VOD_ENDPOINT": self.vod_endpoint,
            "VODUP_ALLOW_LOOPBACK_HTTP": "1",
        }
        if self.backend.options.caller_security_token:
            env["ALIBABA_CLOUD_SECURITY_TOKEN"] = self.backend.security_token
        if self.ca_file is not None:
            env["VODUP_CA_FILE"] = str(self.ca_file)
        return env

    @property
    def stats(self) -> Stats:
        """The counters, live."""
        return self.backend.stats

    @property
    def faults(self) -> FaultScript:
        """The fault script in force."""
        return self.backend.faults

    @property
    def options(self) -> DevServerOptions:
        """The current options."""
        return self.backend.options

    @property
    def videos(self) -> dict[str, Video]:
        """All videos by id."""
        return {video.video_id: video for video in self.backend.storage.videos()}

    @property
    def open_upload_count(self) -> int:
        """How many multipart uploads are open."""
        return self.backend.storage.open_upload_count()

    def set_options(self, **changes: Any) -> None:
        """Change options while the server runs."""
        self.backend.set_options(**changes)

    def advance_clock(self, seconds: float) -> None:
        """Move a clock that the option ``clock`` stopped."""
        self.backend.clock.advance(seconds)

    def expire_credentials(self, video_id: str | None = None) -> None:
        """Expire all upload credentials, or those of one video, now."""
        self.backend.expire_credentials(video_id)

    def secrets(self) -> tuple[str, ...]:
        """Every secret ever issued, for scans of output."""
        return self.backend.secrets()

    async def object_sha256(self, video_id: str) -> str | None:
        """SHA-256 of a video's source file; ``None`` when there is none or bytes are discarded."""
        video = self.videos[video_id]
        stored = self.backend.storage.object(video.bucket, video.object_key)
        if stored is None:
            return None
        return await asyncio.to_thread(sha256_of, self.backend.storage, stored)

    def object_bytes(self, video_id: str) -> bytes:
        """A video's source file, for small tests."""
        video, storage = self.videos[video_id], self.backend.storage
        stored = storage.object(video.bucket, video.object_key)
        if stored is None:
            raise LookupError(f"video {video_id} has no source file")
        return storage.content(stored)

    def objects(self, video_id: str) -> dict[str, bytes]:
        """Every object in a video's bucket by its key, for small tests of HLS packages."""
        bucket, storage = self.videos[video_id].bucket, self.backend.storage
        return {stored.object_key: storage.content(stored) for stored in storage.objects(bucket)}

    def damage_video(self, video_id: str) -> None:
        """From now on RefreshUploadVideo answers InvalidVideo.Damaged."""
        self._set_status(video_id, "Damaged")

    def reopen_video(self, video_id: str) -> None:
        """VOD has not noticed yet that its file is stored."""
        self._set_status(video_id, "Uploading")

    def delete_video(self, video_id: str) -> None:
        """From now on the video is not found."""
        self._set_status(video_id, "Deleted")

    def _set_status(self, video_id: str, status: str) -> None:
        video = self.videos[video_id]
        self.backend.storage.save_video(dataclasses.replace(video, status=status))


async def serve(
    options: DevServerOptions,
    *,
    announce: Callable[[str], None],
    faults: Iterable[Fault | Mapping[str, Any]] = (),
    lifeline: int | None = None,
) -> None:
    """Run until SIGTERM, SIGINT or cancellation; ``announce`` gets one JSON line when ready.

    ``lifeline`` is a pipe whose other end the parent holds: when that is gone, however it
    went, the server stops too.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, stopped.set)
    if lifeline is not None:
        loop.add_reader(lifeline, _stop_at_the_end, lifeline, stopped)
    try:
        async with DevServer(options, faults) as server:
            announce(ready_line(server))
            await stopped.wait()
    finally:
        if lifeline is not None:
            loop.remove_reader(lifeline)
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _stop_at_the_end(lifeline: int, stopped: asyncio.Event) -> None:
    if not os.read(lifeline, 1024):
        stopped.set()


def ready_line(server: DevServer) -> str:
    """What a parent process reads: endpoints and environment as one JSON line."""
    line: dict[str, object] = {
        "vod_endpoint": server.vod_endpoint,
        "oss_endpoint": server.oss_endpoint,
        "env": server.env,
        "admin_token": server.admin_token,
    }
    if server.options.callback_url:
        line["callback_key"] = server.backend.callback_key
    return json.dumps(line)
