"""alibabacloud-oss-v2's Uploader: Alibaba Cloud's newer client, with its CRC-64 check."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

from benchmarks.drivers.common import Job, measured, upload_all
from benchmarks.drivers.oss_v2 import make_config

warnings.simplefilter("ignore")  # of requests, about a certificate that is not checked
job = Job.from_argv()
v2 = importlib.import_module("alibabacloud_oss_v2")
given = {"part_size": job.part_size} if job.part_size else {}
if job.connections:
    given["parallel_num"] = job.connections
uploader = v2.Client(make_config(job)).uploader(**given)


def upload(path: str) -> None:
    """Upload one file."""
    uploader.upload_file(v2.PutObjectRequest(bucket="bench", key=f"v2-{Path(path).name}"), path)


if job.warm_path:
    upload(job.warm_path)
with measured():
    upload_all(upload, job)
