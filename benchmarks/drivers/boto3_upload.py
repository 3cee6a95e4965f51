"""boto3 with s3transfer, checksums only where S3 insists: its cheapest way."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.drivers.common import Job, measured, upload_all

job = Job.from_argv()
boto3 = importlib.import_module("boto3")
Config = importlib.import_module("botocore.config").Config
TransferConfig = importlib.import_module("boto3.s3.transfer").TransferConfig
client = boto3.client(
    "s3",
    endpoint_url=job.endpoint,
    region_name="us-east-1",
    aws_access_key_id="bench",
    aws_secret_access_key="bench",
    verify=job.ca_file if job.scheme == "https" else None,
    config=Config(
        s3={"addressing_style": "path", "payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        max_pool_connections=max(10, job.connections),
    ),
)
given = {"multipart_chunksize": job.part_size} if job.part_size else {}
if job.connections:
    given["max_concurrency"] = job.connections


def upload(path: str) -> None:
    """Upload one file."""
    config = TransferConfig(**given)
    client.upload_file(path, "bench", f"boto3-{Path(path).name}", Config=config)


if job.warm_path:
    upload(job.warm_path)
with measured():
    upload_all(upload, job)
