"""alibabacloud-oss-v2's asyncio client; it has no uploader, so parts are sent by hand."""

from __future__ import annotations

import asyncio
import importlib
import os
from pathlib import Path
from typing import Any

from benchmarks.drivers.common import Job, measured
from benchmarks.drivers.oss_v2 import make_config

v2 = importlib.import_module("alibabacloud_oss_v2")
aio = importlib.import_module("alibabacloud_oss_v2.aio")


def _read(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, offset)


async def _upload(client: Any, job: Job, path: str) -> None:  # noqa: ANN401
    part_size, size = (
        job.part_size or 8 * 1024 * 1024,
        await asyncio.to_thread(os.path.getsize, path),
    )
    target = {"bucket": "bench", "key": f"aio-{Path(path).name}"}
    begun = await client.initiate_multipart_upload(v2.InitiateMultipartUploadRequest(**target))
    slots = asyncio.Semaphore(job.connections or 3)

    async def send(number: int) -> Any:  # noqa: ANN401
        async with slots:
            body = await asyncio.to_thread(_read, path, (number - 1) * part_size, part_size)
            request = v2.UploadPartRequest(
                part_number=number, upload_id=begun.upload_id, body=body, **target
            )
            stored = await client.upload_part(request)
            return v2.UploadPart(part_number=number, etag=stored.etag)

    count = max(1, -(-size // part_size))
    async with asyncio.TaskGroup() as parts:
        tasks = [parts.create_task(send(number)) for number in range(1, count + 1)]
    whole = v2.CompleteMultipartUpload(parts=[task.result() for task in tasks])
    await client.complete_multipart_upload(
        v2.CompleteMultipartUploadRequest(
            upload_id=begun.upload_id, complete_multipart_upload=whole, **target
        )
    )


async def _main(job: Job) -> None:
    async with aio.AsyncClient(make_config(job)) as client:
        if job.warm_path:
            await _upload(client, job, job.warm_path)
        with measured():
            for path in job.paths:
                await _upload(client, job, path)


asyncio.run(_main(Job.from_argv()))
