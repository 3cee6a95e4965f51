"""How fast an HLS package is sent, against the same bytes as separate files.

    python -m benchmarks.hls_rate [SEGMENTS] [BYTES]

SEGMENTS (2,000) of BYTES (500,000) each go to the sink as one package and as as many
files, in turn, five times each, through one `Uploader` at 16 connections with its state on
disk. Prints MB/s (medians), CPU ms a segment, and the ratio.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from benchmarks.native import Toolbox
from uploader import TrustPolicy, Uploader, UploadGrant, UploadOptions, decode_grant

_ROUNDS = 5


def main() -> None:
    """Measure and print."""
    given = [int(word) for word in sys.argv[1:3]]
    count, size = [*given, *(2000, 500_000)[len(given) :]]
    with tempfile.TemporaryDirectory(prefix="vodup-hls-") as folder:
        tools = Toolbox(Path(folder))
        playlist = _make_package(Path(folder), count, size)
        with tools.sink() as sink:
            found = asyncio.run(
                _alternate(f"http://127.0.0.1:{sink.http_port}", Path(folder), playlist, count)
            )
    package, files = (median(wall for wall, _ in found[name]) for name in ("package", "files"))
    for name, taken in found.items():
        wall, cpu = (median(values) for values in zip(*taken, strict=True))
        print(f"{name}: {count * size / wall / 1e6:.0f} MB/s, {cpu / count * 1000:.2f} CPU ms each")
    print(f"the package at {files / package:.2f} of the rate of the files")


def _make_package(folder: Path, count: int, size: int) -> Path:
    block = os.urandom(size)
    for number in range(count):
        (folder / f"segment{number}.ts").write_bytes(number.to_bytes(8, "big") + block[8:])
    lines = "".join(f"#EXTINF:4,\nsegment{number}.ts\n" for number in range(count))
    playlist = folder / "index.m3u8"
    playlist.write_text(f"#EXTM3U\n{lines}#EXT-X-ENDLIST\n")
    return playlist


async def _alternate(
    endpoint: str, folder: Path, playlist: Path, count: int
) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {"package": [], "files": []}
    options = UploadOptions(concurrency=16, oss_region="cn-shanghai", submitted=64)
    trust = TrustPolicy(allow_loopback=True)
    async with Uploader(state=folder / "state.db", options=options, trust=trust) as up:

        async def as_package(number: int) -> None:
            name, first = f"p{number}", number * (count + 1)
            grant = grant_of(endpoint, name, first, extension="m3u8")
            await up.upload(playlist, grant=grant)

        async def as_files(number: int) -> None:
            handles = [
                await up.submit(
                    folder / f"segment{n}.ts",
                    grant=grant_of(endpoint, f"f{number}-{n}", number * (count + 1) + n + 1),
                )
                for n in range(count)
            ]
            for handle in handles:
                await handle

        for number in range(_ROUNDS + 1):  # the first of each is for warming up
            for name, upload in (("package", as_package), ("files", as_files)):
                taken = await _timed(upload, number)
                if number:
                    found[name].append(taken)
    return found


async def _timed(upload: Callable[[int], Awaitable[None]], number: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await upload(number)
    return time.perf_counter() - wall, time.process_time() - cpu


def grant_of(endpoint: str, name: str, number: int, *, extension: str = "mp4") -> UploadGrant:
    """A grant for an object of the sink."""
    address = {
        "Endpoint": endpoint,
        "Bucket": "bench",
        "FileName": f"sv/{name}/{name}.{extension}",
        "ObjectPrefix": f"sv/{name}/",
    }
    auth = {
        "AccessKeyId": "STS.bench",
        "AccessKeySecret": "bench",
        "SecurityToken": "bench",
        "Expiration": "3000",
    }
    texts = [base64.b64encode(json.dumps(fields).encode()) for fields in (address, auth)]
    return decode_grant(*texts, video_id=f"{number:032x}")


if __name__ == "__main__":
    main()
