"""obstore: object_store (Rust) for Python. Verifies nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.drivers.common import Job, measured, upload_all

job = Job.from_argv()
obstore = importlib.import_module("obstore")
S3Store = importlib.import_module("obstore.store").S3Store
store = S3Store(
    "bench",
    endpoint=job.endpoint,
    region="us-east-1",
    access_key_id="bench",
    secret_access_key="bench",
    virtual_hosted_style_request=False,
    unsigned_payload=True,  # else it computes a SHA-256 of every part
    client_options={"allow_http": True, "allow_invalid_certificates": True},
)
given = {"chunk_size": job.part_size} if job.part_size else {}
if job.connections:
    given["max_concurrency"] = job.connections


def upload(path: str) -> None:
    """Upload one file as the library streams files."""
    obstore.put(store, f"obstore-{Path(path).name}", Path(path), **given)


if job.warm_path:
    upload(job.warm_path)
with measured():
    upload_all(upload, job)
