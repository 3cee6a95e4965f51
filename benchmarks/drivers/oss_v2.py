"""What both drivers of alibabacloud-oss-v2 share."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.drivers.common import Job

__all__ = ["make_config"]


def make_config(job: Job) -> Any:  # noqa: ANN401
    """Configuration for the sink."""
    v2 = importlib.import_module("alibabacloud_oss_v2")
    config = v2.config.load_default()
    config.credentials_provider = v2.credentials.StaticCredentialsProvider(
        "bench", "bench", "bench"
    )
    config.region = "cn-shanghai"
    config.endpoint = job.endpoint
    config.use_path_style = True
    config.insecure_skip_verify = True
    return config
