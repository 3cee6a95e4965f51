"""oss2.resumable_upload: Alibaba Cloud's older client, with its CRC-64 check."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.drivers.common import Job, measured, upload_all

job = Job.from_argv()
oss2 = importlib.import_module("oss2")
session = oss2.Session(pool_size=max(10, job.connections))  # or it opens new ones all the time
if job.scheme == "https":
    session.session.verify = job.ca_file
auth = oss2.StsAuth("bench", "bench", "bench", auth_version="v4")
bucket = oss2.Bucket(auth, job.endpoint, "bench", session=session, region="cn-shanghai")
store = oss2.ResumableStore(root=job.folder)
given = {"part_size": job.part_size} if job.part_size else {}
if job.connections:
    given["num_threads"] = job.connections


def upload(path: str) -> None:
    """Upload one file."""
    oss2.resumable_upload(bucket, f"oss2-{Path(path).name}", path, store=store, **given)


if job.warm_path:
    upload(job.warm_path)
with measured():
    upload_all(upload, job)
