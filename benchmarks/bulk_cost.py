"""What a batch costs us: CPU and memory a file, and how fast finished rows are passed over.

    python -m benchmarks.bulk_cost [FILES] [ROWS]

FILES (1,000) files of 100 KB go through `Batch` to a development server in a process of its
own, with a VOD call, a PutObject, the state on disk and a ledger each. ROWS (200,000) rows
of a finished manifest are then looked up in their ledger. Figures of CPU are of this
process alone; on a busy machine they grow by half and more, so the time of an empty loop
is printed beside them.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from uploader import TrustPolicy, Uploader, UploadOptions, VodProvider
from uploader.bulk.ledger import Ledger, success_record
from uploader.bulk.manifests import manifest_stream
from uploader.bulk.rows import Root, RowRules
from uploader.bulk.runner import Batch, BatchOptions, read_rows
from uploader.events import UploadResult

_SIZE = 100_000


def main() -> None:
    """Measure and print."""
    given = [int(word) for word in sys.argv[1:3]]
    file_count, row_count = [*given, *(1000, 200_000)[len(given) :]]
    print(f"an empty loop of 10 million turns: {_loop_s():.2f} s of CPU")
    with tempfile.TemporaryDirectory(prefix="vodup-bulk-cost-") as folder:
        _measure_uploads(Path(folder), file_count)
        _measure_skipping(Path(folder), row_count)


def _loop_s() -> float:
    began = time.process_time()
    for _ in range(10_000_000):
        pass
    return time.process_time() - began


def _measure_uploads(folder: Path, count: int) -> None:
    block = os.urandom(_SIZE)
    for number in range(count):
        (folder / f"{number}.mp4").write_bytes(block)
    (folder / "warm.mp4").write_bytes(block)
    paths = "".join(f"{n}.mp4\n" for n in range(count))
    (folder / "files.csv").write_text(f"path\n{paths}")
    command = [sys.executable, "-m", "uploader.devserver"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            os.environ |= json.loads(server.stdout.readline())["env"]
            asyncio.run(_upload(folder, count))
        finally:
            server.terminate()


async def _upload(folder: Path, count: int) -> None:
    provider = VodProvider.from_env(endpoint=os.environ["VODUP_VOD_ENDPOINT"])
    options = UploadOptions(concurrency=16, vod_calls_per_s=5000)
    trust = TrustPolicy(allow_loopback=True)
    seen_mib: list[float] = []
    with Ledger(folder / "report.jsonl") as ledger:
        async with Uploader(
            provider, state=folder / "state" / "state.db", options=options, trust=trust
        ) as uploader:
            await uploader.upload(folder / "warm.mp4")  # imports, connections

            def note(record: object) -> None:
                if batch.progress.ended_count in (count // 10, count - 1):
                    seen_mib.append(_rss_mib())

            batch = Batch(uploader, ledger, BatchOptions(), on_record=note)
            rules = RowRules(root=Root.at(folder), scope=uploader.scope)
            wall_s, cpu_s, loop_s = time.perf_counter(), time.process_time(), time.thread_time()
            await batch.run([(manifest_stream(str(folder / "files.csv"), print), rules)])
            wall_s = time.perf_counter() - wall_s
            cpu_s, loop_s = time.process_time() - cpu_s, time.thread_time() - loop_s
    assert batch.progress.done_count == count, batch.progress.errors
    print(
        f"{count:,} files of {_SIZE:,} bytes: {count / wall_s:.0f} a second, "
        f"{1000 * cpu_s / count:.2f} ms of CPU a file ({1000 * loop_s / count:.2f} in the loop), "
        f"RSS {seen_mib[0]:.1f} MiB after a tenth, {seen_mib[-1]:.1f} at the end"
    )


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _measure_skipping(folder: Path, count: int) -> None:
    manifest, report = folder / "rows.csv", folder / "rows.jsonl"
    with manifest.open("w") as file:
        file.write("path,key,title\n")
        file.writelines(f"video.mp4,{n},Title {n}\n" for n in range(count))
    video = folder / "video.mp4"
    video.write_bytes(b"x")
    stamp = video.stat().st_size, video.stat().st_mtime_ns
    rules = RowRules(root=Root.at(folder), scope="vod.cn-shanghai")
    with report.open("w") as file:
        for raw in manifest_stream(str(manifest), print):
            row = replace(rules.identify(raw, str(manifest)), stamp=stamp)
            record = success_record(row, _result())
            file.write(json.dumps(record) + "\n")
    began_s = time.process_time()
    with Ledger(report) as ledger:
        rows = read_rows([(manifest_stream(str(manifest), print), rules)], ledger)
        assert sum(checked.known.is_done for checked in rows) == count
    seconds = time.process_time() - began_s
    print(f"{count:,} finished rows: {count / seconds:,.0f} passed over in a second of CPU")


def _result() -> UploadResult:
    given: dict[str, Any] = {
        "key": "k",
        "video_id": "0" * 32,
        "upload_id": None,
        "bucket": "outin-0123456789",
        "object_key": "sv/01234567-0123456789a/01234567-0123456789a.mp4",
        "size": _SIZE,
        "crc64": 2**63,
        "etag": "0" * 32,
        "part_count": 1,
        "resumed_part_count": 0,
        "renewal_count": 0,
        "retry_count": 0,
        "sent_bytes": _SIZE,
        "verified_by": "crc64",
        "seconds": 0.1,
    }
    return UploadResult(**given)


if __name__ == "__main__":
    main()
