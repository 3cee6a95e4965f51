"""Services and a proxy in a process of their own, for tests in network namespaces.

Prints one JSON line when it is ready, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from tests.forward_proxy import SERVICE_HOSTS, forwarding, services_at
from tests.rawserver import Authority
from uploader.devserver import DevServer, DevServerOptions


async def serve(folder: Path, fronts: tuple[str, str], port: int, proxy: str, ttl_s: float) -> None:
    authority = Authority.in_folder(folder)
    tls = authority.server(*SERVICE_HOSTS)
    options = DevServerOptions(data_dir=folder / "devserver", credential_ttl_s=ttl_s)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(DevServer(options))
        routes = await stack.enter_async_context(services_at(server, tls, hosts=fronts, port=port))
        login = ("user", "pass:word")
        through = forwarding(routes, login=login, host=proxy) if proxy else None
        url = (await stack.enter_async_context(through)).url if through else ""
        ready = {
            "proxy": url.replace("//", "//user:pass%3Aword@"),
            "bucket": server.backend.bucket,
            "env": {
                "ALIBABA_CLOUD_ACCESS_KEY_ID": server.access_key_id,
                "ALIBABA_CLOUD_ACCESS_KEY_SECRET": server.access_key_secret,
                "VODUP_CA_FILE": str(authority.ca_file),
            },
        }
        print(json.dumps(ready), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fronts", nargs=2, default=("127.0.0.1", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--proxy", default="")
    parser.add_argument("--ttl", type=float, default=3000)
    given = parser.parse_args()
    fronts = (given.fronts[0], given.fronts[1])
    asyncio.run(serve(given.folder, fronts, given.port, given.proxy, given.ttl))


if __name__ == "__main__":
    main()
