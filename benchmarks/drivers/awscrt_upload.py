"""awscrt: Amazon's C client for S3."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from benchmarks.drivers.common import Job, measured, upload_all

job = Job.from_argv()
s3 = importlib.import_module("awscrt.s3")
auth = importlib.import_module("awscrt.auth")
http = importlib.import_module("awscrt.http")
io = importlib.import_module("awscrt.io")


def _tls() -> object:
    options = io.TlsContextOptions()
    options.override_default_trust_store_from_path(None, job.ca_file)
    return io.ClientTlsContext(options).new_connection_options()


is_tls = job.scheme == "https"
provider = auth.AwsCredentialsProvider.new_static("bench", "bench")
client = s3.S3Client(
    region="us-east-1",
    tls_mode=s3.S3RequestTlsMode.ENABLED if is_tls else s3.S3RequestTlsMode.DISABLED,
    tls_connection_options=_tls() if is_tls else None,
    signing_config=s3.create_default_s3_signing_config(
        region="us-east-1", credential_provider=provider
    ),
    part_size=job.part_size or None,
    max_active_connections_override=job.connections or None,
)


def upload(path: str) -> None:
    """Upload one file."""
    headers = http.HttpHeaders(
        [("host", f"127.0.0.1:{job.port}"), ("content-length", str(os.path.getsize(path)))]
    )
    request = http.HttpRequest("PUT", f"/bench/awscrt-{Path(path).name}", headers)
    kind = s3.S3RequestType.PUT_OBJECT
    client.make_request(type=kind, request=request, send_filepath=path).finished_future.result()


if job.warm_path:
    upload(job.warm_path)
with measured():
    upload_all(upload, job)
