"""One upload in a process of its own, and what it took.

    python -m tests.sources.figures pipe < stream      a stream, 16 connections
    python -m tests.sources.figures follow PATH PID    a file until its writer has ended

Prints one JSON object. The server is another process: its memory does not count.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import oss2.auth  # noqa: F401 - all that an upload loads, so that it counts as import
from aliyunsdkcore.auth.composer import rpc_signature_composer  # noqa: F401

import uploader.state.sqlite  # noqa: F401
from uploader import (
    FollowedFile,
    Source,
    StreamSource,
    TrustPolicy,
    Until,
    Uploader,
    UploadOptions,
    VideoMeta,
    VodProvider,
)
from uploader.sources import DescriptorReader

META = VideoMeta(file_name="movie.mp4")


def _kib(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{name}:")[2].split()[0])


def _source(words: list[str]) -> Source:
    if words[0] == "pipe":
        return StreamSource(DescriptorReader(0, "a pipe"), "movie.mp4")
    return FollowedFile(words[1], Until(pid=int(words[2])))


async def main(words: list[str]) -> None:
    provider = VodProvider.from_env(endpoint=os.environ["VODUP_VOD_ENDPOINT"])
    options = UploadOptions(concurrency=16)
    trust = TrustPolicy(allow_loopback=True)
    async with Uploader(provider, state="memory", options=options, trust=trust) as up:
        await up.upload(b"warm", meta=META)
        before_kib, began_s, cpu_s = _kib("VmRSS"), time.monotonic(), time.process_time()
        result = await up.upload(_source(words), meta=META)
        figures = {
            "verified_at": time.time(),
            "seconds": time.monotonic() - began_s,
            "cpu_s": time.process_time() - cpu_s,
            "above_import_mib": (_kib("VmHWM") - before_kib) / 1024,
            "size": result.size,
            "part_count": result.part_count,
            "verified_by": result.verified_by,
        }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
