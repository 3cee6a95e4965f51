"""The HTTP face of a service: JSON, server-sent events, and bodies that become videos."""

from __future__ import annotations

import errno
import hmac
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final

from aiohttp import web

from uploader.errors import (
    ConfigurationError,
    CredentialError,
    IntegrityError,
    OverwriteRefused,
    PolicyError,
    SourceChanged,
    SourceError,
    StateError,
    TransferError,
    UploadLocked,
    VideoGone,
    VodupError,
)
from uploader.serve.jobs import Job, Status
from uploader.serve.service import UploadService, problem_of, result_of
from uploader.sources import StreamSource
from uploader.unexpected import unexpected

DEFAULT_PORT: Final = 7374
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_KEEP_ALIVE_S: Final = 15.0
_OPENAPI: Final = "openapi.json"
_PUBLIC: Final = frozenset({"/v1/health", "/v1/openapi.json"})
_STATUS: Final[tuple[tuple[type[VodupError], int], ...]] = (
    # The first that fits.
    (UploadLocked, 409),
    (OverwriteRefused, 409),
    (SourceChanged, 409),
    (VideoGone, 404),
    (PolicyError, 403),
    (ConfigurationError, 422),
    (SourceError, 422),
    (StateError, 503),
    (CredentialError, 502),
    (IntegrityError, 502),
    (TransferError, 502),
)
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Address = tuple[str, int] | str

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """The routes of a service.

    Args:
        token: what requests have to send as `Authorization: Bearer`.
        origins: web sites whose pages may use the service; none by default.
        is_socket: whether it listens on a Unix socket, whose clients may name any host.
    """

    def __init__(
        self, service: UploadService, token: str, *, origins: frozenset[str], is_socket: bool
    ) -> None:
        self._service, self._token = service, token
        self._origins, self._is_socket = origins, is_socket

    def application(self) -> web.Application:
        """An application with all routes."""
        app = web.Application(middlewares=[self._checked])
        one = "/v1/uploads/{id:[0-9]+}"
        app.router.add_get("/v1/health", self.health)
        app.router.add_get("/v1/openapi.json", self.openapi)
        app.router.add_post("/v1/uploads", self.submit)
        app.router.add_get("/v1/uploads", self.list)
        app.router.add_get(one, self.show)
        app.router.add_delete(one, self.forget)
        app.router.add_post(f"{one}/pause", self.pause)
        app.router.add_post(f"{one}/resume", self.resume)
        app.router.add_post(f"{one}/cancel", self.cancel)
        app.router.add_get(f"{one}/events", self.events)
        app.router.add_get("/v1/events", self.events)
        app.router.add_put("/v1/videos", self.upload_body)
        return app

    # --- who may ---------------------------------------------------------------------------

    @web.middleware
    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse strangers; answer errors as RFC 9457 says."""
        try:
            answer = self._refusal_of(request) or await handler(request)
        except web.HTTPException as error:
            answer = _refusal(error.status, error.reason)
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
        except VodupError as error:
            answer = _problem(error)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            answer = _problem(unexpected(error))
        if not answer.prepared:
            answer.headers.update(self._headers_for(request))
        return answer

    def _refusal_of(self, request: web.Request) -> web.StreamResponse | None:
        """The answer to who may not use the service, or to a preflight; None for others."""
        origin = request.headers.get("Origin")
        if not self._is_socket and _host_of(request) not in _LOOPBACK:
            return _refusal(403, "Only 127.0.0.1 and localhost are served here.")
        if origin is not None and origin not in self._origins:
            return _refusal(403, "Pages of this origin are not served; see --allow-origin.")
        if request.method == "OPTIONS" and origin is not None:
            return web.Response(status=204, headers=_PREFLIGHT)
        if request.path in _PUBLIC or self._has_token(request):
            return None
        answer = _refusal(401, "Send the token of the service as Authorization: Bearer TOKEN.")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    def _headers_for(self, request: web.Request) -> dict[str, str]:
        origin = request.headers.get("Origin")
        return _HEADERS | (_cors(origin) if origin is not None and origin in self._origins else {})

    def _has_token(self, request: web.Request) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        is_same = hmac.compare_digest(given.strip().encode(), self._token.encode())
        return kind.lower() == "bearer" and is_same

    # --- routes ----------------------------------------------------------------------------

    async def health(self, request: web.Request) -> web.Response:
        """Whether the service answers."""
        return web.json_response({"status": "ok"})

    async def openapi(self, request: web.Request) -> web.Response:
        """The description of this interface."""
        return web.Response(text=description(), content_type="application/json")

    async def submit(self, request: web.Request) -> web.Response:
        """Accept an upload."""
        fields = await _object_of(request)
        priority, overwrite = fields.pop("priority", 0), fields.pop("overwrite", False)
        if type(priority) is not int or type(overwrite) is not bool or abs(priority) > 100:
            raise ConfigurationError(
                "priority must be from -100 to 100, and overwrite true or false.",
                next_step="Correct the request.",
            )
        job = await self._service.submit(fields, priority=priority, overwrite=overwrite)
        location = {"Location": f"/v1/uploads/{job.id}"}
        return web.json_response(self._service.shown(job), status=202, headers=location)

    async def list(self, request: web.Request) -> web.Response:
        """Some uploads, newest first."""
        count = _number(request, "limit", 100, most=1000)
        before = _number(request, "before", 0)
        status = request.query.get("status")
        if status is not None and status not in set(Status):
            raise ConfigurationError(
                f"There is no status {status!r}.", next_step=f"Use one of {', '.join(Status)}."
            )
        found = await self._service.page(before=before or None, count=count, status=status)
        following = found[-1].id if len(found) == count else None
        shown = [self._service.shown(job) for job in found]
        return web.json_response({"uploads": shown, "next_before": following})

    async def show(self, request: web.Request) -> web.Response:
        """One upload."""
        return web.json_response(self._service.shown(await self._job(request)))

    async def forget(self, request: web.Request) -> web.Response:
        """Remove an upload that has ended from the list."""
        await self._service.forget(await self._job(request))
        return web.Response(status=204)

    async def pause(self, request: web.Request) -> web.Response:
        """Begin no further request of an upload."""
        job = await self._service.pause(await self._job(request))
        return web.json_response(self._service.shown(job))

    async def resume(self, request: web.Request) -> web.Response:
        """Go on with an upload."""
        job = await self._service.resume(await self._job(request))
        return web.json_response(self._service.shown(job))

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop an upload."""
        abort = request.query.get("abort", "false") == "true"
        job = await self._service.cancel(await self._job(request), abort=abort)
        return web.json_response(self._service.shown(job))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events of one upload, until it has ended, or of all."""
        job = await self._job(request) if "id" in request.match_info else None
        reader = self._service.reader(job.id if job else None)
        headers = self._headers_for(request) | {"Content-Type": "text/event-stream"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if job is not None and job.has_ended:
            await _send(response, self._service.shown(job))
            return response
        while True:
            try:
                fields = await reader.next(timeout_s=_KEEP_ALIVE_S)
            except TimeoutError:
                await response.write(b": nothing new\n\n")
                continue
            if fields is None:
                return response
            await _send(response, fields)
            if job is not None and fields.get("status") in {"done", "failed", "cancelled"}:
                return response

    async def upload_body(self, request: web.Request) -> web.Response:
        """Store the body as a video while it arrives; answers when it is verified."""
        fields: dict[str, Any] = dict(request.query)
        overwrite = fields.pop("overwrite", "false") == "true"
        size = request.content_length
        if size == 0 or not request.body_exists:
            raise ConfigurationError("The body is empty.", next_step="Send the video as the body.")
        name = fields.get("file_name", "body")
        body = StreamSource(request.content.iter_any(), name=name, expected_size=size)
        result = await self._service.upload_body(body, fields, overwrite=overwrite)
        return web.json_response(result_of(result), status=201)

    async def _job(self, request: web.Request) -> Job:
        job = await self._service.find(int(request.match_info["id"][:18]))
        if job is None:
            raise web.HTTPNotFound(reason="There is no such upload.")
        return job


_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}


def _cors(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Location",
        "Vary": "Origin",
    }


def _host_of(request: web.Request) -> str:
    host = request.host
    return host if host.endswith("]") else host.rpartition(":")[0] or host


async def _object_of(request: web.Request) -> dict[str, Any]:
    try:
        fields = json.loads(await request.text())
    except (ValueError, LookupError, RecursionError) as error:
        raise web.HTTPBadRequest(reason="The body is not JSON.") from error
    if not isinstance(fields, dict):
        raise web.HTTPBadRequest(reason="The body is not a JSON object.")
    return fields


def _number(request: web.Request, name: str, default: int, *, most: int = 1 << 62) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigurationError(f"{name} is not a number.", next_step="Correct the request.")
    return min(int(text), most)


async def _send(response: web.StreamResponse, fields: Mapping[str, Any]) -> None:
    await response.write(f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode())


def _problem(error: VodupError) -> web.Response:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return _problem_response(problem_of(error) | {"status": status})


def _refusal(status: int, detail: str) -> web.Response:
    return _problem_response(
        {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    )


def _problem_response(fields: Mapping[str, Any]) -> web.Response:
    return web.Response(
        text=json.dumps(fields), status=fields["status"], content_type="application/problem+json"
    )


def description() -> str:
    """The OpenAPI document."""
    return files(__package__).joinpath(_OPENAPI).read_text()


@asynccontextmanager
async def listening(api: Api, address: Address) -> AsyncIterator[str]:
    """Serve while the block runs; yields where, for people.

    Args:
        address: a host and a port, or the path of a Unix socket.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    try:
        sock = _bound(address)
    except OSError as error:
        raise ConfigurationError(
            f"--listen: {_text(address)} cannot be used: {error.strerror or error}.",
            next_step="Choose another port, 0 for any free one, or another socket.",
        ) from error
    runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=1.0)
    try:
        await runner.setup()
        await web.SockSite(runner, sock).start()
        yield _text(sock.getsockname())
    finally:
        await runner.cleanup()
        sock.close()
        if isinstance(address, str):
            with suppress(OSError):
                os.unlink(address)


def _bound(address: Address) -> socket.socket:
    """A socket that nobody else on this machine may connect to, if it is a Unix socket."""
    if isinstance(address, str):
        _remove_stale(address)
        sock = socket.socket(socket.AF_UNIX)
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    umask = os.umask(0o177)
    try:
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket of a service that was killed."""
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "it exists, and is no socket")
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(errno.EADDRINUSE, "another service listens there")


def _text(address: Address) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    host, port, *_ = address
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
