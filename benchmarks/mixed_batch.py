"""One large file among many small ones: when does the batch end?

    python -m benchmarks.mixed_batch [LARGE_BYTES] [SMALL_COUNT]

A sparse file of LARGE_BYTES (4,000,000,000) and SMALL_COUNT (2,000) files of 100 KB go to
the sink, which takes 20 ms for every answer, through `upload_many` at 16 connections with
the state on disk: the large one alone, the small ones alone, all together; three times in
turn. The large file is last in the list. `--bwlimit` of 300M stands in for a line that
carries both, so that the processor is not what they wait for. Prints seconds (medians) and
the whole against the longer of the two.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.hls_rate import grant_of
from benchmarks.native import Sink, Toolbox
from uploader import TrustPolicy, Uploader, UploadItem, UploadOptions, parse_bandwidth

_ROUNDS = 3
_ANSWER_MS = 20
_SMALL_SIZE = 100_000


def main() -> None:
    """Measure and print."""
    given = [int(word) for word in sys.argv[1:3]]
    large_size, count = [*given, *(4_000_000_000, 2000)[len(given) :]]
    with tempfile.TemporaryDirectory(prefix="vodup-mixed-") as folder:
        large, small = _make_files(Path(folder), large_size, count)
        with Toolbox(Path(folder)).sink() as sink:
            sink.change(latency_ms=_ANSWER_MS)
            found = asyncio.run(_alternate(sink, Path(folder), large, small))
    alone = {name: median(taken) for name, taken in found.items()}
    for name, seconds in alone.items():
        print(f"{name}: {seconds:.1f} s")
    longer = max(alone["large alone"], alone["small alone"])
    print(f"together against the longer of the two: {alone['together'] / longer:.2f}")


def _make_files(folder: Path, large_size: int, count: int) -> tuple[Path, list[Path]]:
    large = folder / "large.mp4"
    with large.open("wb") as file:
        file.truncate(large_size)
    block = os.urandom(_SMALL_SIZE)
    small = [folder / f"{number}.mp4" for number in range(count)]
    for path in small:
        path.write_bytes(block)
    return large, small


async def _alternate(
    sink: Sink, folder: Path, large: Path, small: Sequence[Path]
) -> dict[str, list[float]]:
    sets = {"large alone": [large], "small alone": small, "together": [*small, large]}
    found: dict[str, list[float]] = {name: [] for name in sets}
    options = UploadOptions(
        concurrency=16, oss_region="cn-shanghai", bandwidth=parse_bandwidth("300M")
    )
    trust = TrustPolicy(allow_loopback=True)
    number = 0
    async with Uploader(state=folder / "state.db", options=options, trust=trust) as up:
        for _ in range(_ROUNDS):
            for name, paths in sets.items():
                items = []
                for path in paths:
                    number += 1
                    grant = grant_of(f"http://127.0.0.1:{sink.http_port}", f"m{number}", number)
                    items.append(UploadItem(source=path, grant=grant))
                began = time.perf_counter()
                async for outcome in up.upload_many(items):
                    if outcome.error is not None:
                        raise outcome.error
                found[name].append(time.perf_counter() - began)
    return found


if __name__ == "__main__":
    main()
