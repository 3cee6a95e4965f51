"""What the tests of this folder run in processes of their own, to be killed, frozen or raced.

    python -m tests.crash.child < one JSON job a line > one pid a line

A parent without threads forks one process per job: an interpreter takes a second to start, a
fork some milliseconds, and the kernel treats both alike. A job's `do` names a function below;
what it returns goes to the job's file `out` as JSON, and its end is seen in /proc.
"""

from __future__ import annotations

import asyncio
import ctypes

# Loaded once, before the forks; the package itself imports them late.
import gc
import json
import math
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import oss2.auth  # noqa: F401
import structlog  # noqa: F401
from aliyunsdkcore.auth.composer import rpc_signature_composer  # noqa: F401

import uploader.bulk.runner
import uploader.cli.app
import uploader.cli.ingest
import uploader.cli.push
import uploader.state.sqlite  # noqa: F401
from tests.engine.harness import LOOPBACK, options
from uploader import AccessKey, Uploader, UploadItem, VideoMeta, VodProvider, VodupError
from uploader.events import Event, UploadFinished
from uploader.sources import BytesSource
from uploader.state import SqlState
from uploader.transport import AiohttpTransport  # noqa: F401

Job = dict[str, Any]


def uploader_for(job: Job) -> Uploader:
    key = AccessKey(id=job["access_key_id"], secret=job["access_key_secret"])
    given = {
        name: job[name]
        for name in ("concurrency", "stall_timeout_s", "vod_calls_per_s")
        if name in job
    }
    return Uploader(
        VodProvider(key, endpoint=job["vod_endpoint"]),
        state=SqlState(job["state"], lease_ttl_s=job.get("lease_ttl_s", 30.0)),
        options=options(**given),
        trust=LOOPBACK,
        on_event=_marked,
    )


DONE_MARK = "/vodup-the-commit-is-durable"


def _marked(event: Event) -> None:
    """Leave a mark among the system calls: from here on there is nothing to lose."""
    if isinstance(event, UploadFinished):
        os.path.exists(DONE_MARK)


def _wait_for_tracer() -> None:
    """Stop until a tracer has attached and continues us; any process of ours may attach."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


_PR_SET_PTRACER = 0x59616D61


async def upload(job: Job) -> Job:
    """One upload; the result, or the error it ended with."""
    try:
        async with uploader_for(job) as up:
            result = await up.upload(
                job["source"], key=job.get("key"), meta=VideoMeta(title="A film")
            )
            return {"result": asdict(result)}
    except VodupError as error:
        return {"error": type(error).__name__, "message": str(error)}


async def abort(job: Job) -> Job:
    """Give an upload up."""
    try:
        async with uploader_for(job) as up:
            await up.abort(job["key"])
            return {"result": None}
    except VodupError as error:
        return {"error": type(error).__name__, "message": str(error)}


async def soak(job: Job) -> Job:
    """Many small uploads through one engine; what the process took after every few of them."""
    draw, samples, failed = random.Random(job["seed"]), [], list[str]()
    sizes = (int(math.exp(draw.uniform(0, math.log(300_000)))) for _ in range(job["count"]))
    meta = VideoMeta(title="A film")
    sources = (BytesSource(draw.randbytes(size), f"{n}.mp4") for n, size in enumerate(sizes))
    items = (UploadItem(source=s, key=f"{n}", meta=meta) for n, s in enumerate(sources))
    async with uploader_for(job) as up:
        ended = 0
        async for outcome in up.upload_many(items):
            ended += 1
            failed += [repr(outcome.error)] * (outcome.error is not None)
            if ended % job["every"] == 0:
                samples.append(sample())
        samples.append(sample())
    return {
        "samples": samples,
        "failed": failed[:5],
        "ended": ended,
        "left": len(asyncio.all_tasks()),
    }


def sample() -> dict[str, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def command(job: Job) -> Job:
    """`vodup` with the job's words, in its folder and environment; the exit code."""
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["env"])
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["vodup", *job["words"]]
    from uploader.cli import main

    try:
        main()
    except SystemExit as end:
        return {"code": end.code or 0}
    return {"code": 0}


def _run(job: Job) -> Job:
    for most in job.get("limits", []):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if job.get("is_traced"):
        _wait_for_tracer()
    if "at_s" in job:  # of a clock that all processes share
        while time.monotonic() < job["at_s"]:
            pass
    if job["do"] == "command":
        return command(job)
    work: Callable[[Job], Any] = {"upload": upload, "abort": abort, "soak": soak}[job["do"]]
    return dict(asyncio.run(work(job)))


def _live(job: Job) -> None:
    """In the forked child: do the job, say how it ended, and never return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        report = _run(job)
        Path(job["out"]).write_text(json.dumps(report))  # read once this process is gone
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    """Fork a process for each line of stdin; the kernel reaps them."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(job)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
