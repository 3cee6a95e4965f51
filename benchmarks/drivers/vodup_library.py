"""vodup as a library, with its state in SQLite and every byte verified."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path

from benchmarks.drivers.common import Job, measured
from uploader import (
    MemoryState,
    StateStore,
    TrustPolicy,
    Uploader,
    UploadGrant,
    UploadOptions,
    decode_grant,
    parse_bandwidth,
)


def _grant(job: Job, number: int) -> UploadGrant:
    address = {
        "Endpoint": job.endpoint,
        "Bucket": "bench",
        "FileName": f"video/library-{number}.mp4",
    }
    auth = {
        "AccessKeyId": "STS.bench",
        "AccessKeySecret": "bench",
        "SecurityToken": "bench",
        "Expiration": "3000",
    }
    texts = [base64.b64encode(json.dumps(fields).encode()) for fields in (address, auth)]
    return decode_grant(*texts, video_id=f"{number:032x}")


def _options(job: Job) -> UploadOptions:
    limit = job.options.get("bwlimit")
    return UploadOptions(
        part_size=job.part_size or None,
        concurrency=job.connections or "auto",
        bandwidth=parse_bandwidth(limit) if limit else None,
        oss_region="cn-shanghai",
        ca_file=Path(job.ca_file) if job.scheme == "https" else None,
    )


def _state(job: Job) -> StateStore | Path:
    if job.options.get("state") == "memory":
        return MemoryState()
    return Path(job.folder, f"state-{os.getpid()}.sqlite3")


async def _upload_all(uploader: Uploader, job: Job) -> None:
    at_once = asyncio.Semaphore(int(job.options.get("files_at_once", "64")))

    async def upload(number: int, path: str) -> None:
        async with at_once:
            result = await uploader.upload(path, grant=_grant(job, number))
            assert result.verified_by == "crc64"

    async with asyncio.TaskGroup() as uploads:
        for number, path in enumerate(job.paths, 1):
            uploads.create_task(upload(number, path))


async def _main(job: Job) -> None:
    trust = TrustPolicy(allow_loopback=True)
    async with Uploader(state=_state(job), options=_options(job), trust=trust) as uploader:
        if job.warm_path:
            await uploader.upload(job.warm_path, grant=_grant(job, 0))
        with measured():
            await _upload_all(uploader, job)


asyncio.run(_main(Job.from_argv()))
