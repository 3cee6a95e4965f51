"""An app server that holds the AccessKey and issues grants to the hosts that upload.

    export ALIBABA_CLOUD_ACCESS_KEY_ID=… ALIBABA_CLOUD_ACCESS_KEY_SECRET=…
    export APP_TOKENS='{"a-long-random-text": "studio-1"}' APP_OWNERS=owners.db
    python app_server.py 8080              # behind a proxy that speaks TLS

    export VODUP_AUTH_URL_TOKEN=a-long-random-text
    vodup push movie.mp4 --auth-url https://app.example.com/grants

Only the host that created a video may renew its grants. A host that repeats a request, because
it crashed or the answer was lost, gets the same video. browser/serve.py adds a page for browsers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from typing import Any

from aiohttp import web

from uploader import (
    NewVideo,
    TrustPolicy,
    Uploader,
    UploadGrant,
    VideoMeta,
    VodProvider,
    encode_answer,
)
from uploader.errors import CredentialError, VideoGone, VodupError


class Owners:
    """Which host owns which video, in SQLite. Mutable, like any database."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS video"
            " (reference_id TEXT PRIMARY KEY, owner TEXT NOT NULL, video_id TEXT UNIQUE)"
        )

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def claim(self, reference_id: str, owner: str) -> bool:
        """Record the owner of this video; return whether it was requested before.

        Raises:
            web.HTTPForbidden: another host requested it.
        """
        known = self._row("SELECT owner FROM video WHERE reference_id=?", reference_id)
        if known is not None and known != owner:
            raise web.HTTPForbidden(text="this reference_id belongs to another host")
        self._db.execute(
            "INSERT OR IGNORE INTO video(reference_id, owner) VALUES(?, ?)", (reference_id, owner)
        )
        return known is not None

    def set_video_id(self, reference_id: str, video_id: str | None) -> None:
        """Record the VideoId, so that its grants can be renewed."""
        self._db.execute(
            "UPDATE video SET video_id=? WHERE reference_id=?", (video_id, reference_id)
        )

    def require(self, video_id: str, owner: str) -> None:
        """Raise `web.HTTPNotFound` unless the video is this owner's; others stay hidden."""
        if self._row("SELECT owner FROM video WHERE video_id=?", video_id) != owner:
            raise web.HTTPNotFound(text="no such video")

    def _row(self, query: str, value: str) -> str | None:
        row = self._db.execute(query, (value,)).fetchone()
        return row[0] if row else None


UPLOADER = web.AppKey("uploader", Uploader)
OWNERS = web.AppKey("owners", Owners)
TOKENS = web.AppKey("tokens", dict[str, str])
OSS_ENDPOINT = web.AppKey("oss_endpoint", str)


def make_app(
    provider: VodProvider, tokens: Mapping[str, str], owners: Owners, *, oss_endpoint: str = ""
) -> web.Application:
    """The service; `tokens` maps each bearer token to its owner.

    Clients upload to `oss_endpoint` in place of the one VOD names, such as that of acceleration.
    """
    app = web.Application(client_max_size=64 * 1024)
    app[TOKENS], app[OWNERS], app[OSS_ENDPOINT] = dict(tokens), owners, oss_endpoint

    async def with_uploader(app: web.Application) -> AsyncIterator[None]:
        # It only requests grants: it needs no state, and loopback only for experiments.
        trust = TrustPolicy(allow_loopback=os.environ.get("VODUP_ALLOW_LOOPBACK_HTTP") == "1")
        async with Uploader(provider, state="memory", trust=trust) as app[UPLOADER]:
            yield

    app.cleanup_ctx.append(with_uploader)
    app.router.add_post("/grants", issue_grant)
    return app


async def issue_grant(request: web.Request) -> web.Response:
    """Create a video or renew its grant, as `UrlProvider` requests it."""
    owner = _owner_of(request)
    fields = await _fields(request)
    try:
        answer = await (_renew if fields["action"] == "renew" else _create)(
            request.app, owner, fields
        )
    except VideoGone as error:
        raise web.HTTPGone(text=error.message) from error
    except CredentialError as error:
        raise web.HTTPInternalServerError(text="the server's AccessKey is refused") from error
    except VodupError as error:
        raise web.HTTPServiceUnavailable(text=error.message) from error
    # Credentials: no cache may keep them.
    return web.json_response(answer, headers={"Cache-Control": "no-store"})


async def _create(app: web.Application, owner: str, fields: Mapping[str, str]) -> dict[str, str]:
    # The host's reference_id makes the request repeatable; its owner keeps hosts apart.
    reference_id = fields["reference_id"]
    is_repeat = app[OWNERS].claim(reference_id, owner)
    video = NewVideo(
        meta=VideoMeta(title=fields["title"]),
        file_name=fields["file_name"],
        file_size=int(fields["file_size"]),
        reference_id=reference_id,
        is_repeat=is_repeat,
    )
    grant = await app[UPLOADER].grants.create(video)
    app[OWNERS].set_video_id(reference_id, grant.video_id)
    return _answer(app, grant)


async def _renew(app: web.Application, owner: str, fields: Mapping[str, str]) -> dict[str, str]:
    app[OWNERS].require(fields["video_id"], owner)
    return _answer(app, await app[UPLOADER].grants.renew(fields["video_id"]))


def _answer(app: web.Application, grant: UploadGrant) -> dict[str, str]:
    if endpoint := app[OSS_ENDPOINT]:
        target = dataclasses.replace(grant.target, endpoint=endpoint)
        grant = dataclasses.replace(grant, target=target)
    return encode_answer(grant)


def _owner_of(request: web.Request) -> str:
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    for token, owner in request.app[TOKENS].items():
        if hmac.compare_digest(token.encode(), given.encode()):
            return owner
    raise web.HTTPUnauthorized(text="unknown bearer token")


async def _fields(request: web.Request) -> Mapping[str, str]:
    try:
        body: Any = await request.json()
        needed = ("video_id",) if body["action"] == "renew" else _NEEDED_TO_CREATE
        if not all(isinstance(body[name], str) and body[name] for name in needed):
            raise ValueError
        return {name: body[name] for name in ("action", *needed)}
    except (ValueError, KeyError, TypeError):
        raise web.HTTPBadRequest(text="this is not a request of UrlProvider") from None


_NEEDED_TO_CREATE = ("title", "file_name", "file_size", "reference_id")


async def main() -> None:
    """Serve on loopback until interrupted."""
    tokens = json.loads(os.environ["APP_TOKENS"])
    with closing(Owners(os.environ.get("APP_OWNERS", "owners.db"))) as owners:
        runner = web.AppRunner(make_app(VodProvider.from_env(), tokens, owners), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1])).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
