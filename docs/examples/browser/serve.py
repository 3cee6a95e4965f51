"""A page that uploads videos from a browser, with the app server behind it.

    npm install --no-save --prefix . ali-oss@6.23.0   # into ./node_modules
    python docs/examples/browser/serve.py --try       # with a development server

Without `--try` it serves a real account on the port given, configured as ../app_server.py; the
buckets' CORS rules must allow the page's origin, and browsers must reach the page over https.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from uploader import VodProvider
from uploader.devserver import DevServer, DevServerOptions

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from app_server import Owners, make_app  # noqa: E402 - it stands beside this folder

OSS_SCRIPT = Path("node_modules/ali-oss/dist/aliyun-oss-sdk.min.js")


def add_page(app: web.Application, oss_script: Path = OSS_SCRIPT) -> web.Application:
    """Serve the page at "/" and what it needs."""

    def file(path: Path) -> web.AbstractRoute:
        async def answer(request: web.Request) -> web.FileResponse:
            return web.FileResponse(path)

        return answer

    app.router.add_get("/", file(HERE / "page" / "index.html"))
    app.router.add_get("/ali-oss.js", file(oss_script))
    app.router.add_static("/page", HERE / "page")
    return app


def browser_endpoint(oss_endpoint: str) -> str:
    """The development server's OSS under a name, which hosts of buckets need."""
    return f"http://oss-cn-shanghai.localhost:{urlsplit(oss_endpoint).port}"


async def serve(app: web.Application, port: int, fragment: str = "") -> None:
    """Serve on loopback until interrupted."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"Open http://127.0.0.1:{runner.addresses[0][1]}/{fragment}", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def serve_account(port: int) -> None:
    """Serve the account that the environment names."""
    tokens = json.loads(os.environ["APP_TOKENS"])
    with closing(Owners(os.environ.get("APP_OWNERS", "owners.db"))) as owners:
        await serve(add_page(make_app(VodProvider.from_env(), tokens, owners)), port)


async def serve_trial() -> None:
    """Serve a new development server, whose credentials live for a minute."""
    token = secrets.token_urlsafe(12)
    limits = DevServerOptions(credential_ttl_s=60, bandwidth=4e6)
    with tempfile.TemporaryDirectory() as folder:
        async with DevServer(limits) as server:
            os.environ.update(server.env)
            endpoint = browser_endpoint(server.oss_endpoint)
            with closing(Owners(f"{folder}/owners.db")) as owners:
                app = make_app(VodProvider.from_env(), {token: "me"}, owners, oss_endpoint=endpoint)
                await serve(add_page(app), 0, f"#token={token}")


if __name__ == "__main__":
    asyncio.run(serve_trial() if sys.argv[1] == "--try" else serve_account(int(sys.argv[1])))
