"""Uploads in processes that are killed: a parent without threads that forks one per run.

    python -m tests.engine.child < one JSON job a line > one pid, then one line of result each

Starting an interpreter costs a second; a fork costs a few milliseconds, and the kernel does
not know the difference when it kills.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Loaded once, before the forks: an upload imports them when it needs them.
import uploader.state.sqlite
import uploader.upload.former
import uploader.uploader  # noqa: F401
from uploader import AccessKey, Uploader, VodProvider, VodupError
from uploader.protocol import signing
from uploader.sources import AnySource, StreamSource
from uploader.state import Journal
from uploader.transport import AiohttpTransport  # noqa: F401

from .harness import LOOPBACK, options


async def upload(job: dict[str, Any]) -> dict[str, Any]:
    key = AccessKey(id=job["access_key_id"], secret=job["access_key_secret"])
    provider = VodProvider(key, endpoint=job["vod_endpoint"])
    quick = options(concurrency=job["concurrency"])
    async with Uploader(provider, state=job["state"], options=quick, trust=LOOPBACK) as up:
        source = source_of(job["source"], is_stream=job["is_stream"])
        return asdict(await up.upload(source, key=job["key"]))


def source_of(path: str, *, is_stream: bool) -> AnySource:
    return stream_of(Path(path)) if is_stream else path


def stream_of(path: Path) -> StreamSource:
    """The bytes of a file as from a producer: of unknown size, from the start each time."""
    return StreamSource(_pieces(path), path.name)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    data = await asyncio.to_thread(path.read_bytes)
    for start in range(0, len(data), 64 * 1024):
        yield data[start : start + 64 * 1024]


def kill_after(commit_count: int) -> None:
    """End this process as SIGKILL does, as soon as the journal has made so many commits."""
    left = commit_count

    def counted(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **changes: Any) -> Any:  # noqa: ANN401
            nonlocal left
            answer = await method(*args, **changes)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call

    for name, method in inspect.getmembers(Journal, inspect.iscoroutinefunction):
        if not name.startswith("_"):
            setattr(Journal, name, counted(method))


def run(job: dict[str, Any], out: int) -> None:
    """In the forked child: upload, say how it ended, and never return."""
    if (commit_count := job.get("kill_after")) is not None:
        kill_after(commit_count)
    try:
        try:
            report: dict[str, Any] = {"result": asyncio.run(upload(job))}
        except VodupError as error:
            report = {"error": type(error).__name__, "message": str(error)}
        os.write(out, json.dumps(report).encode() + b"\n")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    signing._oss2_auth()
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(job, sys.stdout.fileno())
        print(json.dumps({"pid": pid}), flush=True)
        os.waitpid(pid, 0)
        print(json.dumps({"ended": pid}), flush=True)


if __name__ == "__main__":
    main()
